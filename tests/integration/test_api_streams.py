"""Logs and audits: read in parts, and followed by server-sent events until the end."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest

from api.attempt_log import AttemptLog, LogGaps, LogPart
from api.services import EXTENSION
from api.sse import StreamSlots
from tests.integration.api_site import ApiSite

pytestmark = pytest.mark.timeout(60)


def events_of(text: str) -> list[tuple[str, Any]]:
    """Read server-sent events as (kind, content)."""
    found: list[tuple[str, Any]] = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "event" in fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


@pytest.fixture
def attempt(api: ApiSite) -> tuple[str, str]:
    """Return (path of the task, key prefix of its attempt's log), with two chunks of a log in place."""
    api.saved()
    run = api.started()
    attempt_id = api.add_attempt(run["id"], "first")
    prefix = f"logs/{api.tenant_id}/{run['id']}/{attempt_id}"
    api.services.artifacts.put_bytes(f"{prefix}/{0:015d}", b"hello\n")
    api.services.artifacts.put_bytes(f"{prefix}/{6:015d}", "gr\u00fc\u00dfe\n".encode())
    return f"/api/v1/runs/{run['id']}/tasks/first", prefix


def test_a_log_is_text_that_no_browser_takes_for_a_page(api: ApiSite, attempt: tuple[str, str]) -> None:
    path, _ = attempt
    response = api.call("GET", f"{path}/logs")
    assert response.status_code == 200
    assert response.content_type == "text/plain; charset=utf-8"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.text == "hello\ngrüße\n"
    assert response.headers["X-Next-Offset"] == str(len(response.data))


def test_a_log_is_read_in_parts_across_chunks(api: ApiSite, attempt: tuple[str, str]) -> None:
    path, _ = attempt
    offset, text = 0, ""
    for _ in range(20):
        asked = api.call("GET", f"{path}/logs?offset={offset}&limit=3", headers={"Accept": "application/json"})
        part: Any = asked.json
        if part["next_offset"] == offset:
            break
        text, offset = text + part["text"], part["next_offset"]
    assert text == "hello\ngrüße\n"
    assert not part["complete"]
    api.sql("UPDATE attempts SET state = 'succeeded', ended_at = now() - interval '1 minute'")
    last = api.call("GET", f"{path}/logs?offset={offset}", headers={"Accept": "application/json"}).json
    assert last is not None
    assert (last["text"], last["complete"], last["attempt"]) == ("", True, 1)


def test_chunks_sent_twice_and_chunks_not_yet_there_do_no_harm(api: ApiSite, attempt: tuple[str, str]) -> None:
    path, prefix = attempt
    api.services.artifacts.put_bytes(f"{prefix}/{3:015d}", b"lo\ngr")
    api.services.artifacts.put_bytes(f"{prefix}/{500:015d}", b"later")
    assert api.call("GET", f"{path}/logs").text == "hello\ngrüße\n"


def test_no_offset_misses_bytes_that_an_overlapping_chunk_has(api: ApiSite, attempt: tuple[str, str]) -> None:
    whole = bytes(ord("a") + place % 26 for place in range(700))
    prefix = f"{attempt[1]}-overlapping"
    log = AttemptLog(api.services.artifacts, prefix, LogGaps())
    for start, end in ((0, 500), (20, 450), (100, 200), (150, 160), (500, 600), (590, 700)):
        api.services.artifacts.put_bytes(f"{prefix}/{start:015d}", whole[start:end])
    for offset in range(701):
        assert log.read(offset, 1000, settled=False) == LogPart(whole[offset:], 700, more=False), offset
    api.services.artifacts.put_bytes(f"{prefix}/{595:015d}", whole[595:600])
    for offset in range(701):
        assert log.read(offset, 1000, settled=True) == LogPart(whole[offset:], 700, more=False), offset
    found, offset = b"", 0
    for _ in range(1000):
        part = log.read(offset, 7, settled=True)
        found, offset = found + part.content, part.next_offset
        if not part.more:
            break
    assert found == whole


def test_the_tail_of_a_long_log_is_asked_for_with_one_read(api: ApiSite, attempt: tuple[str, str]) -> None:
    artifacts, prefix = api.services.artifacts, f"{attempt[1]}-long"
    for start in range(0, 3000, 10):
        artifacts.put_bytes(f"{prefix}/{start:015d}", b"ten bytes\n")
    log = AttemptLog(artifacts, prefix, LogGaps())
    with patch.object(type(artifacts), "get_bytes", autospec=True, side_effect=type(artifacts).get_bytes) as reads:
        assert log.read(3000, 1000, settled=False) == LogPart(b"", 3000, more=False)
        assert reads.call_count == 1


def lost_chunk(api: ApiSite, prefix: str) -> None:
    """Leave out bytes 14 to 500 of the log."""
    api.services.artifacts.put_bytes(f"{prefix}/{500:015d}", b"later\n")


MARKED = "hello\ngrüße\n[486 bytes of this log are missing: they were lost on their way here.]\nlater\n"


def test_a_lost_chunk_hides_nothing_that_came_after_it(api: ApiSite, attempt: tuple[str, str]) -> None:
    path, prefix = attempt
    lost_chunk(api, prefix)
    waiting = api.call("GET", f"{path}/logs")
    assert (waiting.text, waiting.headers["X-Next-Offset"]) == ("hello\ngrüße\n", "14")
    api.sql("UPDATE attempts SET state = 'succeeded', ended_at = now() - interval '10 seconds'")
    json = {"Accept": "application/json"}
    assert (api.call("GET", f"{path}/logs", headers=json).json or {})["complete"] is False
    api.sql("UPDATE attempts SET ended_at = now() - interval '1 minute'")
    whole = api.call("GET", f"{path}/logs", headers=json).json or {}
    assert (whole["text"], whole["next_offset"], whole["complete"]) == (MARKED, 506, True)
    offset, text = 0, ""
    for _ in range(20):
        part: Any = api.call("GET", f"{path}/logs?offset={offset}&limit=5", headers=json).json
        text, offset = text + part["text"], part["next_offset"]
        if part["complete"]:
            break
    assert (text, offset) == (MARKED, 506)


def test_a_chunk_that_does_not_come_is_given_up_while_the_attempt_runs(api: ApiSite, attempt: tuple[str, str]) -> None:
    _, prefix = attempt
    lost_chunk(api, prefix)
    now = [0.0]
    gaps = LogGaps(clock=lambda: now[0])
    log = AttemptLog(api.services.artifacts, prefix, gaps)
    assert log.read(0, 1000, settled=False).content.decode() == "hello\ngrüße\n"
    now[0] = 29.0
    assert log.read(0, 1000, settled=False).more
    now[0] = 31.0
    part = log.read(0, 1000, settled=False)
    assert (part.content.decode(), part.next_offset, part.more) == (MARKED, 506, False)
    api.services.artifacts.put_bytes(f"{prefix}/{14:015d}", b"x" * 486)
    assert b"missing" not in log.read(0, 1000, settled=False).content


def test_following_goes_on_after_a_lost_chunk(api: ApiSite, attempt: tuple[str, str]) -> None:
    path, prefix = attempt
    lost_chunk(api, prefix)
    api.app.extensions[EXTENSION] = replace(api.services, log_gaps=LogGaps(patience=1.0))
    api.sql("UPDATE attempts SET state = 'succeeded', ended_at = now()")
    found = events_of(api.call("GET", f"{path}/logs?follow=true").text)
    assert "".join(content["text"] for kind, content in found if kind == "log") == MARKED
    assert found[-1] == ("end", {"next_offset": 506})


def test_a_log_settles_a_moment_after_the_end_that_the_database_tells(api: ApiSite, attempt: tuple[str, str]) -> None:
    path, _ = attempt
    for ago, complete, final in (("0.5 seconds", False, False), ("3 seconds", True, False), ("40 seconds", True, True)):
        api.sql(f"UPDATE attempts SET state = 'succeeded', ended_at = clock_timestamp() - interval '{ago}'")
        part = api.call("GET", f"{path}/logs", headers={"Accept": "application/json"}).json or {}
        assert (part["complete"], part["final"]) == (complete, final)


def test_a_task_that_was_never_tried_has_an_empty_log(api: ApiSite, attempt: tuple[str, str]) -> None:
    path = attempt[0].replace("/first", "/second")
    response = api.call("GET", f"{path}/logs")
    assert (response.status_code, response.text, response.headers["X-Next-Offset"]) == (200, "", "0")
    assert api.call("GET", f"{path}/logs?attempt=1").status_code == 404
    assert api.call("GET", f"{path}/logs?follow=true").status_code == 404
    assert api.call("GET", f"{attempt[0]}/logs?attempt=2").status_code == 404
    assert api.call("GET", f"{attempt[0]}/logs?offset=-1").status_code == 422


def test_a_log_is_followed_until_its_attempt_has_ended(api: ApiSite, attempt: tuple[str, str]) -> None:
    path, prefix = attempt
    with api.call("GET", f"{path}/logs", headers={"Accept": "text/event-stream"}) as response:
        assert response.mimetype == "text/event-stream"
        stream = response.iter_encoded()
        text = next(stream).decode()
        api.services.artifacts.put_bytes(f"{prefix}/{14:015d}", b"bye\n")
        api.sql("UPDATE attempts SET state = 'succeeded', ended_at = now()")
        text += b"".join(stream).decode()
    found = events_of(text)
    assert [kind for kind, _ in found] == ["log", "log", "end"]
    assert "".join(content["text"] for kind, content in found if kind == "log") == "hello\ngrüße\nbye\n"
    resumed = api.call("GET", f"{path}/logs?follow=true", headers={"Last-Event-ID": "14"}).text
    assert events_of(resumed)[0] == ("log", {"offset": 14, "next_offset": 18, "text": "bye\n"})


def test_the_audit_is_followed_until_the_run_has_ended(api: ApiSite) -> None:
    api.saved()
    run = api.started()
    path = f"/api/v1/runs/{run['id']}/events"
    api.sql("UPDATE runs SET state = 'cancelled', ended_at = now()")
    api.sql(
        "INSERT INTO events (tenant_id, run_id, entity, entity_id, before, after, cause, actor, epoch) "
        "SELECT tenant_id, id, 'run', id::text, 'queued', 'cancelled', 'cancel', 'admin', 1 FROM runs"
    )
    found = events_of(api.call("GET", path, headers={"Accept": "text/event-stream"}).text)
    assert [(kind, content.get("after")) for kind, content in found] == [
        ("transition", "queued"),
        ("transition", "cancelled"),
        ("end", None),
    ]
    assert found[-1][1] == {"state": "cancelled"}
    first = found[0][1]["id"]
    resumed = events_of(api.call("GET", f"{path}?follow=true", headers={"Last-Event-ID": str(first)}).text)
    assert [kind for kind, _ in resumed] == ["transition", "end"]
    page = api.call("GET", f"{path}?limit=1").json
    assert page is not None
    rest = api.call("GET", f"{path}?limit=1&cursor={page['next_cursor']}").json
    assert rest is not None
    assert [event["after"] for event in page["items"] + rest["items"]] == ["queued", "cancelled"]
    assert api.call("GET", f"{path}?entity=run&task=first").json == {"items": [], "next_cursor": None}


def test_only_so_many_streams_are_open_at_once(api: ApiSite) -> None:
    slots = StreamSlots(1)
    with api.app.test_request_context():
        first = slots.respond(iter(["x"]))
        with pytest.raises(Exception, match="Too many event streams"):
            slots.respond(iter(["x"]))
        first.close()
        slots.respond(iter(["x"])).close()
