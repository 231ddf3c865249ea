"""Brings a database to the newest schema: ``python -m orchestrator.store.migrate``."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from orchestrator.config import load_settings
from orchestrator.errors import OrchestratorError, StoreUnavailable
from orchestrator.store.bootstrap import ensure_first_rows
from orchestrator.store.engine import MIGRATION_LIMITS, check_version, create_store_engine
from orchestrator.store.refusals import sqlstate

_LOCK_KEY = 0x6D6C6F7073
"""Any number, as long as every version of this program uses the same."""
_LOOK_AGAIN = 0.1
TRIES = 60
_PAUSE = 1.0
_IN_THE_WAY = frozenset({"55P03", "40P01"})
"""A lock that was not given in time; a deadlock."""


def alembic_config(connection: Connection | None = None) -> Config:
    """Return alembic's configuration; there is no ini file, for there is nothing a site should change in it."""
    config = Config()
    folder = str(Path(__file__).with_name("migrations"))
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def upgrade(database_url: str, revision: str = "head") -> None:
    """Bring the schema to ``revision``, each migration in a transaction of its own, while the site goes on working.

    Of several processes one works and the others wait. A migration that can't have a table's lock within
    ``MIGRATION_LIMITS.lock`` gives way, for everybody else queues behind it, and is tried again.

    :raises StoreUnavailable: PostgreSQL does not answer, or the lock was not to be had in all this time.
    :raises ConfigurationError: PostgreSQL is too old, or the URL is not one.
    """
    engine = create_store_engine(database_url, pool_size=1, application="orchestrator-migrate", limits=MIGRATION_LIMITS)
    try:
        with engine.connect() as connection:
            check_version(connection)
            connection.commit()
            _wait_for_other_migrators(connection)
            for left in reversed(range(TRIES)):
                if _is_upgraded(connection, revision, must=left == 0):
                    return
                # Not in step with what stood in the way.
                time.sleep(_PAUSE * random.uniform(0.5, 1.5))
    finally:
        engine.dispose()


def _wait_for_other_migrators(connection: Connection) -> None:
    """Take the migrators' lock, which ends with the session.

    By asking again and again: who waits inside a statement has a snapshot, and an index that is built concurrently by
    the one who works would wait for that, so that each waited for the other.
    """
    while not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK_KEY}).scalar_one():
        connection.commit()
        time.sleep(_LOOK_AGAIN)
    connection.commit()


def _is_upgraded(connection: Connection, revision: str, *, must: bool) -> bool:
    """Apply what is still to be applied; say whether that went well, or the locks of others were in the way.

    :param must: raise in the latter case too.
    """
    try:
        command.upgrade(alembic_config(connection), revision)
    except StoreUnavailable as error:
        connection.rollback()
        if must or sqlstate(error.__cause__) not in _IN_THE_WAY:
            raise
        return False
    connection.commit()
    return True


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
