"""Run by alembic: applies revisions on the connection, and in the transaction, that ``store.migrate`` opened."""

from __future__ import annotations

from alembic import context

from orchestrator.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
