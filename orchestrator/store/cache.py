"""The cache in the rows: what equal task runs have left, and what made it a miss.

In the leader's transaction, after what was decided so far is written. What is looked for is kept in ``cache_detail`` of
the task run; the writer makes an entry of it when the task run has succeeded (``store.leavings``).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection

from orchestrator.artifacts.port import is_artifact
from orchestrator.cache_files import FoundFiles, WantedFiles, component_of, wanted_files
from orchestrator.cache_key import components_of, contents_in, difference, key_of
from orchestrator.documents import all_texts
from orchestrator.errors import ForbiddenPath, OrchestratorError, TemplateError, TooLarge
from orchestrator.events import CacheAnswered
from orchestrator.records import CachePlan, Plan
from orchestrator.store.artifact_queries import artifact_fates
from orchestrator.store.beside_rows import planned_name
from orchestrator.store.places import Asked
from orchestrator.store.plans import PlanCache
from orchestrator.store.sight import Sight, look_around
from orchestrator.store.text_safety import storable_json

MOST_AT_ONCE = 500
"""Questions answered in one transaction: each is one resolution of parameters."""
MOST_SECONDS = 0.5
"""In which keys are worked out for one answer; what is left then is asked again. Nobody is heard meanwhile."""
NESTED_TOO_DEEP = "What it hangs on is nested too deep to be compared; flatten it, or give the cache a key."
_NAMED = 3
_COMPARED = 20
"""Entries of a task that a miss is compared with, the newest: the nearest of them is told."""
_MOST_COMPARED = 500
"""Of all questions together, in one transaction."""

_FOUND = """
SELECT v.n, e.task_run_id::text, e.run_id::text, e.outputs, e.local_to,
       e.expires_at <= clock_timestamp() AS is_old,
       e.local_to IS NULL OR EXISTS (SELECT 1 FROM workers w WHERE w.host_id = e.local_to
           AND w.state IN ('online', 'suspect', 'draining')) AS is_there,
       e.is_from_elsewhere, e.environment, e.used_at <= clock_timestamp() - interval '1 minute' AS is_idle
FROM jsonb_to_recordset(%s::jsonb) AS v(n int, tenant_id uuid, scope text, key text, queue text)
LEFT JOIN (SELECT queue, array_agg(DISTINCT environment) AS environments FROM workers, unnest(queues) AS queue
    WHERE state IN ('online', 'suspect', 'draining') AND environment <> '' GROUP BY queue) l ON l.queue = v.queue,
LATERAL (SELECT c.*, c.environment <> '' AND COALESCE(cardinality(l.environments), 0) > 0
        AND c.environment <> ALL(l.environments) AS is_from_elsewhere FROM cache_entries c
    WHERE c.tenant_id = v.tenant_id AND c.scope = v.scope AND c.key = v.key
    ORDER BY is_from_elsewhere, c.created_at DESC LIMIT %s) e
ORDER BY v.n, e.is_from_elsewhere, e.created_at DESC
"""
"""For which worker a task will go to is known later only, all environments are looked at, those of its queue first.
Outputs that no worker there would make alike are not taken."""
_ENVIRONMENTS = 3
"""Entries of one key that are looked at."""
_LATELY = """
SELECT v.n, e.run_id::text, e.components FROM jsonb_to_recordset(%s::jsonb) AS v(n int, tenant_id uuid, scope text,
    task text), LATERAL (SELECT run_id, components, created_at FROM cache_entries c WHERE c.tenant_id = v.tenant_id
    AND c.scope = v.scope AND c.task = v.task ORDER BY created_at DESC LIMIT %s) e
