"""Long tasks on a whole system of real processes: adopted by the host's next worker, and drained with a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.system import System

pytestmark = pytest.mark.timeout(180)

STEPS = """
file="$ORCHESTRATOR_CHECKPOINT_DIR/step"
step=$(cat "$file" 2>/dev/null || echo 0)
first=$step
trap 'echo "$step" > "$file"; exit 75' TERM
while [ "$step" -lt 60 ]; do
  sleep 0.2
  step=$((step + 1))
  [ "$step" = $((first + 5)) ] && echo "five more"
done
echo "{\\"first\\": $first}" > "$ORCHESTRATOR_OUTPUT_FILE"
"""


@pytest.fixture
def system(tmp_path: Path, database_url: str, redis_url: str) -> Iterator[System]:
    with System(tmp_path, database_url, redis_url) as system:
        system.start_all(("a",))
        yield system


def _ledger(system: System, name: str) -> list[dict[str, Any]]:
    path = system.folder / "data" / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_task_outlives_its_worker_and_is_reported_by_the_next_one_of_the_host(system: System) -> None:
    parameters = {"path": "data:long.jsonl", "seconds": 15}
    long = {"name": "t", "operator": "ledger", "on_worker_loss": "adopt", "retries": 0, "parameters": parameters}
    run_id = system.start_run({"name": "long", "tasks": [long]})
    before = system.wait_for_task(run_id, "t", "running")
    system.wait_until(lambda: _ledger(system, "long.jsonl"), "the task has started")
    system.kill(system.children["worker-a-1"])
    system.wait_until(lambda: system.task(run_id, "t")["reason"] == "worker_lost", "an orphan")
    assert system.task(run_id, "t")["state"] == "running"
    system.start_worker("a", incarnation=2)
    system.wait_until(lambda: system.task(run_id, "t")["reason"] != "worker_lost", "adoption")
    system.succeed(run_id)
    (attempt,) = system.attempts(run_id, "t")
    assert (attempt["state"], attempt["id"]) == ("succeeded", before["attempt_id"])
    assert [line["what"] for line in _ledger(system, "long.jsonl")] == ["start", "end"], "it ran once"


def test_a_drained_script_goes_on_elsewhere_where_it_was(system: System) -> None:
    system.start_worker("b")
    system.wait_until_online(2)
    parameters = {"script_type": "bash", "script_content": STEPS}
    task = {"name": "t", "operator": "custom_script", "on_drain": "checkpoint", "retries": 0, "parameters": parameters}
    run_id = system.start_run({"name": "steps", "tasks": [task]})
    running = system.wait_for_task(run_id, "t", "running")
    letter = str(running["worker"]).partition("@")[0]
    system.wait_until(lambda: "five more" in str(system.client.logs(run_id, "t")), "some steps")
    worker = system.children[f"worker-{letter}-1"]
    worker.ask_to_stop()
    run = system.succeed(run_id)
    assert worker.wait(20.0)
    assert worker.returncode == 0
    attempts = system.attempts(run_id, "t")
    assert [attempt["state"] for attempt in attempts] == ["preempted", "succeeded"]
    assert attempts[0]["worker_id"] != attempts[1]["worker_id"]
    assert run["tasks"][0]["outputs"]["first"] >= 5
