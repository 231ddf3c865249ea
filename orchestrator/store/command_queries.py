"""Reads of commands: what was asked of the leader, and what it said."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, select

from orchestrator.errors import NotFound
from orchestrator.store.pages import Row
from orchestrator.store.tables import commands

STATES = ("open", "done", "refused")
_LARGEST_ID = 2**63 - 1
_REFUSED = "Refused:"
"""The rules begin so the sentence that closes a command which they did not carry out."""


def shown_columns() -> tuple[ColumnElement[Any], ...]:
    """Return the columns that :func:`with_state` needs and a caller may see."""
    c = commands.c
    return (c.id, c.kind, c.actor, c.run_id, c.task, c.worker_id, c.created_at, c.applied_at, c.result)


def with_state(row: Row) -> Row:
    """Return the row with its ``state``: ``open`` until the leader has applied it, then ``done`` or ``refused``."""
    if row["applied_at"] is None:
        return {**row, "state": "open"}
    return {**row, "state": "refused" if (row["result"] or "").startswith(_REFUSED) else "done"}


def get_command(connection: Connection, tenant_id: str, command_id: int) -> Row:
    """Return one command.

    :raises NotFound: no such command of this tenant.
    """
    c = commands.c
    query = select(*shown_columns()).where(c.tenant_id == tenant_id, c.id == command_id)
    row = connection.execute(query).mappings().first() if command_id <= _LARGEST_ID else None
    if row is None:
        raise NotFound(f"There is no command {command_id}.")
    return with_state(dict(row))
