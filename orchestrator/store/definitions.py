"""Pipelines and their versions: saving makes an immutable version; the same content with the same plan finds its own.

The plan is part of a version, and the site's settings and operators decide it too: content that compiles to another
plan than before becomes a new version, so that a change of the site reaches whoever saves again.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.exc import IntegrityError

from orchestrator.errors import Conflict, NotFound, StaleVersion
from orchestrator.states import RUN_TERMINAL
from orchestrator.store.pages import Order, Page, Row, Window, read_page
from orchestrator.store.tables import events, runs
from orchestrator.store.tables import pipeline_versions as v
from orchestrator.store.tables import pipelines as p

PIPELINE_ORDERS = {"created_at": (p.c.seq,), "name": (p.c.name, p.c.seq), "updated_at": (p.c.updated_at, p.c.seq)}
VERSION_ORDERS = {"version": (v.c.version,)}


@dataclass(frozen=True, slots=True)
class Definition:
    """A compiled definition, ready to be stored."""

    name: str
    description: str
    owner: str
    content_hash: str
    document: Mapping[str, Any]
    plan: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunTarget:
    """The version that a new run is to pin."""

    pipeline_id: str
    pipeline_name: str
    version_id: str
    version: int


def revision(version: int, content_hash: str) -> str:
    """Return the opaque word that ``ETag`` and ``If-Match`` carry for a pipeline at this version."""
    return f"{version}-{content_hash.rpartition(':')[2][:16]}"


def create_pipeline(connection: Connection, tenant_id: str, definition: Definition, actor: str) -> tuple[Row, bool]:
    """Insert the pipeline with its first version; an identical save of a live name returns what is there.

    Where the same content compiles to another plan by now, it becomes a new version of that pipeline.

    :returns: the pipeline, and whether it is new.
    :raises Conflict: the name is taken by another content.
    """
    pipeline_id, version_id = str(uuid.uuid4()), str(uuid.uuid4())
    made = connection.execute(
        pg_insert(p)
        .values(
            id=pipeline_id,
            tenant_id=tenant_id,
            name=definition.name,
            description=definition.description,
            owner=definition.owner,
            version_id=version_id,
            version=1,
        )
        .on_conflict_do_nothing(index_elements=[p.c.tenant_id, p.c.name], index_where=p.c.deleted_at.is_(None))
        .returning(p.c.id)
    ).first()
    if made is None:
        present = get_pipeline(connection, tenant_id, name=definition.name)
        if present["content_hash"] == definition.content_hash:
            known = _known_version(connection, tenant_id, present["id"], definition)
            if known is None or known[1] != present["version"]:
                present = save_pipeline(connection, tenant_id, present["id"], definition, actor, None)
            return present, False
        raise Conflict(
            f"A pipeline named {definition.name!r} exists with another content; save a new version of it with "
            f"PUT /api/v1/pipelines/{present['id']}, or choose another name."
        )
    _insert_version(connection, tenant_id, pipeline_id, version_id, 1, definition, actor)
    return get_pipeline(connection, tenant_id, pipeline_id=pipeline_id), True


def save_pipeline(
    connection: Connection,
    tenant_id: str,
    pipeline_id: str,
    definition: Definition,
    actor: str,
    expected: frozenset[str] | None,
) -> Row:
    """Make this content the current version; content the pipeline once had, with the plan it had, gets its old version.

    :param expected: revisions of which one must be the current one; ``None`` saves whatever the current one is.
    :raises NotFound: no such pipeline.
    :raises StaleVersion: another save came first.
    :raises Conflict: the new name is another pipeline's.
    """
    present = connection.execute(
        select(p.c.version, v.c.content_hash)
        .join(v, v.c.id == p.c.version_id)
        .where(p.c.tenant_id == tenant_id, p.c.id == pipeline_id, p.c.deleted_at.is_(None))
        .with_for_update(of=p)
    ).first()
    if present is None:
        raise _no_pipeline(pipeline_id)
    if expected is not None and revision(present.version, present.content_hash) not in expected:
        raise StaleVersion(
            f'The pipeline is at revision "{revision(present.version, present.content_hash)}" by now; '
            "read it again, put your change on top of it and send its ETag in If-Match."
        )
    version_id, version = _version_for(connection, tenant_id, pipeline_id, definition, actor)
    try:
        with connection.begin_nested():
            connection.execute(
                update(p)
                .where(p.c.tenant_id == tenant_id, p.c.id == pipeline_id)
                .values(
                    name=definition.name,
                    description=definition.description,
                    owner=definition.owner,
                    version_id=version_id,
                    version=version,
                    updated_at=func.clock_timestamp(),
                )
            )
    except IntegrityError as error:
        raise Conflict(f"Another pipeline is named {definition.name!r}; choose another name.") from error
    return get_pipeline(connection, tenant_id, pipeline_id=pipeline_id)


def pause_pipeline(
    connection: Connection, tenant_id: str, pipeline_id: str, actor: str, *, pause: bool, reason: str = ""
) -> Row:
    """Let no new run of the pipeline start, or let them start again; runs under way go on, queued ones wait.

    :param reason: why, in the words of who does it; kept in the audit.

    :raises NotFound: no such pipeline.
    """
    changed = connection.execute(
        update(p)
        .where(p.c.tenant_id == tenant_id, p.c.id == pipeline_id, p.c.deleted_at.is_(None), p.c.paused.is_not(pause))
        .values(paused=pause)
        .returning(p.c.id)
    ).first()
    found = get_pipeline(connection, tenant_id, pipeline_id=pipeline_id)
    if changed is not None:
        connection.execute(
            insert(events).values(
                tenant_id=tenant_id,
                entity="pipeline",
                entity_id=pipeline_id,
                before="active" if pause else "paused",
                after="paused" if pause else "active",
                message=reason,
                cause="request",
                actor=actor,
                epoch=0,
            )
        )
    return found


def delete_pipeline(connection: Connection, tenant_id: str, pipeline_id: str) -> None:
    """Take the pipeline away; its versions and ended runs stay readable.

    :raises NotFound: no such pipeline.
    :raises Conflict: it has runs that have not ended.
    """
    # FOR UPDATE waits for run creations, which hold the row FOR KEY SHARE, and makes later ones find no pipeline.
    held = connection.execute(
        select(p.c.name)
        .where(p.c.tenant_id == tenant_id, p.c.id == pipeline_id, p.c.deleted_at.is_(None))
        .with_for_update()
    ).first()
    if held is None:
        raise _no_pipeline(pipeline_id)
    active = connection.execute(
        select(func.count())
        .select_from(runs)
        .where(
            runs.c.tenant_id == tenant_id,
            runs.c.pipeline_id == pipeline_id,
            runs.c.state.not_in([state.value for state in RUN_TERMINAL]),
        )
    ).scalar_one()
    if active:
        raise Conflict(
            f"Pipeline {held.name!r} has {active} run(s) that have not ended; wait for them or cancel them first."
        )
    connection.execute(
        update(p).where(p.c.tenant_id == tenant_id, p.c.id == pipeline_id).values(deleted_at=func.clock_timestamp())
    )


def get_pipeline(
    connection: Connection, tenant_id: str, *, pipeline_id: str | None = None, name: str | None = None
) -> Row:
    """Return the live pipeline with this id or name, and its current definition.

    :raises NotFound: no such pipeline of this tenant.
    """
    wanted = p.c.id == pipeline_id if pipeline_id is not None else p.c.name == name
    query = _pipelines(tenant_id).add_columns(v.c.definition).where(wanted)
    row = connection.execute(query).mappings().first()
    if row is None:
        raise _no_pipeline(pipeline_id or name or "")
    return dict(row)


def list_pipelines(
    connection: Connection,
    tenant_id: str,
    window: Window,
    *,
    name: str | None = None,
    name_prefix: str | None = None,
    owner: str | None = None,
) -> Page:
    """Return one page of the tenant's live pipelines, without their definitions."""
    query = _pipelines(tenant_id)
    if name is not None:
        query = query.where(p.c.name == name)
    if name_prefix is not None:
        query = query.where(p.c.name.startswith(name_prefix, autoescape=True))
    if owner is not None:
        query = query.where(p.c.owner == owner)
    return read_page(connection, query, window)


