"""Drains have deadlines, attempts can be adopted, and the audit tells where resources were held.

Only columns that are null or have a default are added: the release before this one goes on working on the new schema.
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
    op.add_column("attempts", sa.Column("keeper_id", sa.Text, nullable=False, server_default=""))
    op.add_column("attempts", sa.Column("orphaned_at", sa.DateTime(timezone=True)))
    op.add_column("workers", sa.Column("drain_until", sa.DateTime(timezone=True)))
    op.add_column("events", sa.Column("detail", JSONB))


def downgrade() -> None:
    """Drop the columns; adopted attempts are then lost when their first worker's lease ends."""
    op.drop_column("events", "detail")
    op.drop_column("workers", "drain_until")
    op.drop_column("attempts", "orphaned_at")
    op.drop_column("attempts", "keeper_id")
