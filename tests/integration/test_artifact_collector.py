"""What tasks leave is written down with its producer, and removed by rules that are told to whoever misses it."""

from __future__ import annotations

import hashlib
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from orchestrator.artifacts import LocalArtifacts
from orchestrator.effects import LearnMemory, SaveCircuit, SaveOutcome, Transition
from orchestrator.errors import ArtifactMissing, LostLeadership, StoreUnavailable, TemplateError
from orchestrator.events import OutcomeReceived
from orchestrator.records import Outcome, Plan
from orchestrator.states import AttemptState, Entity, TaskState
from orchestrator.store.artifact_queries import artifact_fates
from orchestrator.store.artifact_retention import PastArtifact, named_in_runs, still_needed
from orchestrator.store.grants import GrantedTask, build_specs, reason_of
from orchestrator.store.writer import write
from orchestrator.testing import make_context
from scheduler import artifact_collector
from scheduler.artifact_collector import ArtifactCollector
from scheduler.missed_artifacts import tell_removals
from tests.integration.led import EPOCH
from tests.integration.led import engine as engine  # noqa: PLC0414 (a fixture)
from tests.integration.led import limited_engine as limited_engine  # noqa: PLC0414 (a fixture)
from tests.integration.seeded_runs import SeededRun, seed_run
from tests.integration.test_sight import task
from tests.integration.test_writer import dispatched, granted_attempt, rows

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def store(tmp_path: Path) -> LocalArtifacts:
    return LocalArtifacts(tmp_path, scope="shared")


def leave(engine: Engine, run: SeededRun, attempt: str, *records: dict[str, Any]) -> None:
    outcome = Outcome(AttemptState.SUCCEEDED, records=tuple({"kind": "artifact", **record} for record in records))
    with engine.begin() as connection:
        write(connection, [SaveOutcome(attempt, run.tasks["a"], outcome, False)], EPOCH)


def made(engine: Engine, store: LocalArtifacts, name: str, **fields: Any) -> tuple[SeededRun, str]:
    """One artifact of the task a of a run that is over."""
    run, attempt = granted_attempt(engine)
    artifact = store.put_bytes(f"{run.tenant_id}/{run.id}/a/{name}", b"content")
    leave(engine, run, attempt.id, {"uri": artifact.uri, "digest": artifact.fingerprint, "size": 7, **fields})
    with engine.begin() as connection:
        connection.execute(text("UPDATE runs SET state = 'success'"))
    return run, artifact.uri


def age(engine: Engine, store: LocalArtifacts, days: float) -> None:
    """Let all objects have been written, and told of, so long ago."""
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE artifacts SET created_at = created_at - :days * interval '1 day'"), {"days": days}
        )
    for row in rows(engine, "SELECT uri FROM artifacts"):
        written = time.time() - days * 86_400
        os.utime(store.local_path(row.uri, Path()), (written, written))


def test_an_artifact_is_written_down_with_its_producer(engine: Engine, store: LocalArtifacts) -> None:
    run, uri = made(engine, store, "model.bin", retention_seconds=60)
    [row] = rows(engine, "SELECT *, expires_at > clock_timestamp() AS lives FROM artifacts")
    assert (row.uri, row.size, row.run_id, row.task, row.lives) == (uri, 7, run.id, "a", True)


def test_nobody_tells_of_what_is_not_his_own(engine: Engine) -> None:
    run, attempt = granted_attempt(engine)
    leave(engine, run, attempt.id, {"uri": "artifact://someone-else/x"}, {"uri": "artifact://logs/x"}, {"uri": 5})
    assert rows(engine, "SELECT * FROM artifacts") == []


def test_what_is_past_its_time_is_removed_and_who_misses_it_is_told_why(engine: Engine, store: LocalArtifacts) -> None:
    run, uri = made(engine, store, "old")
    age(engine, store, 31)
    _, young = made(engine, store, "young")
    assert ArtifactCollector(engine, EPOCH, store, None).collect() == 0, "for ever is the default"
    collector = ArtifactCollector(engine, EPOCH, store, 30)
    assert collector.collect() == 1
    assert not store.exists(uri)
    assert store.exists(young)
    assert [count.detail for count in collector.take_counts()] == [uri]
    with engine.connect() as connection:
        [(named, fate)] = artifact_fates(connection, [(run.tenant_id, uri), (run.tenant_id, young)]).items()
    assert named == (run.tenant_id, uri)
    assert "task 'a' of run" in fate
    assert "ARTIFACT_RETENTION_DAYS=30" in fate