ORDER BY v.n, e.created_at DESC
"""
_USED = """
UPDATE cache_entries e SET used_at = clock_timestamp()
FROM jsonb_to_recordset(%s::jsonb) AS v(n int, tenant_id uuid, scope text, key text, environment text)
WHERE (e.tenant_id, e.scope, e.key, e.environment) = (v.tenant_id, v.scope, v.key, v.environment)
RETURNING v.n
"""
_CONTENTS = """
SELECT v.tenant_id::text, a.uri, a.digest FROM jsonb_to_recordset(%s::jsonb) AS v(tenant_id uuid, uri text)
JOIN artifacts a ON a.tenant_id = v.tenant_id AND a.uri = v.uri WHERE a.digest <> ''
"""
_DETAILS = """
UPDATE task_runs AS t SET cache_detail = v.detail FROM jsonb_to_recordset(%s::jsonb) AS v(id uuid, detail jsonb)
WHERE t.id = v.id
"""


_Place = tuple[str, str, str]
"""Tenant, scope and task."""


class Files(Protocol):
    """Looks at files, and not here: nothing that a file system does holds up a transaction."""

    def of(self, task_run_id: str, wanted: WantedFiles) -> FoundFiles | None:
        """Return what was seen of the files of this task run; ``None``: that is not known yet.

        :raises ForbiddenPath: one can't be looked at.
        :raises OSError: the script can't be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """A task run whose equal is looked for."""

    task_run_id: str
    tenant_id: str
    pipeline_id: str
    plan: Plan
    """Of its run."""


@dataclass(frozen=True, slots=True)
class _Sought:
    """What one question comes to."""

    question: Question
    cache: CachePlan
    task: str
    queue: str
    components: Mapping[str, str]

    @property
    def key(self) -> str:
        return key_of(self.components)

    @property
    def place(self) -> _Place:
        """Where entries of the same task lie."""
        return self.question.tenant_id, self.scope, self.task

    @property
    def scope(self) -> str:
        """Empty: whatever pipeline of the tenant made it."""
        return self.question.pipeline_id if self.cache.scope == "pipeline" else ""


def look_up(
    connection: Connection, plans: PlanCache, questions: Sequence[Question], files: Files
) -> list[CacheAnswered]:
    """Answer the questions, in their order, and keep what was looked for. Those are left out whose files are still
    being looked at, and when it takes long all but the first.

    :param files: looks at the scripts and files that tasks name.
    """
    asked = [Asked(question.task_run_id, question.plan) for question in questions]
    sights = look_around(connection, plans, asked, keys=True)
    contents = _contents(connection, questions, sights)
    answers: dict[str, CacheAnswered] = {}
    sought: list[_Sought] = []
    until = time.monotonic() + MOST_SECONDS
    for n, question in enumerate(questions):
        if n and time.monotonic() > until:
            break
        sight = sights.get(question.task_run_id)
        try:
            if isinstance(sight, Sight) and sight.place.planned.cache is not None:
                if (one := _sought(question, sight.place.planned.cache, sight, contents, files)) is not None:
                    sought.append(one)
                continue
            message = str(sight or "Its row is gone.")
        except (TemplateError, TooLarge, ForbiddenPath, OSError) as error:
            message = str(error)
        except RecursionError:
            message = NESTED_TOO_DEEP
        answers[question.task_run_id] = CacheAnswered(
            question.task_run_id, "", message=f"Not cached, for no key can be worked out: {message}"
        )
    answers |= _answered(connection, sought)
    _keep(connection, sought, answers)
    return [answers[question.task_run_id] for question in questions if question.task_run_id in answers]


def _sought(
    question: Question, cache: CachePlan, sight: Sight, contents: Mapping[tuple[str, str], str], files: Files
) -> _Sought | None:
    """Return what the question comes to; ``None``: its files are still being looked at."""
    task = sight.place.planned
    parameters = sight.parameters_of_task()
    own = {uri: digest for (tenant_id, uri), digest in contents.items() if tenant_id == question.tenant_id}
    told = {**own, **dict(contents_in([*sight.upstream.values(), parameters]))}
    wanted = WantedFiles()
    if not cache.key:
        wanted = wanted_files(task, parameters, [sight.parameters, *sight.upstream.values()], told)
    if (seen := files.of(question.task_run_id, wanted)) is None:
        return None
    components = components_of(
        task,
        cache,
        parameters,
        key=sight.resolved(list(cache.key), "/cache/key"),
        run_parameters=sight.parameters,
        upstream=sight.upstream,
        contents=told,
        files={component_of(text): digest for text, digest in seen.digests.items()},
        script=seen.script,
    )
    return _Sought(question, cache, planned_name(sight.place.own.name), task.queue, components)


