"""Running again, marking, passing data, the cache and checkpoints, over REST on real processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.system import System
from tests.acceptance.test_dag_edges import told
from tests.acceptance.test_dag_examples import states, tasks_of

pytestmark = pytest.mark.timeout(120)

Tasks = Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, database: str, redis_server_url: str) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("dag_data")
    with System(folder, database, redis_server_url, REDIS_TASK_QUEUE="dag_data") as system:
        system.start_api()
        system.start_scheduler()
        system.start_worker("a", slots=4)
        system.wait_until_online(1)
        yield system


def script(content: str, *upstream: str, arguments: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """Return a task that runs this bash."""
    parameters = {"script_type": "bash", "script_content": content, "arguments": dict(arguments or {})}
    return {"operator": "custom_script", "parameters": parameters, "upstream_tasks": list(upstream), **fields}


def leave(*upstream: str, arguments: Mapping[str, Any] | None = None, **outputs: Any) -> dict[str, Any]:
    """Return a task that leaves these outputs."""
    return script(f"echo '{json.dumps(outputs)}' > \"$ORCHESTRATOR_OUTPUT_FILE\"", *upstream, arguments=arguments)


def keep(text: str, *upstream: str, **parameters: Any) -> dict[str, Any]:
    """Return a task that keeps this text as an artifact."""
    return {"operator": "keeper", "parameters": {"text": text, **parameters}, "upstream_tasks": list(upstream)}


def gate(*upstream: str) -> dict[str, Any]:
    """Return a task that a person settles; it takes no process."""
    return {"approval": {"message": "go"}, "upstream_tasks": list(upstream)}


def definition(name: str, tasks: Tasks, **fields: Any) -> dict[str, Any]:
    return {"name": name, "tasks": [{"name": task, **rest} for task, rest in tasks.items()], **fields}


def ended(system: System, name: str, tasks: Tasks, **fields: Any) -> dict[str, Any]:
    """Save this pipeline, run it to its end and return the run."""
    return system.finish(system.start_run(definition(name, tasks, **fields)))


# --- running again ---


def chain(version: int = 1) -> Tasks:
    mended = script('test "$ORCHESTRATOR_PARAM_M" = true || exit 64', "load", arguments={"mended": "{{ params.m }}"})
    return {
        "load": keep("rows"),
        "side": keep("beside"),
        "train": mended,
        "publish": leave("train", version=version),
    }


def again(system: System, run_id: str, tasks: Any, **asked: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Rerun and hold what runs against the preview of it; returns the run that came of it, and why which task ran."""
    before = tasks_of(system.client.get_run(run_id))
    preview = system.client.preview_rerun(run_id, tasks, **asked)
    assert tasks_of(system.client.get_run(run_id)) == before, "a preview starts nothing"
    run = system.finish(system.client.rerun(run_id, tasks, **asked)["id"])
    assert preview["in_place"] is (run["id"] == run_id)
    tried = {name: task["attempt_number"] for name, task in before.items()} if preview["in_place"] else {}
    found = {task["name"] for task in run["tasks"] if task["attempt_number"] > tried.get(task["name"], 0)}
    not_run = {task["name"] for task in run["tasks"] if task["state"] == "upstream_failed"}
    why = {item["task"]: item["why"] for item in preview["run"]}
    assert found == set(why) - not_run, preview
    assert {*preview["reused"], *preview["kept"]} == {*tasks_of(run)} - set(why)
    return run, why


def test_a_rerun_in_place_runs_what_its_preview_says(system: System) -> None:
    run_id = ended(system, "in-place", chain(), parameters={"m": False})["id"]
    for chosen, expected in (
        ("failed", {"train", "publish"}),
        (["side"], {"side"}),
        (["load", "side"], {"load", "side", "train", "publish"}),
        ("all", {"load", "side", "train", "publish"}),
    ):
        run, why = again(system, run_id, chosen)
        assert set(why) == expected
        assert run["state"] == "failed"
    assert run["generation"] == 5
    audit = [event for event in system.events(run_id) if event["cause"] == "rerun" and event["entity"] == "run"]
    assert {event["actor"] for event in audit} == {"ADMIN_KEY"}
    assert len([event for event in audit if event["before"] == "failed"]) == 4


