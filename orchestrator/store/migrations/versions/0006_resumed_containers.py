"""A container that waits to run again says in a column of its own whether it goes on or expands anew.

It used to be its ``reason``, which other words for people may replace. Only a column with a default: the release before
this one goes on working on the new schema.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("task_runs", sa.Column("resumed", sa.Boolean, nullable=False, server_default=sa.false()))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("task_runs", "resumed")
