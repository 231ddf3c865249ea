"""The same content may have several versions, one for each plan it compiled to; old idempotency keys are found fast."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_UNIQUE = "uq_pipeline_versions_pipeline_id_content_hash"


def upgrade() -> None:
    """Make the content's hash a plain index, and index the keys by their age."""
    op.drop_constraint(_UNIQUE, "pipeline_versions", type_="unique")
    op.create_index("ix_pipeline_versions_content", "pipeline_versions", ["pipeline_id", "content_hash"])
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])


def downgrade() -> None:
    """Fails where a content has several versions: which of them runs may lose their plan, nobody can say."""
    op.drop_index("ix_idempotency_keys_created_at", "idempotency_keys")
    op.drop_index("ix_pipeline_versions_content", "pipeline_versions")
    op.create_unique_constraint(_UNIQUE, "pipeline_versions", ["pipeline_id", "content_hash"])
