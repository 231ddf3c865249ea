"""Writes what tasks leave besides their own rows: models, artifacts, cache entries, learned memory, circuits."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection

from orchestrator.effects import LearnMemory, SaveCircuit
from orchestrator.store.text_safety import storable_json

_MODELS = """
INSERT INTO models (id, tenant_id, name, version, stage, description, tags, metrics, lineage, digest, uri, run_id,
                    task)
SELECT v.id, k.tenant_id, v.name, v.version, COALESCE(NULLIF(v.stage, ''), 'none'), COALESCE(v.description, ''),
       COALESCE(v.tags, '[]'), COALESCE(v.metrics, '{}'), COALESCE(v.lineage, '{}'), v.digest, v.uri, k.run_id, k.name
FROM jsonb_to_recordset(%s::jsonb) AS v(n int, id uuid, task_run_id uuid, name text, version text, stage text,
     description text, tags jsonb, metrics jsonb, lineage jsonb, digest text, uri text)
JOIN task_runs k ON k.id = v.task_run_id
ORDER BY v.n
ON CONFLICT (tenant_id, name, version) DO NOTHING
"""

# A task tells of its own tenant's artifacts only: what it says decides when an object is removed. An object that is
# made again, as equal content is, is there again, and stays for the longer of its times.
_ARTIFACTS = """
INSERT INTO artifacts AS t (tenant_id, uri, digest, size, run_id, task, attempt_id, expires_at)
SELECT DISTINCT ON (a.tenant_id, v.uri) a.tenant_id, v.uri, v.digest, v.size, a.run_id, k.name, a.id,
       clock_timestamp() + v.retention * interval '1 second'
FROM jsonb_to_recordset(%s::jsonb) AS v(n int, attempt_id uuid, uri text, digest text, size bigint, retention float8)
JOIN attempts a ON a.id = v.attempt_id
JOIN task_runs k ON k.id = a.task_run_id
WHERE v.uri LIKE 'artifact://' || a.tenant_id::text || '/%%'
ORDER BY a.tenant_id, v.uri, v.n DESC
ON CONFLICT (tenant_id, uri) DO UPDATE SET digest = excluded.digest, size = excluded.size, run_id = excluded.run_id,
    task = excluded.task, attempt_id = excluded.attempt_id, created_at = clock_timestamp(), deleted_at = NULL,
    deleted_by = '', expires_at = CASE WHEN t.deleted_at IS NOT NULL THEN excluded.expires_at
        WHEN t.expires_at IS NULL OR excluded.expires_at IS NULL THEN NULL
        ELSE GREATEST(t.expires_at, excluded.expires_at) END
"""

# What was looked for and not found lies in `cache_detail` (store.cache); only what succeeded is an answer to others.
# An environment that no worker has any more is not waited for: its entry, and the artifacts that it keeps, go with the
# first that takes its place.
_CACHED = """
WITH written AS (
INSERT INTO cache_entries AS t (tenant_id, scope, key, task_run_id, run_id, task, components, outputs, local_to,
                                environment, expires_at, artifacts)
SELECT DISTINCT ON (k.tenant_id, k.cache_detail->>'scope', k.cache_key, l.environment) k.tenant_id,
       k.cache_detail->>'scope', k.cache_key, k.id, k.run_id, k.cache_detail->>'task', k.cache_detail->'components',
       k.outputs, k.local_to, l.environment,
       clock_timestamp() + (k.cache_detail->>'ttl')::float8 * interval '1 second',
       ARRAY(SELECT DISTINCT u.uri #>> '{}' FROM
             jsonb_path_query(k.outputs, 'strict $.** ? (@ starts with "artifact://")', '{}', true) AS u(uri))
FROM task_runs k, LATERAL (SELECT COALESCE((SELECT w.environment FROM attempts a JOIN workers w ON w.id = a.worker_id
    WHERE a.task_run_id = k.id ORDER BY a.number DESC LIMIT 1), '') AS environment) l
WHERE k.id = ANY(%s::uuid[]) AND k.state = 'success' AND k.cache_key <> '' AND k.cache_detail->>'key' = k.cache_key
  AND (k.cache_detail->>'writes')::boolean
ORDER BY k.tenant_id, k.cache_detail->>'scope', k.cache_key, l.environment, k.id
ON CONFLICT (tenant_id, scope, key, environment) DO UPDATE SET task_run_id = excluded.task_run_id,
    run_id = excluded.run_id, task = excluded.task, components = excluded.components, outputs = excluded.outputs,
    local_to = excluded.local_to, created_at = clock_timestamp(), expires_at = excluded.expires_at,
    artifacts = excluded.artifacts, used_at = clock_timestamp()
RETURNING tenant_id, scope, key, environment)
DELETE FROM cache_entries e USING written n
WHERE (e.tenant_id, e.scope, e.key) = (n.tenant_id, n.scope, n.key) AND e.environment <> n.environment
  AND NOT EXISTS (SELECT 1 FROM workers w WHERE w.environment = e.environment
      AND w.state IN ('online', 'suspect', 'draining'))