@pytest.mark.parametrize("needed_by", ["model", "cache", "run"])
def test_what_is_still_needed_stays(engine: Engine, store: LocalArtifacts, needed_by: str) -> None:
    run, uri = made(engine, store, "x")
    age(engine, store, 31)
    values = {"tenant": run.tenant_id, "uri": uri, "run": run.id, "outputs": f'{{"model": {{"uri": "{uri}"}}}}'}
    statements = {
        "model": "INSERT INTO models (id, tenant_id, name, version, digest, uri) "
        "VALUES (:run, :tenant, 'm', '1', '', :uri)",
        "cache": "INSERT INTO cache_entries (tenant_id, scope, key, task_run_id, run_id, task, artifacts) "
        "VALUES (:tenant, '', 'k', :run, :run, 'a', ARRAY[:uri])",
        "run": "UPDATE task_runs SET outputs = CAST(:outputs AS jsonb) WHERE run_id = :run AND name = 'b'; "
        "UPDATE runs SET state = 'running'",
    }
    with engine.begin() as connection:
        connection.execute(text(statements[needed_by]), values)
    assert ArtifactCollector(engine, EPOCH, store, 30).collect() == 0
    assert store.exists(uri)


def entries(engine: Engine, run: SeededRun, uri: str, *, unused: float = 0.0, over: float | None = None) -> None:
    """An entry of the cache that nobody has taken for so many days, and whose time has been over for so many."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO cache_entries (tenant_id, scope, key, task_run_id, run_id, task, artifacts, used_at, "
                "expires_at) VALUES (:tenant, '', gen_random_uuid()::text, :run, :run, 'a', ARRAY[:uri], "
                "now() - :unused * interval '1 day', now() - CAST(:over AS float8) * interval '1 day')"
            ),
            {"tenant": run.tenant_id, "run": run.id, "uri": uri, "unused": unused, "over": over},
        )


def test_an_entry_of_the_cache_that_nobody_takes_goes_and_so_does_what_only_it_needed(
    engine: Engine, store: LocalArtifacts
) -> None:
    run, uri = made(engine, store, "x")
    entries(engine, run, uri, unused=31)
    age(engine, store, 40)
    assert ArtifactCollector(engine, EPOCH, store, None).collect() == 0
    assert len(rows(engine, "SELECT 1 FROM cache_entries")) == 1, "for ever is the default"
    entries(engine, run, uri, unused=29)
    assert ArtifactCollector(engine, EPOCH, store, 30).collect() == 0
    assert len(rows(engine, "SELECT 1 FROM cache_entries")) == 1
    with engine.begin() as connection:
        connection.execute(text("UPDATE cache_entries SET used_at = used_at - interval '2 days'"))
    assert ArtifactCollector(engine, EPOCH, store, 30).collect() == 1
    assert rows(engine, "SELECT 1 FROM cache_entries") == []
    entries(engine, run, uri)
    ArtifactCollector(engine, EPOCH, store, 0).collect()
    assert len(rows(engine, "SELECT 1 FROM cache_entries")) == 1, "a task may be taking it right now"


def test_an_entry_whose_time_is_over_is_told_of_for_a_day_and_goes(engine: Engine, store: LocalArtifacts) -> None:
    run, uri = made(engine, store, "x", retention_seconds=0)
    entries(engine, run, uri, over=0.5)
    entries(engine, run, uri, over=1.5)
    assert ArtifactCollector(engine, EPOCH, store, None).collect() == 1
    assert len(rows(engine, "SELECT 1 FROM cache_entries")) == 1


def test_all_that_is_past_its_time_goes_in_small_parts(
    engine: Engine, store: LocalArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact_collector, "BATCH", 2)
    for n in range(3):
        made(engine, store, f"own{n}", retention_seconds=0)
        made(engine, store, f"ours{n}")
    age(engine, store, 31)
    _, young = made(engine, store, "young", retention_seconds=3600)
    assert ArtifactCollector(engine, EPOCH, store, 30).collect() == 6
    assert rows(engine, "SELECT uri FROM artifacts WHERE deleted_at IS NULL") == [(young,)]


def test_what_runs_name_is_found_though_it_is_read_in_parts_and_though_they_have_begun_since(
    engine: Engine, store: LocalArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact_collector, "TASKS_AT_ONCE", 1)
    monkeypatch.setattr(artifact_collector, "RUNS_AT_ONCE", 1)
    left = [made(engine, store, f"x{n}", retention_seconds=0) for n in range(5)]
    running = [seed_run(engine) for _ in range(3)]
    named = [(running[0], "a"), (running[0], "b"), (running[1], "b"), (running[2], "a")]
    with engine.begin() as connection:
        for (run, name), (_, uri) in zip(named, left, strict=False):
            connection.execute(
                text(
                    "UPDATE task_runs SET outputs = jsonb_build_object('deep', jsonb_build_array(CAST(:uri AS text))) "
                    "WHERE run_id = :run AND name = :name"
                ),
                {"uri": uri, "run": run.id, "name": name},
            )
        connection.execute(text("UPDATE runs SET state = 'success' WHERE id = :id"), {"id": running[2].id})
        connection.execute(
            text("UPDATE runs SET state = 'running' WHERE CAST(id AS text) = ANY(:ids)"),
            {"ids": [run.id for run in running[:2]]},
        )
    collector = ArtifactCollector(engine, EPOCH, store, None)

    def begun_since(*args: Any) -> Any:
        with engine.begin() as connection:
            connection.execute(text("UPDATE runs SET state = 'running' WHERE id = :id"), {"id": running[2].id})
        return named_in_runs(*args)

    monkeypatch.setattr("scheduler.artifact_collector.named_in_runs", begun_since)
    assert collector.collect() == 1
    assert [store.exists(uri) for _, uri in left] == [True] * 4 + [False]


def test_what_a_run_has_taken_since_it_was_looked_at_stays(
    engine: Engine, store: LocalArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a hit of the cache does, right before the time of the entry is over."""
    _, taken = made(engine, store, "taken", retention_seconds=0)
    _, other = made(engine, store, "other", retention_seconds=0)
    running = seed_run(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE runs SET state = 'running' WHERE id = :id"), {"id": running.id})

    def taken_since(*args: Any) -> Any:
        found = named_in_runs(*args)
        hit = Transition(
            Entity.TASK_RUN,
            running.tasks["a"],
            TaskState.PENDING,
            TaskState.SUCCESS,
            "cache",
            run_id=running.id,
            changes={"outputs": {"uri": taken}},
        )
        with engine.begin() as connection:
            write(connection, [hit], EPOCH)
        return found

    monkeypatch.setattr("scheduler.artifact_collector.named_in_runs", taken_since)
    assert ArtifactCollector(engine, EPOCH, store, None).collect() == 1
    assert store.exists(taken)
    assert not store.exists(other)


def test_entries_of_the_cache_that_can_t_be_deleted_keep_no_artifact_from_going(
    engine: Engine, store: LocalArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(engine, store, "x", retention_seconds=0)

    def slow(*_args: Any) -> int:
        raise StoreUnavailable("The statement took too long.")

    monkeypatch.setattr(artifact_collector, "delete_entries_over", slow)
    assert ArtifactCollector(engine, EPOCH, store, None).collect() == 1


def test_entries_that_nobody_takes_are_looked_for_once_an_hour(
    engine: Engine, store: LocalArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, uri = made(engine, store, "x")
    collector = ArtifactCollector(engine, EPOCH, store, 30)
    entries(engine, run, uri, unused=31)
    collector.collect()
    entries(engine, run, uri, unused=31)
    collector.collect()
    assert len(rows(engine, "SELECT 1 FROM cache_entries")) == 1
    monkeypatch.setattr(artifact_collector, "UNUSED_EVERY", 0.0)
    collector._unused_due = 0.0
    collector.collect()
    assert rows(engine, "SELECT 1 FROM cache_entries") == []


def test_a_collector_that_is_stopped_leaves_the_rest_to_the_next(
    engine: Engine, store: LocalArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        made(engine, store, f"x{n}", retention_seconds=0)
    collector = ArtifactCollector(engine, EPOCH, store, None)
    delete = LocalArtifacts.delete

    def stopping(self: LocalArtifacts, uri: str) -> None:
        collector._ended.set()
        delete(self, uri)

    with monkeypatch.context() as patch:
        patch.setattr(LocalArtifacts, "delete", stopping)
        assert collector.collect() == 1
    assert len(rows(engine, "SELECT 1 FROM artifacts WHERE deleted_at IS NOT NULL")) == 3
    assert ArtifactCollector(engine, EPOCH, store, None).collect() == 0
    assert not [row for row in rows(engine, "SELECT uri FROM artifacts") if store.exists(row.uri)]


def test_the_store_is_asked_outside_of_transactions(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalArtifacts(tmp_path, scope="local:here")
    made(engine, store, "x", retention_seconds=0)
    open_ones: list[int] = []
    for name in ("exists", "stat", "delete"):
        plain = getattr(LocalArtifacts, name)

        def counting(self: LocalArtifacts, uri: str, plain: Any = plain) -> Any:
            open_ones.append(engine.pool.checkedout())  # type: ignore[attr-defined]
            return plain(self, uri)

        monkeypatch.setattr(LocalArtifacts, name, counting)
    assert ArtifactCollector(engine, EPOCH, store, None).collect() == 1
    assert open_ones == [0, 0, 0]


def test_a_large_cache_does_not_stop_the_collection(limited_engine: Engine, store: LocalArtifacts) -> None:
    run, uri = made(limited_engine, store, "old", retention_seconds=0)
    _, cached = made(limited_engine, store, "cached", retention_seconds=0)
    entries(limited_engine, run, cached)
    with limited_engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO cache_entries (tenant_id, scope, key, task_run_id, run_id, task, outputs, artifacts) "
                "SELECT CAST(:tenant AS uuid), '', i::text, gen_random_uuid(), gen_random_uuid(), 'm', "
                "jsonb_build_object('uri', o.uri, 'metrics', repeat(md5(i::text), 60)), ARRAY[o.uri] "
                "FROM generate_series(1, 40000) i, LATERAL (SELECT 'artifact://' || md5(i::text) AS uri) o"
            ),
            {"tenant": run.tenant_id},
        )
        connection.execute(
            text(
                "INSERT INTO artifacts (tenant_id, uri, digest, size, run_id, task, expires_at) "
                "SELECT CAST(:tenant AS uuid), 'artifact://' || md5(i::text), '', 1, :run, 'm', now() "
                "FROM generate_series(1, 2000) i"
            ),
            {"tenant": run.tenant_id, "run": run.id},
        )
    with limited_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE cache_entries"))
    with limited_engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO cache_entries (tenant_id, scope, key, task_run_id, run_id, task, artifacts) "
                "SELECT CAST(:tenant AS uuid), '', i::text, gen_random_uuid(), gen_random_uuid(), 'm', "
                "ARRAY['artifact://' || md5(i::text)] FROM generate_series(40001, 41000) i"
            ),
            {"tenant": run.tenant_id},
        )
    now = datetime.now(UTC)
    needless = [PastArtifact(run.tenant_id, f"artifact://needless/{n}", now, "", now, True) for n in range(100)]
    began = time.monotonic()
    with limited_engine.begin() as connection:
        assert still_needed(connection, needless) == set()
    assert time.monotonic() - began < 0.3, "it takes milliseconds"
    began = time.monotonic()
    assert ArtifactCollector(limited_engine, EPOCH, store, 30).collect() == 1
    assert time.monotonic() - began < 15, "twenty batches, of which each takes milliseconds"
    assert not store.exists(uri)
    assert store.exists(cached)


def saving(engine: Engine, store: LocalArtifacts, run: SeededRun, task: str, folder: Path) -> dict[str, Any]:
    """What another attempt of this run, which is at work, has saved and not told of yet."""
    folder.mkdir()
    records: list[Any] = []
    context = make_context(folder, artifacts=store, tenant_id=run.tenant_id)
    context.save_artifact(b"same", retention_days=0.5)
    records += context.records
    attempt = dispatched(run, task)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO attempts (id, tenant_id, run_id, task_run_id, number, state, token, queue, host_id, "
                "worker_id, cpu, memory, gpus, granted_at) VALUES (:id, :tenant, :run, :task, 1, 'running', :token, "
                "'cpu', 'h', 'w', 1, 1, 0, now() - interval '1 day')"
            ),
            {"id": attempt.id, "tenant": run.tenant_id, "run": run.id, "task": run.tasks[task], "token": attempt.token},
        )
    return {field: value for field, value in records[0].items() if field != "kind"}


