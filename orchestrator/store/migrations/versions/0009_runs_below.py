"""How many runs were made below a run that is no task itself, so that what starts itself comes to an end.

Only a column with a default: the release before this one goes on working on the new schema, and counts nothing.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    with op.get_context().autocommit_block():
        column = sa.Column("runs_below", sa.Integer, nullable=False, server_default="0")
        op.add_column("runs", column, if_not_exists=True)


def downgrade() -> None:
    """Drop it."""
    op.drop_column("runs", "runs_below")
