"""Compiled plans of pinned versions. Versions are immutable, so a plan is read and parsed once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from sqlalchemy import Connection, text

from orchestrator.logs import get_logger
from orchestrator.plan_json import plan_from_json
from orchestrator.records import Plan

log = get_logger(__name__)

_PLANS = text("SELECT id, plan FROM pipeline_versions WHERE id = ANY(CAST(:ids AS uuid[]))")


@dataclass(frozen=True, slots=True)
class Plans:
    """What :meth:`PlanCache.get` found, by version id."""

    readable: Mapping[str, Plan]
    unreadable: Mapping[str, str]
    """Sentences about plans that this release does not know how to read."""


class PlanCache:
    """The most recently used plans, by version id."""

    def __init__(self, limit: int = 256) -> None:
        self._limit = limit
        self._plans: OrderedDict[str, Plan] = OrderedDict()

    def get(self, connection: Connection, version_ids: AbstractSet[str]) -> Plans:
        """Return the plans of these versions, reading those that are not held."""
        missing = [id_ for id_ in version_ids if id_ not in self._plans]
        found = {id_: self._plans[id_] for id_ in version_ids if id_ in self._plans}
        unreadable: dict[str, str] = {}
        if missing:
            for row in connection.execute(_PLANS, {"ids": missing}):
                try:
                    found[row.id] = plan_from_json(row.plan)
                except ValueError as error:
                    # Whatever another release has stored: it must not stop this one.
                    unreadable[row.id] = str(error)
                    log.warning("plan_unreadable", version_id=row.id, why=str(error))
        for id_, plan in found.items():
            self._plans[id_] = plan
            self._plans.move_to_end(id_)
        while len(self._plans) > self._limit:
            self._plans.popitem(last=False)
        return Plans(found, unreadable)
