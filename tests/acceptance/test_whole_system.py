"""The main job, end to end, over REST alone: real pipelines, and the three faults that come with the first version."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.acceptance.system import ROOT, System

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def system(tmp_path: Path, database_url: str, redis_url: str) -> Iterator[System]:
    with System(tmp_path, database_url, redis_url) as system:
        system.start_all()
        yield system


def _example(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ROOT / "examples" / f"{name}.json").read_text())
    return document


def _chain(name: str, length: int, seconds: float) -> dict[str, Any]:
    """A chain of ledger tasks that all write to one file."""
    return {
        "name": name,
        "tasks": [
            {
                "name": f"t{i}",
                "operator": "ledger",
                "upstream_tasks": [f"t{i - 1}"] if i else [],
                "parameters": {"path": f"data:{name}.jsonl", "seconds": seconds},
            }
            for i in range(length)
        ],
    }


def _ledger(system: System, name: str) -> list[dict[str, Any]]:
    path = system.folder / "data" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_training_example_trains_gates_and_registers_a_model(system: System) -> None:
    run = system.succeed(system.start_run(_example("ml-training-pipeline")))
    assert {task["state"] for task in run["tasks"]} == {"success"}
    model = next(t["outputs"]["model"] for t in run["tasks"] if "model" in (t["outputs"] or {}))
    assert model["metrics"]["accuracy"] > 0.9
    registration = next(t["outputs"]["registration"] for t in run["tasks"] if "registration" in (t["outputs"] or {}))
    versions = list(system.client.model_versions(registration["name"]))
    assert [version["version"] for version in versions] == [registration["version"]]
    assert all(task["usage"]["peak_memory_bytes"] > 0 for task in run["tasks"])


def test_the_ab_example_registers_the_better_model(system: System) -> None:
    run = system.succeed(system.start_run(_example("ab-testing")))
    tasks = {task["name"]: task for task in run["tasks"]}
    scores = sorted(
        task["outputs"]["model"]["metrics"]["accuracy"] for task in run["tasks"] if task["operator"] == "model_training"
    )
    assert len(scores) == 2
    registered = next(task for task in tasks.values() if task["operator"] == "model_registration")
    version = next(iter(system.client.model_versions(registered["outputs"]["registration"]["name"])))
    assert version["metrics"]["accuracy"] == pytest.approx(scores[-1])


def test_a_worker_killed_while_it_trains_costs_one_attempt_and_the_run_succeeds_on_the_other(system: System) -> None:
    pipeline = _example("ml-training-pipeline")
    training = next(task for task in pipeline["tasks"] if task["operator"] == "model_training")
    training["parameters"]["hyperparameters"] = {"n_estimators": 2000}
    training["parameters"].pop("cross_validation", None)
    run_id = system.start_run(pipeline)
    running = system.wait_for_task(run_id, training["name"], "running")
    first = next(child for name, child in system.children.items() if name == f"worker-{_host(running)}-1")
    system.kill(first)
    run = system.succeed(run_id, seconds=150)
    attempts = system.attempts(run_id, training["name"])
    assert [attempt["state"] for attempt in attempts] == ["lost", "succeeded"]
    assert attempts[0]["worker_id"] != attempts[1]["worker_id"]
    task = next(task for task in run["tasks"] if task["name"] == training["name"])
    assert task["outputs"]["model"]["uri"].split("/")[-2] == attempts[1]["id"], "the pointer is the winner's"


def test_the_standby_goes_on_when_the_leader_is_killed(system: System) -> None:
    run_id = system.start_run(_chain("failover", 8, 0.4))
    system.wait_for_task(run_id, "t1", "running")
    holder = system.client.health()["components"]["leader"]
    leader = next(child for child in system.children.values() if str(child.pid) in str(holder))
    system.kill(leader)
    system.succeed(run_id)
    starts = [line["task"] for line in _ledger(system, "failover") if line["what"] == "start"]
    assert starts == [f"t{i}" for i in range(8)], "every task ran once, in order"


def test_a_flush_of_redis_in_the_middle_loses_nothing(system: System, redis_url: str) -> None:
    runs = [system.start_run(_chain(f"flush-{i}", 5, 0.3)) for i in range(4)]
    system.wait_for_task(runs[0], "t1", "running")
    with redis.Redis.from_url(redis_url) as client:
        for name in ("t2", "t3", "t4"):
            client.flushall()
            system.wait_for_task(runs[0], name, "running", "success")
    for i, run_id in enumerate(runs):
        assert system.finish(run_id)["state"] == "success"
        starts = [line["task"] for line in _ledger(system, f"flush-{i}") if line["what"] == "start"]
        assert starts == [f"t{n}" for n in range(5)]


def test_a_cancelled_run_leaves_no_process_and_starts_nothing_more(system: System) -> None:
    run_id = system.start_run(_chain("cancelled", 3, 30))
    system.wait_for_task(run_id, "t0", "running")
    pid = system.wait_until(lambda: _ledger(system, "cancelled"), "the task has started")[0]["pid"]
    system.client.cancel(run_id)
    run = system.finish(run_id, seconds=25)
    assert run["state"] == "cancelled"
    assert not Path(f"/proc/{pid}").exists()
    assert [line["what"] for line in _ledger(system, "cancelled")] == ["start"]


def _host(task: dict[str, Any]) -> str:
    """The letter of the pretended host a task runs on, from Celery's node name ``a@host``."""
    return str(task["worker"]).partition("@")[0]
