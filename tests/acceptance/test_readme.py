"""The examples in README and docs, executed as they stand there, against a whole system."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.local.child import ChildProcess, ProcessSpec
from tests.acceptance.system import ADMIN_KEY, ROOT, System

pytestmark = pytest.mark.timeout(180)

MARKED = re.compile(
    r"<!-- (?:([\w./' ]+), )?executed by tests/acceptance/test_readme\.py -->\n```\w+\n(.*?)```", re.DOTALL
)


def blocks(page: str) -> dict[str, str]:
    """Return the marked blocks of a page by their name; those without one together, as ``""``."""
    found: dict[str, str] = {}
    for name, text in MARKED.findall((ROOT / page).read_text(encoding="utf-8")):
        found[name] = found.get(name, "") + text
    assert found, f"{page} marks nothing as executed"
    return found


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, database: str, redis_server_url: str) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("readme")
    operators = folder / "my-operators"
    operators.mkdir()
    (operators / "sample_rows.py").write_text(blocks("docs/how-to/write-an-operator.md")["sample_rows.py"])
    settings = {"OPERATORS_PATH": str(operators), "REDIS_TASK_QUEUE": "readme"}
    with System(folder, database, redis_server_url, **settings) as system:
        system.start_api()
        system.start_scheduler()
        system.start_worker("a")
        system.wait_until_online(1)
        yield system


def bash(system: System, script: str) -> str:
    """Run a script in the checkout, as a reader would; return what it printed."""
    if shutil.which("curl") is None:
        pytest.fail("The examples need curl.") if os.environ.get("CI") == "true" else pytest.skip("there is no curl")
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "API": f"http://127.0.0.1:{system.port}",
        "KEY": ADMIN_KEY,
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_five_calls_of_the_readme_train_and_register_a_model(system: System) -> None:
    output = bash(system, blocks("README.md")[""])
    assert "event: end" in output
    assert '"state":"success"' in output
    assert "Model stored." in output
    (run,) = system.client.runs(pipeline_name="ml-training-pipeline")
    assert (run["state"], run["parameters"]["experiment_name"]) == ("success", "baseline")
    assert list(system.client.model_versions("breast-cancer-diagnosis"))


def test_the_calls_of_the_how_tos_answer_as_they_say(system: System) -> None:
    calls = blocks("docs/how-to/call-the-api.md")[""]
    output = bash(system, calls + blocks("docs/how-to/watch-it.md")[""])
    assert '"valid":false' in output.replace(" ", "")
    assert '"valid":true' in output.replace(" ", "")
    assert "orchestrator_leader_held 1.0" in output
    (run,) = system.client.runs(pipeline_name="train-on")
    assert system.finish(run["id"])["state"] == "success"


def test_the_run_of_the_how_to_is_run_again_in_place(system: System) -> None:
    bash(system, blocks("docs/how-to/run-again.md")[""])
    (run,) = system.client.runs(pipeline_name="hello-again")
    again = system.wait_until(
        lambda: (now := system.client.get_run(run["id"]))["generation"] == 2 and now["state"] == "success" and now,
        "the end of the second generation",
    )
    assert [(task["generation"], task["attempt_number"]) for task in again["tasks"]] == [(2, 2)]


def test_the_quickstarts_pipeline_and_the_how_tos_operator_run(system: System) -> None:
    hello = json.loads(blocks("docs/quickstart.md")["hello.json"])
    sampled = json.loads(blocks("docs/how-to/write-an-operator.md")["sampled.json"])
    runs = [system.start_run(definition) for definition in (hello, sampled)]
    ended = [system.finish(run_id) for run_id in runs]
    assert [run["state"] for run in ended] == ["success", "success"], ended
    rows = {task["name"]: task["outputs"]["dataset"]["rows"] for task in ended[1]["tasks"]}
    assert rows == {"read": 1797, "sample": 449}
    system.wait_until(
        lambda: "Sampled. rows=449 of=1797" in system.client.logs(runs[1], "sample")["text"], "the log's last line"
    )


def test_the_quickstarts_commands_show_what_training_printed(system: System, tmp_path: Path) -> None:
    page = blocks("docs/quickstart.md")
    (tmp_path / "hello.json").write_text(page["hello.json"])
    commands = page["the commands"]
    assert re.findall(r"\.venv/bin/(\S+)", commands) == ["orchestrator"] * commands.count(".venv/bin/")
    script = f"""
        export ORCHESTRATOR_URL=$API ORCHESTRATOR_API_KEY=$KEY
        cd {shlex.quote(str(tmp_path))}
        {commands.replace(".venv/bin/orchestrator", "orchestrator")}
    """
    output = bash(system, script)
    assert "Model stored." in output
    assert "hello version" in output
    run = next(iter(system.client.runs(pipeline_name="hello")))
    assert system.finish(run["id"])["state"] == "success"


def test_the_quickstarts_mistakes_are_told_as_it_says(system: System) -> None:
    text = blocks("docs/quickstart.md")["hello.json"]
    for wrong in (text.replace('"linear"', '"linea"'), text.replace('["check"]', '["chek"]')):
        verdict = system.client.validate_pipeline(json.loads(wrong))
        assert not verdict["valid"]
        assert verdict["errors"]
    run = system.finish(system.start_run(json.loads(text.replace("0.9}", "1}"))))
    assert run["state"] == "failed"
    assert next(task for task in run["tasks"] if task["name"] == "train")["reason"] == "quality_gate"


def test_the_how_tos_operator_passes_its_own_test(tmp_path: Path) -> None:
    for name, text in blocks("docs/how-to/write-an-operator.md").items():
        (tmp_path / name).write_text(text)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "--rootdir",
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "test_sample_rows.py")],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_a_worker_on_another_host_needs_only_what_the_how_to_exports(system: System) -> None:
    text = blocks("docs/how-to/scale-to-more-hosts.md")["the worker's environment"]
    exported = set(re.findall(r"^export (\w+)=", text, re.MULTILINE))
    command = next(line for line in text.splitlines() if "celery" in line).split()
    # The prefix of this file's Redis keys, which a site leaves at its default.
    needed = {name: system.environment[name] for name in (*exported, "REDIS_TASK_QUEUE")}
    spec = ProcessSpec(
        name="elsewhere",
        command=(sys.executable, "-m", "celery", *command[1:]),
        folder=ROOT,
        environment={"PATH": os.environ["PATH"], "DATA_DIR": str(system.folder / "elsewhere"), **needed},
    )
    child = ChildProcess(spec, system.folder / "logs" / "elsewhere.log", system.folder / "run" / "elsewhere.json")
    system.children["elsewhere"] = child

    def is_there() -> dict[str, Any] | None:
        return next((worker for worker in system.client.workers() if "gpu" in worker["queues"]), None)

    worker = system.wait_until(is_there, "the worker on the queue gpu")
    assert (worker["state"], worker["slots"]) == ("online", 1)
