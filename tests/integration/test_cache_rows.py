"""The cache in the rows: equal tasks find each other, and what made the difference is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from orchestrator.cache_files import FoundFiles, SeenFiles, WantedFiles
from orchestrator.effects import SaveOutcome, Transition
from orchestrator.events import CacheAnswered
from orchestrator.paths import DataRoots
from orchestrator.records import CachePlan, InputLink, Outcome, Plan
from orchestrator.states import AttemptState, Entity, TaskState
from orchestrator.store.artifact_queries import artifact_fates
from orchestrator.store.artifact_retention import delete_entries_unused
from orchestrator.store.cache import Question, look_up
from orchestrator.store.engine import create_store_engine
from orchestrator.store.plans import PlanCache
from orchestrator.store.writer import write
from tests.integration.expanded_rows import set_task
from tests.integration.seeded_runs import SeededRun, planned, seed_run
from tests.integration.test_writer import dispatched, rows

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_store_engine(database_url)
    yield made
    made.dispose()


def cached(*, operator: str = "model_training", cache: CachePlan | None = None, **parameters: Any) -> Plan:
    """A task whose equal is looked for, behind one that makes its dataset."""
    train = replace(
        planned("train", "load"),
        operator=operator,
        operator_version="1",
        cache=cache or CachePlan(),
        parameters=parameters,
        links=(InputLink("data", "dataset", "load"),),
    )
    return Plan((planned("load"), train))


def begun(engine: Engine, plan: Plan, content: str = "sha256:a", **parameters: Any) -> SeededRun:
    """A run whose dataset lies under a URI of its own."""
    run = seed_run(engine, plan=plan, parameters=parameters)
    set_task(
        engine,
        run,
        "load",
        outputs={"dataset": {"uri": f"artifact://{run.tenant_id}/{run.id}", "fingerprint": content}},
    )
    return run


class LookedAtHere:
    """Looks at files at once, as a thread of the scheduler does in between."""

    def __init__(self, roots: DataRoots | None = None) -> None:
        self._seen = SeenFiles(roots)

    def of(self, task_run_id: str, wanted: WantedFiles) -> FoundFiles:
        assert task_run_id
        return self._seen.look(wanted)


def asked(engine: Engine, run: SeededRun, plan: Plan, roots: DataRoots | None = None) -> CacheAnswered:
    [(pipeline,)] = rows(engine, "SELECT pipeline_id FROM runs WHERE id = :id", id=run.id)
    question = Question(run.tasks["train"], run.tenant_id, pipeline, plan)
    with engine.begin() as connection:
        [answer] = look_up(connection, PlanCache(), [question], LookedAtHere(roots))
        connection.execute(
            text("UPDATE task_runs SET cache_key = :key, state = 'ready' WHERE id = :id"),
            {"key": answer.key, "id": run.tasks["train"]},
        )
    return answer


def succeed(
    engine: Engine,
    run: SeededRun,
    outputs: dict[str, Any],
    state: TaskState = TaskState.SUCCESS,
    worker: str = "w",
) -> None:
    """End the attempt of the task as the leader would."""
    attempt = dispatched(run, "train")
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO attempts (id, tenant_id, run_id, task_run_id, number, state, token, queue, host_id, "
                "worker_id, cpu, memory, gpus) VALUES (:id, :tenant, :run, :task, 1, 'running', :token, 'cpu', 'h', "
                ":worker, 1, 1, 0)"
            ),
            {
                "id": attempt.id, "tenant": run.tenant_id, "run": run.id, "task": run.tasks["train"],
                "token": attempt.token, "worker": worker,
            },
        )  # fmt: skip
        connection.execute(text("UPDATE task_runs SET state = 'running' WHERE id = :id"), {"id": run.tasks["train"]})
        outcome = Outcome(AttemptState.SUCCEEDED, outputs=outputs)
        ended = Transition(Entity.TASK_RUN, run.tasks["train"], TaskState.RUNNING, state, "outcome", run_id=run.id)
        write(connection, [SaveOutcome(attempt.id, run.tasks["train"], outcome, True), ended], 7)


def test_an_equal_task_is_found_though_its_dataset_lies_elsewhere(engine: Engine) -> None:
    plan = cached(epochs=3)
    first, second = begun(engine, plan), begun(engine, plan)
    missed = asked(engine, first, plan)
    assert missed.origin is None
    assert missed.message == "No task like it has left outputs in the cache."
    succeed(engine, first, {"model": 1})
    hit = asked(engine, second, plan)
    assert (hit.key, hit.origin, hit.outputs) == (missed.key, first.tasks["train"], {"model": 1})
    assert first.id in hit.message
    [(detail,)] = rows(engine, "SELECT cache_detail FROM task_runs WHERE id = :id", id=second.tasks["train"])
    assert detail["hit"] is True


def test_an_entry_knows_the_artifacts_it_names_and_when_it_was_taken(engine: Engine) -> None:
    plan = cached()
    first = begun(engine, plan)
    asked(engine, first, plan)
    one, two = (f"artifact://{first.tenant_id}/{name}" for name in ("one", "two"))
    succeed(engine, first, {"deep": [{"uri": one}, one, "no artifact://", {"uri": two}]})
    assert [sorted(row[0]) for row in rows(engine, "SELECT artifacts FROM cache_entries")] == [[one, two]]
    with engine.begin() as connection:
        connection.execute(text("UPDATE cache_entries SET used_at = now() - interval '40 days'"))
    assert asked(engine, begun(engine, plan), plan).origin == first.tasks["train"]
    assert rows(engine, "SELECT used_at > now() - interval '1 minute' FROM cache_entries") == [(True,)]


def test_an_entry_that_is_removed_while_it_is_taken_is_no_answer(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = cached()
    first = begun(engine, plan)
    asked(engine, first, plan)
    succeed(engine, first, {"model": 1})
    with engine.begin() as connection:
        connection.execute(text("UPDATE cache_entries SET used_at = now() - interval '40 days'"))

    def removed(*args: Any) -> Any:
        with engine.begin() as connection:
            assert delete_entries_unused(connection, 30, 10) == 1
        return artifact_fates(*args)

    monkeypatch.setattr("orchestrator.store.cache.artifact_fates", removed)
    missed = asked(engine, begun(engine, plan), plan)
    assert (missed.origin, missed.message) == (None, f"What the task of run {first.id} has left was removed.")


def test_a_miss_names_what_differs(engine: Engine) -> None:
    plan = cached(epochs=3, depth=1)
    first = begun(engine, plan)
    asked(engine, first, plan)
    succeed(engine, first, {})
    # Another plan makes another pipeline in these rows; the entry is the tenant's own for this.
    with engine.begin() as connection:
        connection.execute(text("UPDATE cache_entries SET scope = ''"))
    shared = CachePlan(scope="tenant")
    other = cached(epochs=4, depth=1, cache=shared)
    answer = asked(engine, begun(engine, other, content="sha256:b"), other)
    assert answer.message == f"Not in the cache: parameters.data, parameters.epochs differ from run {first.id}."


def test_a_miss_is_compared_with_the_nearest_of_the_entries_and_not_with_the_newest(engine: Engine) -> None:
    shared = CachePlan(scope="tenant")
    near = cached(epochs=3, depth=1, cache=shared)
    first = begun(engine, near)
    asked(engine, first, near)
    succeed(engine, first, {})
    far = cached(epochs=9, depth=9, cache=shared)
    second = begun(engine, far, content="sha256:b")
    asked(engine, second, far)
    succeed(engine, second, {})
    wanted = cached(epochs=4, depth=1, cache=shared)
    answer = asked(engine, begun(engine, wanted), wanted)
    assert answer.message == f"Not in the cache: parameters.epochs differs from run {first.id}."


def test_only_a_success_is_an_answer_and_only_where_it_may_be_written(engine: Engine) -> None:
    plan = cached()
    skipped = begun(engine, plan)
    asked(engine, skipped, plan)
    succeed(engine, skipped, {}, TaskState.SKIPPED)
    reading = cached(cache=CachePlan(mode="read"))
    reader = begun(engine, reading)
    asked(engine, reader, reading)
    succeed(engine, reader, {})
    assert rows(engine, "SELECT * FROM cache_entries") == []


def test_what_is_too_old_or_removed_or_on_a_host_that_is_away_is_no_answer(engine: Engine) -> None:
    plan = cached(cache=CachePlan(ttl=60))
    first = begun(engine, plan)
    asked(engine, first, plan)
    uri = f"artifact://{first.tenant_id}/model"
    succeed(engine, first, {"model": {"uri": uri}})
    second = begun(engine, plan)
    assert asked(engine, second, plan).origin == first.tasks["train"]

    def now(statement: str) -> CacheAnswered:
        with engine.begin() as connection:
            connection.execute(text(statement), {"uri": uri, "tenant": first.tenant_id, "run": first.id})
        return asked(engine, second, plan)

    removed = now(
        "INSERT INTO artifacts (tenant_id, uri, digest, size, run_id, task, deleted_at, deleted_by) VALUES "
        "(:tenant, :uri, '', 1, :run, 'train', clock_timestamp(), 'older than 30 days')"
    )
    assert removed.origin is None
    assert "older than 30 days" in removed.message
    away = now("UPDATE cache_entries SET local_to = 'gone'; DELETE FROM artifacts")
    assert away.origin is None
    assert "lies on host gone" in away.message
    old = now("UPDATE cache_entries SET local_to = NULL, expires_at = clock_timestamp() - interval '1 s'")
    assert old.origin is None
    assert "their time in the cache is over" in old.message


def test_an_operator_that_may_read_everything_is_given_no_outputs_of_a_run_with_other_parameters(
    engine: Engine,
) -> None:
    plan = cached(operator="custom_script")
    first = begun(engine, plan, seed=1)
    asked(engine, first, plan)
    succeed(engine, first, {})
    answer = asked(engine, begun(engine, plan, seed=2), plan)
    assert answer.origin is None
    assert "run_parameters.seed" in answer.message


def test_a_key_of_its_own_stands_for_all_but_the_operator(engine: Engine) -> None:
    cache = CachePlan(key=("{{ params.seed }}", "{{ tasks.load.outputs.dataset.fingerprint }}"))
    plan = cached(operator="custom_script", cache=cache)
    first = begun(engine, plan, seed=1, name="a")
    asked(engine, first, plan)
    succeed(engine, first, {"x": 1})
    assert asked(engine, begun(engine, plan, seed=1, name="b"), plan).outputs == {"x": 1}
    assert asked(engine, begun(engine, plan, seed=2, name="a"), plan).origin is None


def test_what_has_no_key_runs_uncached_and_says_why(engine: Engine) -> None:
    plan = cached(value="{{ params.missing }}")
    answer = asked(engine, begun(engine, plan), plan)
    assert answer.key == ""
    assert "params.missing" in answer.message
    script = cached(operator="custom_script", script_path="train.py")
    assert "no scripts root" in asked(engine, begun(engine, script), script).message


def test_a_changed_script_is_another_task(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print(1)")
    roots = DataRoots({}, tmp_path)
    plan = cached(operator="custom_script", script_path="train.py")
    first = begun(engine, plan)
    before = asked(engine, first, plan, roots)
    assert before.key
    (tmp_path / "train.py").write_text("print(2)")
    assert asked(engine, begun(engine, plan), plan, roots).key != before.key


@pytest.mark.parametrize("operator", ["model_training", "custom_script"])
def test_changed_data_under_the_same_path_are_another_input_and_a_miss_names_them(
    engine: Engine, tmp_path: Path, operator: str
) -> None:
    (tmp_path / "sales.csv").write_text("1")
    roots = DataRoots({"data": tmp_path})
    plan = cached(operator=operator, cache=CachePlan(scope="tenant"), training_data_path="sales.csv")
    first = begun(engine, plan)
    asked(engine, first, plan, roots)
    succeed(engine, first, {"model": 1})
    assert asked(engine, begun(engine, plan), plan, roots).outputs == {"model": 1}
    (tmp_path / "sales.csv").write_text("2")
    missed = asked(engine, begun(engine, plan), plan, roots)
    assert (missed.origin, missed.message) == (None, f"Not in the cache: files.sales.csv differs from run {first.id}.")


def test_an_input_that_can_t_be_looked_at_is_not_cached_without_a_key(engine: Engine, tmp_path: Path) -> None:
    roots = DataRoots({"data": tmp_path})
    for path in ("https://host/sales.csv", "s3://bucket/sales.csv", "on-another-host.csv"):
        plan = cached(training_data_path=path)
        answer = asked(engine, begun(engine, plan), plan, roots)
        assert (answer.key, path in answer.message, "give the cache a key" in answer.message) == ("", True, True)
        keyed = cached(training_data_path=path, cache=CachePlan(key=("v1",)))
        assert asked(engine, begun(engine, keyed), keyed, roots).key


def test_looking_at_files_for_long_leaves_questions_for_the_next_round(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.store.cache.MOST_SECONDS", -1.0)
    plan = cached()
    questions = []
    for run in (begun(engine, plan), begun(engine, plan)):
        [(pipeline,)] = rows(engine, "SELECT pipeline_id FROM runs WHERE id = :id", id=run.id)
        questions.append(Question(run.tasks["train"], run.tenant_id, pipeline, plan))
    with engine.begin() as connection:
        answers = look_up(connection, PlanCache(), questions, LookedAtHere())
    assert [answer.task_run_id for answer in answers] == [questions[0].task_run_id]


def set_environments(engine: Engine, **workers: str) -> None:
    """Let these workers, of queue ``cpu``, be the only ones there."""
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM workers"))
        connection.execute(
            text(
                "INSERT INTO hosts (id, hostname, boot_id, cpu, memory) VALUES ('h', 'h', 'b', 1, 1) "
                "ON CONFLICT DO NOTHING"
            )
        )
        for id_, environment in workers.items():
            connection.execute(
                text(
                    "INSERT INTO workers (id, host_id, name, state, queues, slots, environment) "
                    "VALUES (:id, 'h', :id, 'online', '{cpu}', 1, :environment)"
                ),
                {"id": id_, "environment": environment},
            )


def test_what_is_nested_too_deep_is_not_cached(engine: Engine) -> None:
    plan = cached(operator="custom_script")
    abyss: Any = 1
    for _ in range(600):
        abyss = [abyss]
    run = begun(engine, plan)
    set_task(engine, run, "load", outputs={"dataset": {"uri": "artifact://x"}, "abyss": abyss})
    answer = asked(engine, run, plan)
    assert (answer.key, answer.origin) == ("", None)
    assert answer.message.startswith("Not cached, for no key can be worked out: What it hangs on is nested too deep")


def test_outputs_of_another_environment_are_not_taken(engine: Engine) -> None:
    plan = cached()
    set_environments(engine, w="one")
    first, second = begun(engine, plan), begun(engine, plan)
    asked(engine, first, plan)
    succeed(engine, first, {"model": 1})
    assert rows(engine, "SELECT environment FROM cache_entries") == [("one",)]
    set_environments(engine, w2="two")
    missed = asked(engine, second, plan)
    assert missed.origin is None
    assert missed.message.startswith("The environment differs: ")
    for there in ({"w2": "two", "w3": "one"}, {}, {"old": ""}):
        set_environments(engine, **there)
        assert asked(engine, second, plan).origin == first.tasks["train"], there


def test_outputs_of_a_worker_that_did_not_say_its_environment_are_taken_anywhere(engine: Engine) -> None:
    plan = cached()
    first, second = begun(engine, plan), begun(engine, plan)
    asked(engine, first, plan)
    succeed(engine, first, {"model": 1})
    set_environments(engine, w2="two")
    assert asked(engine, second, plan).origin == first.tasks["train"]


def test_queues_with_two_environments_do_not_replace_each_other_s_outputs(engine: Engine) -> None:
    plan = cached()
    one, two = {"w": "one"}, {"w2": "two"}
    for there in (one, two):
        # The other's queue is not asked, and its worker is there when the outputs are written.
        set_environments(engine, **there)
        run = begun(engine, plan)
        assert asked(engine, run, plan).origin is None
        set_environments(engine, **one, **two)
        [worker] = there
        succeed(engine, run, {"made_by": worker}, worker=worker)
    assert sorted(rows(engine, "SELECT environment FROM cache_entries")) == [("one",), ("two",)]
    for there in (one, two, one):
        set_environments(engine, **there)
        [worker] = there
        assert asked(engine, begun(engine, plan), plan).outputs == {"made_by": worker}


def test_what_an_environment_has_left_goes_once_nobody_has_it_and_another_has_left_the_same(engine: Engine) -> None:
    plan = cached()
    set_environments(engine, w="one")
    first, second = begun(engine, plan), begun(engine, plan)
    asked(engine, first, plan)
    succeed(engine, first, {})
    set_environments(engine, w2="two")
    asked(engine, second, plan)
    succeed(engine, second, {}, worker="w2")
    assert rows(engine, "SELECT environment FROM cache_entries") == [("two",)]
