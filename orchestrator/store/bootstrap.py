"""The first rows: the default tenant and the administrator's key from ``ADMIN_KEY``."""

from __future__ import annotations

import hashlib
import uuid

from sqlalchemy import Connection, text

from orchestrator.errors import ConfigurationError
from orchestrator.store.engine import create_store_engine

DEFAULT_TENANT = "default"
ADMIN_NAME = "ADMIN_KEY"

PREFIX_LENGTH = 12
MINIMUM_LENGTH = 24


def key_prefix(key: str) -> str:
    """Return the part of an API key that finds its row."""
    return key[:PREFIX_LENGTH]


def key_digest(key: str) -> bytes:
    """Return what is stored of an API key. A plain SHA-256 does: keys are random, not chosen by people."""
    return hashlib.sha256(key.encode()).digest()


def ensure_first_rows(database_url: str, admin_key: str) -> None:
    """Do :func:`ensure_tenant_and_admin` in a transaction of its own.

    :raises StoreUnavailable: PostgreSQL does not answer.
    """
    engine = create_store_engine(database_url, pool_size=1, application="orchestrator-bootstrap")
    try:
        with engine.begin() as connection:
            ensure_tenant_and_admin(connection, admin_key)
    finally:
        engine.dispose()


def ensure_tenant_and_admin(connection: Connection, admin_key: str) -> str:
    """Make the default tenant and its administrator's key unless they exist; return the tenant's id.

    Another value of ``ADMIN_KEY`` replaces the earlier one, which is revoked.

    :raises ConfigurationError: the key is too short to be random.
    """
    if len(admin_key) < MINIMUM_LENGTH:
        raise ConfigurationError(
            f"ADMIN_KEY has {len(admin_key)} characters; use at least {MINIMUM_LENGTH} random ones, for example the "
            'output of `python3 -c "import secrets; print(secrets.token_urlsafe(32))"`.'
        )
    connection.execute(
        text("INSERT INTO tenants (id, name) VALUES (:id, :name) ON CONFLICT (name) DO NOTHING"),
        {"id": str(uuid.uuid4()), "name": DEFAULT_TENANT},
    )
    tenant = str(
        connection.execute(text("SELECT id FROM tenants WHERE name = :name"), {"name": DEFAULT_TENANT}).scalar_one()
    )
    named = {"tenant": tenant, "name": ADMIN_NAME, "prefix": key_prefix(admin_key), "digest": key_digest(admin_key)}
    connection.execute(
        text(
            "UPDATE api_keys SET revoked_at = clock_timestamp() WHERE tenant_id = :tenant AND name = :name "
            "AND revoked_at IS NULL AND digest <> :digest"
        ),
        named,
    )
    connection.execute(
        text(
            "INSERT INTO api_keys (id, tenant_id, name, role, prefix, digest) "
            "VALUES (:id, :tenant, :name, 'admin', :prefix, :digest) "
            "ON CONFLICT (prefix) DO UPDATE SET revoked_at = NULL, digest = excluded.digest, role = excluded.role "
            "WHERE api_keys.tenant_id = excluded.tenant_id AND api_keys.name = excluded.name"
        ),
        {"id": str(uuid.uuid4()), **named},
    )
    return tenant
