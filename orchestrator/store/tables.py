"""The tables: PostgreSQL is the truth. Every tenant's row carries ``tenant_id``; ids are random UUIDs.

Written by two hands only: the API inserts definitions, runs in their first state and commands; the leading scheduler
changes everything else, in transactions that hold the lease row at its epoch (DESIGN §1, §4).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _id(name: str = "id", **options: object) -> Column[str]:
    return Column(name, UUID(as_uuid=False), **options)  # type: ignore[arg-type]


def _at(name: str, *, now: bool = False) -> Column[object]:
    return Column(
        name, DateTime(timezone=True), nullable=not now, server_default=text("clock_timestamp()") if now else None
    )


def _json(name: str, default: str = "{}") -> Column[object]:
    return Column(name, JSONB, nullable=False, server_default=text(f"'{default}'::jsonb"))


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False, server_default="")


def _int(name: str, default: int = 0) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default=str(default))


tenants = Table(
    "tenants",
    metadata,
    _id(primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    _at("created_at", now=True),
)

api_keys = Table(
    "api_keys",
    metadata,
    _id(primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("prefix", Text, nullable=False, unique=True),
    Column("digest", LargeBinary, nullable=False),
    _at("created_at", now=True),
    _at("expires_at"),
    _at("revoked_at"),
    CheckConstraint("role IN ('viewer', 'operator', 'author', 'admin')", name="role"),
)

pipelines = Table(
    "pipelines",
    metadata,
    _id(primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("seq", BigInteger, Identity(always=True), nullable=False, unique=True),
    Column("name", Text, nullable=False),
    _text("description"),
    _text("owner"),
    _id("version_id", nullable=True),
    _int("version", 1),
    Column("paused", Boolean, nullable=False, server_default="false"),
    _at("created_at", now=True),
    _at("updated_at", now=True),
    _at("deleted_at"),
    UniqueConstraint("tenant_id", "id"),
    Index("uq_pipelines_live_name", "tenant_id", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
)

pipeline_versions = Table(
    "pipeline_versions",
    metadata,
    _id(primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    _id("pipeline_id", nullable=False),
    Column("version", Integer, nullable=False),
    Column("content_hash", Text, nullable=False),
    _json("definition"),
    _json("plan"),
    _text("created_by"),
    _at("created_at", now=True),
    UniqueConstraint("pipeline_id", "version"),
    UniqueConstraint("tenant_id", "id"),
    ForeignKeyConstraint(["tenant_id", "pipeline_id"], ["pipelines.tenant_id", "pipelines.id"]),
    Index("ix_pipeline_versions_content", "pipeline_id", "content_hash"),
)
"""Immutable: a save of the same content that compiles to the same plan finds its row by hash."""

runs = Table(
    "runs",
    metadata,
    _id(primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("seq", BigInteger, Identity(always=True), nullable=False, unique=True),
    _id("pipeline_id", nullable=False),
    _id("version_id", nullable=False),
    Column("state", Text, nullable=False),
    _text("reason"),
    _text("message"),
    _json("parameters"),
    _text("triggered_by"),
    Column("trigger", Text, nullable=False, server_default="api"),
    _int("priority"),
    _int("generation", 1),
    _id("parent_run_id", nullable=True),
    _id("parent_task_run_id", nullable=True),
    _int("depth"),
    _int("runs_below"),
    Column("paused_with_parent", Boolean, nullable=False, server_default="false"),
    _id("rerun_of", nullable=True),
    _at("deadline_at"),
    _at("created_at", now=True),
    _at("started_at"),
    _at("ended_at"),
    UniqueConstraint("tenant_id", "id"),
    ForeignKeyConstraint(["tenant_id", "pipeline_id"], ["pipelines.tenant_id", "pipelines.id"]),
    ForeignKeyConstraint(["tenant_id", "version_id"], ["pipeline_versions.tenant_id", "pipeline_versions.id"]),
    Index("ix_runs_tenant_seq", "tenant_id", "seq"),
    Index("ix_runs_pipeline_seq", "pipeline_id", "seq"),
    Index("ix_runs_queued", "priority", "seq", postgresql_where=text("state = 'queued'")),
    Index(
        "ix_runs_unfinished",
        "tenant_id",
        postgresql_where=text("state IN ('scheduled', 'queued', 'running', 'paused', 'cancelling')"),
    ),
    Index("ix_runs_live", "state", postgresql_where=text("state IN ('running', 'paused', 'cancelling')")),
    Index("ix_runs_parent", "parent_run_id", postgresql_where=text("parent_run_id IS NOT NULL")),
    Index("ix_runs_rerun_of", "rerun_of", postgresql_where=text("rerun_of IS NOT NULL")),
)

task_runs = Table(
    "task_runs",
    metadata,
    _id(primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    _id("run_id", nullable=False),
    Column("name", Text, nullable=False),
    Column("position", Integer, nullable=False),
    Column("operator", Text, nullable=False),
    Column("state", Text, nullable=False, server_default="pending"),
    _text("reason"),
    _text("message"),
    _int("generation", 1),
    _int("attempts"),
    _int("failures"),
    _int("losses"),
    _id("attempt_id", nullable=True),
    _at("retry_at"),
    Column("outputs", JSONB),
    Column("local_to", Text),
    _id("parent_id", nullable=True),
    Column("map_index", Integer),
    _text("map_key"),
    Column("item", JSONB),
    Column("memory", BigInteger),
    _text("queue"),
    _id("child_run_id", nullable=True),
    Column("wait_token", Text),
    _text("cache_key"),
    _id("cached_from", nullable=True),
    Column("cache_detail", JSONB),
    Column("resumed", Boolean, nullable=False, server_default="false"),
    Column("awaits_turn", Boolean, nullable=False, server_default="false"),
    Column("superseded", Boolean, nullable=False, server_default="false"),
    _at("deadline_at"),
    _at("ready_at"),
    _at("queued_at"),
    _at("started_at"),
    _at("ended_at"),
    UniqueConstraint("run_id", "name"),
    UniqueConstraint("tenant_id", "id"),
    ForeignKeyConstraint(["tenant_id", "run_id"], ["runs.tenant_id", "runs.id"], ondelete="CASCADE"),
    Index("ix_task_runs_parent", "parent_id", postgresql_where=text("parent_id IS NOT NULL")),
    Index("uq_task_runs_wait_token", "wait_token", unique=True, postgresql_where=text("wait_token IS NOT NULL")),
)
"""``position`` is the task's place in the topological order of its plan, or of its container's body; ``outputs`` is
what the committed outcome publishes. ``memory`` and ``queue``: what its next attempt asks for instead of what is
planned. ``resumed``: of a container that waits to run again, whether it goes on with what it has expanded into.
``awaits_turn``: of those that come first in an index, whether that has no place under ``max_parallel`` yet.
``superseded``: its container was expanded anew without it; it counts no more."""

attempts = Table(
    "attempts",
    metadata,
    _id(primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    _id("run_id", nullable=False),
    _id("task_run_id", nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", Text, nullable=False),
    _text("reason"),
    _text("message"),
    Column("token", Text, nullable=False, unique=True),
    _text("nonce"),
    Column("queue", Text, nullable=False),
    Column("direct", Boolean, nullable=False, server_default="false"),
    _int("seq", 1),
    Column("host_id", Text, nullable=False),
    Column("worker_id", Text, nullable=False),
    Column("cpu", Integer, nullable=False),
    Column("memory", BigInteger, nullable=False),
    Column("gpus", Integer, nullable=False),
    Column("gpu_memory", BigInteger, nullable=False, server_default="0"),
    Column("devices", ARRAY(Text), nullable=False, server_default="{}"),
    Column("cancel", Boolean, nullable=False, server_default="false"),
    Column("cancel_grace", Float),
    _text("keeper_id"),
    _at("orphaned_at"),
    Column("exit_code", Integer),
    _text("exception"),
    Column("setup_seconds", Float),
    Column("peak_memory", BigInteger),
    Column("cpu_seconds", Float),
    Column("wall_seconds", Float),
    Column("gpu_memory_used", BigInteger),
    _at("created_at", now=True),
    _at("hinted_at"),
    _at("granted_at"),
    _at("deadline_at"),
    _at("ended_at"),
    Column("rate_key", Text),
    Column("rate_units", Integer),
    Column("rate_per", Float),
    _at("rate_until"),
    ForeignKeyConstraint(["tenant_id", "run_id"], ["runs.tenant_id", "runs.id"], ondelete="CASCADE"),
    ForeignKeyConstraint(["tenant_id", "task_run_id"], ["task_runs.tenant_id", "task_runs.id"], ondelete="CASCADE"),
    UniqueConstraint("task_run_id", "number"),
    Index(
        "uq_attempts_one_live", "task_run_id", unique=True, postgresql_where=text("state IN ('dispatched', 'running')")
    ),
    Index("ix_attempts_live", "state", postgresql_where=text("state IN ('dispatched', 'running')")),
    Index("ix_attempts_run", "run_id"),
    Index("ix_attempts_rate", "rate_until", postgresql_where=text("rate_until IS NOT NULL")),
)
"""``uq_attempts_one_live`` is I2 as a constraint: a task run never has two attempts that may still report. ``rate_…``:
until when it counts as a dispatch, and against what."""

reservations = Table(
    "reservations",
    metadata,
    _id("attempt_id", primary_key=True),
    Column("host_id", Text, nullable=False),
    Column("worker_id", Text, nullable=False),
    Column("cpu", Integer, nullable=False),
    Column("memory", BigInteger, nullable=False),
    Column("gpus", Integer, nullable=False),
    Column("gpu_memory", BigInteger, nullable=False, server_default="0"),
    Column("devices", ARRAY(Text), nullable=False, server_default="{}"),
    Column("zombie", Boolean, nullable=False, server_default="false"),
    _at("created_at", now=True),
)
"""What is held on every host; outlives its attempt while the host has not confirmed that the tree is dead."""

hosts = Table(
    "hosts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("hostname", Text, nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("cpu", Integer, nullable=False),
    Column("memory", BigInteger, nullable=False),
    _json("gpus", "[]"),
    _json("labels"),
    _at("updated_at", now=True),
)

workers = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host_id", ForeignKey("hosts.id"), nullable=False),
    Column("seq", BigInteger, Identity(always=True), nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False),
    _text("reason"),
    Column("queues", ARRAY(Text), nullable=False),
    Column("slots", Integer, nullable=False),
    _text("boot_id"),
    _json("labels"),
    _text("version"),
    _text("environment"),
    _text("store_scope"),
    Column("draining", Boolean, nullable=False, server_default="false"),
    _at("drain_until"),
    Column("heartbeat_seq", BigInteger, nullable=False, server_default="0"),
    _at("started_at", now=True),
    _at("seen_at"),
    _at("ended_at"),
)
"""One row per incarnation; never reused."""

commands = Table(
    "commands",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("actor", Text, nullable=False),
    _id("run_id", nullable=True),
    Column("task", Text),
    Column("worker_id", Text),
    _json("payload"),
    _at("created_at", now=True),
    _at("applied_at"),
    Column("result", Text),
    Index("ix_commands_open", "id", postgresql_where=text("applied_at IS NULL")),
    Index("ix_commands_event_token", text("(payload ->> 'token')"), postgresql_where=text("kind = 'event'")),
)
"""Append-only requests of the API, applied by the leader in its own transactions."""

events = Table(
    "events",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _id("tenant_id", nullable=True),
    _id("run_id", nullable=True),
    Column("task", Text),
    Column("entity", Text, nullable=False),
    Column("entity_id", Text, nullable=False),
    Column("before", Text),
    Column("after", Text, nullable=False),
    _text("reason"),
    _text("message"),
    Column("cause", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("token", Text),
    Column("detail", JSONB),
    Column("epoch", BigInteger, nullable=False),
    _at("at", now=True),
    Index("ix_events_run", "run_id", "id"),
)
"""The audit of transitions; a trigger refuses UPDATE and DELETE."""

refusals = Table(
    "refusals",
    metadata,
    Column("what", Text, primary_key=True),
    Column("count", BigInteger, nullable=False, server_default="0"),
    _at("last_at", now=True),
    _text("last_detail"),
)
"""Counters of what was refused: denied, fenced, unknown, refused transitions, forged messages (I19)."""

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("tenant_id", ForeignKey("tenants.id"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request_hash", Text, nullable=False),
    _id("run_id", nullable=False),
    _at("created_at", now=True),
    Index("ix_idempotency_keys_created_at", "created_at"),
)

leases = Table(
    "leases",
    metadata,
    Column("role", Text, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("holder", Text, nullable=False),
    _at("expires_at", now=True),
    _at("acquired_at", now=True),
    _at("renewed_at", now=True),
    UniqueConstraint("role", "epoch"),
)
"""The epoch is part of a unique key, so changing it conflicts with ``FOR KEY SHARE`` while renewing does not."""

models = Table(
    "models",
    metadata,
    _id(primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("seq", BigInteger, Identity(always=True), nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("stage", Text, nullable=False, server_default="none"),
    _text("description"),
    _json("tags", "[]"),
    _json("metrics"),
    _json("lineage"),
    Column("digest", Text, nullable=False),
    Column("uri", Text, nullable=False),
    _id("run_id", nullable=True),
    Column("task", Text),
    _at("created_at", now=True),
    UniqueConstraint("tenant_id", "name", "version"),
    Index("ix_models_uri", "tenant_id", "uri"),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("tenant_id", ForeignKey("tenants.id"), primary_key=True),
    Column("uri", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    _id("run_id", nullable=True),
    Column("task", Text),
    _id("attempt_id", nullable=True),
    _at("created_at", now=True),
    _at("expires_at"),
    _at("deleted_at"),
    _text("deleted_by"),
    Index("ix_artifacts_own_time", "expires_at", "uri", postgresql_where=text("deleted_at IS NULL")),
    Index(
        "ix_artifacts_age",
        "created_at",
        "uri",
        postgresql_where=text("deleted_at IS NULL AND expires_at IS NULL"),
    ),
    Index("ix_artifacts_run", "run_id"),
)
"""What tasks left in the artifact store; the row outlives the object and names the rule that removed it."""

cache_entries = Table(
    "cache_entries",
    metadata,
    Column("tenant_id", ForeignKey("tenants.id"), primary_key=True),
    Column("scope", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("environment", Text, primary_key=True, server_default=""),
    _id("task_run_id", nullable=False),
    _id("run_id", nullable=False),
    Column("task", Text, nullable=False),
    _json("components"),
    Column("outputs", JSONB),
    Column("local_to", Text),
    _at("created_at", now=True),
    _at("expires_at"),
    Column("artifacts", ARRAY(Text), nullable=False, server_default="{}"),
    _at("used_at", now=True),
    Index("ix_cache_entries_task", "tenant_id", "scope", "task", "created_at"),
    # With a list of entries that are still to be put into it, a look-up costs more than reading the whole table.
    Index("ix_cache_entries_artifacts", "artifacts", postgresql_using="gin", postgresql_with={"fastupdate": "off"}),
    Index("ix_cache_entries_over", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
)
"""``scope`` is the pipeline's id, or empty for the tenant's own; ``components`` are the digests of what the key is
made of, so that a miss can be told; ``environment`` is that of the worker that has left the outputs, empty where it did
not say; ``artifacts`` are those that the outputs name."""

learned_memory = Table(
    "learned_memory",
    metadata,
    _id("pipeline_id", primary_key=True),
    Column("task", Text, primary_key=True),
    Column("memory", BigInteger, nullable=False),
    Column("peak", BigInteger, nullable=False, server_default="0"),
    _at("updated_at", now=True),
)
"""What a task with ``memory_gb: "auto"`` asks for first."""

circuits = Table(
    "circuits",
    metadata,
    Column("service", Text, primary_key=True),
    Column("state", Text, nullable=False),
    _int("failures"),
    _text("reason"),
    _at("open_until"),
    _at("changed_at", now=True),
)
"""External services as their tasks see them; those never in trouble have no row."""
