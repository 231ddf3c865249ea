"""Flower, as the site's operators look at it: behind a password, with the workers, their queues and the tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.acceptance.system import ROOT, System

pytestmark = pytest.mark.timeout(120)

PASSWORD = "a-password-for-flower"


def test_flower_needs_a_password_and_shows_workers_queues_and_tasks(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    with System(tmp_path, database_url, redis_url) as system:
        flower = system.start_flower(PASSWORD)
        system.start_all(workers=("a",))
        system.wait_until(lambda: _answers(flower), "Flower answers")

        for path in ("/", "/workers", "/tasks", "/api/workers", "/api/tasks"):
            assert requests.get(f"{flower}{path}", timeout=10).status_code == 401
        assert requests.get(f"{flower}/", auth=("admin", "guess"), timeout=10).status_code == 401

        online = system.wait_until(lambda: _get(flower, "/workers?json=1")["data"], "Flower's page lists the worker")
        assert [(worker["hostname"].partition("@")[0], worker["status"]) for worker in online] == [("a", True)]

        run_id = system.start_run(json.loads((ROOT / "tests/seed_pipelines/05-feature-pipeline.json").read_text()))
        system.succeed(run_id)

        workers = system.wait_until(lambda: _get(flower, "/api/workers?refresh=1"), "Flower lists the worker")
        assert [name.partition("@")[0] for name in workers] == ["a"]
        queues = {queue["name"] for worker in workers.values() for queue in worker["active_queues"]}
        assert {"cpu", "highmem"} <= queues
        assert "a@" in requests.get(f"{flower}/workers", auth=("admin", PASSWORD), timeout=10).text

        tasks = system.wait_until(lambda: _get(flower, "/api/tasks"), "Flower lists the task")
        assert {task["name"] for task in tasks.values()} == {"orchestrator.attempt"}
        assert {task["state"] for task in tasks.values()} <= {"RECEIVED", "STARTED", "SUCCESS"}


def _answers(flower: str) -> bool:
    try:
        return requests.get(f"{flower}/", timeout=5).status_code == 401
    except requests.ConnectionError:
        return False


def _get(flower: str, path: str) -> Any:
    response = requests.get(f"{flower}{path}", auth=("admin", PASSWORD), timeout=10)
    response.raise_for_status()
    return response.json()
