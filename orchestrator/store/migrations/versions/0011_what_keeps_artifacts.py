"""What keeps artifacts is found by an index: what is past its time, and the artifacts that entries of the cache name.
Entries note when they were taken last, so that those nobody takes go. The reruns of a run are found by one too.

Only columns that have a default: the release before this one goes on working on the new schema. No release writes
entries of the cache yet, so there are few. The indexes are built without blocking writers, as in 0004.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_LIVES = "deleted_at IS NULL"
_NAMED = """
UPDATE cache_entries SET artifacts = ARRAY(SELECT DISTINCT u.uri #>> '{}' FROM
    jsonb_path_query(outputs, 'strict $.** ? (@ starts with "artifact://")', '{}', true) AS u(uri))
WHERE artifacts = '{}' AND outputs IS NOT NULL
"""


def upgrade() -> None:
    """Add the columns and the indexes."""
    with op.get_context().autocommit_block():
        named: sa.Column[Any] = sa.Column("artifacts", ARRAY(sa.Text), nullable=False, server_default="{}")
        op.add_column("cache_entries", named, if_not_exists=True)
        used = sa.Column("used_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()"))
        op.add_column("cache_entries", used, if_not_exists=True)
        # Were it the default from the first, the whole table would be written anew.
        op.alter_column("cache_entries", "used_at", server_default=sa.text("clock_timestamp()"))
        op.execute(sa.text(_NAMED))
        # A concurrent build waits for older transactions and shuts nobody out meanwhile: it may wait for them.
        op.execute("SET lock_timeout = 0")
        try:
            at_once = {"fastupdate": "off"}
            _index(
                "ix_cache_entries_artifacts",
                "cache_entries",
                "artifacts",
                postgresql_using="gin",
                postgresql_with=at_once,
            )
            has_time = sa.text("expires_at IS NOT NULL")
            _index("ix_cache_entries_over", "cache_entries", "expires_at", postgresql_where=has_time)
            _index("ix_models_uri", "models", "tenant_id", "uri")
            _index("ix_artifacts_own_time", "artifacts", "expires_at", "uri", postgresql_where=sa.text(_LIVES))
            no_time = sa.text(f"{_LIVES} AND expires_at IS NULL")
            _index("ix_artifacts_age", "artifacts", "created_at", "uri", postgresql_where=no_time)
            _drop("ix_artifacts_expires_at", "artifacts")
            _index("ix_runs_rerun_of", "runs", "rerun_of", postgresql_where=sa.text("rerun_of IS NOT NULL"))
        finally:
            op.execute("RESET lock_timeout")


def downgrade() -> None:
    """Drop them."""
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        try:
            _index("ix_artifacts_expires_at", "artifacts", "expires_at", postgresql_where=sa.text(_LIVES))
            _drop("ix_runs_rerun_of", "runs")
            _drop("ix_artifacts_own_time", "artifacts")
            _drop("ix_artifacts_age", "artifacts")
            _drop("ix_models_uri", "models")
            _drop("ix_cache_entries_over", "cache_entries")
            _drop("ix_cache_entries_artifacts", "cache_entries")
        finally:
            op.execute("RESET lock_timeout")
    op.drop_column("cache_entries", "artifacts")
    op.drop_column("cache_entries", "used_at")


def _index(name: str, table: str, *columns: str, **options: Any) -> None:
    # A build that was broken off leaves an invalid index under the name.
    _drop(name, table)
    op.create_index(name, table, list(columns), postgresql_concurrently=True, **options)


def _drop(name: str, table: str) -> None:
    op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