@pytest.mark.parametrize("hours", [13.0, 12.99])
def test_what_a_task_has_saved_again_is_left_alone_until_it_tells_of_it(
    engine: Engine, store: LocalArtifacts, tmp_path: Path, hours: float
) -> None:
    """Thirteen hours after the first, or right after it."""
    run, attempt = granted_attempt(engine)
    saved = store.put_bytes(f"{run.tenant_id}/sha256/{hashlib.sha256(b'same').hexdigest()}", b"same")
    told = {"uri": saved.uri, "digest": saved.fingerprint, "size": 4, "retention_seconds": 43_200}
    leave(engine, run, attempt.id, told)
    if hours == 13:
        age(engine, store, 13 / 24)
    again = saving(engine, store, run, "b", tmp_path / "work")
    if hours != 13:
        age(engine, store, 13 / 24)
    with engine.begin() as connection:
        connection.execute(text("UPDATE artifacts SET expires_at = created_at + interval '12 hours'"))
        connection.execute(text("UPDATE runs SET state = 'success'"))
    collector = ArtifactCollector(engine, EPOCH, store, None)
    assert collector.collect() == 0
    leave(engine, run, attempt.id, again)
    assert rows(engine, "SELECT deleted_at, expires_at > now() AS lives FROM artifacts") == [(None, True)]
    assert store.exists(saved.uri)


