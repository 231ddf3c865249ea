"""A migration runs beside a site that works: nothing deadlocks, and nobody waits for it longer than for a busy row."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, Engine, text

from api.app import LIMITS as API_LIMITS
from orchestrator.errors import OrchestratorError, StoreUnavailable
from orchestrator.store import migrate
from orchestrator.store.engine import SCHEDULER_LIMITS, create_store_engine
from orchestrator.store.migrate import upgrade

pytestmark = pytest.mark.timeout(120)

LONGEST_WAIT = 2.0


@pytest.fixture
def old_url(database_url: str) -> str:
    """The address of a database as the release before left it."""
    engine = create_store_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    upgrade(database_url, "0002")
    return database_url


@pytest.fixture
def engine(old_url: str) -> Iterator[Engine]:
    made = create_store_engine(old_url, limits=SCHEDULER_LIMITS)
    yield made
    made.dispose()


class Beside:
    """Something that a thread does again and again while the test runs; it keeps what failed and how long it took."""

    def __init__(self, engine: Engine, *statements: str, pause: float = 0.0) -> None:
        self.failures: list[str] = []
        self.longest = 0.0
        self.rounds = 0
        self._engine = engine
        self._statements = statements
        self._pause = pause
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                with self._engine.begin() as connection:
                    self._work(connection)
            except OrchestratorError as error:
                self.failures.append(str(error))
            self.rounds += 1

    def _work(self, connection: Connection) -> None:
        for statement in self._statements:
            began = time.monotonic()
            connection.execute(text(statement))
            self.longest = max(self.longest, time.monotonic() - began)
            self._ended.wait(self._pause)

    @contextmanager
    def working(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()


WRITE_WORKERS = "UPDATE workers SET reason = 'x'"
WRITE_ATTEMPTS = "UPDATE attempts SET reason = 'x'"
WRITE_RUNS = "UPDATE runs SET reason = 'x'"
WRITE_EVENTS = (
    "INSERT INTO events (entity, entity_id, after, cause, actor, epoch) VALUES ('run', 'r', 'x', 'c', 'a', 1)"
)
READ = "SELECT (SELECT count(*) FROM workers) + (SELECT count(*) FROM attempts) + (SELECT count(*) FROM events)"


def is_newest(engine: Engine) -> bool:
    with engine.connect() as connection:
        columns = connection.execute(
            text(
                "SELECT count(*) FROM information_schema.columns WHERE (table_name, column_name) IN "
                "(('workers', 'drain_until'), ('attempts', 'keeper_id'), ('attempts', 'orphaned_at'), "
                "('events', 'detail'))"
            )
        ).scalar_one()
        index = connection.execute(
            text("SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_runs_unfinished'::regclass")
        ).scalar_one()
    return columns == 4 and bool(index)


def test_a_migration_under_load_deadlocks_with_nobody_and_nobody_waits_long_for_it(
    old_url: str, engine: Engine
) -> None:
    api = create_store_engine(old_url, limits=API_LIMITS)
    # In the order of the store's writer, and slowly: most moments are in the middle of a transaction.
    writer = Beside(engine, WRITE_WORKERS, WRITE_ATTEMPTS, WRITE_RUNS, WRITE_EVENTS, pause=0.15)
    reader = Beside(api, READ)
    with writer.working(), reader.working():
        upgrade(old_url)
    assert is_newest(engine)
    assert (writer.failures, reader.failures) == ([], [])
    assert max(writer.longest, reader.longest) < LONGEST_WAIT
    assert min(writer.rounds, reader.rounds) > 0
    api.dispose()


def test_a_migration_that_meets_a_transaction_gives_way_to_its_next_statement(old_url: str, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text(WRITE_WORKERS))
        migration = threading.Thread(target=upgrade, args=(old_url,))
        migration.start()
        _until_it_waits(engine)
        for statement in (WRITE_ATTEMPTS, WRITE_EVENTS):
            connection.execute(text(statement))
    migration.join()
    assert is_newest(engine)


def test_an_index_is_built_while_an_older_transaction_has_written_the_table(old_url: str, engine: Engine) -> None:
    upgrade(old_url, "0003")
    with engine.begin() as connection:
        connection.execute(text(WRITE_RUNS))
        migration = threading.Thread(target=upgrade, args=(old_url,))
        migration.start()
        _until_it_waits(engine)
        began = time.monotonic()
        with engine.begin() as other:
            other.execute(text(WRITE_RUNS))
        assert time.monotonic() - began < 0.5
    migration.join()
    assert is_newest(engine)


def test_a_migration_that_never_gets_its_lock_says_so_and_leaves_what_it_found(
    old_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "TRIES", 2)
    monkeypatch.setattr(migrate, "_PAUSE", 0.01)
    with engine.begin() as connection:
        connection.execute(text(WRITE_ATTEMPTS))
        with pytest.raises(StoreUnavailable, match="lock timeout"):
            upgrade(old_url)
    monkeypatch.undo()
    # The column of `workers` is there already.
    upgrade(old_url)
    assert is_newest(engine)


def _until_it_waits(engine: Engine) -> None:
    deadline = time.monotonic() + 20
    waits = text(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'orchestrator-migrate' "
        "AND wait_event_type = 'Lock'"
    )
    while True:
        with engine.connect() as connection:
            if connection.execute(waits).scalar_one():
                return
        assert time.monotonic() < deadline, "The migration does not wait for anything."
