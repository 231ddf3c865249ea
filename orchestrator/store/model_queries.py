"""Reads of the built-in model registry."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, func, select

from orchestrator.errors import NotFound
from orchestrator.store.pages import Page, Row, Window, read_page
from orchestrator.store.tables import models as m

MODEL_ORDERS = {"created_at": (m.c.seq,), "name": (m.c.name, m.c.seq)}


def list_models(
    connection: Connection, tenant_id: str, window: Window, *, stage: str | None = None, name_prefix: str | None = None
) -> Page:
    """Return one page of the tenant's models, each with its latest version."""
    latest = select(func.max(m.c.seq)).where(m.c.tenant_id == tenant_id).group_by(m.c.name)
    query = _models(tenant_id).where(m.c.seq.in_(latest))
    if stage is not None:
        query = query.where(m.c.stage == stage)
    if name_prefix is not None:
        query = query.where(m.c.name.startswith(name_prefix, autoescape=True))
    return read_page(connection, query, window)


def list_model_versions(
    connection: Connection, tenant_id: str, name: str, window: Window, *, stage: str | None = None
) -> Page:
    """Return one page of the model's versions.

    :raises NotFound: the tenant has no model of this name.
    """
    get_model(connection, tenant_id, name)
    query = _models(tenant_id).where(m.c.name == name)
    if stage is not None:
        query = query.where(m.c.stage == stage)
    return read_page(connection, query, window)


def get_model(connection: Connection, tenant_id: str, name: str, version: str | None = None) -> Row:
    """Return this version of the model, the latest for ``None``.

    :raises NotFound: the tenant has no such model or version.
    """
    query = _models(tenant_id).where(m.c.name == name)
    if version is not None:
        query = query.where(m.c.version == version)
    row = connection.execute(query.order_by(m.c.seq.desc()).limit(1)).mappings().first()
    if row is None:
        raise NotFound(f"There is no model {name!r}" + (f" of version {version!r}." if version else "."))
    return dict(row)


def _models(tenant_id: str) -> Select[Any]:
    return select(
        m.c.name,
        m.c.version,
        m.c.stage,
        m.c.description,
        m.c.tags,
        m.c.metrics,
        m.c.lineage,
        m.c.digest,
        m.c.uri,
        m.c.run_id,
        m.c.task,
        m.c.created_at,
    ).where(m.c.tenant_id == tenant_id)
