"""The policies of tasks and runs on real processes: services, retries, memory, time, cancelling, concurrency."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.acceptance.outside_service import OutsideService
from tests.acceptance.system import System
from tests.acceptance.test_dag_edges import end, save, start, told

pytestmark = pytest.mark.timeout(120)

GIB = 2**30
RESOURCES = {
    "custom_script": {"cpu": 0.1, "memory_gb": 0.25},
    "data_ingestion": {"cpu": 0.1, "memory_gb": 0.5},
    "mishap": {"cpu": 0.1, "memory_gb": 0.25},
}
SHOP = "/shop/rows.csv"


@pytest.fixture(scope="module")
def service() -> Iterator[OutsideService]:
    with OutsideService() as service:
        yield service


@pytest.fixture(scope="module")
def system(
    tmp_path_factory: pytest.TempPathFactory, database: str, redis_server_url: str, service: OutsideService
) -> Iterator[System]:
    settings = {
        "REDIS_TASK_QUEUE": "dag_policies",
        "ALLOWED_PRIVATE_HOSTS": service.address,
        "CONNECTIONS": json.dumps({"shop": {"url": f"http://{service.address}/shop"}}),
        "DEFAULT_TASK_RESOURCES": json.dumps(RESOURCES),
        "HIGHMEM_THRESHOLD_GB": "0.35",
    }
    with System(tmp_path_factory.mktemp("policies"), database, redis_server_url, **settings) as system:
        system.start_api()
        system.start_scheduler()
        system.start_worker("a", slots=8)
        system.wait_until_online(1)
        yield system


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def wait_for_log(system: System, run_id: str, task: str, text: str) -> str:
    """Wait until the task has printed this, and return its log."""
    return str(
        system.wait_until(
            lambda: found if text in (found := system.client.logs(run_id, task)["text"]) else "", f"{task} says {text}"
        )
    )


def circuit(system: System) -> dict[str, Any]:
    """Return how the connection ``shop`` does, as the health page says it."""
    services = system.client.health()["components"]["services"]
    return next((one for one in services["circuits"] if one["service"] == "shop"), {"state": "closed"})


@pytest.fixture(scope="module")
def patient(system: System, service: OutsideService) -> list[str]:
    """Let a service fail until nobody asks it for half a minute, and start two runs that wait for it.

    It is back then, but answers nobody before the test at the end of this file: that time passes beside the others.
    """
    asks = "operator: data_ingestion, parameters: {source: shop, source_path: rows.csv, timeout_seconds: 600}"
    service.answer_always(SHOP, 500)
    broken = f"name: broken-shop\ntasks:\n  - {{name: ask, {asks}, retries: 4, retry_delay_seconds: 0}}\n"
    _, tasks = end(system, broken)
    assert (told(tasks["ask"]), tasks["ask"]["failures"]) == (("failed", "unreachable"), 5), tasks["ask"]["message"]
    service.hold(SHOP)
    service.answer_always(SHOP, 200)
    name = save(system, f"name: patient-shop\ntasks:\n  - {{name: ask, {asks}, retries: 0}}\n")
    return [start(system, name) for _ in range(2)]


# --- services ---


def test_a_service_that_fails_five_times_in_a_row_is_asked_no_more(
    system: System, service: OutsideService, patient: list[str]
) -> None:
    for run_id in patient:
        system.wait_until(lambda id_=run_id: system.task(id_, "ask")["reason"] == "service_open", "it waits")  # type: ignore[misc]
        waiting = system.task(run_id, "ask")
        assert (waiting["state"], waiting["attempt_number"]) == ("ready", 0)
        assert "shop" in waiting["message"]
        assert [one["kind"] for one in system.client.explain(run_id, "ask")["blockers"]] == ["service_open"]
    found = circuit(system)
    assert (found["state"], found["failures"]) == ("open", 5)
    assert moment(found["open_until"]) > time.time()
    health = system.client.health()
    assert (health["status"], health["components"]["services"]["status"]) == ("degraded", "degraded")
    assert len(service.asked[SHOP]) == 5


def test_a_service_that_says_when_to_come_back_is_asked_no_sooner(system: System, service: OutsideService) -> None:
    service.answer("/late.csv", 503, Retry_After="1")  # so short that the attempt itself waits
    service.answer("/late.csv", 500, Retry_After="2")  # the scheduler's wait
    run, tasks = end(
        system,
        f"""
        name: late-service
        tasks:
          - name: ask
            operator: data_ingestion
            retries: 1
            retry_delay_seconds: 0
            parameters: {{source_path: "http://{service.address}/late.csv"}}
        """,
    )
    assert (run["state"], tasks["ask"]["attempt_number"]) == ("success", 2), tasks["ask"]["message"]
    first, second, third = service.asked["/late.csv"]
    assert second - first >= 1.0
    assert third - second >= 2.0


def test_a_wait_for_an_answer_holds_no_slot_and_is_charged_to_no_retries(
    system: System, service: OutsideService
) -> None:
    service.answer("/ready", 404)
    service.answer("/ready", 503, Retry_After="2")
    name = save(
        system,
        f"""
        name: until-ready
        tasks:
          - {{name: look, operator: wait_for, retries: 0,
             parameters: {{interval_seconds: 1, http: {{url: "http://{service.address}/ready"}}}}}}
        """,
    )
    run_id = start(system, name)

    def held_while_it_waits() -> list[str] | None:
        before = system.task(run_id, "look")
        [worker] = system.client.workers()
        after = system.task(run_id, "look")
        if (told(before), before["attempt_number"]) != (("waiting", "not_yet"), after["attempt_number"]):
            return None
        return [f"{one['task']} of {one['run_id']}" for one in worker["running"]] or ["nothing"]

    held = system.wait_until(held_while_it_waits, "it waits")
    assert f"look of {run_id}" not in held
    [look] = system.succeed(run_id)["tasks"]
    assert (look["attempt_number"], look["failures"], look["outputs"]["status"]) == (3, 0, 200)
    first, second, third = service.asked["/ready"]
    assert second - first >= 1.0
    assert third - second >= 2.0


# --- retries ---


def test_each_cause_goes_the_way_of_the_first_rule_that_fits(system: System) -> None:
    fails = "operator: mishap, retries: 2, retry_delay_seconds: 0"
    ends = "operator: custom_script, retries: 2, retry_delay_seconds: 0"
    run, tasks = end(
        system,
        f"""
        name: rules-by-cause
        tasks:
          - {{name: class-skip, {fails}, parameters: {{raises: ShopClosed}},
             retry: {{on: [{{match: {{exception: ShopClosed}}, action: skip}}]}}}}
          - {{name: class-fail, {fails}, parameters: {{raises: ValueError}},
             retry: {{on: [{{match: {{exception: [ShopClosed, builtins.ValueError]}}, action: fail}}]}}}}
          - {{name: class-other, {fails}, parameters: {{raises: ValueError}},
             retry: {{on: [{{match: {{exception: ShopClosed}}, action: fail}}]}}}}
          - {{name: message, {fails}, parameters: {{raises: ValueError, message: "Permission DENIED for ann"}},
             retry: {{on: [{{match: {{message: permission denied}}, action: fail}}]}}}}
          - {{name: both, {fails}, parameters: {{raises: ValueError, message: no}},
             retry: {{on: [{{match: {{exception: ValueError, message: yes indeed}}, action: skip}},
                          {{match: {{exception: ValueError, message: no}}, action: fail}}]}}}}
          - {{name: code-skip, {ends}, parameters: {{script_type: bash, script_content: exit 7}},
             retry: {{on: [{{match: {{exit_code: 7}}, action: skip}}]}}}}
          - {{name: code-fail, {ends}, parameters: {{script_type: bash, script_content: exit 7}},
             retry: {{on: [{{match: {{exit_code: [3, 7]}}, action: fail}}]}}}}
          - {{name: not-again, {ends}, parameters: BROKEN}}
          - {{name: yet-again, {ends}, parameters: BROKEN,
             retry: {{on: [{{match: {{reason: exit_code}}, action: retry, delay_seconds: 0}}]}}}}
        """,
    )
    assert run["state"] == "failed"
    assert {name: (*told(task), task["attempt_number"]) for name, task in tasks.items()} == {
        "class-skip": ("skipped", "rule", 1),
        "class-fail": ("failed", "exception", 1),
        "class-other": ("failed", "exception", 3),
        "message": ("failed", "exception", 1),
        "both": ("failed", "exception", 1),
        "code-skip": ("skipped", "rule", 1),
        "code-fail": ("failed", "exit_code", 1),
        "not-again": ("failed", "exit_code", 1),
        "yet-again": ("failed", "exit_code", 3),
    }
    [attempt] = system.attempts(run["id"], "class-skip")
    assert attempt["exception"].endswith("mishap.ShopClosed")


def test_each_delay_is_longer_than_the_one_before_up_to_the_longest(system: System) -> None:
    run, tasks = end(
        system,
        """
        name: backing-off
        tasks:
          - {name: again, operator: mishap, retries: 3, retry_delay_seconds: 0.2, retry_backoff_factor: 5,
             retry_max_delay_seconds: 1, retry: {jitter: 0}, parameters: {raises: ValueError}}
        """,
    )
    assert (run["state"], tasks["again"]["attempt_number"]) == ("failed", 4)
    changes = [event for event in system.events(run["id"]) if event["entity"] == "task_run"]
    waits = [
        moment(after["at"]) - moment(before["at"])
        for before, after in itertools.pairwise(changes)
        if before["after"] == "retry_wait"
    ]
    assert [wait >= least for wait, least in zip(waits, (0.2, 1.0, 1.0), strict=True)] == [True] * 3, waits
    assert waits[2] < 4.0, "five times as much again would be 5 s"


def test_what_kills_its_runner_is_charged_to_its_own_budget_and_leaves_no_slot_behind(system: System) -> None:
    name = save(
        system,
        """
        name: poisonous
        tasks:
          - {name: kills, operator: mishap, retries: 9, parameters: {kills_its_supervisor: true},
             retry: {infrastructure: 2}, concurrency: [{key: poison, limit: 1}]}
          - {name: next, operator: custom_script, upstream_tasks: [kills], trigger_rule: all_failed,
             concurrency: [{key: poison, limit: 1}], parameters: SHORT}
        """,
    )
    tasks = {task["name"]: task for task in system.succeed(start(system, name))["tasks"]}
    kills = tasks["kills"]
    assert (*told(kills), kills["losses"], kills["failures"]) == ("failed", "poison", 2, 0), kills["message"]
    assert tasks["next"]["state"] == "success"


# --- memory ---


def hungry(mebibytes: int) -> str:
    """Return the parameters of a script that takes so much, and some more for the processes around it."""
    return f"{{script_content: 'import time; taken = b\"x\" * ({mebibytes} << 20); time.sleep(1.5)'}}"


def test_out_of_memory_is_tried_again_with_more_up_to_the_most_and_where_more_is(system: System) -> None:
    more = "retry: {on: [{match: {reason: oom}, action: retry, delay_seconds: 0, resources: %s}]}"
    run, tasks = end(
        system,
        f"""
        name: hungry
        tasks:
          - {{name: grows, operator: custom_script, memory_gb: 0.2, retries: 3, parameters: {hungry(340)},
             {more % "{memory_gb: x1.5, max_memory_gb: 0.42}"}}}
          - {{name: held-down, operator: custom_script, memory_gb: 0.1, retries: 2, parameters: {hungry(340)},
             {more % "{memory_gb: x1.5, max_memory_gb: 0.12}"}}}
        """,
    )
    grown = system.attempts(run["id"], "grows")
    assert [(one["state"], one["reason"]) for one in grown] == [("failed", "oom"), ("failed", "oom"), ("succeeded", "")]
    assert [round(one["memory_bytes"] / GIB, 2) for one in grown] == [0.2, 0.3, 0.42], "and not 0.45"
    assert [one["queue"] for one in grown] == ["cpu", "cpu", "highmem"]
    assert (*told(tasks["held-down"]), tasks["held-down"]["failures"]) == ("failed", "oom", 3)
    assert [round(one["memory_bytes"] / GIB, 2) for one in system.attempts(run["id"], "held-down")] == [0.1, 0.12, 0.12]


def test_what_a_run_has_learned_of_memory_the_next_one_begins_with(system: System) -> None:
    name = save(
        system,
        f"""
        name: learns-memory
        tasks:
          - {{name: eats, operator: custom_script, memory_gb: auto, retries: 3, retry_delay_seconds: 0,
             parameters: {hungry(285)}}}
        """,
    )
    first = system.attempts(system.succeed(start(system, name))["id"], "eats")
    assert [one["reason"] for one in first] == ["oom", ""]
    assert [one["memory_bytes"] for one in first] == [GIB // 4, GIB * 3 // 8]
    [second] = system.attempts(system.succeed(start(system, name))["id"], "eats")
    assert second["memory_bytes"] >= GIB * 9 // 32, "no less than three quarters of what was enough"
    assert second["memory_bytes"] > first[0]["memory_bytes"]


# --- time ---


def test_a_time_limit_is_for_each_attempt_and_set_up_is_no_part_of_it(system: System) -> None:
    name = save(
        system,
        """
        name: times
        tasks:
          - name: second-is-quick
            operator: custom_script
            timeout_seconds: 1
            retries: 1
            retry_delay_seconds: 0
            grace_seconds: 1
            parameters:
              script_content: |
                import json, os, time

                attempt = json.load(open(os.environ["ORCHESTRATOR_INPUT_FILE"]))["attempt_number"]
                time.sleep(60 if attempt == 1 else 0)
          - {name: long-set-up, operator: mishap, timeout_seconds: 1, retries: 0, parameters: {setup_seconds: 3}}
          - {name: tells, operator: custom_script, progress_timeout_seconds: 2, retries: 0,
             parameters: {script_type: bash, script_content: 'for i in 1 2 3 4 5 6; do echo $i; sleep 0.5; done'}}
        """,
    )
    run_id = start(system, name)
    system.wait_until(lambda: system.task(run_id, "long-set-up")["phase"] == "setup", "it is being set up")
    system.succeed(run_id)
    tries = system.attempts(run_id, "second-is-quick")
    assert [(one["state"], one["reason"]) for one in tries] == [("timed_out", "timeout"), ("succeeded", "")]
    [attempt] = system.attempts(run_id, "long-set-up")
    assert attempt["setup_seconds"] >= 3.0


# --- cancelling ---

STUBBORN = """{script_type: bash, script_content: 'trap "" TERM; echo pid=$$; while true; do sleep 0.1; done'}"""


def test_what_ignores_term_is_cancelling_until_its_grace_is_over_and_nothing_of_it_lives(system: System) -> None:
    name = save(
        system,
        f"""
        name: stubborn
        tasks:
          - {{name: work, operator: custom_script, grace_seconds: 60, parameters: {STUBBORN}}}
          - {{name: gate, approval: {{message: go}}}}
          - {{name: between, operator: mishap, retries: 1, retry_delay_seconds: 60, parameters: {{raises: ValueError}}}}
          - {{name: after, operator: custom_script, upstream_tasks: [work], parameters: SHORT}}
        """,
    )
    run_id = start(system, name)
    pid = int(wait_for_log(system, run_id, "work", "pid=").partition("pid=")[2].split()[0])
    system.wait_for_task(run_id, "between", "retry_wait")
    body = {"mode": "graceful", "grace_seconds": 2}
    began = time.monotonic()
    for _ in range(2):  # to ask again changes nothing
        answer = system.client._send("POST", f"/api/v1/runs/{run_id}/cancel", body, None, {})
        assert answer.status_code == 202
    system.wait_for_task(run_id, "work", "cancelling")
    assert system.client.get_run(run_id)["state"] == "cancelling"
    os.kill(pid, 0)
    run = system.finish(run_id, seconds=20.0)
    assert time.monotonic() - began >= 2.0
    assert run["state"] == "cancelled"
    assert {task["state"] for task in run["tasks"]} == {"cancelled"}
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_force_does_not_wait_and_shortens_a_grace_that_runs(system: System) -> None:
    name = save(
        system,
        f"""
        name: forced
        tasks:
          - {{name: one, operator: custom_script, grace_seconds: 100, parameters: {STUBBORN}}}
          - {{name: other, operator: custom_script, grace_seconds: 100, parameters: {STUBBORN}}}
        """,
    )
    run_id = start(system, name)
    for task in ("one", "other"):
        wait_for_log(system, run_id, task, "pid=")
    system.client.settled(system.client.cancel_task(run_id, "one", mode="force"))
    system.wait_for_task(run_id, "one", "cancelled", seconds=20.0)
    assert system.task(run_id, "other")["state"] == "running"
    system.client.settled(system.client.cancel(run_id))
    system.wait_for_task(run_id, "other", "cancelling")
    system.client.settled(system.client.cancel(run_id, mode="force"))
    assert system.finish(run_id, seconds=20.0)["state"] == "cancelled"


# --- concurrency of tasks ---


@pytest.mark.parametrize(
    ("on_limit", "second"),
    [
        ("queue", ("ready", "concurrency")),
        ("cancel_new", ("cancelled", "concurrency")),
        ("cancel_running", ("running", "")),
        ("fail", ("failed", "concurrency")),
    ],
)
def test_tasks_of_two_pipelines_exclude_each_other_by_a_key(
    system: System, on_limit: str, second: tuple[str, str]
) -> None:
    names = [
        save(
            system,
            f"""
            name: key-{which}-{on_limit.replace("_", "-")}
            parameters: {{machine: m1}}
            tasks:
              - {{name: hold, operator: custom_script, grace_seconds: 1, parameters: LONG,
                 concurrency: [{{key: "{on_limit}-{{{{ params.machine }}}}", limit: 1, on_limit: {on_limit}}}]}}
            """,
        )
        for which in ("first", "second")
    ]
    holder = start(system, names[0])
    system.wait_for_task(holder, "hold", "running")
    other = start(system, names[1], machine="m2")
    newcomer = start(system, names[1])
    system.wait_until(lambda: told(system.task(newcomer, "hold")) == second, f"the second is {second}")
    system.wait_for_task(other, "hold", "running")
    if on_limit == "cancel_running":
        assert told(system.task(holder, "hold")) == ("cancelled", "displaced")
    else:
        assert system.task(holder, "hold")["state"] == "running"
        message = system.task(newcomer, "hold")["message"]
        assert f"{on_limit}-m1" in message
        assert holder in message
    if on_limit == "queue":
        system.client.cancel(holder, mode="force")
        system.wait_for_task(newcomer, "hold", "running")
    for run_id in (holder, other, newcomer):
        if system.client.get_run(run_id)["state"] == "running":
            system.client.cancel(run_id, mode="force")
        system.finish(run_id)


# --- services, once the time is over for which one is left alone ---


def test_one_task_finds_out_whether_the_service_is_back_and_the_others_follow(
    system: System, service: OutsideService, patient: list[str]
) -> None:
    system.wait_until(lambda: circuit(system)["state"] == "half_open", "one task is let through", 60.0)
    system.wait_until(lambda: len(service.asked[SHOP]) == 6, "it asks")
    assert sorted(system.task(run_id, "ask")["attempt_number"] for run_id in patient) == [0, 1]
    assert {system.task(run_id, "ask")["reason"] for run_id in patient} == {"", "service_open"}
    service.let_go(SHOP)
    for run_id in patient:
        system.succeed(run_id)
    assert circuit(system)["state"] == "closed"
    assert system.client.health()["components"]["services"]["status"] == "healthy"