def test_a_rerun_as_a_new_run_has_the_version_and_the_parameters_that_were_asked_for(system: System) -> None:
    name = "linked"
    first = ended(system, name, chain(), parameters={"m": False})
    system.client.save_pipeline(definition(name, chain(2), parameters={"m": False}))
    run, why = again(system, first["id"], "failed", in_place=False)
    assert (run["rerun_of"], run["version"], run["state"]) == (first["id"], 1, "failed")
    assert why == {"train": "chosen", "publish": "chosen"}
    assert tasks_of(run)["load"]["cached_from"]["run_id"] == first["id"]

    run, why = again(system, first["id"], "failed", parameters={"m": True})
    assert (run["rerun_of"], run["version"], run["parameters"], run["state"]) == (
        first["id"], 1, {"m": True}, "success",
    )  # fmt: skip
    assert tasks_of(run)["publish"]["outputs"] == {"version": 1}

    run, why = again(system, run["id"], ["side"], version="latest")
    assert (run["version"], why) == (2, {"side": "chosen", "publish": "changed"})
    tasks = tasks_of(run)
    assert (tasks["publish"]["outputs"], tasks["train"]["reason"]) == ({"version": 2}, "reused")

    run, _ = again(system, run["id"], ["publish"], version=1)
    assert (run["version"], tasks_of(run)["publish"]["outputs"]) == (1, {"version": 1})
    assert system.client.get_run(first["id"]) == first, "the first run stays as it is"
    assert {child["rerun_of"] for child in system.client.children(first["id"])} == {first["id"]}


def test_what_is_gone_is_made_again_with_what_failed(system: System) -> None:
    run_id = ended(system, "gone", chain(), parameters={"m": False})["id"]
    kept = system.client.outputs(run_id, "load")["kept"]
    file_of(system, kept["uri"]).unlink()
    why = again(system, run_id, "failed")[1]
    assert why == {"load": "gone", "train": "chosen", "publish": "chosen"}
    assert file_of(system, kept["uri"]).read_text() == "rows"
    assert again(system, run_id, "failed")[1] == {"train": "chosen", "publish": "chosen"}, "it is there again"
    file_of(system, kept["uri"]).unlink()
    linked, why = again(system, run_id, "failed", in_place=False)
    assert (linked["rerun_of"], why) == (run_id, {"load": "gone", "train": "chosen", "publish": "chosen"})
    mended, why = again(system, run_id, "failed", parameters={"m": True})
    assert (mended["state"], why["load"], why["side"]) == ("success", "parameters", "parameters")


def file_of(system: System, uri: str) -> Path:
    return system.folder / "artifacts" / uri.removeprefix("artifact://")


# --- marks and pauses ---


def test_a_mark_settles_what_is_downstream_and_is_in_the_audit(system: System) -> None:
    tasks = {
        "ask": gate(),
        "next": script("echo done", "ask"),
        "mended": script("echo done", "ask", trigger_rule="one_failed"),
        "anyway": script("echo done", "ask", trigger_rule="all_done"),
    }
    system.client.save_pipeline(definition("marked", tasks))
    for state, run_state, downstream in (
        ("success", "success", ("success", "skipped", "success")),
        ("failed", "failed", ("upstream_failed", "success", "success")),
        ("skipped", "success", ("skipped", "skipped", "success")),
    ):
        run_id = system.client.start_run("marked")["id"]
        system.wait_for_task(run_id, "ask", "waiting")
        system.client.settled(system.client.mark(run_id, "ask", state, reason=f"settled as {state}"))
        run = system.finish(run_id)
        found = states(tasks_of(run))
        assert (found["ask"], run["state"]) == (state, run_state)
        assert (found["next"], found["mended"], found["anyway"]) == downstream
        [audit] = [event for event in system.events(run_id) if event["cause"] == "mark" and event["task"] == "ask"]
        assert (audit["actor"], audit["before"], audit["after"]) == ("ADMIN_KEY", "waiting", state)
        assert f"settled as {state}" in audit["message"]


def test_outputs_given_with_a_mark_reach_the_tasks_downstream_of_a_run_that_had_failed(system: System) -> None:
    copy = leave("train", arguments={"rows": "{{ tasks.train.outputs.rows }}"})
    copy["parameters"]["script_content"] = 'echo "{\\"rows\\": $ORCHESTRATOR_PARAM_ROWS}" > "$ORCHESTRATOR_OUTPUT_FILE"'
    run = ended(system, "by-hand", {"train": script("exit 64"), "publish": copy})
    assert states(tasks_of(run)) == {"train": "failed", "publish": "upstream_failed"}
    asked = system.client.mark(run["id"], "train", "success", reason="trained by hand", outputs={"rows": 7})
    system.client.settled(asked)
    assert tasks_of(system.succeed(run["id"]))["publish"]["outputs"] == {"rows": 7}


