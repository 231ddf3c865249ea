"""Counting a tenant's unfinished runs reads an index of just those.

Only an index is added: the release before this one goes on working on the new schema. It is built beside the writers,
which a plain ``CREATE INDEX`` would shut out for as long as it takes.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_INDEX = "ix_runs_unfinished"
_UNFINISHED = "state IN ('scheduled', 'queued', 'running', 'paused', 'cancelling')"


def upgrade() -> None:
    """Add the index."""
    with op.get_context().autocommit_block():
        # It waits for older transactions, and shuts nobody out meanwhile; so it may wait as long as those last.
        op.execute("SET lock_timeout = 0")
        try:
            # A build that was broken off leaves an invalid index under the name.
            op.drop_index(_INDEX, "runs", if_exists=True, postgresql_concurrently=True)
            condition = sa.text(_UNFINISHED)
            op.create_index(_INDEX, "runs", ["tenant_id"], postgresql_where=condition, postgresql_concurrently=True)
        finally:
            op.execute("RESET lock_timeout")


def downgrade() -> None:
    """Drop it."""
    with op.get_context().autocommit_block():
        op.drop_index(_INDEX, "runs", if_exists=True, postgresql_concurrently=True)
