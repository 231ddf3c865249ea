"""What waits says for what; once that is brought about it starts. Over REST on real processes."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from orchestrator.client import ApiError
from orchestrator.states import TASK_TERMINAL
from tests.acceptance.system import System
from tests.acceptance.test_dag_data import definition, gate, script
from tests.acceptance.test_dag_examples import tasks_of

pytestmark = pytest.mark.timeout(120)

SHORT, LONG = "echo done", "sleep 60"
ONE = {"key": "one", "limit": 1}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, database: str, redis_server_url: str) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("dag_explain")
    settings = {"REDIS_TASK_QUEUE": "dag_explain", "QUEUES": "cpu,gpu,highmem,far", "MAX_CONCURRENT_RUNS": "4"}
    with System(folder, database, redis_server_url, **settings) as system:
        system.start_api()
        system.start_scheduler()
        system.start_worker("a", slots=2)
        system.wait_until_online(1)
        yield system


@pytest.fixture(autouse=True)
def _nothing_goes_on(system: System) -> Iterator[None]:
    """A test that has failed keeps no other one waiting."""
    yield
    for run in system.client.runs(state="queued,running,paused,cancelling"):
        end(system, run["id"])


def run(system: System, name: str, tasks: dict[str, Any], **fields: Any) -> str:
    return system.start_run(definition(name, tasks, **fields))


def blocked(system: System, run_id: str, name: str, kind: str) -> dict[str, Any]:
    """Wait until the task says that this is in its way; whenever it is asked before, something is."""

    def found() -> dict[str, Any] | None:
        explained = system.client.explain(run_id, name)
        if explained["state"] not in {"running", *(state.value for state in TASK_TERMINAL)}:
            assert explained["blockers"], explained
        for blocker in explained["blockers"]:
            assert blocker["needs"], blocker
            assert blocker["unblock"], blocker
            assert blocker["message"], blocker
        return next((blocker for blocker in explained["blockers"] if blocker["kind"] == kind), None)

    blocker: dict[str, Any] = system.wait_until(found, f"{name} is blocked by {kind}")
    return blocker


def end(system: System, run_id: str) -> None:
    """Cancel the run by force, unless it has ended by itself."""
    with contextlib.suppress(ApiError):
        system.client.cancel(run_id, mode="force")
    system.finish(run_id)


def test_a_task_waits_for_its_upstreams_and_an_approval_for_a_person(system: System) -> None:
    run_id = run(system, "asks", {"ask": gate(), "next": script(SHORT, "ask"), "last": script(SHORT, "next")})
    blocked(system, run_id, "ask", "approval")
    assert "waits for ask, which is waiting (approval)" in blocked(system, run_id, "next", "upstream")["message"]
    blocked(system, run_id, "last", "upstream")
    explained = system.client.explain(run_id)
    assert [task["name"] for task in explained["tasks"]] == ["ask", "next", "last"]
    assert all(task["blockers"] for task in explained["tasks"])
    system.client.approve(run_id, "ask")
    system.succeed(run_id)


def test_an_event_waits_for_its_report(system: System) -> None:
    run_id = run(system, "hears", {"hear": {"event": {}}, "next": script(SHORT, "hear")})
    blocked(system, run_id, "hear", "event")
    system.client.send_event(system.task(run_id, "hear")["wait_token"])
    system.succeed(run_id)


def test_a_wait_looks_until_the_file_is_there(system: System) -> None:
    look = {"operator": "wait_for", "parameters": {"file": "data:late", "interval_seconds": 1}}
    run_id = run(system, "looks", {"look": look, "next": script(SHORT, "look")})
    assert "looked again at" in blocked(system, run_id, "look", "not_yet")["message"]
    (system.folder / "data" / "late").write_text("here")
    system.succeed(run_id)


def test_a_retry_waits_for_its_delay(system: System) -> None:
    run_id = run(system, "tries", {"tries": script("exit 1", retries=1, retry_delay_seconds=2)})
    assert "is tried again at" in blocked(system, run_id, "tries", "retry")["message"]
    system.wait_until(lambda: len(system.attempts(run_id, "tries")) == 2, "its delay has passed")
    end(system, run_id)


def test_a_paused_run_and_a_run_of_a_paused_pipeline_wait_to_be_resumed(system: System) -> None:
    tasks = {"ask": gate(), "next": script(SHORT, "ask")}
    run_id = run(system, "halts", tasks)
    system.wait_for_task(run_id, "ask", "waiting")
    system.client.settled(system.client.pause(run_id))
    system.client.settled(system.client.approve(run_id, "ask"))
    blocked(system, run_id, "next", "run_paused")
    system.client.resume(run_id)
    system.succeed(run_id)

    pipeline_id = system.client.get_pipeline_by_name("halts")["id"]
    system.client.pause_pipeline(pipeline_id)
    run_id = str(system.client.start_run("halts")["id"])
    blocked(system, run_id, "ask", "pipeline_paused")
    assert [blocker["kind"] for blocker in system.client.explain(run_id)["blockers"]] == ["pipeline_paused"]
    system.client.resume_pipeline(pipeline_id)
    system.wait_for_task(run_id, "ask", "waiting")
    end(system, run_id)


def _two(system: System, name: str, first: dict[str, Any], second: dict[str, Any]) -> tuple[str, str]:
    """Start a run with a task that goes on for long, and one that it keeps waiting; return their ids."""
    holder = run(system, f"{name}-holds", {"holds": first})
    system.wait_for_task(holder, "holds", "running")
    return holder, run(system, f"{name}-waits", {"waits": second})


@pytest.mark.parametrize(
    ("kind", "holds", "waits", "named"),
    [
        ("concurrency", {"concurrency": [ONE]}, {"concurrency": [ONE]}, "one"),
        ("waiting_for_cpu", {"cpu": "all"}, {"cpu": 0.5}, "Asks 0.5"),
        ("waiting_for_memory", {"memory_gb": "all"}, {"memory_gb": 1}, "Asks 1 GiB"),
    ],
)
def test_what_another_task_holds_is_waited_for(
    system: System, kind: str, holds: dict[str, Any], waits: dict[str, Any], named: str
) -> None:
    [worker] = [worker for worker in system.client.workers() if worker["state"] == "online"]
    capacity = {"cpu": worker["capacity"]["cpu"], "memory_gb": worker["capacity"]["memory_bytes"] / 2**30}
    holds = {name: capacity[name] if value == "all" else value for name, value in holds.items()}
    holder, run_id = _two(system, kind.replace("_", "-"), script(LONG, **holds), script(SHORT, **waits))
    assert named in blocked(system, run_id, "waits", kind)["message"]
    end(system, holder)
    system.succeed(run_id)


def test_a_task_waits_for_a_slot(system: System) -> None:
    small: dict[str, Any] = {"cpu": 0.1, "memory_gb": 0.1}
    tasks = {name: script(LONG, **small) for name in ("one", "two")}
    holder = run(system, "slots", tasks)
    for name in tasks:
        system.wait_for_task(holder, name, "running")
    run_id = run(system, "no-slot", {"waits": script(SHORT, **small)})
    blocked(system, run_id, "waits", "waiting_for_slot")
    system.client.cancel_task(holder, "one", mode="force")
    system.wait_for_task(run_id, "waits", "success")
    end(system, holder)


def test_a_run_waits_for_its_place_under_the_key_of_its_pipeline(system: System) -> None:
    tasks = {"ask": gate()}
    fields: dict[str, Any] = {"concurrency": [{"key": "of-runs", "limit": 1}]}
    first = run(system, "one-at-a-time", tasks, **fields)
    system.wait_for_task(first, "ask", "waiting")
    second = run(system, "one-at-a-time", tasks, **fields)
    blocked(system, second, "ask", "concurrency")
    end(system, first)
    system.wait_for_task(second, "ask", "waiting")
    end(system, second)


def test_a_run_waits_for_its_place_among_all_runs(system: System) -> None:
    ids = [run(system, "many", {"ask": gate()}) for _ in range(5)]
    for run_id in ids[:4]:
        system.wait_for_task(run_id, "ask", "waiting")
    assert "MAX_CONCURRENT_RUNS is 4" in blocked(system, ids[4], "ask", "run_place")["message"]
    end(system, ids[0])
    system.wait_for_task(ids[4], "ask", "waiting")
    for run_id in ids[1:]:
        end(system, run_id)


def _running(system: System, run_id: str) -> set[str]:
    return {one["name"] for one in system.client.tasks(run_id, inside="each") if one["state"] == "running"}


def test_an_index_waits_for_its_turn(system: System) -> None:
    each = script('sleep "$ORCHESTRATOR_PARAM_N"', arguments={"n": "{{ map.item }}"})
    run_id = run(system, "wide", {"each": {**each, "map": {"over": [60, 0], "max_parallel": 1, "success": "any"}}})
    system.wait_until(lambda: "each[0]" in _running(system, run_id), "one runs")
    assert "1 indices run at once" in blocked(system, run_id, "each[1]", "max_parallel")["message"]
    system.client.cancel_task(run_id, "each[0]", mode="force")
    system.succeed(run_id)


def test_a_task_waits_for_its_turn_under_a_rate_limit(system: System) -> None:
    limit = {"rate_limit": {"key": "starts", "units": 1, "per_seconds": 4}}
    run_id = run(system, "rated", {"one": script(SHORT, **limit), "two": script(SHORT, "one", **limit)})
    blocked(system, run_id, "two", "rate_limit")
    system.succeed(run_id)


def test_a_task_that_was_sent_out_waits_for_a_worker_to_take_it(system: System) -> None:
    worker = system.children["worker-a-1"].pid
    os.kill(worker, signal.SIGSTOP)
    try:
        run_id = run(system, "unclaimed", {"one": script(SHORT)})
        assert "is not claimed yet" in blocked(system, run_id, "one", "hint")["message"]
    finally:
        os.kill(worker, signal.SIGCONT)
    system.succeed(run_id)


def test_what_is_deaf_to_term_waits_for_its_grace_or_for_force(system: System) -> None:
    stubborn = script("trap '' TERM; echo deaf; while true; do sleep 0.1; done", grace_seconds=3600)
    run_id = run(system, "stubborn", {"deaf": stubborn})
    system.wait_until(lambda: "deaf" in system.client.logs(run_id, "deaf")["text"], "it is deaf to TERM")
    system.client.cancel(run_id)
    blocked(system, run_id, "deaf", "cancelling")
    blocked(system, run_id, "deaf", "run_cancelling")
    end(system, run_id)
    assert tasks_of(system.client.get_run(run_id))["deaf"]["state"] == "cancelled"


def test_a_task_that_no_worker_can_take_waits_for_one_that_can(system: System) -> None:
    asks: dict[str, Callable[[], dict[str, Any]]] = {
        "waiting_for_worker": lambda: script(SHORT, queue="far"),
        "infeasible": lambda: script(SHORT, labels={"zone": "far"}),
    }
    run_id = run(system, "far", {kind.replace("_", "-"): ask() for kind, ask in asks.items()})
    for kind in asks:
        blocked(system, run_id, kind.replace("_", "-"), kind)
    system.start_worker("far", queues="cpu,far", slots=2, WORKER_LABELS="zone=far")
    system.succeed(run_id)


def test_a_run_that_nobody_leads_waits_for_a_scheduler(system: System) -> None:
    system.children["scheduler"].stop()
    run_id = run(system, "unled", {"one": script(SHORT)})
    blocked(system, run_id, "one", "no_leader")
    system.start_scheduler("scheduler-2")
    system.succeed(run_id)