def test_a_paused_pipeline_takes_runs_and_starts_them_when_it_is_resumed(system: System) -> None:
    saved = system.client.save_pipeline(definition("halted", {"ask": gate(), "next": script("echo done", "ask")}))
    under_way = system.client.start_run("halted")["id"]
    system.wait_for_task(under_way, "ask", "waiting")
    system.client.pause_pipeline(saved["id"], reason="the store moves")
    system.client.settled(system.client.approve(under_way, "ask"))
    waiting = system.client.start_run("halted")["id"]
    system.succeed(under_way)
    assert told(system.client.get_run(waiting))[0] == "queued"
    system.client.resume_pipeline(saved["id"])
    system.wait_for_task(waiting, "ask", "waiting")
    system.client.settled(system.client.approve(waiting, "ask"))
    system.succeed(waiting)


# --- outputs and artifacts ---


def test_outputs_that_are_too_large_are_refused_with_the_way_to_keep_them(system: System) -> None:
    large = 'printf \'{"text": "%0262144d"}\' 0 > "$ORCHESTRATOR_OUTPUT_FILE"'
    fits = 'printf \'{"text": "%0260000d"}\' 0 > "$ORCHESTRATOR_OUTPUT_FILE"'
    run = ended(system, "large", {"large": script(large, retries=3), "fits": script(fits)})
    tasks = tasks_of(run)
    assert (told(tasks["large"]), tasks["large"]["attempt_number"]) == (("failed", "outputs_too_large"), 1)
    told_way = "more than 256 KiB of outputs; write large things as files into ORCHESTRATOR_OUTPUT_DIR"
    assert told_way in tasks["large"]["message"]
    assert len(system.client.outputs(run["id"], "fits")["text"]) == 260_000


def test_an_artifact_has_its_producer_and_fingerprint_and_equal_content_is_kept_once(system: System) -> None:
    run = ended(system, "same", {"one": keep("equal"), "two": keep("equal", "one"), "other": keep("another")})
    one, two, other = (system.client.outputs(run["id"], name)["kept"] for name in ("one", "two", "other"))
    assert one == two != other
    assert one["digest"] == f"sha256:{hashlib.sha256(b'equal').hexdigest()}"
    assert file_of(system, one["uri"]).read_text() == "equal"
    [row] = system.client.artifacts(run["id"], task="other")
    assert (row["digest"], row["size"], row["deleted_at"]) == (other["digest"], len("another"), None)
    assert row["producer"] == {"run_id": run["id"], "task": "other"}


# --- the cache ---

ROLL = 'echo "{\\"rolled\\": $(date +%s%N)}" > "$ORCHESTRATOR_OUTPUT_FILE"'
"""Leaves what no two executions leave alike."""


def cached(cache: Mapping[str, Any] | bool = True, content: str = ROLL, **arguments: Any) -> Tasks:
    return {"roll": script(content, arguments=arguments, cache=cache)}


def roll(system: System, name: str, tasks: Tasks, **parameters: Any) -> dict[str, Any]:
    """Run this pipeline, of one task, and return that."""
    run = ended(system, name, tasks, parameters=parameters)
    return {"run_id": run["id"], **tasks_of(run)["roll"]}


def is_hit(task: Mapping[str, Any], origin: Mapping[str, Any]) -> bool:
    """Say whether the outputs are those of the origin, and linked to it; otherwise they were computed."""
    hit: bool = told(dict(task)) == ("success", "cache_hit")
    assert (task["attempt_number"] == 0) is hit
    assert bool(task["outputs"] == origin["outputs"]) is hit
    if hit:
        assert task["cached_from"] == {"run_id": origin["run_id"], "task": "roll"}
    return hit


def test_a_hit_is_linked_to_its_origin_and_a_miss_names_what_differs(system: System) -> None:
    first = roll(system, "equal", cached(day="{{ params.day }}"), day="monday")
    assert is_hit(roll(system, "equal", cached(day="{{ params.day }}"), day="monday"), first)
    for tasks, day, named in (
        (cached(day="{{ params.day }}"), "tuesday", "parameters.arguments, run_parameters.day differ"),
        (cached(content=f"{ROLL} #", day="{{ params.day }}"), "monday", "parameters.script_content differs"),
    ):
        other = roll(system, "equal", tasks, day=day)
        assert not is_hit(other, first)
        explained = system.client.explain(other["run_id"], "roll")["cache"]
        assert (explained["hit"], f"Not in the cache: {named} from run {first['run_id']}" in explained["message"]) == (
            False, True,
        ), explained  # fmt: skip