def _contents(
    connection: Connection, questions: Iterable[Question], sights: Mapping[str, Sight | OrchestratorError]
) -> dict[tuple[str, str], str]:
    """Return the digests of artifacts that the parameters of runs and tasks name, by tenant and URI."""
    named: set[tuple[str, str]] = set()
    for question in questions:
        sight = sights.get(question.task_run_id)
        if isinstance(sight, Sight):
            texts = all_texts([sight.parameters, sight.place.planned.parameters])
            named |= {(question.tenant_id, text) for text in texts if is_artifact(text)}
    if not named:
        return {}
    document = storable_json([{"tenant_id": tenant_id, "uri": uri} for tenant_id, uri in sorted(named)])
    return {(row[0], row[1]): row[2] for row in connection.exec_driver_sql(_CONTENTS, (document,))}


def _find(connection: Connection, sought: Sequence[_Sought]) -> dict[int, list[Any]]:
    """Return the entries of each, by its place, those that are most likely to be of use first."""
    wanted = [
        {
            "n": n,
            "tenant_id": one.question.tenant_id,
            "scope": one.scope,
            "key": one.key,
            "task": one.task,
            "queue": one.queue,
        }
        for n, one in enumerate(sought)
    ]
    if not wanted:
        return {}
    found: dict[int, list[Any]] = {}
    for row in connection.exec_driver_sql(_FOUND, (storable_json(wanted), _ENVIRONMENTS)):
        found.setdefault(row.n, []).append(row)
    return found


def _answered(connection: Connection, sought: Sequence[_Sought]) -> dict[str, CacheAnswered]:
    found = _find(connection, sought)
    uris = {
        (sought[n].question.tenant_id, uri)
        for n, there in found.items()
        for row in there
        for uri in all_texts(row.outputs)
        if is_artifact(uri)
    }
    fates = artifact_fates(connection, uris)
    answers, missed, hits = dict[str, CacheAnswered](), list[_Sought](), dict[int, Any]()
    for n, one in enumerate(sought):
        id_ = one.question.task_run_id
        there = [(row, _unusable(one, row, fates)) for row in found.get(n, ())]
        nothing: tuple[Any, str] = (None, "")
        row, why_not = next((usable for usable in there if not usable[1]), there[0] if there else nothing)
        if row is not None and not why_not and one.cache.mode != "write":
            hits[n] = row
        elif why_not:
            answers[id_] = CacheAnswered(id_, one.key, message=why_not)
        else:
            missed.append(one)
    gone = _use(connection, sought, hits)
    for n, row in hits.items():
        id_, key = sought[n].question.task_run_id, sought[n].key
        message = f"Its outputs are those of an equal task of run {row.run_id}."
        if n in gone:
            answers[id_] = CacheAnswered(id_, key, message=f"What the task of run {row.run_id} has left was removed.")
        else:
            answers[id_] = CacheAnswered(id_, key, row.task_run_id, message, row.outputs, row.local_to)
    lately = _lately(connection, missed)
    for one in missed:
        message = _missed(one, lately.get(one.place, ()))
        answers[one.question.task_run_id] = CacheAnswered(one.question.task_run_id, one.key, message=message)
    return answers


