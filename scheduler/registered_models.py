"""Decides, before the rules see an outcome, which model versions it registers, and turns conflicts into failures.

Only for outcomes that the rules will publish: a forged, fenced or doubled one takes no version. The leader is the only
writer, so what is read here still holds when the same transaction writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

from sqlalchemy import Connection

from orchestrator.events import Event, OutcomeReceived
from orchestrator.kernel import REGISTRY_CONFLICT
from orchestrator.records import Outcome
from orchestrator.states import AttemptState
from orchestrator.store.loader import is_uuid
from orchestrator.store.text_safety import storable_json, storable_text

_TENANTS = "SELECT id::text, tenant_id::text FROM attempts WHERE id = ANY(%s::uuid[])"
_KNOWN = """
SELECT m.tenant_id::text, m.name, m.version, m.digest
FROM jsonb_to_recordset(%s::jsonb) AS v(tenant_id uuid, name text)
JOIN models m ON m.tenant_id = v.tenant_id AND m.name = v.name
"""


@dataclass(slots=True)
class Registry:
    """What is registered under the names of one batch, this batch's own registrations included."""

    digests: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    """(tenant, name) → version → digest."""

    def settle(self, tenant_id: str, outcome: Outcome) -> Outcome:
        """Return the outcome with every version decided, or as a failure when one is taken by another digest."""
        records: list[Mapping[str, Any]] = []
        taken: dict[tuple[str, str], dict[str, str]] = {}
        for record in outcome.records:
            if record.get("kind") != "model":
                records.append(record)
                continue
            name, digest = _text(record.get("name")), _text(record.get("digest"))
            versions = taken.setdefault((tenant_id, name), dict(self.digests.get((tenant_id, name), {})))
            version = _text(record.get("version")) or _next_version(versions)
            if versions.setdefault(version, digest) != digest:
                return _refused(outcome, name, version)
            records.append({**record, "name": name, "version": version, "digest": digest})
        # Only now: an outcome that was refused has taken no version.
        self.digests.update(taken)
        return replace(outcome, records=tuple(records), outputs=_with_version(outcome.outputs, records))


def settle_registrations(
    connection: Connection, events: Sequence[Event], would_publish: Callable[[OutcomeReceived], bool]
) -> Iterator[Event]:
    """Yield the events in their order, with the registrations of successful outcomes settled.

    :param would_publish: asked about each outcome after all events before it were decided; one that would not be
        published is left as it is.
    """
    registering = {event.attempt_id for event in events if registers(event)}
    tenants: Mapping[str, str] = {}
    registry = Registry()
    if registering:
        tenants = {row[0]: row[1] for row in connection.exec_driver_sql(_TENANTS, (sorted(registering),))}
        registry = _read(connection, events, tenants)
    for event in events:
        if registers(event) and event.attempt_id in tenants and would_publish(event):
            yield replace(event, outcome=registry.settle(tenants[event.attempt_id], event.outcome))
        else:
            yield event


def registers(event: Event) -> TypeGuard[OutcomeReceived]:
    """Say whether the event is a success that leaves a model to register."""
    return (
        isinstance(event, OutcomeReceived)
        and event.outcome.state is AttemptState.SUCCEEDED
        and any(record.get("kind") == "model" for record in event.outcome.records)
        and is_uuid(event.attempt_id)
    )


def _read(connection: Connection, events: Iterable[Event], tenants: Mapping[str, str]) -> Registry:
    names = {
        (tenants[event.attempt_id], _text(record.get("name")))
        for event in events
        if registers(event) and event.attempt_id in tenants
        for record in event.outcome.records
        if record.get("kind") == "model"
    }
    registry = Registry()
    document = storable_json([{"tenant_id": tenant_id, "name": name} for tenant_id, name in sorted(names)])
    for tenant_id, name, version, digest in connection.exec_driver_sql(_KNOWN, (document,)):
        registry.digests.setdefault((tenant_id, name), {})[version] = digest
    return registry


def _text(value: Any) -> str:
    return "" if value is None else storable_text(str(value))


def _next_version(versions: Mapping[str, str]) -> str:
    numbers = (int(version) for version in versions if version.isascii() and version.isdigit() and len(version) < 10)
    return str(1 + max(numbers, default=0))


def _with_version(outputs: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Fill the version that was decided here into ``outputs["registration"]``."""
    registration = outputs.get("registration")
    if not isinstance(registration, Mapping) or registration.get("version"):
        return outputs
    for record in records:
        if record.get("kind") == "model" and record.get("name") == registration.get("name"):
            return {**outputs, "registration": {**registration, "version": record["version"]}}
    return outputs


def _refused(outcome: Outcome, name: str, version: str) -> Outcome:
    return replace(
        outcome,
        state=AttemptState.FAILED,
        reason=REGISTRY_CONFLICT,
        message=f"Version {version} of the model {name!r} is registered already with another digest; register this "
        "one under another version, or leave the version out to get the next.",
        retryable=False,
        outputs={},
        records=(),
    )
