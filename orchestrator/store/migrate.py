"""Brings a database to the newest schema: ``python -m orchestrator.store.migrate``."""

from __future__ import annotations

import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from orchestrator.config import load_settings
from orchestrator.errors import OrchestratorError
from orchestrator.store.bootstrap import ensure_first_rows
from orchestrator.store.engine import MIGRATION_LIMITS, check_version, create_store_engine

_LOCK_KEY = 0x6D6C6F7073
"""Any number, as long as every version of this program uses the same."""


def alembic_config(connection: Connection | None = None) -> Config:
    """Return alembic's configuration; there is no ini file, for there is nothing a site should change in it."""
    config = Config()
    folder = str(Path(__file__).with_name("migrations"))
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def upgrade(database_url: str, revision: str = "head") -> None:
    """Bring the schema to ``revision``, in one transaction; of several processes one works and the others wait.

    :raises StoreUnavailable: PostgreSQL does not answer.
    :raises ConfigurationError: PostgreSQL is too old, or the URL is not one.
    """
    engine = create_store_engine(database_url, pool_size=1, application="orchestrator-migrate", limits=MIGRATION_LIMITS)
    try:
        with engine.begin() as connection:
            check_version(connection)
            # The wait for another migrator is no lock conflict: it ends when that one has finished.
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
            connection.execute(text(f"SET LOCAL lock_timeout = '{round(MIGRATION_LIMITS.lock)}s'"))
            command.upgrade(alembic_config(connection), revision)
    finally:
        engine.dispose()


def main() -> int:
    """Migrate the database that ``DATABASE_URL`` names, make the first rows, and return the exit status."""
    try:
        settings = load_settings()
        settings.require("database_url")
        upgrade(settings.database_url)
        if settings.admin_key:
            ensure_first_rows(settings.database_url, settings.admin_key)
    except OrchestratorError as error:
        print(error, file=sys.stderr)
        return 1
    print("The schema is up to date.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