def test_changed_data_under_the_same_path_are_no_hit_and_what_can_t_be_looked_at_is_not_cached(system: System) -> None:
    file = system.folder / "data" / "prices.csv"
    file.write_text("a\n1\n")
    tasks = cached(read="data:prices.csv")
    first = roll(system, "fresh", tasks)
    assert is_hit(roll(system, "fresh", tasks), first)
    file.write_text("a\n2\n")
    other = roll(system, "fresh", tasks)
    assert not is_hit(other, first)
    message = system.client.explain(other["run_id"], "roll")["cache"]["message"]
    assert message == f"Not in the cache: files.data:prices.csv differs from run {first['run_id']}."
    for tasks, hit in ((cached(read="s3://bucket/key"), False), (cached({"key": "v1"}, read="s3://bucket/key"), True)):
        first, second = (roll(system, "away", tasks) for _ in range(2))
        assert is_hit(second, first) is hit
        message = system.client.explain(second["run_id"], "roll")["cache"]["message"]
        assert ("s3://bucket/key lies where the scheduler does not look" in message) is not hit


def until(file: Path) -> str:
    """Return a script that goes on until this file is there."""
    return f"until [ -e '{file}' ]; do sleep 0.05; done; {ROLL}"


def test_two_equal_tasks_at_once_are_computed_once(system: System) -> None:
    file = system.folder / "flight"
    system.client.save_pipeline(definition("flight", cached(content=until(file))))
    ids = [system.client.start_run("flight")["id"] for _ in range(2)]

    def one_waits() -> bool:
        kinds = [blocker["kind"] for id_ in ids for blocker in system.client.explain(id_, "roll")["blockers"]]
        return "cache_flight" in kinds

    system.wait_until(one_waits, "one waits for the other")
    file.touch()
    tasks = [{"run_id": id_, **tasks_of(system.succeed(id_))["roll"]} for id_ in ids]
    assert sorted(task["attempt_number"] for task in tasks) == [0, 1]
    first, second = sorted(tasks, key=lambda task: -int(task["attempt_number"]))
    assert is_hit(second, first)


def test_two_equal_tasks_without_single_flight_are_computed_twice(system: System) -> None:
    file = system.folder / "twice"
    system.client.save_pipeline(definition("twice", cached({"single_flight": False}, until(file))))
    ids = [system.client.start_run("twice")["id"] for _ in range(2)]
    for run_id in ids:
        system.wait_for_task(run_id, "roll", "running")
    file.touch()
    assert [tasks_of(system.succeed(run_id))["roll"]["attempt_number"] for run_id in ids] == [1, 1]


def test_what_is_older_than_its_ttl_is_not_taken(system: System) -> None:
    brief = cached({"ttl_seconds": 0.5})
    first = roll(system, "old", brief)

    def computed() -> dict[str, Any] | None:
        task = roll(system, "old", brief)
        return None if is_hit(task, first) else task

    later = system.wait_until(computed, "its time is over")
    explained = system.client.explain(later["run_id"], "roll")["cache"]
    assert f"An equal task of run {first['run_id']} has left outputs" in explained["message"]
    assert "their time in the cache is over" in explained["message"]


def test_a_key_of_ones_own_and_the_scope_say_what_is_equal(system: System) -> None:
    keyed = {"key": ["{{ params.day }}", "v1"]}
    first = roll(system, "keyed", cached(keyed, n=1), day=1)
    assert is_hit(roll(system, "keyed", cached(keyed, f"{ROLL} #", n=2), day=1), first), "nothing else is compared"
    other = roll(system, "keyed", cached(keyed, n=1), day=2)
    assert not is_hit(other, first)
    assert "key differs from" in system.client.explain(other["run_id"], "roll")["cache"]["message"]

    of_tenant, of_pipeline = cached({"key": "both", "scope": "tenant"}), cached({"key": "both", "scope": "pipeline"})
    shared, own = roll(system, "one", of_tenant), roll(system, "one", of_pipeline)
    assert is_hit(roll(system, "two", of_tenant), shared)
    assert not is_hit(own, shared)
    assert not is_hit(roll(system, "two", of_pipeline), own)
    assert is_hit(roll(system, "one", of_pipeline), own)


