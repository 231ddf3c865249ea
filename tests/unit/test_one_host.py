"""The parts of the one-host command that need no process: keys, ports, preflight, restarts, environments, views."""

from __future__ import annotations

import io
import json
import logging
import signal
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.config import load_settings
from orchestrator.errors import Conflict
from orchestrator.local import preflight
from orchestrator.local.address import DEFAULT, keep_address, read_address
from orchestrator.local.demo_view import elapsed, result_text
from orchestrator.local.folder_lock import folder_lock
from orchestrator.local.keys import NAMES, keep_keys, read_keys
from orchestrator.local.log_lines import level_of
from orchestrator.local.ports import free_port, is_free, remembered_port
from orchestrator.local.processes import NEEDS, SECRETS, STORES, one_host_environment, process_specs
from orchestrator.local.restart import LONGEST_DELAY, STEADY_SECONDS, Restarts
from orchestrator.local.supervisor import describe_end
from orchestrator.local.tail import Tail
from orchestrator.local.terminal import Terminal


def test_keys_are_made_once_and_are_for_their_owner_only(tmp_path: Path) -> None:
    keys = keep_keys(tmp_path, {})
    assert set(keys) == set(NAMES)
    assert all(len(key) >= 32 for key in keys.values())
    assert keep_keys(tmp_path, {}) == keys == read_keys(tmp_path)
    assert (tmp_path / "keys.env").stat().st_mode & 0o777 == 0o600


def test_a_key_of_the_environment_is_used_and_not_written_down(tmp_path: Path) -> None:
    keys = keep_keys(tmp_path, {"ADMIN_KEY": "chosen by the site"})
    assert keys["ADMIN_KEY"] == "chosen by the site"
    assert "chosen by the site" not in (tmp_path / "keys.env").read_text()
    assert keep_keys(tmp_path, {})["ADMIN_KEY"] != "chosen by the site"


def test_a_port_is_remembered_until_somebody_else_takes_it(tmp_path: Path) -> None:
    first = remembered_port(tmp_path / "port")
    assert remembered_port(tmp_path / "port") == first
    with socket.create_server(("127.0.0.1", first)):
        assert remembered_port(tmp_path / "port") != first


def test_a_port_in_use_is_reported_with_the_setting_that_changes_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        settings = replace(load_settings({}), data_dir=tmp_path, port=taken, flower_port=free_port())
        found = preflight.problems(settings)
    assert len(found) == 1
    assert f"Port {taken} of 127.0.0.1 is in use" in found[0]
    assert "set PORT to another port" in found[0]
    assert is_free(taken)


def test_a_folder_that_can_not_be_written_to_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    settings = replace(load_settings({}), data_dir=tmp_path / "deep", port=free_port(), flower_port=free_port())
    assert any("can't be written to; set DATA_DIR" in sentence for sentence in preflight.problems(settings))


def test_missing_wheels_are_reported_unless_servers_of_the_user_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.local.binaries.package_folder", lambda package: None)
    monkeypatch.setattr("shutil.which", lambda *arguments, **options: None)
    settings = replace(load_settings({}), data_dir=tmp_path, port=free_port(), flower_port=free_port())
    found = preflight.problems(settings)
    assert len(found) == 2
    assert "Set DATABASE_URL" in found[0]
    assert "Set REDIS_URL" in found[1]
    assert preflight.problems(replace(settings, database_url="postgresql://x", redis_url="redis://x")) == []


def test_two_systems_can_not_run_on_one_folder(tmp_path: Path) -> None:
    with folder_lock(tmp_path), pytest.raises(Conflict, match="already runs"), folder_lock(tmp_path):
        pass
    with folder_lock(tmp_path):
        pass


def test_restarts_back_off_to_a_cap_and_start_afresh_after_a_steady_time() -> None:
    restarts = Restarts()
    delays = []
    for _ in range(8):
        restarts = restarts.after_end(0.5)
        delays.append(restarts.delay)
    assert delays == [1, 2, 4, 8, 16, LONGEST_DELAY, LONGEST_DELAY, LONGEST_DELAY]
    assert restarts.after_end(STEADY_SECONDS).delay == 1


def test_the_end_of_a_process_is_told_in_words() -> None:
    assert describe_end(-9) == "was killed by SIGKILL"
    assert describe_end(3) == "ended with status 3"


def environment(tmp_path: Path) -> Mapping[str, str]:
    settings = replace(load_settings({}), data_dir=tmp_path)
    return one_host_environment(settings, dict.fromkeys(NAMES, "key"), "postgresql://db", "redis://wire", None)


