"""A stored plan reads back as it was, with all that a definition can say; plans of earlier releases are still read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.compile import Compiled, Site, all_tasks
from orchestrator.plan_json import plan_from_json, plan_to_json
from orchestrator.records import Plan
from orchestrator.spec_fields import PIPELINE_FIELDS, TASK_FIELDS
from tests.unit.test_compile import compiled, task

OLD = sorted((Path(__file__).parents[1] / "stored_plans").glob("*.json"))


def stored(plan: Plan) -> Any:
    return json.loads(json.dumps(plan_to_json(plan), allow_nan=False))


# ── plans of earlier releases ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("file", OLD, ids=lambda file: file.stem)
def test_a_plan_of_an_earlier_release_is_read_and_written_as_it_was(file: Path) -> None:
    old = json.loads(file.read_text())
    plan = plan_from_json(old)
    assert stored(plan) == old
    assert [task.name for task in plan.tasks] == [task["name"] for task in old["tasks"]]


def test_braces_in_a_plan_that_is_older_than_templates_mean_nothing() -> None:
    plan = plan_from_json(json.loads(OLD[-1].read_text()))
    script = next(task for task in plan.tasks if task.name == "script")
    assert "{{ literally }}" in str(script.parameters)
    assert not script.templated.keys() & {"arguments", "script_content"}


def test_an_old_plan_holds_what_its_fields_say() -> None:
    plan = {task.name: task for task in plan_from_json(json.loads(OLD[-1].read_text())).tasks}
    assert plan["train"].retry.retries == 5
    assert (plan["train"].queue, plan["train"].resources.gpus) == ("gpu", 1)
    assert plan["train"].links[0].source == "validate"
    assert plan["ingest"].labels == (("disk", "ssd"), ("zone", "b"))
    assert (plan["adopted"].on_drain, plan["adopted"].on_worker_loss) == ("checkpoint", "adopt")
    assert plan["load"].connections == ("warehouse",)
    assert plan["lone"].run_inputs[0].required


# ── every field ──────────────────────────────────────────────────────────────────────────────────────────────────────

RULE = {"match": {"reason": "oom"}, "action": "retry"}
MAP: dict[str, Any] = {"over": [1, 2]}
REPEAT: dict[str, Any] = {"until": "outputs.loss < 1", "max": 3}
LIMIT: dict[str, Any] = {"key": "{{ params.customer }}", "limit": 2}
RATE: dict[str, Any] = {"key": "api", "units": 2, "per_seconds": 1}
APPROVAL: dict[str, Any] = {"message": "Go?", "timeout_seconds": 5}
EVENT: dict[str, Any] = {"timeout_seconds": 5}
CHILD: dict[str, Any] = {"name": "other"}

OF_A_TASK: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"operator": "make"}),
    ({}, {"upstream_tasks": []}),
    ({}, {"parameters": {"x": "{{ params.x }}"}}),
    ({}, {"cpu": 2}),
    ({}, {"memory_gb": 3}),
    ({}, {"memory_gb": "auto"}),
    ({}, {"gpu": 1}),
    ({"gpu": 1}, {"gpu_memory_gb": 16}),
    ({}, {"trigger_rule": "all_done"}),
    ({}, {"queue": "highmem"}),
    ({}, {"labels": {"zone": "a"}}),
    ({}, {"retries": 7}),
    ({}, {"retry_delay_seconds": 7}),
    ({}, {"retry_backoff_factor": 7}),
    ({}, {"retry_max_delay_seconds": 700}),
    ({}, {"timeout_seconds": 7}),
    ({}, {"grace_seconds": 7}),
    ({}, {"exclusive": True}),
    ({}, {"on_drain": "kill"}),
    ({}, {"on_worker_loss": "adopt"}),
    ({}, {"critical": False}),
    ({}, {"when": "params.x > 1"}),
    ({}, {"teardown": True}),
    ({}, {"teardown": ["first"]}),
    ({}, {"map": MAP}),
    *(({"map": MAP}, {"map": {**MAP, **more}}) for more in (
        {"over": {"range": [0, 4, 2]}}, {"over": "{{ params.list }}"}, {"over": {"grid": {"a": [1], "b": [2]}}},
        {"over": {"random": {"a": {"low": 1, "high": 2}}, "samples": 3, "seed": 4}}, {"over": {"zip": {"a": [1]}}},
        {"max_parallel": 2}, {"max_size": 10}, {"success": "any"}, {"success": {"min_count": 1}},
        {"success": {"min_ratio": 0.5}}, {"fail_fast": True}, {"key": "{{ map.item }}"})),
    ({"map": MAP}, {"when": "map.item > 1"}),
    ({}, {"repeat": REPEAT}),
    *(({"repeat": REPEAT}, {"repeat": {**REPEAT, **more}}) for more in (
        {"until": "outputs.loss < 2"}, {"max": 4}, {"delay_seconds": 1}, {"on_max": "succeed"})),
    ({}, {"retry": {"jitter": 0.5}}),
    ({}, {"retry": {"infrastructure": 0}}),
    ({}, {"retry": {"on": [RULE]}}),
    *(({"retry": {"on": [RULE]}}, {"retry": {"on": [{**RULE, **more}]}}) for more in (
        {"action": "fail"}, {"action": "skip"}, {"match": {"reason": ["oom", "timeout"]}}, {"match": {"exit_code": 3}},
        {"match": {"exception": "ValueError"}}, {"match": {"message": "disk"}}, {"delay_seconds": 9},
        {"resources": {"memory_gb": "x1.5"}}, {"resources": {"memory_gb": 8}}, {"resources": {"queue": "highmem"}},
        {"resources": {"memory_gb": "x2", "max_memory_gb": 64}})),
    ({}, {"max_queued_seconds": 7}),
    ({}, {"progress_timeout_seconds": 7}),
    ({}, {"deadline_seconds": 7}),
    ({}, {"outputs": {"type": "object"}}),
    ({}, {"cache": True}),
    *(({"cache": True}, {"cache": more}) for more in (
        {"mode": "read"}, {"key": "{{ params.x }}"}, {"key": ["a", "b"]}, {"ttl_seconds": 5}, {"scope": "tenant"},
        {"single_flight": False})),
    ({}, {"concurrency": [LIMIT]}),
    *(({"concurrency": [LIMIT]}, {"concurrency": [{**LIMIT, **more}]}) for more in (
        {"key": "x"}, {"limit": 3}, {"on_limit": "cancel_new"})),
    ({}, {"rate_limit": RATE}),
    *(({"rate_limit": RATE}, {"rate_limit": {**RATE, **more}}) for more in (
        {"key": "x"}, {"units": 3}, {"per_seconds": 2})),
    ({"operator": None}, {"approval": APPROVAL}),
    *(({"operator": None, "approval": APPROVAL}, {"approval": {**APPROVAL, **more}}) for more in (
        {"message": "Well?"}, {"input": {"type": "object"}}, {"timeout_seconds": 6}, {"on_timeout": "approve"},
        {"on_reject": "skip"})),
    ({"operator": None}, {"event": EVENT}),
    *(({"operator": None, "event": EVENT}, {"event": {**EVENT, **more}}) for more in (
        {"timeout_seconds": 6}, {"on_timeout": "skip"}, {"payload": {"type": "object"}})),
    ({"operator": None}, {"pipeline": CHILD}),
    *(({"operator": None, "pipeline": CHILD}, {"pipeline": {**CHILD, **more}}) for more in (
        {"name": "third"}, {"version": 2}, {"parameters": {"x": 1}}, {"wait": False}, {"inherit": False})),
    ({"operator": None, "map": MAP}, {"tasks": [task("inner")]}),
    ({"operator": None, "repeat": REPEAT}, {"tasks": [task("inner"), task("next", "script", "inner")], "repeat": {
        "until": "tasks.inner.outputs.x", "max": 2}}),
]  # fmt: skip
OF_A_PIPELINE: list[dict[str, Any]] = [
    {"deadline_seconds": 60},
    {"max_active_runs": 2},
    {"concurrency": [LIMIT]},
    {"concurrency": [{**LIMIT, "on_limit": "cancel_running"}]},
    {"parameters": {"x": 1}},
]
BESIDE_THE_PLAN = {"name", "description", "owner", "tags", "priority", "tasks"}
"""What is kept with the version or the run."""


def one(**fields: Any) -> Compiled | None:
    """Return what is made of a task with these fields, ``None`` where they are none: those of another kind are."""
    made = {"parameters": {}, **task("t", "script", "first"), **fields}
    made = {name: value for name, value in made.items() if value is not None}
    if not made.keys() & {"operator", "tasks", "pipeline", "approval", "event"}:
        return None
    return compiled(task("first"), made)


@pytest.mark.parametrize(("beside", "said"), OF_A_TASK, ids=lambda value: json.dumps(value)[:60])
def test_every_field_of_a_task_changes_its_plan_and_survives_being_stored(
    beside: dict[str, Any], said: dict[str, Any]
) -> None:
    no_operator = {"parameters": None} if beside.get("operator", "") is None else {}
    without = one(**no_operator, **beside)
    made = one(**no_operator, **{**beside, **said})
    assert made is not None
    assert without is None or made.plan != without.plan, "the field is read and then forgotten"
    assert plan_from_json(stored(made.plan)) == made.plan
    assert without is None or made.content_hash != without.content_hash


def test_no_field_of_a_task_is_left_out_above() -> None:
    assert {name for _, said in OF_A_TASK for name in said} == TASK_FIELDS.keys() - {"name", "description"}


@pytest.mark.parametrize("said", OF_A_PIPELINE, ids=json.dumps)
def test_every_field_of_a_pipeline_changes_its_plan_and_survives_being_stored(said: dict[str, Any]) -> None:
    inner = task("t", parameters={"x": "{{ params.x }}"})
    made = compiled(inner, **said)
    assert made.plan != compiled(inner).plan
    assert plan_from_json(stored(made.plan)) == made.plan


def test_no_field_of_a_pipeline_is_left_out_above() -> None:
    assert {name for said in OF_A_PIPELINE for name in said} == PIPELINE_FIELDS.keys() - BESIDE_THE_PLAN


# ── nesting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def nested(depth: int) -> dict[str, Any]:
    inner = task("deep", map={"over": "{{ map.item.parts }}", "success": {"min_ratio": 0.5}}, cache=True, cpu=3)
    for level in range(depth):
        inner = {"name": f"g{level}", "tasks": [inner, task(f"beside{level}")], "map": {"over": "{{ params.list }}"}}
    return inner


def test_bodies_inside_of_bodies_are_stored_whole() -> None:
    plan = compiled(nested(4), task("end", "script", "g3", deadline_seconds=5)).plan
    assert plan_from_json(stored(plan)) == plan
    assert [found.name for found in all_tasks(plan)].count("deep") == 2, "the container and what each of its items runs"


def everything_stored(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        for item in value.values():
            yield from everything_stored(item)
    elif isinstance(value, list):
        for item in value:
            yield from everything_stored(item)


FULL = [
    ({"map": {**MAP, "key": "{{ map.item }}"}}, "map", "MapPlan"),
    ({"repeat": REPEAT}, "repeat", "RepeatPlan"),
    ({"cache": True}, "cache", "CachePlan"),
    ({"rate_limit": RATE}, "rate_limit", "RateLimit"),
    ({"approval": APPROVAL}, "approval", "ApprovalPlan"),
    ({"event": EVENT}, "event", "EventPlan"),
    ({"pipeline": CHILD}, "child", "ChildPlan"),
]


@pytest.mark.parametrize(("said", "part", "kind"), FULL, ids=[row[1] for row in FULL])
def test_what_a_newer_release_says_inside_of_a_part_is_refused(said: dict[str, Any], part: str, kind: str) -> None:
    nothing = {} if said.keys() & {"map", "repeat", "cache", "rate_limit"} else {"operator": None, "parameters": None}
    made = one(**nothing, **said)
    assert made is not None
    document = stored(made.plan)
    holder = next(found for found in everything_stored(document) if isinstance(found.get(part), Mapping))
    holder[part]["on_full_moon"] = "howl"
    with pytest.raises(ValueError, match=rf"'on_full_moon' of a {kind}.* run the newer release"):
        plan_from_json(document)


@pytest.mark.parametrize(
    ("said", "path"),
    [
        ({"map": MAP}, ("map", "success")),
        ({"repeat": REPEAT}, ("repeat", "on_max")),
        ({"cache": True}, ("cache", "scope")),
        ({"concurrency": [LIMIT]}, ("concurrency", 0, "on_limit")),
        ({"retry": {"on": [RULE]}}, ("retry", "rules", 0, "action")),
    ],
)
def test_a_word_of_a_newer_release_inside_of_a_part_is_refused(said: dict[str, Any], path: tuple[Any, ...]) -> None:
    made = one(**said)
    assert made is not None
    document = stored(made.plan)
    place = document["tasks"][1]
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = "howl"
    with pytest.raises(ValueError, match="'howl', which this release does not know"):
        plan_from_json(document)


def test_a_plan_that_uses_nothing_new_is_stored_in_the_words_of_the_release_before() -> None:
    words = set(json.loads(OLD[-1].read_text())["tasks"][0])
    plain = stored(compiled(task("first"), task("t", "script", "first", retries=1), site=Site(retries=2)).plan)
    assert set(plain) == {"format", "tasks"}
    assert set(plain["tasks"][0]) <= words


def test_what_is_never_stored_is_refused() -> None:
    document = stored(compiled(task("a")).plan)
    document["tasks"][0]["verbatim"] = ["script_content"]
    with pytest.raises(ValueError, match="'verbatim' of a PlannedTask, which is never stored"):
        plan_from_json(document)
