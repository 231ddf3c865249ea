"""Drains have deadlines, attempts can be adopted, and the audit tells where resources were held.

Only columns that are null or have a default are added: the release before this one goes on working on the new schema.
The leader writes all three tables in one transaction, so each is changed in one of its own: whoever holds a lock here
waits for no second one, and can't be part of a deadlock. What was done before a failure is found and left alone.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    with op.get_context().autocommit_block():
        drain_until = sa.Column("drain_until", sa.DateTime(timezone=True))
        op.add_column("workers", drain_until, if_not_exists=True)
        keeper_id = sa.Column("keeper_id", sa.Text, nullable=False, server_default="")
        op.add_column("attempts", keeper_id, if_not_exists=True)
        op.add_column("attempts", sa.Column("orphaned_at", sa.DateTime(timezone=True)), if_not_exists=True)
        op.add_column("events", sa.Column("detail", JSONB), if_not_exists=True)


def downgrade() -> None:
    """Drop the columns; adopted attempts are then lost when their first worker's lease ends."""
    with op.get_context().autocommit_block():
        op.drop_column("events", "detail", if_exists=True)
        op.drop_column("attempts", "orphaned_at", if_exists=True)
        op.drop_column("attempts", "keeper_id", if_exists=True)
        op.drop_column("workers", "drain_until", if_exists=True)
