"""Containers, waits, sub-runs, artifacts, the cache and what is learned of memory (issue 4).

Only columns that are null or have a default, and new tables: the release before this one goes on working on the new
schema. Each table is changed in a transaction of its own, as in 0003; indexes are built without blocking writers, as in
0004.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, UUID

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def _at(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True))


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, server_default="")


def _uuid(name: str) -> sa.Column[str]:
    return sa.Column(name, UUID(as_uuid=False))


def _columns() -> Mapping[str, tuple[sa.Column[Any], ...]]:
    return {
        "pipelines": (sa.Column("paused", sa.Boolean, nullable=False, server_default="false"),),
        "runs": (
            _uuid("parent_run_id"),
            _uuid("parent_task_run_id"),
            sa.Column("depth", sa.Integer, nullable=False, server_default="0"),
            _uuid("rerun_of"),
            _at("deadline_at"),
        ),
        "task_runs": (
            _uuid("parent_id"),
            sa.Column("map_index", sa.Integer),
            _text("map_key"),
            sa.Column("item", JSONB),
            sa.Column("memory", sa.BigInteger),
            _text("queue"),
            _uuid("child_run_id"),
            sa.Column("wait_token", sa.Text),
            _text("cache_key"),
            _uuid("cached_from"),
            sa.Column("cache_detail", JSONB),
            _at("deadline_at"),
        ),
        "attempts": (
            _text("exception"),
            sa.Column("setup_seconds", sa.Float),
            sa.Column("cancel_grace", sa.Float),
        ),
    }


_INDEXES = {
    "ix_runs_parent": ("runs", "parent_run_id", False),
    "ix_task_runs_parent": ("task_runs", "parent_id", False),
    "uq_task_runs_wait_token": ("task_runs", "wait_token", True),
}

_OF_EVENTS = "ix_commands_event_token"


def upgrade() -> None:
    """Add the columns, the indexes and the tables."""
    with op.get_context().autocommit_block():
        for table, columns in _columns().items():
            for column in columns:
                op.add_column(table, column, if_not_exists=True)
        # A concurrent build waits for older transactions and shuts nobody out meanwhile: it may wait for them.
        op.execute("SET lock_timeout = 0")
        try:
            _create_indexes()
        finally:
            op.execute("RESET lock_timeout")
        _create_tables()


def _create_indexes() -> None:
    for name, (table, column, unique) in _INDEXES.items():
        # A build that was broken off leaves an invalid index under the name.
        op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
        where = sa.text(f"{column} IS NOT NULL")
        op.create_index(name, table, [column], unique=unique, postgresql_where=where, postgresql_concurrently=True)
    op.drop_index(_OF_EVENTS, "commands", if_exists=True, postgresql_concurrently=True)
    op.create_index(
        _OF_EVENTS,
        "commands",
        [sa.text("(payload ->> 'token')")],
        postgresql_where=sa.text("kind = 'event'"),
        postgresql_concurrently=True,
    )


def _create_tables() -> None:
    now = sa.text("clock_timestamp()")

    def made_at(name: str = "created_at") -> sa.Column[object]:
        return sa.Column(name, sa.DateTime(timezone=True), nullable=False, server_default=now)

    def tenant() -> sa.Column[str]:
        return sa.Column(
            "tenant_id", UUID(as_uuid=False), sa.ForeignKey("tenants.id", name=None), primary_key=True, nullable=False
        )

    def required(name: str) -> sa.Column[str]:
        return sa.Column(name, UUID(as_uuid=False), nullable=False)

    op.create_table(
        "artifacts",
        tenant(),
        sa.Column("uri", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        _uuid("run_id"),
        sa.Column("task", sa.Text),
        _uuid("attempt_id"),
        made_at(),
        _at("expires_at"),
        _at("deleted_at"),
        _text("deleted_by"),
        if_not_exists=True,
    )
    live = sa.text("deleted_at IS NULL")
    op.create_index("ix_artifacts_expires_at", "artifacts", ["expires_at"], postgresql_where=live, if_not_exists=True)
    op.create_index("ix_artifacts_run", "artifacts", ["run_id"], if_not_exists=True)
    op.create_table(
        "cache_entries",
        tenant(),
        sa.Column("scope", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        required("task_run_id"),
        required("run_id"),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("components", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.Column("outputs", JSONB),
        sa.Column("local_to", sa.Text),
        made_at(),
        _at("expires_at"),
        if_not_exists=True,
    )
    op.create_index(
        "ix_cache_entries_task", "cache_entries", ["tenant_id", "scope", "task", "created_at"], if_not_exists=True
    )
    op.create_table(
        "learned_memory",
        sa.Column("pipeline_id", UUID(as_uuid=False), primary_key=True),
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("memory", sa.BigInteger, nullable=False),
        sa.Column("peak", sa.BigInteger, nullable=False, server_default="0"),
        made_at("updated_at"),
        if_not_exists=True,
    )
    op.create_table(
        "circuits",
        sa.Column("service", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
        _text("reason"),
        _at("open_until"),
        made_at("changed_at"),
        if_not_exists=True,
    )


def downgrade() -> None:
    """Drop what was added; the runs that use it can't be read any more then."""
    with op.get_context().autocommit_block():
        for table in ("circuits", "learned_memory", "cache_entries", "artifacts"):
            op.drop_table(table, if_exists=True)
        op.drop_index(_OF_EVENTS, "commands", if_exists=True, postgresql_concurrently=True)
        for name, (table, _, _) in _INDEXES.items():
            op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
        for table, columns in _columns().items():
            for column in columns:
                op.drop_column(table, column.name, if_exists=True)
