"""What a new leader goes on with: for how long an attempt counts against a rate limit, and whose pause a run is under;
and the environment in which cached outputs were made.

Only columns that may be null or have a default: the release before this one goes on working on the new schema. The
index is built without blocking writers, as in 0004.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_COLUMNS = ("rate_key", "rate_units", "rate_per", "rate_until")


def upgrade() -> None:
    """Add the columns and an index."""
    with op.get_context().autocommit_block():
        paused = sa.Column("paused_with_parent", sa.Boolean, nullable=False, server_default=sa.false())
        op.add_column("runs", paused, if_not_exists=True)
        for table in ("workers", "cache_entries"):
            environment = sa.Column("environment", sa.Text, nullable=False, server_default="")
            op.add_column(table, environment, if_not_exists=True)
        op.add_column("attempts", sa.Column("rate_key", sa.Text), if_not_exists=True)
        op.add_column("attempts", sa.Column("rate_units", sa.Integer), if_not_exists=True)
        op.add_column("attempts", sa.Column("rate_per", sa.Float), if_not_exists=True)
        op.add_column("attempts", sa.Column("rate_until", sa.DateTime(timezone=True)), if_not_exists=True)
        # A concurrent build waits for older transactions and shuts nobody out meanwhile: it may wait for them.
        op.execute("SET lock_timeout = 0")
        try:
            # A build that was broken off leaves an invalid index under the name.
            op.drop_index("ix_attempts_rate", "attempts", if_exists=True, postgresql_concurrently=True)
            op.create_index(
                "ix_attempts_rate",
                "attempts",
                ["rate_until"],
                postgresql_where=sa.text("rate_until IS NOT NULL"),
                postgresql_concurrently=True,
            )
        finally:
            op.execute("RESET lock_timeout")


def downgrade() -> None:
    """Drop them."""
    for name in _COLUMNS:
        op.drop_column("attempts", name)
    op.drop_column("runs", "paused_with_parent")
    for table in ("workers", "cache_entries"):
        op.drop_column(table, "environment")
