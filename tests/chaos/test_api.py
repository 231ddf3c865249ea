"""An API dies between commit and answer, or is given too much: one key makes one run, too much is said (I5, I17)."""

from __future__ import annotations

import json
import time
import uuid
from contextlib import suppress
from typing import Any

import pytest
import requests

from orchestrator.client import ApiError
from orchestrator.spec_reading import MAX_TASKS
from tests.acceptance.system import ADMIN_KEY
from tests.chaos.conftest import Chaos
from tests.chaos.load import assert_contract, definitions_saved, pipeline, start_run, task, wait_until_quiet
from tests.chaos.site import ChaosSite
from tests.chaos.witness import assert_untouched, lines, seconds_since

pytestmark = pytest.mark.chaos

KEYS = 40
PROMPT = 2.0
"""Seconds in which what is too large is refused (I15)."""
MOST_REDIS = 64 * 2**20
MIB = 10**6


@pytest.mark.chaos_quick
def test_an_api_killed_between_commit_and_answer_starts_one_run_per_key(chaos: Chaos) -> None:
    with chaos(faults={"api": {"dies_after_commit": 4}}) as site:
        definitions_saved(site, [pipeline("small", [task("a", seconds=0.05), task("b", "a", seconds=0.05)])])
        hasty = site.new_client(patience=0.0)
        unanswered: list[str] = []
        for key in [uuid.UUID(int=site.dice("keys").getrandbits(128) + n).hex for n in range(KEYS)]:
            try:
                hasty.start_run("small", idempotency_key=key)
            except ApiError as error:
                if error.status:
                    raise
                unanswered.append(key)
        hasty.close()
        committed = _runs_by_key(site)
        lost_answers = [key for key in unanswered if key in committed]
        print(f"of {KEYS} starts {len(unanswered)} were not answered, {len(lost_answers)} of those committed")
        assert len(lost_answers) >= 4, "hardly any API died after its commit"
        for key in unanswered:
            run = site.client.start_run("small", idempotency_key=key)
            assert run["id"] == committed.get(key, run["id"]), f"key {key} made another run at its repetition"
        assert len(_runs_by_key(site)) == KEYS
        assert site.postgres.query("SELECT count(*) FROM runs")[0][0] == KEYS
        wait_until_quiet(site)
        assert_contract(site)


def _runs_by_key(site: ChaosSite) -> dict[str, str]:
    return dict(site.postgres.query("SELECT key, run_id::text FROM idempotency_keys"))


# --- too much ---


def test_oversize_requests_are_refused_with_a_sentence_and_cost_nobody_else_anything(chaos: Chaos) -> None:
    with chaos(workers=("a",)) as site:
        for name, (body, statuses, words) in _oversize_bodies().items():
            answer, seconds = _post(site, body)
            told = f"{name} ({len(body) >> 10} KiB): {answer.status_code} after {seconds:.2f} s: {answer.text[:300]}"
            print(told)
            assert answer.status_code in statuses, told
            assert words in answer.text, told
            assert answer.json()["message"].endswith((".", "!")), told
            assert seconds < PROMPT, told
        definitions_saved(site, [pipeline("small", [task("a", seconds=0.05)])])
        run_id = start_run(site, "small")
        wait_until_quiet(site)
        assert_untouched(site, run_id, "a")
        for name, use in site.use("api").items():
            assert use.rss < 512 * 2**20, f"{name} has {use.rss >> 20} MiB"
        assert_contract(site)


def _oversize_bodies() -> dict[str, tuple[bytes, tuple[int, ...], str]]:
    """Return bodies, the statuses they may be answered with, and words of the answer."""

    def tiny(name: str, *upstream: str) -> dict[str, Any]:
        parameters = {"path": "data:ledger.jsonl"}
        return {"name": name, "operator": "chaos_task", "upstream_tasks": list(upstream), "parameters": parameters}

    wide = [tiny("root"), *(tiny(f"t{n}", "root") for n in range(MAX_TASKS))]
    deep = [tiny("t0"), *(tiny(f"t{n}", f"t{n - 1}") for n in range(1, 1000))]
    nested = b'{"name": "nested", "tasks": ' + b"[" * 1000 + b"]" * 1000 + b"}"
    return {
        "10 MB": (_as_body("large", [tiny("t") | {"parameters": {"text": "x" * 10**7}}]), (413,), "MAX_BODY_BYTES"),
        "too many tasks": (_as_body("wide", wide), (413, 422), "tasks"),
        "1,000 in a row": (_as_body("deep", deep), (422,), "longest path"),
        "nested 1,000 deep": (nested, (400,), "nested more than"),
        "a million of brackets": (b"[" * 10**6, (400,), "nested more than"),
        "large parameters": (
            _as_body("parameters", [tiny("t")], parameters={"text": "x" * 500_000}),
            (422,),
            "bytes as JSON",
        ),
    }


