"""Logs are records with their ids, and show no secret in any form."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from orchestrator.logs import configure_logs, get_logger, ids_in_scope, redact_text


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logs("INFO", process="scheduler", json_lines=True, to=stream)
    yield stream
    root.handlers[:], level = before
    root.setLevel(level)
    structlog.reset_defaults()


def records(output: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


def test_a_record_has_its_action_process_and_ids(output: io.StringIO) -> None:
    with ids_in_scope(run_id="r-1"):
        get_logger("scheduler.loop").info("run_admitted", tasks=3)
    get_logger("scheduler.loop").info("idle")
    first, second = records(output)
    assert first.items() >= {"action": "run_admitted", "run_id": "r-1", "tasks": 3, "process": "scheduler"}.items()
    assert first["level"] == "info"
    assert first["logger"] == "scheduler.loop"
    assert first["at"].endswith("Z")
    assert "run_id" not in second


def test_the_level_is_kept(output: io.StringIO) -> None:
    get_logger("x").debug("not_shown")
    assert output.getvalue() == ""


def test_records_of_libraries_come_out_the_same_way(output: io.StringIO) -> None:
    logging.getLogger("library").warning("connected to redis://user:hunter2@host:6379/0 as %s", "me")
    (record,) = records(output)
    assert record["action"] == "connected to redis://user:***@host:6379/0 as me"


@pytest.mark.parametrize(
    "name",
    ["password", "db_password", "token", "API_KEY", "secret_key", "worker_key", "Authorization", "minio_access_key"],
)
def test_secrets_are_hidden_by_name_at_any_depth(output: io.StringIO, name: str) -> None:
    get_logger("x").info("called", **{name: "hunter2"})
    get_logger("x").info("called", options={"inner": [{name: "hunter2"}]})
    assert "hunter2" not in output.getvalue()
    assert records(output)[1]["options"] == {"inner": [{name: "***"}]}


def test_passwords_in_tracebacks_are_hidden(output: io.StringIO) -> None:
    try:
        raise ValueError("can't connect to postgresql://user:hunter2@host/db")
    except ValueError:
        get_logger("x").exception("failed")
    assert "hunter2" not in output.getvalue()
    assert "postgresql://user:***@host/db" in records(output)[0]["exception"]


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("redis://:pw@host:1/0", "redis://:***@host:1/0"),
        ("two: amqp://a:b@c and http://d:e@f/g?h=i:j", "two: amqp://a:***@c and http://d:***@f/g?h=i:j"),
        ("http://host:8001/path", "http://host:8001/path"),
        ("redis://:p@w@host", "redis://:***@host"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("a plain sentence: nothing @ all", "a plain sentence: nothing @ all"),
    ],
)
def test_texts_are_redacted(text: str, hidden: str) -> None:
    assert redact_text(text) == hidden


def test_for_people_a_record_is_a_readable_line() -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logs("INFO", process="api", json_lines=False, to=stream)
    try:
        get_logger("x").info("started", port=8001, url="http://a:b@c")
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        structlog.reset_defaults()
    assert "started" in stream.getvalue()
    assert "port=8001" in stream.getvalue()
    assert "http://a:***@c" in stream.getvalue()
