"""API keys: made once, shown once, stored as a digest, found by their prefix."""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum

from sqlalchemy import Connection, func, insert, select, update

from orchestrator.errors import Conflict, NotFound
from orchestrator.store.bootstrap import key_digest, key_prefix
from orchestrator.store.pages import Page, Row, Window, read_page
from orchestrator.store.tables import api_keys as k

KEY_ORDERS = {"name": (k.c.name, k.c.id), "created_at": (k.c.created_at, k.c.id)}


class Role(IntEnum):
    """What a key may do; each role may also do what the lower ones may."""

    VIEWER = 1
    """Read."""
    OPERATOR = 2
    """Also start and cancel runs."""
    AUTHOR = 3
    """Also save and delete pipelines."""
    ADMIN = 4
    """Also keep keys and drain workers."""

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A stored key that a caller's key has to match."""

    id: str
    tenant_id: str
    name: str
    role: Role
    digest: bytes


def find_key(connection: Connection, prefix: str) -> KnownKey | None:
    """Return the valid key with this prefix: not revoked, not expired."""
    row = connection.execute(
        select(k.c.id, k.c.tenant_id, k.c.name, k.c.role, k.c.digest).where(
            k.c.prefix == prefix,
            k.c.revoked_at.is_(None),
            (k.c.expires_at.is_(None)) | (k.c.expires_at > func.clock_timestamp()),
        )
    ).first()
    if row is None:
        return None
    return KnownKey(row.id, row.tenant_id, row.name, Role[row.role.upper()], bytes(row.digest))


def create_key(
    connection: Connection, tenant_id: str, name: str, role: Role, expires_at: datetime | None
) -> tuple[Row, str]:
    """Make a key; the second value is the key itself, which nobody can read again.

    :raises Conflict: a key of this name is in use.
    """
    taken = select(k.c.id).where(k.c.tenant_id == tenant_id, k.c.name == name, k.c.revoked_at.is_(None))
    if connection.execute(taken).first() is not None:
        raise Conflict(f"A key named {name!r} is in use; choose another name or revoke that one first.")
    key = f"orc_{secrets.token_urlsafe(32)}"
    key_id = str(uuid.uuid4())
    connection.execute(
        insert(k).values(
            id=key_id,
            tenant_id=tenant_id,
            name=name,
            role=role.word,
            prefix=key_prefix(key),
            digest=key_digest(key),
            expires_at=expires_at,
        )
    )
    return _get(connection, tenant_id, key_id), key


def list_keys(connection: Connection, tenant_id: str, window: Window, *, role: str | None, revoked: bool) -> Page:
    """Return one page of the tenant's keys: those in use, or those revoked."""
    query = select(*_SHOWN).where(
        k.c.tenant_id == tenant_id, k.c.revoked_at.is_not(None) if revoked else k.c.revoked_at.is_(None)
    )
    if role is not None:
        query = query.where(k.c.role == role)
    return read_page(connection, query, window)


def revoke_key(connection: Connection, tenant_id: str, key_id: str) -> str:
    """End the key now and return its prefix; revoking twice is no error.

    :raises NotFound: no such key of this tenant.
    :raises Conflict: it is the last administrator's key.
    """
    # All administrators' keys are locked, so that two requests can't each revoke "the other one".
    admins = (
        connection.execute(
            select(k.c.id)
            .where(k.c.tenant_id == tenant_id, k.c.role == "admin", k.c.revoked_at.is_(None))
            .order_by(k.c.id)
            .with_for_update()
        )
        .scalars()
        .all()
    )
    prefix: str = _get(connection, tenant_id, key_id)["prefix"]
    if list(admins) == [key_id]:
        raise Conflict("This is the last administrator's key; create another one before revoking it.")
    connection.execute(
        update(k)
        .where(k.c.tenant_id == tenant_id, k.c.id == key_id, k.c.revoked_at.is_(None))
        .values(revoked_at=func.clock_timestamp())
    )
    return prefix


_SHOWN = (k.c.id, k.c.name, k.c.role, k.c.prefix, k.c.created_at, k.c.expires_at, k.c.revoked_at)


def _get(connection: Connection, tenant_id: str, key_id: str) -> Row:
    row = connection.execute(select(*_SHOWN).where(k.c.tenant_id == tenant_id, k.c.id == key_id)).mappings().first()
    if row is None:
        raise NotFound(f"There is no API key {key_id!r}.")
    return dict(row)
