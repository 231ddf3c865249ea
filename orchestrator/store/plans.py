"""Compiled plans of pinned versions. Versions are immutable, so a plan is read and parsed once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Set as AbstractSet

from sqlalchemy import Connection, text

from orchestrator.logs import get_logger
from orchestrator.plan_json import plan_from_json
from orchestrator.records import Plan

log = get_logger(__name__)

_PLANS = text("SELECT id, plan FROM pipeline_versions WHERE id = ANY(CAST(:ids AS uuid[]))")


class PlanCache:
    """The most recently used plans, by version id."""

    def __init__(self, limit: int = 256) -> None:
        self._limit = limit
        self._plans: OrderedDict[str, Plan] = OrderedDict()

    def get(
        self, connection: Connection, version_ids: AbstractSet[str], *, leave_out_unreadable: bool = False
    ) -> dict[str, Plan]:
        """Return the plans of these versions, reading those that are not held.

        :param leave_out_unreadable: plans of a newer release are left out with a warning.
        :raises ValueError: a plan of a newer release.
        """
        missing = [id_ for id_ in version_ids if id_ not in self._plans]
        found = {id_: self._plans[id_] for id_ in version_ids if id_ in self._plans}
        if missing:
            for row in connection.execute(_PLANS, {"ids": missing}):
                try:
                    found[row.id] = plan_from_json(row.plan)
                except ValueError as error:
                    if not leave_out_unreadable:
                        raise
                    log.warning("plan_unreadable", version_id=row.id, why=str(error))
        for id_, plan in found.items():
            self._plans[id_] = plan
            self._plans.move_to_end(id_)
        while len(self._plans) > self._limit:
            self._plans.popitem(last=False)
        return found