def list_versions(connection: Connection, tenant_id: str, pipeline_id: str, window: Window) -> Page:
    """Return one page of the pipeline's versions.

    :raises NotFound: no such pipeline of this tenant.
    """
    _require_pipeline(connection, tenant_id, pipeline_id)
    query = select(v.c.version, v.c.content_hash, v.c.definition, v.c.created_by, v.c.created_at).where(
        v.c.tenant_id == tenant_id, v.c.pipeline_id == pipeline_id
    )
    return read_page(connection, query, window)


def read_version(connection: Connection, tenant_id: str, version_id: str) -> Row:
    """Return one stored version with its definition, its plan and the name of its pipeline; versions never change, so
    callers may keep it.

    :raises NotFound: no such version of this tenant.
    """
    row = (
        connection.execute(
            select(v.c.id, v.c.version, v.c.definition, v.c.plan, p.c.name.label("pipeline"))
            .join(p, p.c.id == v.c.pipeline_id)
            .where(v.c.tenant_id == tenant_id, v.c.id == version_id)
        )
        .mappings()
        .first()
    )
    if row is None:
        raise NotFound(f"There is no version {version_id!r}.")
    return dict(row)


def find_run_target(
    connection: Connection,
    tenant_id: str,
    *,
    pipeline_id: str | None = None,
    name: str | None = None,
    version: int | None = None,
) -> RunTarget:
    """Return the version that a new run pins, holding the pipeline against deletion until the transaction ends.

    :raises NotFound: no such pipeline, or it has no such version.
    """
    wanted = p.c.id == pipeline_id if pipeline_id is not None else p.c.name == name
    pipeline = connection.execute(
        select(p.c.id, p.c.name, p.c.version_id, p.c.version)
        .where(p.c.tenant_id == tenant_id, p.c.deleted_at.is_(None), wanted)
        .with_for_update(key_share=True, read=True)
    ).first()
    if pipeline is None:
        raise _no_pipeline(pipeline_id or name or "")
    if version is None or version == pipeline.version:
        return RunTarget(pipeline.id, pipeline.name, pipeline.version_id, pipeline.version)
    version_id = connection.execute(
        select(v.c.id).where(v.c.tenant_id == tenant_id, v.c.pipeline_id == pipeline.id, v.c.version == version)
    ).scalar()
    if version_id is None:
        raise NotFound(f"Pipeline {pipeline.name!r} has no version {version}.")
    return RunTarget(pipeline.id, pipeline.name, version_id, version)