"""

_LEARNED = """
INSERT INTO learned_memory AS t (pipeline_id, task, memory, peak)
SELECT pipeline_id, task, memory, peak
FROM jsonb_to_recordset(%s::jsonb) AS v(pipeline_id uuid, task text, memory bigint, peak bigint)
ON CONFLICT (pipeline_id, task) DO UPDATE SET memory = excluded.memory, peak = GREATEST(t.peak, excluded.peak),
    updated_at = clock_timestamp()
"""

_CIRCUITS = """
INSERT INTO circuits AS t (service, state, failures, reason, open_until)
SELECT service, state, failures, reason, clock_timestamp() + open_for * interval '1 second'
FROM jsonb_to_recordset(%s::jsonb) AS v(service text, state text, failures int, reason text, open_for float8)
ON CONFLICT (service) DO UPDATE SET state = excluded.state, failures = excluded.failures, reason = excluded.reason,
    open_until = excluded.open_until,
    changed_at = CASE WHEN t.state = excluded.state THEN t.changed_at ELSE excluded.changed_at END
"""

_LARGEST = 2**63 - 1


def artifact_row(attempt_id: str, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a record of kind ``artifact`` says, as far as a row can hold it; ``None`` when it says no URI."""
    uri, size, retention = record.get("uri"), record.get("size"), record.get("retention_seconds")
    if not isinstance(uri, str):
        return None
    return {
        "attempt_id": attempt_id,
        "uri": uri,
        "digest": str(record.get("digest") or ""),
        "size": max(0, min(_LARGEST, size)) if isinstance(size, int) else 0,
        # A century is for ever, and an interval that a column takes.
        "retention": max(0.0, min(100 * 365 * 86_400.0, retention)) if isinstance(retention, (int, float)) else None,
    }


def write_models(connection: Connection, models: Sequence[Mapping[str, Any]]) -> None:
    if models:
        rows = [{**model, "id": str(uuid.uuid4()), "n": n} for n, model in enumerate(models)]
        connection.exec_driver_sql(_MODELS, (storable_json(rows),))


def write_artifacts(connection: Connection, artifacts: Sequence[Mapping[str, Any]]) -> None:
    if artifacts:
        rows = [{**artifact, "n": n} for n, artifact in enumerate(artifacts)]
        connection.exec_driver_sql(_ARTIFACTS, (storable_json(rows),))


def write_cached(connection: Connection, task_run_ids: Collection[str]) -> None:
    """Let these task runs answer for equal ones, as far as they succeeded and their definition says so."""
    if task_run_ids:
        connection.exec_driver_sql(_CACHED, (sorted(task_run_ids),))


def write_learned(connection: Connection, learned: Iterable[LearnMemory]) -> None:
    if rows := [asdict(effect) for effect in learned]:
        connection.exec_driver_sql(_LEARNED, (storable_json(rows),))


def write_circuits(connection: Connection, circuits: Iterable[SaveCircuit]) -> None:
    if rows := [asdict(effect) for effect in circuits]:
        connection.exec_driver_sql(_CIRCUITS, (storable_json(rows),))
