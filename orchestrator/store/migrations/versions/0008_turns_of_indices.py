"""Whether an index waits for its turn, and whether a task run counts no more, stand in columns of their own.

They used to be the ``reason``, which other words for people may replace. Only columns with a default; what the release
before this one has written is taken over. The columns are added first, for as long as it takes to say so; the rows are
looked at with no lock on the table.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_COLUMNS = ("awaits_turn", "superseded")


def upgrade() -> None:
    """Add the columns, and fill them."""
    with op.get_context().autocommit_block():
        for name in _COLUMNS:
            column = sa.Column(name, sa.Boolean, nullable=False, server_default=sa.false())
            op.add_column("task_runs", column, if_not_exists=True)
        op.execute(
            "UPDATE task_runs SET awaits_turn = reason = 'max_parallel', superseded = reason = 'superseded' "
            "WHERE parent_id IS NOT NULL AND (reason = 'superseded' OR (reason = 'max_parallel' AND state = 'pending'))"
        )


def downgrade() -> None:
    """Drop them."""
    for name in _COLUMNS:
        op.drop_column("task_runs", name)
