"""Every example of ``examples/dag``, applied and run once by the command line on one system of real processes."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli import main
from orchestrator.definition_text import read_files
from tests.acceptance.system import ADMIN_KEY, ROOT, System

pytestmark = pytest.mark.timeout(180)

FOLDER = ROOT / "examples" / "dag"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, database: str, redis_server_url: str) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("dag")
    with System(folder, database, redis_server_url, REDIS_TASK_QUEUE="dag_examples") as system:
        system.start_api()
        system.start_scheduler()
        system.start_worker("a", slots=4)
        system.wait_until_online(1)
        applied = orchestrator(system, "apply", "-f", str(FOLDER))
        assert applied.exit_code == 0, applied.output
        yield system


def orchestrator(system: System, *arguments: str) -> Result:
    """Run the command line as a user does."""
    variables = {"ORCHESTRATOR_URL": f"http://127.0.0.1:{system.port}", "ORCHESTRATOR_API_KEY": ADMIN_KEY}
    return CliRunner().invoke(main, arguments, env=variables)


def start(system: System, name: str, *arguments: str) -> str:
    started = orchestrator(system, "run", name, *arguments)
    assert started.exit_code == 0, started.output
    return str(started.output.strip())


def tasks_of(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {task["name"]: task for task in run["tasks"]}


def ended(
    system: System, name: str, *arguments: str, state: str = "success", inside: tuple[str, ...] = ()
) -> dict[str, dict[str, Any]]:
    """Run a pipeline to its end, which must be this one, and return its task runs.

    :param inside: containers whose indices or rounds are returned too.
    """
    run = system.finish(start(system, name, *arguments))
    tasks = tasks_of(run)
    assert run["state"] == state, [(task["name"], task["state"], task["message"]) for task in tasks.values()]
    for container in inside:
        tasks |= {task["name"]: task for task in system.client.tasks(run["id"], inside=container)}
    return tasks


def states(tasks: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: task["state"] for name, task in tasks.items()}


def test_every_example_of_the_folder_is_run_by_a_test_of_this_file() -> None:
    documents, problems = read_files([str(FOLDER)])
    assert not problems
    text = Path(__file__).read_text(encoding="utf-8")
    assert not [document.name for document in documents if f'system, "{document.name}"' not in text]


def test_every_example_is_on_a_page_and_every_page_has_one() -> None:
    pages = {page.name: page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "dag").glob("*.md")}
    told = "".join(pages.values())
    assert not [file.name for file in FOLDER.glob("*.yaml") if f"`examples/dag/{file.name}`" not in told]
    assert not [name for name, text in pages.items() if "examples/dag/" not in text]


def test_rules(system: System) -> None:
    found = states(ended(system, "rules"))
    assert found == {
        "fetch-primary": "failed", "fetch-mirror": "success", "report": "success", "open-ticket": "success",
        "count-visitors": "failed",
    }  # fmt: skip


def test_conditions(system: System) -> None:
    tasks = ended(system, "conditions")
    assert states(tasks) == {
        "validate": "success", "train": "success", "clean-up": "skipped", "report": "success", "long-report": "skipped",
    }  # fmt: skip
    assert tasks["clean-up"]["reason"] == "condition"
    other = states(ended(system, "conditions", "-p", "max_errors=1", "-p", "long_report=true"))
    assert (other["train"], other["clean-up"], other["long-report"]) == ("skipped", "success", "success")


def test_templates(system: System) -> None:
    ended(system, "templates")


def test_fan_out(system: System) -> None:
    tasks = ended(system, "fan-out", inside=("train",))
    assert tasks["train"]["state"] == "success"
    assert (tasks["choose"]["outputs"]["index"], tasks["choose"]["outputs"]["result"]["depth"]) == (4, 8)
    assert [states(tasks)[f"train[{index}]"] for index in range(6)] == [*["success"] * 5, "failed"]
    log = orchestrator(system, "logs", "latest", "--follow").output
    assert "train[5] | exit_code: The script ended with exit code 64" in log
    assert "train[5]  custom_script  failed" in orchestrator(system, "tasks", "latest", "train").output


def test_folds(system: System) -> None:
    tasks = ended(system, "folds", inside=("folds", "folds[2].train", "folds[0].train"))
    assert {"folds[2].test", "folds[2].train", "folds[2].train[0]", "folds[0].train[1]"} <= set(tasks)


def test_the_program_on_the_page_of_the_builder(system: System, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "how-to" / "define-pipelines-as-files.md").read_text(encoding="utf-8")
    [program] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    made: dict[str, Any] = {}
    exec(compile(program, "the page", "exec"), made)
    assert "name: sweep" in capsys.readouterr().out
    run_id = made["pipeline"].run(system.client)["id"]
    system.wait_for_task(run_id, "ask", "waiting", seconds=90)
    assert orchestrator(system, "approve", run_id, "ask").exit_code == 0
    assert set(states(tasks_of(system.succeed(run_id))).values()) == {"success"}


def test_sub_pipelines(system: System) -> None:
    ended(system, "prepare")
    tasks = ended(system, "sub-pipelines")
    inner = system.client.get_run(tasks["prepare-small"]["child_run_id"])
    assert (inner["pipeline_name"], inner["parameters"]) == ("prepare", {"rows": 25})


def test_a_loop(system: System) -> None:
    tasks = ended(system, "loop", inside=("train",))
    assert {name for name in tasks if name.startswith("train[")} == {"train[0]", "train[1]", "train[2]"}


def test_teardown(system: System) -> None:
    assert set(states(ended(system, "teardown")).values()) == {"success"}
    broken = states(ended(system, "teardown", "-p", "broken=true", state="failed"))
    assert (broken["work"], broken["stop-cluster"]) == ("failed", "success")


def test_an_approval(system: System) -> None:
    run_id = start(system, "approval")
    task = system.wait_for_task(run_id, "ask", "waiting")
    assert task["reason"] == "approval"
    wrong = orchestrator(system, "approve", run_id, "ask", "-i", "stage=moon")
    assert wrong.exit_code == 1
    assert "/input/stage" in wrong.output
    done = orchestrator(system, "approve", run_id, "ask", "-i", "stage=production", "--reason", "looks right")
    assert (done.exit_code, done.output) == (0, "success\n"), done.output
    tasks = tasks_of(system.succeed(run_id))
    assert tasks["ask"]["outputs"]["input"] == {"stage": "production"}
    assert tasks["release"]["state"] == "success"

    rejected = start(system, "approval")
    system.wait_for_task(rejected, "ask", "waiting")
    assert orchestrator(system, "reject", rejected, "ask").exit_code == 0
    assert system.finish(rejected)["state"] == "failed"


def test_an_outside_event(system: System) -> None:
    run_id = start(system, "event")
    token = system.wait_for_task(run_id, "export", "waiting")["wait_token"]
    assert orchestrator(system, "event", token, "--payload", '{"rows": 0}').exit_code == 1
    assert orchestrator(system, "event", token, "--payload", '{"rows": 1000}').exit_code == 0
    assert tasks_of(system.succeed(run_id))["export"]["outputs"]["payload"] == {"rows": 1000}


def test_a_wait(system: System) -> None:
    ended(system, "wait")


def test_retries(system: System) -> None:
    tasks = ended(system, "retries")
    assert (tasks["fetch"]["state"], tasks["fetch"]["attempt_number"]) == ("success", 3)
    assert tasks["optional-extra"]["state"] == "skipped"


def test_time_limits(system: System) -> None:
    tasks = ended(system, "time-limits")
    assert (tasks["too-slow"]["state"], tasks["fallback"]["state"]) == ("failed", "success")


def test_cancel(system: System) -> None:
    run_id = start(system, "cancel")
    system.wait_until(lambda: "working" in system.client.logs(run_id, "long")["text"], "the script has begun")
    cancelled = orchestrator(system, "cancel", run_id, "--reason", "wrong data", "--wait")
    assert (cancelled.exit_code, "cancelled" in cancelled.output) == (0, True), cancelled.output
    tasks = tasks_of(system.client.get_run(run_id))
    assert (tasks["long"]["state"], tasks["clean-up"]["state"]) == ("cancelled", "success")


def test_a_rerun(system: System) -> None:
    run_id = start(system, "rerun")
    assert system.finish(run_id)["state"] == "failed"
    preview = orchestrator(system, "rerun", run_id, "-p", "mended=true", "--preview")
    lines = preview.output.splitlines()
    assert (lines[0], lines[-1]) == ("As a new run:", "  reuse  prepare"), preview.output
    assert [line.split()[1] for line in lines[1:3]] == ["train", "publish"]
    again = orchestrator(system, "rerun", run_id, "-p", "mended=true", "--wait")
    assert again.exit_code == 0, again.output
    new = system.client.get_run(again.output.splitlines()[0])
    assert (new["rerun_of"], new["parameters"]) == (run_id, {"mended": True})
    assert [task["attempt_number"] for task in new["tasks"]] == [0, 1, 1]
    assert tasks_of(new)["prepare"]["reason"] == "reused"

    in_place = orchestrator(system, "rerun", run_id, "--wait")
    assert " as generation 2" in in_place.output.splitlines()[0], in_place.output
    tasks = tasks_of(system.client.get_run(run_id))
    assert [tasks[name]["attempt_number"] for name in ("prepare", "train", "publish")] == [1, 2, 0]


def test_a_mark(system: System) -> None:
    run_id = start(system, "rerun")
    assert system.finish(run_id)["state"] == "failed"
    mark = orchestrator(system, "mark", run_id, "train", "success", "--reason", "trained by hand")
    assert (mark.exit_code, mark.output) == (0, "success\n")
    tasks = tasks_of(system.succeed(run_id))
    assert tasks["publish"]["state"] == "success"
    marks = [event for event in system.events(run_id) if event["cause"] == "mark" and event["task"] == "train"]
    assert marks
    assert "trained by hand" in marks[0]["message"]


def test_passing_data(system: System) -> None:
    ended(system, "passing-data")


def test_the_cache(system: System) -> None:
    first = ended(system, "cache")["features"]
    second = ended(system, "cache")["features"]
    assert (second["reason"], second["outputs"]) == ("cache_hit", first["outputs"])
    other = ended(system, "cache", "-p", 'day="2026-01-02"')["features"]
    assert other["reason"] != "cache_hit"


def test_concurrency(system: System) -> None:
    ids = [start(system, "concurrency", "-p", "customer=acme") for _ in range(2)]
    runs = [system.succeed(run_id) for run_id in ids]
    solved = sorted(
        (task["started_at"], task["ended_at"])
        for run in runs
        for task in system.client.tasks(run["id"], inside="solve")
    )
    assert len(solved) == 6
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(solved)), solved


def test_checkpoints(system: System) -> None:
    assert ended(system, "checkpoints")["train"]["outputs"] == {"began_with": 2}


def test_explain(system: System) -> None:
    run_id = start(system, "explain")
    system.wait_for_task(run_id, "too-big", "ready")
    for task, named in (("too-big", "memory"), ("after", "too-big")):
        told = orchestrator(system, "explain", run_id, task, "--json")
        assert told.exit_code == 0, told.output
        blockers = json.loads(told.output)["blockers"]
        assert blockers
        assert named in json.dumps(blockers)
        assert orchestrator(system, "explain", run_id, task).exit_code == 0
    assert orchestrator(system, "cancel", run_id, "--force", "--wait").exit_code == 0