def _use(connection: Connection, sought: Sequence[_Sought], hits: Mapping[int, Any]) -> set[int]:
    """Note that these entries were taken, for what nobody takes is removed; return those that were removed just now.

    Those that were taken a moment ago stay (``artifact_retention.ENTRY_UNUSED``).
    """
    idle = {n: row for n, row in hits.items() if row.is_idle}
    if not idle:
        return set()
    places = [
        {
            "n": n,
            "tenant_id": sought[n].question.tenant_id,
            "scope": sought[n].scope,
            "key": sought[n].key,
            "environment": row.environment,
        }
        for n, row in idle.items()
    ]
    by_entry = {(one["tenant_id"], one["scope"], one["key"], one["environment"]): one for one in places}
    touched = {row[0] for row in connection.exec_driver_sql(_USED, (storable_json(list(by_entry.values())),))}
    kept = {entry for entry, one in by_entry.items() if one["n"] in touched}
    return {one["n"] for one in places if (one["tenant_id"], one["scope"], one["key"], one["environment"]) not in kept}


def _lately(connection: Connection, missed: Sequence[_Sought]) -> dict[_Place, list[Any]]:
    """Return the newest entries of the tasks of these questions, those of a map's indices once."""
    places = list(dict.fromkeys(one.place for one in missed))
    if not places:
        return {}
    document = storable_json(
        [
            {"n": n, "tenant_id": tenant_id, "scope": scope, "task": task}
            for n, (tenant_id, scope, task) in enumerate(places)
        ]
    )
    found: dict[_Place, list[Any]] = {}
    each = max(1, min(_COMPARED, _MOST_COMPARED // len(places)))
    for row in connection.exec_driver_sql(_LATELY, (document, each)):
        found.setdefault(places[row.n], []).append(row)
    return found


def _unusable(one: _Sought, row: Any, fates: Mapping[tuple[str, str], str]) -> str:
    """Return why the entry can't be used, if it can't."""
    if one.cache.mode == "write":
        return "The cache is only written."
    if row.is_old:
        return f"An equal task of run {row.run_id} has left outputs, but their time in the cache is over."
    if not row.is_there:
        return f"What the equal task of run {row.run_id} has left lies on host {row.local_to}, which is away."
    if row.is_from_elsewhere:
        return (
            f"The environment differs: what the equal task of run {row.run_id} has left was made with another Python "
            f"or other packages than any worker on queue {one.queue} has."
        )
    tenant_id = one.question.tenant_id
    gone = next((fates[tenant_id, uri] for uri in all_texts(row.outputs) if (tenant_id, uri) in fates), None)
    return f"What the equal task of run {row.run_id} has left is gone: {gone}" if gone else ""


def _missed(one: _Sought, lately: Sequence[Any]) -> str:
    """Say which components make the difference to that of the newest entries of the same task which is nearest."""
    if not lately:
        return "No task like it has left outputs in the cache."
    names, run_id = min(
        ((difference(entry.components, one.components), entry.run_id) for entry in lately),
        key=lambda found: len(found[0]),
    )
    if not names:
        return f"The outputs that it has left in run {run_id} were replaced."
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    verb = "differs" if len(names) == 1 else "differ"
    return f"Not in the cache: {', '.join(names[:_NAMED])}{more} {verb} from run {run_id}."


def _keep(connection: Connection, sought: Sequence[_Sought], answers: Mapping[str, CacheAnswered]) -> None:
    rows = []
    found = {one.question.task_run_id: one for one in sought}
    for id_, answer in answers.items():
        detail: dict[str, Any] = {"key": answer.key, "message": answer.message, "hit": answer.origin is not None}
        if (one := found.get(id_)) is not None:
            detail |= {
                "scope": one.scope,
                "task": one.task,
                "ttl": one.cache.ttl,
                "writes": one.cache.mode != "read" and answer.origin is None,
                "components": dict(one.components),
            }
        rows.append({"id": id_, "detail": detail})
    if rows:
        connection.exec_driver_sql(_DETAILS, (storable_json(rows),))
