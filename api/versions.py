"""Stored versions as runs use them, kept in memory: a version never changes, and every look at a run needs its plan."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from orchestrator.errors import Conflict
from orchestrator.logs import get_logger
from orchestrator.plan_json import plan_from_json
from orchestrator.records import Plan, PlannedTask
from orchestrator.store.definitions import read_version
from orchestrator.store.run_requests import NewTask

log = get_logger(__name__)

_MOST_VERSIONS = 500


@dataclass(frozen=True, slots=True)
class RunVersion:
    """What a run takes from the version it pins."""

    plan: Plan
    parameters: Mapping[str, Any]
    """The definition's defaults of run parameters."""
    priority: int
    planned: Mapping[str, PlannedTask]
    """The run's own tasks by name."""

    @property
    def tasks(self) -> list[NewTask]:
        """Return the task runs that a run of it begins with, in the plan's order."""
        return [NewTask(task.name, task.operator) for task in self.plan.tasks]


class VersionShelf:
    """The versions used last; safe for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._versions: OrderedDict[tuple[str, str], RunVersion] = OrderedDict()

    def get(self, connection: Connection, tenant_id: str, version_id: str) -> RunVersion:
        """Return the version, read once.

        :raises NotFound: no such version of this tenant.
        :raises Conflict: what is stored of it can't be read by this release.
        """
        found = self.find(connection, tenant_id, version_id)
        if isinstance(found, str):
            raise Conflict(f"{found} Save the pipeline anew, or use a newer version of it.")
        return found

    def find(self, connection: Connection, tenant_id: str, version_id: str) -> RunVersion | str:
        """Return the version, read once; or why what is stored of it can't be read, as a sentence.

        :raises NotFound: no such version of this tenant.
        """
        key = (tenant_id, version_id)
        with self._lock:
            if key in self._versions:
                self._versions.move_to_end(key)
                return self._versions[key]
        row = read_version(connection, tenant_id, version_id)
        try:
            version = _version_of(row)
        except (ValueError, AttributeError) as error:
            # Of another release, or not written by us: what hangs on it must not stop everything else.
            log.warning("plan_unreadable", version_id=version_id, why=str(error))
            return f"The plan of version {row['version']} of {row['pipeline']!r} can't be read: {error}"
        with self._lock:
            self._versions[key] = version
            if len(self._versions) > _MOST_VERSIONS:
                self._versions.popitem(last=False)
        return version


def _version_of(row: Mapping[str, Any]) -> RunVersion:
    plan = plan_from_json(row["plan"])
    return RunVersion(
        plan=plan,
        parameters=row["definition"].get("parameters", {}),
        priority=int(row["definition"].get("priority", 0)),
        planned={task.name: task for task in plan.tasks},
    )