def test_what_nobody_at_work_can_have_saved_goes(engine: Engine, store: LocalArtifacts, tmp_path: Path) -> None:
    run, attempt = granted_attempt(engine)
    saved = store.put_bytes(f"{run.tenant_id}/sha256/{hashlib.sha256(b'same').hexdigest()}", b"same")
    leave(engine, run, attempt.id, {"uri": saved.uri, "digest": "", "size": 4, "retention_seconds": 43_200})
    saving(engine, store, run, "b", tmp_path / "work")
    age(engine, store, 13 / 24)
    with engine.begin() as connection:
        connection.execute(text("UPDATE artifacts SET expires_at = created_at + interval '12 hours'"))
        connection.execute(text("UPDATE runs SET state = 'success'"))
        connection.execute(text("UPDATE attempts SET state = 'failed' WHERE id <> :id"), {"id": attempt.id})
    assert ArtifactCollector(engine, EPOCH, store, None).collect() == 1
    assert not store.exists(saved.uri)


def test_an_old_leader_removes_nothing(engine: Engine, store: LocalArtifacts) -> None:
    _, uri = made(engine, store, "x", retention_seconds=0)
    with pytest.raises(LostLeadership):
        ArtifactCollector(engine, EPOCH - 1, store, None).collect()
    assert store.exists(uri)


