"""Retries, limits in time and number, the cache and data between tasks, as definitions say them, on the real leader."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from orchestrator.records import Outcome, Usage
from orchestrator.states import AttemptState
from orchestrator.wire.messages import GrantSpec
from tests.integration.dag_site import DagSite, Played, failed, goes_on, left, script, until

pytestmark = pytest.mark.timeout(120)
GIB = 2**30


def rules(*on: dict[str, Any]) -> dict[str, Any]:
    return {"on": list(on), "jitter": 0}


@pytest.mark.parametrize(
    ("outcome", "state", "attempts"),
    [
        (failed("not_found"), "skipped", 1),
        (failed("", exit_code=3), "failed", 1),
        (failed("", exception="shop.errors.TryLater"), "failed", 3),
        (failed("", message="Permission DENIED here"), "failed", 1),
        (failed("other"), "failed", 2),
        (failed("other", retryable=False), "failed", 1),
    ],
)
def test_the_first_rule_that_fits_says_what_follows_a_failure(
    dag: DagSite, outcome: Outcome, state: str, attempts: int
) -> None:
    retry = rules(
        {"match": {"reason": ["not_found", "gone"]}, "action": "skip"},
        {"match": {"exit_code": [2, 3]}, "action": "fail"},
        {"match": {"exception": "TryLater"}, "action": "retry", "delay_seconds": 0},
        {"match": {"message": "permission denied"}, "action": "fail"},
    )
    # A rule's retry is charged like any other; what no rule fits is tried as often as the task says.
    retries = 1 if outcome.reason == "other" else 2
    dag.lead()
    with dag.worker(Played(t=outcome)):
        run = dag.run(script("t", retry=retry, retries=retries))
        dag.ended(run, None)
    assert (dag.task(run, "t").state, dag.task(run, "t").attempts) == (state, attempts), dag.story(run)


def test_a_service_that_says_when_to_come_back_is_obeyed(dag: DagSite) -> None:
    played = Played(t=lambda spec: failed("rate_limited", retry_after=1.5) if spec.number == 1 else left(ok=1))
    dag.lead()
    with dag.worker(played) as worker:
        run = dag.run(script("t", retries=1))
        dag.ended(run)
        first, second = worker.granted
        assert worker.granted_at[second.attempt_id] - worker.reported_at[first.attempt_id] >= 1.5


def test_out_of_memory_asks_for_more_and_the_next_run_remembers_it(dag: DagSite) -> None:
    def act(spec: GrantSpec) -> Outcome:
        usage = Usage(peak_memory=round(2.5 * GIB))
        if spec.resources.memory < 3 * GIB:
            return failed("oom", usage=Usage(peak_memory=spec.resources.memory))
        return Outcome(AttemptState.SUCCEEDED, outputs={}, usage=usage)

    dag.save("hungry", script("t", memory_gb="auto", retries=5))
    dag.lead()
    with dag.worker(Played(t=act)) as worker:
        run = dag.start("hungry")
        dag.ended(run)
        asked = [spec.resources.memory for spec in worker.granted]
        assert len(asked) > 1
        assert all(later == pytest.approx(1.5 * earlier, rel=0.01) for earlier, later in pairwise(asked))
        again = dag.start("hungry")
        dag.ended(again)
        assert dag.task(again, "t").attempts == 1
        assert worker.granted[-1].resources.memory >= 3 * GIB


def test_a_rule_gives_more_memory_up_to_a_limit(dag: DagSite) -> None:
    more = {"match": {"reason": "oom"}, "action": "retry", "resources": {"memory_gb": "x2", "max_memory_gb": 3}}
    dag.lead()
    with dag.worker(Played(t=failed("oom"))) as worker:
        run = dag.run(script("t", memory_gb=1, retries=2, retry=rules(more)))
        dag.ended(run, "failed")
        assert [spec.resources.memory for spec in worker.granted] == [GIB, 2 * GIB, 3 * GIB]


def test_a_service_that_fails_five_times_is_left_alone(dag: DagSite) -> None:
    asking = {"operator": "wait_for", "parameters": {"http": {"url": "/ready"}, "connection": "shop"}}
    dag.lead()
    with dag.worker(Played(t=failed("unreachable"), u=failed("unreachable"))):
        first = dag.run(script("t", map={"over": {"range": 5}, "max_parallel": 1}, **asking))
        dag.ended(first, "failed")
        run = dag.run(script("u", **asking))
        dag.becomes(run, "u", "ready", "service_open")
        [circuit] = dag.rows("SELECT service, state, failures FROM circuits")
        assert tuple(circuit) == ("shop", "open", 5)
        dag.cancel(run)
        dag.ended(run, "cancelled")


def test_what_nobody_takes_in_time_fails_and_is_tried_again(dag: DagSite) -> None:
    dag.lead()
    run = dag.run(script("t", max_queued_seconds=0.5, retries=1, retry_delay_seconds=0))
    dag.ended(run, "failed")
    task = dag.task(run, "t")
    assert (task.reason, task.failures) == ("max_queued", 2)


def test_a_deadline_is_over_all_attempts(dag: DagSite) -> None:
    def act(spec: GrantSpec) -> Outcome | None:
        return failed("again") if spec.number == 1 else None

    dag.lead()
    with dag.worker(Played(t=act)) as worker:
        run = dag.run(script("t", deadline_seconds=2, retries=5))
        dag.ended(run, "failed")
        until(lambda: not worker.running)
        assert len(worker.stopped) == 1
    assert (dag.task(run, "t").reason, dag.task(run, "t").attempts) == ("deadline", 2)


def test_a_run_that_takes_too_long_is_stopped_and_torn_down(dag: DagSite) -> None:
    dag.lead()
    with dag.worker(Played(slow=goes_on)):
        run = dag.run(
            script("slow"), script("next", "slow"), script("clean", "slow", teardown=["slow"]), deadline_seconds=1.5
        )
        states = dag.ended(run, "failed")
    assert states["clean"] == "success"
    assert dag.rows("SELECT reason FROM runs") == [("run_deadline",)]
    assert {dag.task(run, name).reason for name in ("slow", "next")} == {"run_deadline"}


CACHED: dict[str, Any] = {"cache": True, "arguments": {"seed": "{{ params.seed }}"}}


def test_an_equal_task_is_not_run_again_and_names_its_origin(dag: DagSite) -> None:
    played = Played()
    dag.save("cached", script("t", **CACHED), script("use", "t", arguments={"it": "{{ tasks.t.outputs }}"}))
    dag.lead()
    with dag.worker(played):
        first = dag.start("cached", seed=1)
        dag.ended(first)
        second = dag.start("cached", seed=1)
        dag.ended(second)
        third = dag.start("cached", seed=2)
        dag.ended(third)
    assert played.ran == ["t", "use", "use", "t", "use"]
    hit = dag.task(second, "t")
    assert (hit.reason, hit.cached_from, hit.attempts) == ("cache_hit", dag.task(first, "t").id, 0)
    assert dag.outputs(second)["use"] == {"it": {"seed": 1}}
    assert dag.task(third, "t").cached_from is None


def test_of_equal_tasks_under_way_only_one_runs(dag: DagSite) -> None:
    played = Played(t=goes_on)
    dag.save("cached", script("t", **CACHED))
    dag.lead()
    with dag.worker(played) as worker:
        first = dag.start("cached", seed=1)
        until(lambda: worker.running)
        second = dag.start("cached", seed=1)
        dag.becomes(second, "t", "ready", "cache_flight")
        worker.finish(next(iter(worker.running)), left(seed=1))
        dag.ended(first)
        dag.ended(second)
    assert played.ran == ["t"]
    assert dag.task(second, "t").reason == "cache_hit"


def test_a_follower_runs_itself_when_the_one_it_waited_for_fails(dag: DagSite) -> None:
    dag.save("cached", script("t", **CACHED))
    dag.lead()
    with dag.worker(Played(t=goes_on)) as worker:
        first = dag.start("cached", seed=1)
        until(lambda: worker.running)
        second = dag.start("cached", seed=1)
        dag.becomes(second, "t", "ready", "cache_flight")
        worker.finish(next(iter(worker.running)), failed("broken"))
        dag.ended(first, "failed")
        dag.becomes(second, "t", "running")
        worker.finish(next(iter(worker.running)), left(seed=1))
        dag.ended(second)


def limited(on_limit: str) -> dict[str, Any]:
    return {"concurrency": [{"key": "{{ params.user }}", "limit": 1, "on_limit": on_limit}]}


def test_only_so_many_tasks_of_a_key_run_at_once(dag: DagSite) -> None:
    dag.save("keyed", script("t", **limited("queue")))
    dag.lead()
    with dag.worker(Played(t=goes_on)) as worker:
        first = dag.start("keyed", user="ann")
        dag.becomes(first, "t", "running")
        second, other = dag.start("keyed", user="ann"), dag.start("keyed", user="bob")
        dag.becomes(other, "t", "running")
        dag.becomes(second, "t", "ready", "concurrency")
        assert "ann" in dag.task(second, "t").message
        for run in (first, other):
            worker.finish(str(dag.task(run, "t").attempt_id), left())
        dag.becomes(second, "t", "running")
        worker.finish(str(dag.task(second, "t").attempt_id), left())
        for run in (first, second, other):
            dag.ended(run)
    assert dag.rows("SELECT 1 FROM reservations") == []


@pytest.mark.parametrize(
    ("on_limit", "states"),
    [
        ("queue", ("running", "queued")),
        ("cancel_new", ("running", "cancelled")),
        ("fail", ("running", "failed")),
        ("cancel_running", ("cancelled", "running")),
    ],
)
def test_only_so_many_runs_of_a_key_at_once(dag: DagSite, on_limit: str, states: tuple[str, str]) -> None:
    dag.save("keyed", script("t"), **limited(on_limit))
    dag.lead()
    with dag.worker(Played(t=goes_on)) as worker:
        first = dag.start("keyed", user="ann")
        until(lambda: worker.running)
        second = dag.start("keyed", user="ann")
        until(lambda: (dag.state(first), dag.state(second)) == states, 30, lambda: dag.story(second))
        if on_limit == "queue":
            worker.finish(next(iter(worker.running)), left())
            dag.ended(first)
        until(lambda: worker.running)
        for run in (first, second):
            if dag.state(run) == "running":
                dag.cancel(run)
                dag.ended(run, "cancelled")


def test_an_index_that_another_displaces_still_counts_for_the_next_leader_and_in_a_rerun(dag: DagSite) -> None:
    one = [{"key": "device", "limit": 1, "on_limit": "cancel_running"}]
    end = dag.lead()
    with dag.worker(Played(**{"t[0]": goes_on, "t[1]": goes_on})) as worker:
        map_ = {"over": [0, 1], "success": "any"}
        run = dag.run(
            script("t", map=map_, concurrency=one), script("next", "t", arguments={"it": "{{ tasks.t.outputs }}"})
        )
        dag.becomes(run, "t[0]", "cancelled", "displaced")
        until(lambda: [spec.task for spec in worker.running.values()] == ["t[1]"])
        end()
        dag.lead()
        worker.finish(next(iter(worker.running)), left(n=1))
        dag.ended(run)
        assert dag.outputs(run)["next"] == {"it": [None, {"n": 1}]}
        worker.behave = Played()
        dag.rerun(run, "t[0]")
        until(lambda: dag.rows("SELECT 1 FROM runs WHERE generation = 2"))
        dag.ended(run)
    assert dag.states(run) == {"t": "success", "t[0]": "success", "t[1]": "success", "next": "success"}


def test_a_cached_map_below_one_that_runs_again_works_only_where_its_item_has_changed(dag: DagSite) -> None:
    over = {"over": "{{ tasks.first.outputs }}"}
    dag.lead()
    with dag.worker(Played(**{f"first[{n}]": left(n=n) for n in range(3)})) as worker:
        run = dag.run(
            script("first", map={"over": {"range": 3}}),
            script("second", "first", map=over, cache=True, arguments={"it": "{{ map.item }}"}),
        )
        dag.ended(run)
        before = len(worker.granted)
        worker.behave = Played(**{f"first[{n}]": left(n="another" if n == 1 else n) for n in range(3)})
        dag.rerun(run, "first")
        until(lambda: dag.rows("SELECT 1 FROM runs WHERE generation = 2"))
        dag.ended(run)
        again = sorted(spec.task for spec in worker.granted[before:])
        assert again == ["first[0]", "first[1]", "first[2]", "second[1]"]
    assert [dag.task(run, f"second[{n}]").reason for n in range(3)] == ["cache_hit", "", "cache_hit"]


def test_a_pipeline_has_at_most_so_many_active_runs(dag: DagSite) -> None:
    dag.save("alone", script("t"), max_active_runs=1)
    dag.lead()
    with dag.worker(Played(t=goes_on)) as worker:
        runs = [dag.start("alone") for _ in range(3)]
        for run in runs:
            until(lambda run=run: dag.state(run) == "running" and worker.running)  # type: ignore[misc]
            assert [dag.state(other) for other in runs].count("running") == 1
            worker.finish(next(iter(worker.running)), left())
            dag.ended(run)


def test_a_rate_is_kept(dag: DagSite) -> None:
    rate = {"key": "api", "units": 2, "per_seconds": 1.0}
    dag.lead()
    with dag.worker() as worker:
        run = dag.run(script("t", map={"over": {"range": 5}}, rate_limit=rate))
        dag.ended(run)
        at = sorted(worker.granted_at.values())
    assert all(later - earlier > 0.7 for earlier, later in zip(at, at[2:], strict=False)), at


def test_templates_keep_the_types_of_what_they_name(dag: DagSite) -> None:
    made = {"list": [1, {"a": None}], "flag": True, "number": 2.5, "text": "x", "none": None}
    dag.lead()
    with dag.worker(Played(make=left(**made))):
        run = dag.run(
            script("make"),
            script(
                "use-it", "make",
                arguments={
                    **{name: f"{{{{ tasks.make.outputs.{name} }}}}" for name in made},
                    "inside": "a {{ tasks.make.outputs.list }}",
                    "deep": "{{ tasks.make.outputs.list[1].a }}",
                    "written": "\\{{ as it is }}",
                },
            ),
            script("then", "use-it", arguments={"it": "{{ tasks['use-it'].outputs.list }}"}),
        )  # fmt: skip
        dag.ended(run)
    found = dag.outputs(run)
    assert found["use-it"] == {
        **made, "inside": 'a [1, {"a": null}]', "deep": None, "written": "{{ as it is }}",
    }  # fmt: skip
    assert found["then"] == {"it": made["list"]}


def test_a_template_that_names_nothing_fails_its_task_with_a_sentence(dag: DagSite) -> None:
    dag.lead()
    with dag.worker(Played(make=left(a=1))):
        run = dag.run(
            script("make"), script("use", "make", arguments={"it": "{{ tasks.make.outputs.b.c }}"}, retries=3)
        )
        dag.ended(run, "failed")
    task = dag.task(run, "use")
    assert (task.reason, task.attempts) == ("template", 1)
    assert "tasks.make.outputs.b" in task.message


def test_branches_are_conditions_over_parameters_outputs_and_states(dag: DagSite) -> None:
    dag.lead()
    with dag.worker(Played(validate=left(errors=3))):
        run = dag.run(
            script("validate"),
            script("train", "validate", when="tasks.validate.outputs.errors <= params.most"),
            script("clean-up", "validate", when="tasks.validate.outputs.errors > params.most"),
            script("none", "validate", when="tasks.validate.outputs.missing is None"),
            script(
                "told", "train", "clean-up", trigger_rule="none_failed", when="tasks['clean-up'].state == 'success'"
            ),
            parameters={"most": 2},
        )
        states = dag.ended(run)
    assert states == {
        "validate": "success", "train": "skipped", "clean-up": "success", "none": "success", "told": "success",
    }  # fmt: skip
    assert dag.task(run, "train").reason == "condition"


def test_outputs_of_nearly_256_kb_pass_and_larger_ones_are_passed_by_reference(dag: DagSite) -> None:
    large = {"text": "x" * 250_000}
    reference = {"dataset": {"uri": "artifact://t/large", "size": 10**9, "fingerprint": "sha256:0"}}
    dag.lead()
    with dag.worker(Played(large=left(**large), stored=left(**reference))):
        run = dag.run(
            script("large"),
            script("stored"),
            script("use", "large", "stored", arguments={"uri": "{{ tasks.stored.outputs.dataset.uri }}"}),
        )
        dag.ended(run)
    assert dag.outputs(run)["large"] == large
    assert dag.outputs(run)["use"] == {"uri": "artifact://t/large"}