def orders(names: Mapping[str, tuple[Any, ...]], key: str) -> Order:
    """Return the order that ``name`` or ``-name`` asks for."""
    return Order(names[key.removeprefix("-")], descending=key.startswith("-"))


def _pipelines(tenant_id: str) -> Select[Any]:
    return (
        select(
            p.c.id,
            p.c.name,
            p.c.description,
            p.c.owner,
            p.c.version,
            p.c.paused,
            v.c.content_hash,
            v.c.created_by,
            p.c.created_at,
            p.c.updated_at,
        )
        .join(v, v.c.id == p.c.version_id)
        .where(p.c.tenant_id == tenant_id, v.c.tenant_id == tenant_id, p.c.deleted_at.is_(None))
    )


def _require_pipeline(connection: Connection, tenant_id: str, pipeline_id: str) -> None:
    found = select(p.c.id).where(p.c.tenant_id == tenant_id, p.c.id == pipeline_id, p.c.deleted_at.is_(None))
    if connection.execute(found).first() is None:
        raise _no_pipeline(pipeline_id)


def _version_for(
    connection: Connection, tenant_id: str, pipeline_id: str, definition: Definition, actor: str
) -> tuple[str, int]:
    known = _known_version(connection, tenant_id, pipeline_id, definition)
    if known is not None:
        return known
    highest = connection.execute(
        select(func.max(v.c.version)).where(v.c.tenant_id == tenant_id, v.c.pipeline_id == pipeline_id)
    ).scalar_one()
    version_id, version = str(uuid.uuid4()), int(highest) + 1
    _insert_version(connection, tenant_id, pipeline_id, version_id, version, definition, actor)
    return version_id, version


def _known_version(
    connection: Connection, tenant_id: str, pipeline_id: str, definition: Definition
) -> tuple[str, int] | None:
    """Return id and number of the newest version with this content and this plan."""
    row = connection.execute(
        select(v.c.id, v.c.version)
        .where(
            v.c.tenant_id == tenant_id,
            v.c.pipeline_id == pipeline_id,
            v.c.content_hash == definition.content_hash,
            v.c.plan == dict(definition.plan),
        )
        .order_by(v.c.version.desc())
        .limit(1)
    ).first()
    return None if row is None else (row.id, row.version)


def _insert_version(
    connection: Connection,
    tenant_id: str,
    pipeline_id: str,
    version_id: str,
    version: int,
    definition: Definition,
    actor: str,
) -> None:
    connection.execute(
        insert(v).values(
            id=version_id,
            tenant_id=tenant_id,
            pipeline_id=pipeline_id,
            version=version,
            content_hash=definition.content_hash,
            definition=dict(definition.document),
            plan=dict(definition.plan),
            created_by=actor,
        )
    )


def _no_pipeline(what: str) -> NotFound:
    return NotFound(f"There is no pipeline {what!r}.")