def test_a_cache_that_is_only_read_stores_nothing_and_one_that_is_only_written_takes_nothing(system: System) -> None:
    read, write = (cached({"key": "modes", "mode": mode}) for mode in ("read", "write"))
    unstored = roll(system, "modes", read)
    first = roll(system, "modes", read)
    assert not is_hit(first, unstored)
    written = roll(system, "modes", write)
    assert is_hit(roll(system, "modes", read), written)
    newer = roll(system, "modes", write)
    assert not is_hit(newer, written)
    assert is_hit(roll(system, "modes", read), newer)


# --- checkpoints ---


def test_a_checkpoint_and_a_state_survive_a_retry_and_a_preemption_and_a_rerun_begins_anew(system: System) -> None:
    def stepper(**parameters: Any) -> dict[str, Any]:
        return {
            "operator": "stepper", "parameters": parameters, "retries": 1, "retry_delay_seconds": 0.1,
            "on_drain": "checkpoint", "grace_seconds": 5,
        }  # fmt: skip

    run_id = system.start_run(definition("steps", {"drained": stepper(hangs=True), "short": stepper()}))
    system.wait_until(lambda: "hanging" in system.client.logs(run_id, "drained")["text"], "the second try")
    system.wait_for_task(run_id, "short", "success")
    [worker] = system.client.workers()
    drain = f"/api/v1/workers/{worker['id']}/drain"
    system.client._request("POST", drain, body={"deadline_seconds": 0})
    system.wait_until(lambda: system.attempts(run_id, "drained")[1]["state"] == "preempted", "it is preempted")
    system.client._request("DELETE", drain)
    tasks = tasks_of(system.succeed(run_id))
    assert [attempt["state"] for attempt in system.attempts(run_id, "drained")] == ["failed", "preempted", "succeeded"]
    assert tasks["drained"]["outputs"] == {"tries": 3, "lines": ["try 1", "try 2", "try 3"]}
    assert (tasks["drained"]["failures"], tasks["drained"]["losses"]) == (1, 0)
    assert tasks["short"]["outputs"] == {"tries": 2, "lines": ["try 1", "try 2"]}

    system.client.rerun(run_id, ["short"])
    assert tasks_of(system.succeed(run_id))["short"]["outputs"] == {"tries": 2, "lines": ["try 1", "try 2"]}


# --- retention: the last, for it starts a scheduler that keeps next to nothing ---


def test_what_is_past_its_time_is_removed_and_who_misses_it_is_told_by_whom_it_was_made_and_why_it_went(
    system: System,
) -> None:
    day, moment = 1.0, 1e-6
    run = ended(
        system,
        "leavings",
        {
            "brief": keep("brief", retention_days=moment),
            "by-rule": keep("by the rule of the site"),
            "long": keep("long", retention_days=day),
            "cached": {**keep("of the cache"), "cache": True},
            "read": script("exit 64", "brief"),
        },
    )
    uris = {name: task["outputs"]["kept"]["uri"] for name, task in tasks_of(run).items() if name != "read"}
    assert all(file_of(system, uri).exists() for uri in uris.values())
    system.children["scheduler"].stop()
    system.start_scheduler("keeps-little", ARTIFACT_RETENTION_DAYS=str(moment))
    system.wait_until(lambda: not file_of(system, uris["brief"]).exists(), "it is removed")
    system.wait_until(lambda: not file_of(system, uris["by-rule"]).exists(), "and the other too")
    assert file_of(system, uris["long"]).exists()
    assert file_of(system, uris["cached"]).exists()
    rows = {row["uri"]: row for row in system.client.artifacts(run["id"])}
    assert rows[uris["brief"]]["deleted_by"] == "the time that its task keeps it for was over"
    assert rows[uris["by-rule"]]["deleted_by"].startswith("ARTIFACT_RETENTION_DAYS=")
    assert rows[uris["long"]]["deleted_at"] is None

    reader = {"read": script("true", arguments={"file": "{{ params.file }}"}, retries=3)}
    for name, rule in (("brief", "the time that its task keeps it for was"), ("by-rule", "ARTIFACT_RETENTION_DAYS=")):
        task = tasks_of(ended(system, "reader", reader, parameters={"file": uris[name]}))["read"]
        assert (told(task), task["attempt_number"]) == (("failed", "artifact_missing"), 1)
        assert f"made by task '{name}' of run {run['id']}, was removed at" in task["message"]
        assert rule in task["message"]
    why = again(system, run["id"], "failed")[1]
    assert why == {"brief": "gone", "read": "chosen"}
