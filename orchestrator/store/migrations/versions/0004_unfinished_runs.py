"""Counting a tenant's unfinished runs reads an index of just those.

Only an index is added: the release before this one goes on working on the new schema.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_UNFINISHED = "state IN ('scheduled', 'queued', 'running', 'paused', 'cancelling')"


def upgrade() -> None:
    """Add the index."""
    op.create_index("ix_runs_unfinished", "runs", ["tenant_id"], postgresql_where=sa.text(_UNFINISHED))


def downgrade() -> None:
    """Drop it."""
    op.drop_index("ix_runs_unfinished", "runs")