def _as_body(name: str, tasks: list[dict[str, Any]], **fields: Any) -> bytes:
    return json.dumps(pipeline(name, tasks, **fields), separators=(",", ":")).encode()


def _post(site: ChaosSite, body: bytes) -> tuple[requests.Response, float]:
    port = next(iter(site.apis.values()))
    headers = {"Authorization": f"Bearer {ADMIN_KEY}", "Content-Type": "application/json"}
    began = time.monotonic()
    answer = requests.post(f"http://127.0.0.1:{port}/api/v1/pipelines", data=body, headers=headers, timeout=30)
    return answer, time.monotonic() - began


@pytest.mark.timeout(150)
def test_too_large_outputs_fail_their_task_and_too_large_logs_are_cut_and_say_so(chaos: Chaos) -> None:
    with chaos() as site:
        definition = pipeline(
            "oversize",
            [
                task("talks", seconds=0.0, log_bytes=200 * MIB),
                task("returns", seconds=0.0, outputs_bytes=MIB),
                task("cleans_up", "returns", rule="all_done", seconds=0.0),
            ],
        )
        definitions_saved(site, [definition])
        run_id, deepest = start_run(site, "oversize"), 0
        began = time.monotonic()
        while site.open_business() or not _is_stored(site, run_id, "talks"):
            assert seconds_since(began) < 90, f"after {seconds_since(began):.0f} s: {site.open_business()}"
            deepest = max(deepest, site.redis.used_memory())
            time.sleep(0.2)
        print(f"all ended and stored after {seconds_since(began):.1f} s; Redis held {deepest / 2**20:.1f} MiB at most")
        assert deepest < MOST_REDIS
        assert_untouched(site, run_id, "talks")
        assert_untouched(site, run_id, "cleans_up")
        returned = site.attempts(run_id, "returns")
        told = [(one["state"], one["reason"], one["message"]) for one in returned]
        assert [state for state, *_ in told] == ["failed"], told
        assert "bytes" in told[0][2], f"its message does not say what is too large: {told}"
        text = _log(site, run_id, "talks")
        assert abs(len(text) - 16 * 2**20) < 2**18  # the tail is cut by whole pieces
        assert text.count("bytes of output were left out here") == 1
        assert_contract(site)


@pytest.mark.timeout(150)
def test_logs_that_nobody_collects_stay_small_in_redis_and_are_whole_in_the_end(chaos: Chaos) -> None:
    """Both schedulers are frozen while tasks print more than Redis may hold; afterwards not a line is missing."""
    with chaos() as site:
        talkers = [task(f"talks{n}", seconds=1.5, log_bytes=12 * MIB) for n in range(9)]
        definitions_saved(site, [pipeline("talkative", talkers)])
        run_id = start_run(site, "talkative")
        site.wait_until(lambda: len(lines(site, "start", run_id)) == len(talkers), "all of them talk", 30.0)
        deepest = 0
        with site.frozen(*site.schedulers):
            until = time.monotonic() + 15.0
            while time.monotonic() < until:
                deepest = max(deepest, site.redis.used_memory())
                time.sleep(0.2)
            waiting = site.redis.do(lambda client: client.xlen("mlops_tasks:logs"))
        print(f"uncollected: {waiting} chunks, Redis held {deepest / 2**20:.1f} MiB at most")
        assert waiting > 100, "the stream never grew"
        assert deepest < MOST_REDIS
        wait_until_quiet(site, 60.0)
        names = [str(one["name"]) for one in talkers]
        site.wait_until(lambda: all(_is_stored(site, run_id, name) for name in names), "all logs are stored", 60.0)
        for name in names:
            assert_untouched(site, run_id, name)
            found = len(_log(site, run_id, name))
            assert found == 12 * MIB, f"the log of {name} has {found} bytes"
        assert_contract(site)


def _is_stored(site: ChaosSite, run_id: str, name: str) -> bool:
    """Say whether the worker has cleared the attempt's folder away: its outcome was answered, and its log stored."""
    with suppress(ApiError):
        ids = [str(one["id"]) for one in site.attempts(run_id, name)]
        folders = [site.host_folder(worker) / "attempts" / id_ for worker in site.workers for id_ in ids]
        return bool(ids) and not any(folder.exists() for folder in folders)
    return False


def _log(site: ChaosSite, run_id: str, name: str) -> str:
    """Return all of a task's log."""
    pieces: list[str] = []
    offset = 0
    while True:
        part = site.client.logs(run_id, name, offset)
        if part["next_offset"] == offset:
            return "".join(pieces)
        pieces.append(part["text"])
        offset = part["next_offset"]