def test_every_process_sees_only_the_secrets_it_needs(tmp_path: Path) -> None:
    settings = replace(load_settings({}), data_dir=tmp_path)
    specs = process_specs(settings, environment(tmp_path), gpu=True)
    seen = {spec.name: SECRETS & set(spec.environment) for spec, _ in specs}
    assert set(seen) == {"api", "scheduler", "worker", "worker-gpu", "flower"}
    assert seen["worker"] == seen["worker-gpu"] == {"REDIS_URL", "WORKER_KEY"}
    assert seen["flower"] == {"REDIS_URL"}
    assert "WORKER_KEY" not in seen["api"]
    assert all(names <= NEEDS[name.split("-")[0]] for name, names in seen.items())


def test_workers_are_stopped_first_and_hand_back_what_they_run(tmp_path: Path) -> None:
    settings = replace(load_settings({}), data_dir=tmp_path)
    ranked = process_specs(settings, environment(tmp_path), gpu=True)
    workers = {spec.name: rank for spec, rank in ranked if spec.name.startswith("worker")}
    assert set(workers) == {"worker", "worker-gpu"}
    assert min(workers.values()) > max(rank for spec, rank in ranked if spec.name not in workers) > STORES
    for spec, _ in ranked:
        if spec.name in workers:
            assert spec.stop_signal == signal.SIGQUIT
            assert spec.stop_seconds > settings.cancel_grace_seconds + 20


def test_no_secret_is_on_a_command_line(tmp_path: Path) -> None:
    secrets = {**environment(tmp_path), **{name: f"hidden-{name}" for name in NAMES}}
    settings = replace(load_settings({}), data_dir=tmp_path)
    specs = [spec for spec, _ in process_specs(settings, secrets, gpu=True)]
    assert not any("hidden-" in word for spec in specs for word in spec.command)
    flower = next(spec for spec in specs if spec.name == "flower")
    assert flower.environment["FLOWER_BASIC_AUTH"] == "admin:hidden-FLOWER_PASSWORD"


def test_a_gpu_worker_is_started_only_where_there_is_a_gpu(tmp_path: Path) -> None:
    settings = replace(load_settings({"MAX_WORKERS": "3"}), data_dir=tmp_path)
    commands = [" ".join(spec.command) for spec, _ in process_specs(settings, environment(tmp_path), gpu=False)]
    workers = [command for command in commands if " worker " in command]
    assert len(workers) == 1
    assert "-Q cpu,highmem -c 3" in workers[0]


def test_what_the_user_has_set_wins_over_what_one_host_fills_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARTIFACT_URL", "s3://bucket/prefix")
    monkeypatch.delenv("DATA_ROOTS", raising=False)
    filled = environment(tmp_path)
    assert filled["ARTIFACT_URL"] == "s3://bucket/prefix"
    assert filled["DATA_ROOTS"] == f"data={tmp_path / 'data'}"
    assert filled["DATABASE_URL"] == "postgresql://db"


def test_the_tail_emits_whole_lines_and_keeps_the_file_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    log = tmp_path / "one.log"
    tail = Tail("one", log, lambda name, line: lines.append(line))
    with open(log, "a", encoding="utf-8") as file:
        print("first", file=file)
        print("half", end="", file=file, flush=True)
        tail.poll()
        assert lines == ["first"]
        print(" more", file=file, flush=True)
        monkeypatch.setattr("orchestrator.local.tail.LARGEST_BYTES", 5)
        tail.poll()
        assert lines == ["first", "half more"]
        assert log.stat().st_size == 0
        monkeypatch.undo()
        print("after", file=file, flush=True)
        tail.poll()
    assert lines[-1] == "after"
    assert (tmp_path / "one.log.1").read_text() == "first\nhalf more\n"


def shown(*lines: str, least: int = logging.WARNING) -> list[str]:
    """Return what a terminal shows of lines that one process logs."""
    stream = io.StringIO()
    terminal = Terminal(least=least, stream=stream)
    for line in lines:
        terminal.log_line("api", line)
    return [line.removeprefix("api        | ") for line in stream.getvalue().splitlines()]


def record(level: str, action: str, **fields: object) -> str:
    return json.dumps({**fields, "level": level, "logger": "api", "at": "now", "process": "api", "action": action})


