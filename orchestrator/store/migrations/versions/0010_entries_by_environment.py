"""A cached result for each environment: queues whose workers differ do not replace each other's.

The table came with 0005, so no release before this one writes it. The new index is built without blocking writers, as
in 0004, and takes the old one's place in one statement; to do it twice does no harm.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_KEY = ("tenant_id", "scope", "key")


def upgrade() -> None:
    """Let the environment be a part of the primary key."""
    _use(*_KEY, "environment")


def downgrade() -> None:
    """Keep the newest entry of each key."""
    op.execute(
        "DELETE FROM cache_entries e USING cache_entries o WHERE (o.tenant_id, o.scope, o.key) = "
        "(e.tenant_id, e.scope, e.key) AND (o.created_at, o.environment) > (e.created_at, e.environment)"
    )
    _use(*_KEY)


def _use(*columns: str) -> None:
    """Let these be the primary key."""
    name, new = "pk_cache_entries", "pk_cache_entries_new"
    with op.get_context().autocommit_block():
        # A concurrent build waits for older transactions and shuts nobody out meanwhile: it may wait for them.
        op.execute("SET lock_timeout = 0")
        try:
            # A build that was broken off leaves an invalid index under the name.
            op.drop_index(new, "cache_entries", if_exists=True, postgresql_concurrently=True)
            op.create_index(new, "cache_entries", list(columns), unique=True, postgresql_concurrently=True)
        finally:
            op.execute("RESET lock_timeout")
        old = sa.inspect(op.get_bind()).get_pk_constraint("cache_entries")["name"]
        op.execute(
            f'ALTER TABLE cache_entries DROP CONSTRAINT "{old}", ADD CONSTRAINT {name} PRIMARY KEY USING INDEX {new}'
        )
