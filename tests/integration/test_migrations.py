"""The schema that the migrations make is the one the tables describe, and it guards what must never change."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import IntegrityError

from orchestrator.errors import ConfigurationError, StoreUnavailable
from orchestrator.store.bootstrap import ensure_tenant_and_admin, key_digest, key_prefix
from orchestrator.store.engine import Limits, check_version, create_store_engine
from orchestrator.store.migrate import alembic_config, upgrade
from orchestrator.store.tables import metadata

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_store_engine(database_url)
    yield made
    made.dispose()


def test_the_migrated_schema_is_what_the_tables_describe(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_upgrading_an_upgraded_database_changes_nothing(database_url: str) -> None:
    upgrade(database_url)


def test_several_migrators_at_once_wait_for_each_other(engine: Engine, database_url: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    failures: list[Exception] = []

    def migrate() -> None:
        try:
            upgrade(database_url)
        except Exception as error:  # noqa: BLE001 — whatever it is, the test must see it
            failures.append(error)

    threads = [threading.Thread(target=migrate) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    newest = ScriptDirectory.from_config(alembic_config()).get_current_head()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [newest]


@pytest.mark.parametrize("statement", ["UPDATE events SET after = 'x'", "DELETE FROM events"])
def test_the_audit_refuses_to_be_changed(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO events (entity, entity_id, after, cause, actor, epoch) VALUES ('run','r','x','c','a',1)")
        )
    with pytest.raises(IntegrityError, match="append-only"), engine.begin() as connection:
        connection.execute(text(statement))


def test_an_ended_attempt_refuses_another_state(engine: Engine) -> None:
    with engine.begin() as connection:
        _insert_attempt(connection, "succeeded")
        connection.execute(text("UPDATE attempts SET exit_code = 0"))
    with pytest.raises(IntegrityError, match="has ended as succeeded"), engine.begin() as connection:
        connection.execute(text("UPDATE attempts SET state = 'running'"))


def test_a_task_run_has_at_most_one_live_attempt(engine: Engine) -> None:
    with engine.begin() as connection:
        _insert_attempt(connection, "running")
    with pytest.raises(IntegrityError, match="uq_attempts_one_live"), engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO attempts (id, tenant_id, run_id, task_run_id, number, state, token, queue, host_id,"
                " worker_id, cpu, memory, gpus) SELECT gen_random_uuid(), tenant_id, run_id, task_run_id, 2,"
                " 'dispatched', 'other', queue, host_id, worker_id, cpu, memory, gpus FROM attempts"
            )
        )


def test_the_administrators_key_is_made_once_and_replaced_by_another(engine: Engine) -> None:
    first, second = "first-administrator-key-0123456789", "second-administrator-key-0123456789"
    with engine.begin() as connection:
        tenant = ensure_tenant_and_admin(connection, first)
        assert ensure_tenant_and_admin(connection, first) == tenant
        assert ensure_tenant_and_admin(connection, second) == tenant
        rows = connection.execute(text("SELECT prefix, digest, revoked_at IS NULL AS valid FROM api_keys")).all()
    valid = {row.prefix: row.valid for row in rows}
    assert valid == {key_prefix(first): False, key_prefix(second): True}
    assert {bytes(row.digest) for row in rows} == {key_digest(first), key_digest(second)}


def test_a_short_administrators_key_is_refused(engine: Engine) -> None:
    with pytest.raises(ConfigurationError, match="at least 24"), engine.begin() as connection:
        ensure_tenant_and_admin(connection, "admin")


def test_the_servers_version_is_checked(engine: Engine) -> None:
    with engine.connect() as connection:
        check_version(connection)


def test_a_database_that_does_not_answer_is_unavailable() -> None:
    engine = create_store_engine("postgresql://nobody:x@127.0.0.1:1/none")
    with pytest.raises(StoreUnavailable) as caught, engine.connect():
        pass
    assert caught.value.__cause__ is not None
    engine.dispose()


def test_an_exhausted_pool_and_a_slow_statement_are_unavailable(database_url: str) -> None:
    engine = create_store_engine(database_url, pool_size=1, limits=Limits(pool=0.1, statement=0.1))
    with engine.connect() as connection:
        with pytest.raises(StoreUnavailable), engine.connect():
            pass
        with pytest.raises(StoreUnavailable):
            connection.execute(text("SELECT pg_sleep(5)"))
    engine.dispose()


def test_a_connection_that_was_cut_is_replaced(engine: Engine) -> None:
    with pytest.raises(StoreUnavailable), engine.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def _insert_attempt(connection: Connection, state: str) -> None:
    connection.execute(
        text(
            """
            WITH t AS (INSERT INTO tenants (id, name) VALUES (gen_random_uuid(), 't') RETURNING id),
                 p AS (INSERT INTO pipelines (id, tenant_id, name)
                       SELECT gen_random_uuid(), id, 'p' FROM t RETURNING id, tenant_id),
                 v AS (INSERT INTO pipeline_versions (id, tenant_id, pipeline_id, version, content_hash)
                       SELECT gen_random_uuid(), tenant_id, id, 1, 'h' FROM p RETURNING id, tenant_id, pipeline_id),
                 r AS (INSERT INTO runs (id, tenant_id, pipeline_id, version_id, state)
                       SELECT gen_random_uuid(), tenant_id, pipeline_id, id, 'running' FROM v RETURNING id, tenant_id),
                 k AS (INSERT INTO task_runs (id, tenant_id, run_id, name, position, operator)
                       SELECT gen_random_uuid(), tenant_id, id, 'a', 0, 'x' FROM r RETURNING id, tenant_id, run_id)
            INSERT INTO attempts (id, tenant_id, run_id, task_run_id, number, state, token, queue, host_id, worker_id,
                                  cpu, memory, gpus)
            SELECT gen_random_uuid(), tenant_id, run_id, id, 1, :state, 'token', 'cpu', 'h', 'w', 1, 1, 0 FROM k
            """
        ),
        {"state": state},
    )