@pytest.mark.parametrize(
    "line, level",
    [
        (record("info", "request", status=200), logging.INFO),
        (record("warning", "redis_away"), logging.WARNING),
        (record("error", "it broke"), logging.ERROR),
        ("[2026-11-23 04:38:54 +0000] [1279] [INFO] Starting gunicorn 27.0.1", logging.INFO),
        ("[2026-11-23 04:38:54 +0000] [1279] [ERROR] Worker (pid:7) was sent SIGKILL!", logging.ERROR),
        ("[I 261123 04:38:55 command:177] Visit me at http://127.0.0.1:5555", logging.INFO),
        ("[W 261123 04:38:56 inspector:98] Inspect method stats failed", logging.WARNING),
        ("2026-11-23 04:38:54.102 UTC [1264] LOG:  starting PostgreSQL 18.4", logging.INFO),
        ("2026-11-23 04:38:54.102 UTC [1264] ERROR:  duplicate key value", logging.INFO),
        ("2026-11-23 04:38:54.102 UTC [1264] FATAL:  the database system is starting up", logging.ERROR),
        ("1245:M 23 Nov 2026 04:38:53.519 * Running mode=standalone, port=36417.", logging.INFO),
        ("1245:M 23 Nov 2026 04:38:53.488 # WARNING Memory overcommit must be enabled!", logging.WARNING),
        ("2026-11-23 04:38:55 [debug    ] no_gpus          why=NVMLError", logging.DEBUG),
        ("Traceback (most recent call last):", logging.ERROR),
        (" -------------- cpu@vm v5.7.0 (collider)", None),
        ("{not json", None),
        ("[1, 2]", None),
    ],
)
def test_the_level_of_a_line_is_read_in_the_form_of_the_process_that_wrote_it(line: str, level: int | None) -> None:
    assert level_of(line) == level


def test_the_terminal_shows_warnings_and_errors_for_people_and_leaves_the_rest_to_the_log_files() -> None:
    assert shown(
        record("info", "request", status=200),
        record("warning", "redis_away", doing="heartbeat", error="refused"),
        record("error", "agent_step_failed", exception="Traceback …\n  here\nValueError: 7"),
    ) == [
        "WARNING redis_away doing=heartbeat error=refused",
        "ERROR agent_step_failed ValueError: 7 (all of it is in the log)",
    ]


def test_a_traceback_is_shown_whole() -> None:
    trace = ("Traceback (most recent call last):", '  File "x.py", line 1', "ValueError: 7")
    after = "[2026-11-23 04:38:54 +0000] [1279] [INFO] Starting gunicorn 27.0.1"
    assert shown("banner", *trace, after, "more of it") == list(trace)


def test_verbose_shows_every_line_as_it_is() -> None:
    lines = (record("info", "request", status=200), "banner", "")
    assert shown(*lines, least=Terminal.ALL) == list(lines)


def test_quiet_shows_none() -> None:
    assert shown(record("critical", "the end"), "Traceback (most recent call last):", least=Terminal.NONE) == []


def test_the_terminal_writes_no_colours_into_a_pipe() -> None:
    stream = io.StringIO()
    terminal = Terminal(least=Terminal.ALL, stream=stream)
    terminal.log_line("api", "ready")
    terminal.say("Stopped.")
    assert stream.getvalue() == "api        | ready\nStopped.\n"


def test_the_address_is_kept_for_the_command_line(tmp_path: Path) -> None:
    assert read_address(tmp_path) == DEFAULT
    keep_address(tmp_path, "http://127.0.0.1:9001")
    assert read_address(tmp_path) == "http://127.0.0.1:9001"


@pytest.mark.parametrize(
    "task, text",
    [
        ({"state": "failed", "reason": "quality_gate", "message": "Accuracy is 0.4."}, "Accuracy is 0.4."),
        ({"state": "success", "outputs": {"dataset": {"rows": 1797, "columns": [1, 2]}}}, "1,797 rows, 2 columns"),
        (
            {"state": "success", "outputs": {"model": {"algorithm": "svm", "metrics": {"accuracy": 0.98765}}}},
            "svm: accuracy 0.9877",
        ),
        (
            {"state": "success", "outputs": {"registration": {"name": "digits", "version": "3", "stage": "staging"}}},
            "registered digits version 3, stage staging",
        ),
        ({"state": "success", "outputs": {}}, ""),
    ],
)
def test_the_result_of_a_task_is_said_in_a_few_words(task: Mapping[str, object], text: str) -> None:
    assert result_text(task) == text


def test_the_time_of_a_task_is_from_its_start_to_its_end() -> None:
    task = {"started_at": "2026-11-23T03:00:00+00:00", "ended_at": "2026-11-23T03:00:02.500000+00:00"}
    assert elapsed(task) == 2.5
    assert elapsed({"started_at": None}) is None
