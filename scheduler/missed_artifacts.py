"""Says in an outcome which rule has removed the artifact that the attempt looked for in vain: its worker can't know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection

from orchestrator.artifacts.recorded import MISSING
from orchestrator.events import Event, OutcomeReceived
from orchestrator.states import AttemptState
from orchestrator.store.artifact_queries import Named, artifact_removals
from orchestrator.store.loader import is_uuid

_TENANTS = "SELECT id::text, tenant_id::text FROM attempts WHERE id = ANY(%s::uuid[])"
_MOST = 10
"""Artifacts of one outcome that are looked up."""


def tell_removals(connection: Connection, events: Sequence[Event]) -> list[Event]:
    """Return the events in their order; of those that miss an artifact the message names the rule that removed it."""
    missed = {event.attempt_id: uris for event in events if isinstance(event, OutcomeReceived) and (uris := _of(event))}
    if not missed:
        return list(events)
    tenants: dict[str, str] = {row[0]: row[1] for row in connection.exec_driver_sql(_TENANTS, (sorted(missed),))}
    named: list[Named] = [(tenants[id_], uri) for id_, uris in missed.items() if id_ in tenants for uri in uris]
    removals = artifact_removals(connection, named)
    told: list[Event] = []
    for event in events:
        if isinstance(event, OutcomeReceived) and event.attempt_id in tenants and removals:
            by_tenant = [(tenants[event.attempt_id], uri) for uri in _of(event)]
            sentences = [removals[one] for one in by_tenant if one in removals]
            message = " ".join([event.outcome.message, *sentences])
            event = replace(event, outcome=replace(event.outcome, message=message))  # noqa: PLW2901
        told.append(event)
    return told


def _of(event: OutcomeReceived) -> list[str]:
    """Return the artifacts that a failed attempt has missed."""
    if event.outcome.state is not AttemptState.FAILED or not is_uuid(event.attempt_id):
        return []
    named = [record.get("uri") for record in event.outcome.records if record.get("kind") == MISSING]
    return [uri for uri in named if isinstance(uri, str)][:_MOST]
