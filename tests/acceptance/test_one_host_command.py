"""The one-host command as a newcomer meets it: real processes, real stores, real models."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis
import requests

from orchestrator.client import Client
from orchestrator.local.keys import read_keys
from orchestrator.local.ports import free_port

pytestmark = pytest.mark.timeout(240)

ROOT = Path(__file__).resolve().parents[2]
SETTINGS_OF_OURS = ("DATABASE_URL", "REDIS_URL", "DATA_ROOTS", "ARTIFACT_URL", "ADMIN_KEY", "SECRET_KEY", "WORKER_KEY")


class OneHost:
    """A data folder, two ports, and the commands run on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.flower_port = free_port(), free_port()
        kept = {name: value for name, value in os.environ.items() if name not in SETTINGS_OF_OURS}
        ours = {"DATA_DIR": str(folder / "data"), "PORT": str(self.port), "FLOWER_PORT": str(self.flower_port)}
        self._environment = {**kept, **ours, "NO_COLOR": "1"}
        self._started: list[subprocess.Popen[str]] = []

    def set(self, **settings: str) -> None:
        """Set variables for what is started from now on."""
        self._environment |= settings

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "orchestrator.local", *arguments],
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def start(self) -> subprocess.Popen[str]:
        """Start the system and wait until it says that it works."""
        output = self.folder / f"output-{len(self._started)}"
        with open(output, "w", encoding="utf-8") as sink:
            process = subprocess.Popen(
                [sys.executable, "main.py"], cwd=ROOT, env=self._environment, stdout=sink, stderr=sink, text=True
            )
        self._started.append(process)
        eventually(lambda: "Ctrl-C stops everything" in output.read_text() or process.poll() is not None, 60)
        assert process.poll() is None, output.read_text()
        return process

    def client(self) -> Client:
        return Client(f"http://127.0.0.1:{self.port}", read_keys(self.folder / "data")["ADMIN_KEY"])

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.terminate()
                process.wait(60)


@pytest.fixture
def host() -> Iterator[OneHost]:
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-host-"))
    folder.chmod(0o711)
    host = OneHost(folder)
    yield host
    host.close()
    shutil.rmtree(folder)


def eventually(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def are_gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def test_the_demo_trains_real_models_and_says_so(host: OneHost) -> None:
    result = host.run("demo", "--once")
    assert result.returncode == 0, result.stdout + result.stderr
    for word in ("All runs succeeded", "Registered models", "accuracy", "MiB", "registered "):
        assert word in result.stdout
    for name in read_keys(host.folder / "data").values():
        assert name not in result.stdout
    (seconds,) = re.findall(r"That was ([\d.]+) s after the first process was started", result.stdout)
    print(f"make demo: {seconds} s from the start of the first process to the end of the last run.")


def test_ctrl_c_stops_every_process_and_what_was_stored_is_there_again_after_the_next_start(host: OneHost) -> None:
    first = host.start()
    with host.client() as client:
        task = {
            "name": "greet",
            "operator": "custom_script",
            "parameters": {"script_type": "bash", "script_content": "echo hello"},
        }
        client.create_pipeline({"name": "kept", "tasks": [task]})
        run_id = client.start_run("kept")["id"]
        assert client.wait(run_id, seconds=30)["state"] == "success"
    flower = f"http://127.0.0.1:{host.flower_port}/"
    assert requests.get(flower, timeout=10).status_code == 401
    password = read_keys(host.folder / "data")["FLOWER_PASSWORD"]
    assert requests.get(flower, auth=("admin", password), timeout=10).status_code == 200
    processes = family(first)
    assert len(processes) >= 6
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 0
    assert are_gone(processes)
    # The terminal is for warnings; every line is in the log.
    assert "api        |" not in (host.folder / "output-0").read_text()
    assert '"/api/v1/runs"' in (host.folder / "data" / "logs" / "api.log").read_text()

    host.start()
    with host.client() as client:
        assert client.get_pipeline_by_name("kept")["version"] == 1
        assert client.get_run(run_id)["state"] == "success"


def test_ctrl_c_hands_back_the_running_tasks_which_go_on_at_the_next_start_at_no_cost(host: OneHost) -> None:
    mark = host.folder / "has-run-before"
    script = f"test -e {mark} && exit 0; touch {mark}; exec sleep 600"
    first = host.start()
    with host.client() as client:
        parameters = {"script_type": "bash", "script_content": script}
        long = {"name": "long", "operator": "custom_script", "parameters": parameters, "retries": 0}
        client.create_pipeline({"name": "stopped", "tasks": [long]})
        run_id = client.start_run("stopped")["id"]
        eventually(mark.exists, 30)
    processes = family(first)
    began = time.monotonic()
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 0
    print(f"Ctrl-C with a task running: stopped in {time.monotonic() - began:.1f} s.")
    assert are_gone(processes)

    host.start()
    with host.client() as client:
        run = client.wait(run_id, seconds=60)
        assert run["state"] == "success", run
        (task,) = run["tasks"]
        assert (task["failures"], task["losses"]) == (0, 0)
        attempts = client._request("GET", f"/api/v1/runs/{run_id}/tasks/long/attempts")["items"]
        first_state, *between, last_state = (
            attempt["state"] for attempt in sorted(attempts, key=lambda attempt: int(attempt["number"]))
        )
        assert (first_state, last_state) == ("preempted", "succeeded")
        assert set(between) <= {"expired"}  # sent before the scheduler had read that the worker leaves; never started


def test_with_stores_of_the_users_own_none_is_started_and_theirs_are_left_running(
    host: OneHost, database_url: str, redis_url: str
) -> None:
    host.set(DATABASE_URL=database_url.replace("postgresql+psycopg2://", "postgresql://"), REDIS_URL=redis_url)
    first = host.start()
    with host.client() as client:
        parameters = {"script_type": "bash", "script_content": "echo hello"}
        client.create_pipeline(
            {"name": "theirs", "tasks": [{"name": "greet", "operator": "custom_script", "parameters": parameters}]}
        )
        assert client.wait(client.start_run("theirs")["id"], seconds=30)["state"] == "success"
    started = {Path(process.exe()).name for process in family(first)}
    assert not {name for name in started if name.startswith(("postgres", "valkey", "redis"))}
    assert not (host.folder / "data" / "postgres").exists()
    assert not (host.folder / "data" / "redis").exists()
    first.terminate()
    assert first.wait(60) == 0
    connection = psycopg2.connect(database_url.replace("postgresql+psycopg2://", "postgresql://"))
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM pipelines")
        assert cursor.fetchall() == [("theirs",)]
    connection.close()
    with redis.Redis.from_url(redis_url) as wire:
        assert wire.ping()


def test_a_second_start_and_a_clean_up_are_refused_in_one_sentence_while_the_system_runs(host: OneHost) -> None:
    running = host.start()
    for command in ("up", "clean"):
        result = host.run(command)
        assert result.returncode == 1
        assert f"already runs (process {running.pid})" in result.stderr
        assert "Traceback" not in result.stderr
    assert running.poll() is None


def test_a_killed_supervisor_takes_everything_with_it_and_the_next_start_works(host: OneHost) -> None:
    first = host.start()
    processes = family(first)
    first.kill()
    first.wait()
    eventually(lambda: are_gone(processes), 20)
    second = host.start()
    second.terminate()
    assert second.wait(60) == 0
    result = host.run("clean")
    assert result.returncode == 0, result.stderr
    assert not (host.folder / "data").exists()