def test_an_object_whose_deletion_failed_is_deleted_later_even_by_another_leader(
    engine: Engine, store: LocalArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, uri = made(engine, store, "x", retention_seconds=0)

    def away(prefix: str) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", away)
        with pytest.raises(StoreUnavailable):
            ArtifactCollector(engine, EPOCH, store, None).collect()
    assert store.exists(uri)
    ArtifactCollector(engine, EPOCH, store, None).collect()
    assert not store.exists(uri)


def away_at_first(engine: Engine, store: LocalArtifacts, monkeypatch: pytest.MonkeyPatch) -> ArtifactCollector:
    """A collector that has marked all that is past its time, and deleted nothing."""
    collector = ArtifactCollector(engine, EPOCH, store, None)

    def away(prefix: str) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", away)
        with pytest.raises(StoreUnavailable):
            collector.collect()
    return collector


def make_again(engine: Engine, run: SeededRun, uri: str) -> None:
    [(attempt,)] = rows(engine, "SELECT id FROM attempts")
    leave(engine, run, attempt, {"uri": uri, "digest": "d", "size": 7})


@pytest.mark.parametrize("new_leader", [False, True])
def test_an_object_that_is_made_again_while_its_deletion_waits_stays(
    engine: Engine, store: LocalArtifacts, monkeypatch: pytest.MonkeyPatch, new_leader: bool
) -> None:
    run, uri = made(engine, store, "x", retention_seconds=0)
    collector = away_at_first(engine, store, monkeypatch)
    store.put_bytes(uri.removeprefix("artifact://"), b"content")
    make_again(engine, run, uri)
    if new_leader:
        collector = ArtifactCollector(engine, EPOCH, store, None)
    assert collector.collect() == 0
    assert store.exists(uri)
    assert rows(engine, "SELECT deleted_at FROM artifacts") == [(None,)]


def test_an_object_that_is_made_again_during_a_walk_stays(
    engine: Engine, store: LocalArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, first = made(engine, store, "a", retention_seconds=0)
    store.put_bytes(f"{run.tenant_id}/{run.id}/a/b", b"content")
    second = f"{first[:-1]}b"
    [(attempt,)] = rows(engine, "SELECT id FROM attempts")
    leave(engine, run, attempt, {"uri": second, "digest": "d", "size": 7, "retention_seconds": 0})
    delete = LocalArtifacts.delete
    other = {first: second, second: first}

    def slow(self: LocalArtifacts, uri: str) -> None:
        make_again(engine, run, other[uri])
        delete(self, uri)

    monkeypatch.setattr(LocalArtifacts, "delete", slow)
    assert ArtifactCollector(engine, EPOCH, store, None).collect() == 1
    [(left,)] = rows(engine, "SELECT uri FROM artifacts WHERE deleted_at IS NULL")
    assert store.exists(left)


def test_an_object_that_was_written_again_and_is_not_told_of_yet_is_spared_for_a_while(
    engine: Engine, store: LocalArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, uri = made(engine, store, "x", retention_seconds=0)
    age(engine, store, 1)
    collector = away_at_first(engine, store, monkeypatch)
    store.put_bytes(uri.removeprefix("artifact://"), b"content")
    assert collector.collect() == 0
    assert store.exists(uri)
    [row] = rows(engine, "SELECT deleted_at, expires_at > now() + interval '6 days' AS later FROM artifacts")
    assert (row.deleted_at, row.later) == (None, True)
    with engine.begin() as connection:
        connection.execute(text("UPDATE artifacts SET expires_at = now(), created_at = now() - interval '9 days'"))
    long_ago = time.time() - 8 * 86_400
    os.utime(store.local_path(uri, Path()), (long_ago, long_ago))
    assert collector.collect() == 1, "nobody has told of it for a week"
    assert not store.exists(uri)


def test_of_a_store_of_one_host_only_what_lies_there_is_removed(engine: Engine, tmp_path: Path) -> None:
    here, there = (LocalArtifacts(tmp_path / name, scope=f"local:{name}") for name in ("here", "there"))
    _, ours = made(engine, here, "ours", retention_seconds=0)
    _, theirs = made(engine, there, "theirs", retention_seconds=0)
    assert ArtifactCollector(engine, EPOCH, here, None).collect() == 1
    assert not here.exists(ours)
    assert there.exists(theirs)
    assert rows(engine, "SELECT uri FROM artifacts WHERE deleted_at IS NULL") == [(theirs,)]


def test_made_again_it_is_there_again(engine: Engine, store: LocalArtifacts) -> None:
    run, uri = made(engine, store, "x", retention_seconds=0)
    ArtifactCollector(engine, EPOCH, store, None).collect()
    [(attempt,)] = rows(engine, "SELECT id FROM attempts")
    leave(engine, run, attempt, {"uri": uri, "digest": "d", "size": 1})
    assert rows(engine, "SELECT deleted_at, deleted_by, expires_at FROM artifacts") == [(None, "", None)]


def test_who_looks_for_a_removed_artifact_in_vain_is_told_the_rule(engine: Engine, store: LocalArtifacts) -> None:
    run, attempt = granted_attempt(engine)
    uris = [store.put_bytes(f"{run.tenant_id}/{run.id}/a/{name}", b"x").uri for name in ("removed", "there")]
    leave(engine, run, attempt.id, {"uri": uris[0], "retention_seconds": 0}, {"uri": uris[1]})
    with engine.begin() as connection:
        connection.execute(text("UPDATE runs SET state = 'success'"))
    assert ArtifactCollector(engine, EPOCH, store, None).collect() == 1

    def told(attempt_id: str, *missed: Any, state: AttemptState = AttemptState.FAILED) -> str:
        records = tuple({"kind": "missing_artifact", "uri": uri} for uri in missed)
        event = OutcomeReceived("w", attempt_id, "", Outcome(state, "artifact_missing", "It is gone.", records=records))
        with engine.connect() as connection:
            [found] = tell_removals(connection, [event])
        assert isinstance(found, OutcomeReceived)
        return found.outcome.message

    named = told(attempt.id, *reversed(uris))
    assert named.startswith(f"It is gone. {uris[0]} was removed at ")
    assert named.endswith("the time that its task keeps it for was over.")
    for untold in ((attempt.id, uris[1]), (attempt.id, 5), (attempt.id,), ("no-id", uris[0]), (run.id, uris[0])):
        assert told(*untold) == "It is gone."
    assert told(attempt.id, uris[0], state=AttemptState.SUCCEEDED) == "It is gone."


def granted(run: SeededRun, plan: Plan, name: str) -> GrantedTask:
    planned = next(task for task in plan.tasks if task.name == name)
    return GrantedTask(dispatched(run, name), run.tenant_id, planned, plan, 1)


def test_no_grant_is_made_for_a_missing_artifact_or_a_path_that_leads_nowhere(engine: Engine) -> None:
    plan = Plan((task("use", model="{{ params.model }}"), task("lost", x="{{ params.nowhere }}"), task("well", x=1)))
    run = seed_run(engine, plan=plan)
    uri = f"artifact://{run.tenant_id}/m"
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE runs SET parameters = jsonb_build_object('model', CAST(:uri AS text))"), {"uri": uri}
        )
        connection.execute(
            text(
                "INSERT INTO artifacts (tenant_id, uri, digest, size, run_id, task, deleted_at, deleted_by) "
                "VALUES (:tenant, :uri, '', 0, :run, 'train', clock_timestamp(), 'older than a day')"
            ),
            {"tenant": run.tenant_id, "uri": uri, "run": run.id},
        )
        items = [granted(run, plan, name) for name in ("use", "lost", "well")]
        use, lost, well = build_specs(connection, items, {}, None).values()
    assert isinstance(use, ArtifactMissing)
    assert reason_of(use) == "artifact_missing"
    assert "task 'train' of run" in str(use)
    assert isinstance(lost, TemplateError)
    assert reason_of(lost) == "template"
    assert not isinstance(well, Exception)
    assert well.parameters == {"x": 1}


def test_circuits_and_learned_memory_are_written_over(engine: Engine) -> None:
    pipeline = "00000000-0000-0000-0000-000000000001"
    with engine.begin() as connection:
        write(
            connection,
            [
                SaveCircuit("s", "open", 5, "unreachable", 30.0),
                LearnMemory(pipeline, "train", 100, 90),
                SaveCircuit("s", "open", 6, "unreachable", 60.0),
            ],
            EPOCH,
        )
        write(connection, [LearnMemory(pipeline, "train", 80, 70)], EPOCH)
    [row] = rows(engine, "SELECT *, open_until > clock_timestamp() + interval '50 s' AS longer FROM circuits")
    assert (row.service, row.state, row.failures, row.longer) == ("s", "open", 6, True)
    assert rows(engine, "SELECT memory, peak FROM learned_memory") == [(80, 90)]
    with engine.begin() as connection:
        write(connection, [SaveCircuit("s", "closed", 0)], EPOCH)
    assert rows(engine, "SELECT state, failures, open_until FROM circuits") == [("closed", 0, None)]
