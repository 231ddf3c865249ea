"""The columns the leader may change, and how each is read from a JSON document of changes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from orchestrator.states import Entity

TABLE_OF: Mapping[Entity, str] = {
    Entity.RUN: "runs",
    Entity.TASK_RUN: "task_runs",
    Entity.ATTEMPT: "attempts",
    Entity.WORKER: "workers",
}

_KINDS: Mapping[str, str] = {
    "text": "({c}->>'{name}')",
    "uuid": "({c}->>'{name}')::uuid",
    "int": "({c}->>'{name}')::int",
    "bigint": "({c}->>'{name}')::bigint",
    "float": "({c}->>'{name}')::float8",
    "bool": "({c}->>'{name}')::boolean",
    "json": "NULLIF({c}->'{name}', 'null'::jsonb)",
    "texts": "ARRAY(SELECT jsonb_array_elements_text({c}->'{name}'))",
    # Delays arrive in seconds from now and are stored on the database's clock (I14).
    "time": "clock_timestamp() + ({c}->>'{name}')::float8 * interval '1 second'",
}

_TEXTS = {"reason": "text", "message": "text"}

COLUMNS: Mapping[Entity, Mapping[str, str]] = {
    Entity.RUN: {
        **_TEXTS,
        "priority": "int",
        "generation": "int",
        "runs_below": "int",
        "paused_with_parent": "bool",
        "deadline_at": "time",
        "started_at": "time",
        "ended_at": "time",
    },
    Entity.TASK_RUN: {
        **_TEXTS,
        "generation": "int",
        "attempts": "int",
        "failures": "int",
        "losses": "int",
        "attempt_id": "uuid",
        "retry_at": "time",
        "outputs": "json",
        "local_to": "text",
        "memory": "bigint",
        "queue": "text",
        "child_run_id": "uuid",
        "wait_token": "text",
        "cache_key": "text",
        "map_key": "text",
        "item": "json",
        "cached_from": "uuid",
        "cache_detail": "json",
        "resumed": "bool",
        "awaits_turn": "bool",
        "superseded": "bool",
        "deadline_at": "time",
        "ready_at": "time",
        "queued_at": "time",
        "started_at": "time",
        "ended_at": "time",
    },
    Entity.ATTEMPT: {
        **_TEXTS,
        "nonce": "text",
        "direct": "bool",
        "seq": "int",
        "host_id": "text",
        "worker_id": "text",
        "devices": "texts",
        "cancel": "bool",
        "cancel_grace": "float",
        "keeper_id": "text",
        "orphaned_at": "time",
        "exit_code": "int",
        "exception": "text",
        "setup_seconds": "float",
        "peak_memory": "bigint",
        "cpu_seconds": "float",
        "wall_seconds": "float",
        "gpu_memory_used": "bigint",
        "hinted_at": "time",
        "granted_at": "time",
        "deadline_at": "time",
        "ended_at": "time",
    },
    Entity.WORKER: {
        "reason": "text",
        "draining": "bool",
        "drain_until": "time",
        "ended_at": "time",
        "seen_at": "time",
    },
}
"""Per entity, the columns besides ``state`` that an effect may change."""

NEW_ATTEMPT: Mapping[str, str] = {
    **COLUMNS[Entity.ATTEMPT],
    "id": "uuid",
    "tenant_id": "uuid",
    "run_id": "uuid",
    "task_run_id": "uuid",
    "number": "int",
    "state": "text",
    "token": "text",
    "queue": "text",
    "cpu": "int",
    "memory": "bigint",
    "gpus": "int",
    "gpu_memory": "bigint",
    "rate_key": "text",
    "rate_units": "int",
    "rate_per": "float",
    "rate_until": "time",
}

NEW_TASK: Mapping[str, str] = {
    **COLUMNS[Entity.TASK_RUN],
    "id": "uuid",
    "tenant_id": "uuid",
    "run_id": "uuid",
    "name": "text",
    "position": "int",
    "operator": "text",
    "state": "text",
    "parent_id": "uuid",
    "map_index": "int",
}

NEW_TASK_DEFAULTS: Mapping[str, Any] = {
    **dict.fromkeys(("reason", "message", "map_key", "queue", "cache_key"), ""),
    **dict.fromkeys(("attempts", "failures", "losses"), 0),
    "generation": 1,
    **dict.fromkeys(("resumed", "awaits_turn", "superseded"), False),
}
"""What a new task run has in a column that others of the batch say something else of."""

DELAYS = frozenset(name for kinds in (*COLUMNS.values(), NEW_ATTEMPT) for name, kind in kinds.items() if kind == "time")


@lru_cache(maxsize=512)
def update_statement(entity: Entity, always: frozenset[str], sometimes: frozenset[str]) -> str:
    """Return the UPDATE of many rows at once from one JSON parameter ``[{id, before, after, token, c}]``.

    ``always`` are columns that every row of the batch changes; a row that lacks one of ``sometimes`` keeps its value.
    """
    kinds = COLUMNS[entity]
    id_type = "text" if entity is Entity.WORKER else "uuid"
    sets = ["state = COALESCE(v.after, t.state)"]
    sets += [f"{name} = {_expression(name, kinds[name], 'v.c')}" for name in sorted(always)]
    sets += [
        f"{name} = CASE WHEN v.c ? '{name}' THEN {_expression(name, kinds[name], 'v.c')} ELSE t.{name} END"
        for name in sorted(sometimes)
    ]
    token = "AND (v.token IS NULL OR t.token = v.token)" if entity is Entity.ATTEMPT else ""
    return (
        f"UPDATE {TABLE_OF[entity]} AS t SET {', '.join(sets)} "  # noqa: S608 — only names from the tables above
        f"FROM jsonb_to_recordset(%s::jsonb) AS v(id {id_type}, before text, after text, token text, c jsonb) "
        f"WHERE t.id = v.id AND (v.before IS NULL OR t.state = v.before) {token}"
    )


@lru_cache(maxsize=64)
def insert_attempts_statement(names: frozenset[str]) -> str:
    """Return the INSERT of many attempts from one JSON parameter, an array of documents."""
    return _insert_statement("attempts", NEW_ATTEMPT, names)


@lru_cache(maxsize=64)
def insert_tasks_statement(names: frozenset[str]) -> str:
    """Return the INSERT of many task runs, likewise; a row whose id or name is there already is passed over."""
    return f"{_insert_statement('task_runs', NEW_TASK, names)} ON CONFLICT DO NOTHING"


def _insert_statement(table: str, kinds: Mapping[str, str], names: frozenset[str]) -> str:
    ordered = sorted(names)
    values = ", ".join(_expression(name, kinds[name], "c") for name in ordered)
    names_only = ", ".join(ordered)
    return (
        f"INSERT INTO {table} ({names_only}) SELECT {values} "  # noqa: S608 — only names from the tables above
        "FROM jsonb_array_elements(%s::jsonb) AS a(c)"
    )


def _expression(name: str, kind: str, document: str) -> str:
    return _KINDS[kind].format(c=document, name=name)
