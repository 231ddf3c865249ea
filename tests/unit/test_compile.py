"""A definition compiles to one plan, or to all that is wrong with it, each fault at its place and with a way out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.compile import Compiled, RunNeed, Site, compile_pipeline, run_problems
from orchestrator.config import load_settings
from orchestrator.errors import InvalidDefinition
from orchestrator.operator import Input, Json, Operator, TaskContext
from orchestrator.plan_json import describe, plan_from_json, plan_to_json
from orchestrator.records import InputLink, PlannedTask, Resources, RetryPolicy, RunInput
from orchestrator.registry import load_operators

GIB = 2**30


class Pure(Operator):
    """An operator that is only asked, never run."""

    outputs_schema: ClassVar[Mapping[str, Json]] = {}
    made: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def produces(cls, parameters: Mapping[str, Json]) -> frozenset[str]:
        return cls.made

    def run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        raise AssertionError("the compiler runs nothing")


class Make(Pure):
    name = "make"
    summary = "Makes a dataset."
    made = frozenset({"dataset"})
    parameters_schema: ClassVar[Mapping[str, Json]] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {"rows": {"type": "integer", "minimum": 1}, "source": {"type": "string"}},
    }

    @classmethod
    def problems(cls, parameters: Mapping[str, Json]) -> list[tuple[str, str]]:
        return [("/rows", "13 rows bring bad luck; choose 14.")] if parameters.get("rows") == 13 else []

    @classmethod
    def connection_names(cls, parameters: Mapping[str, Json]) -> frozenset[str]:
        return frozenset({parameters["source"]} if "source" in parameters else ())


class Train(Pure):
    name = "train"
    summary = "Makes a model of a dataset."
    made = frozenset({"model"})
    inputs: ClassVar[Sequence[Input]] = (Input("data", "dataset"), Input("start", "model", required=False))
    parameters_schema: ClassVar[Mapping[str, Json]] = {
        "type": "object",
        "additionalProperties": False,
        "required": ["algorithm"],
        "properties": {
            "algorithm": {"enum": ["forest", "svm"]},
            "data": {"type": "string"},
            "start": {"type": "string"},
            "options": {"anyOf": [{"type": "object", "properties": {"depth": {"type": "integer"}}}, {"type": "null"}]},
        },
    }


class Script(Pure):
    name = "script"
    summary = "Runs a script."
    parameters_schema: ClassVar[Mapping[str, Json]] = {"type": "object"}


OPERATORS: dict[str, type[Operator]] = {operator.name: operator for operator in (Make, Train, Script)}
SITE = Site()


def task(name: str, operator: str = "script", *upstream: str, **fields: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"name": name, "operator": operator, "upstream_tasks": list(upstream)}
    if operator == "train":
        values["parameters"] = {"algorithm": "forest"}
    return {**values, **fields}


def pipeline(*tasks: Any, **fields: Any) -> dict[str, Any]:
    return {"name": "example", "tasks": list(tasks), **fields}


def compiled(*tasks: Any, site: Site = SITE, **fields: Any) -> Compiled:
    return compile_pipeline(pipeline(*tasks, **fields), OPERATORS, site)


def planned(*tasks: Any, site: Site = SITE) -> dict[str, PlannedTask]:
    return {task.name: task for task in compiled(*tasks, site=site).plan.tasks}


def faults(document: object, site: Site = SITE) -> dict[str, str]:
    with pytest.raises(InvalidDefinition) as caught:
        compile_pipeline(document, OPERATORS, site)
    return {problem.pointer: problem.message for problem in caught.value.problems}


# ── the plan ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_tasks_are_planned_after_their_upstreams() -> None:
    plan = compiled(task("c", "script", "b"), task("b", "script", "a"), task("a")).plan
    assert [task.name for task in plan.tasks] == ["a", "b", "c"]
    assert plan.tasks[2].upstream == ("b",)


def test_what_a_task_says_beats_the_site() -> None:
    site = Site(default_task_resources={"script": {"cpu": 2, "memory_gb": 4, "gpu": 1}}, retries=5, grace=3.0)
    said = task("said", cpu=0.25, memory_gb=1.5, retries=0, retry_delay_seconds=1, retry_backoff_factor=3,
                retry_max_delay_seconds=9, timeout_seconds=60, grace_seconds=0, labels={"zone": "b", "disk": "ssd"},
                exclusive=True, critical=False)  # fmt: skip
    plan = planned(task("silent"), said, site=site)
    assert plan["silent"].resources == Resources(cpu=2000, memory=4 * GIB), "a default GPU is not given"
    assert plan["silent"].retry == RetryPolicy(5, 60.0, 2.0, 600.0)
    assert plan["silent"].grace == 3.0
    assert plan["said"].resources == Resources(cpu=250, memory=GIB * 3 // 2)
    assert plan["said"].retry == RetryPolicy(0, 1.0, 3.0, 9.0)
    assert (plan["said"].timeout, plan["said"].grace) == (60.0, 0.0)
    assert plan["said"].labels == (("disk", "ssd"), ("zone", "b"))
    assert (plan["said"].exclusive, plan["said"].critical) == (True, False)


def test_a_delay_longer_than_the_sites_cap_is_its_own_cap() -> None:
    assert planned(task("a", retry_delay_seconds=3600))["a"].retry.max_delay == 3600


@pytest.mark.parametrize(
    ("fields", "queue"),
    [
        ({}, "cpu"),
        ({"memory_gb": 32}, "cpu"),
        ({"memory_gb": 32.1}, "highmem"),
        ({"gpu": 1}, "gpu"),
        ({"gpu": 1, "memory_gb": 100}, "gpu"),
        ({"queue": "highmem"}, "highmem"),
        ({"queue": "highmem", "gpu": 1}, "highmem"),
        ({"queue": "cpu", "memory_gb": 100}, "cpu"),
    ],
)
def test_the_queue_follows_from_the_resources_unless_it_is_named(fields: dict[str, Any], queue: str) -> None:
    assert planned(task("a", **fields))["a"].queue == queue


def test_an_input_takes_the_nearest_ancestor_of_its_kind() -> None:
    plan = planned(task("far", "make"), task("near", "make", "far"), task("between", "script", "near"),
                   task("model", "train", "between"))  # fmt: skip
    assert plan["model"].links == (InputLink("data", "dataset", "near"),)
    assert plan["model"].run_inputs == (RunInput("start", "model", required=False),)


def test_a_value_of_its_own_beats_any_ancestor() -> None:
    plan = planned(task("make", "make"), task("t", "train", "make", parameters={"algorithm": "svm", "data": "x.csv"}))
    assert plan["t"].links == ()


def test_of_two_equally_near_the_later_one_counts() -> None:
    plan = planned(task("first", "make"), task("second", "make", "first"), task("t", "train", "first", "second"))
    assert plan["t"].links[0].source == "second"


def test_several_equally_near_candidates_are_named() -> None:
    found = faults(pipeline(task("a", "make"), task("b", "make"), task("t", "train", "a", "b")))
    assert list(found) == ["/tasks/2/parameters/data"]
    assert "'a', 'b' are equally near" in found["/tasks/2/parameters/data"]


def test_an_input_that_nothing_makes_is_the_runs_to_give() -> None:
    result = compiled(task("t", "train"), task("u", "make", parameters={"source": "warehouse"}))
    assert result.run_needs == (RunNeed("t", "data", "dataset"),)
    assert result.connections == ("warehouse",)


def test_saving_the_same_gives_the_same_hash_whatever_the_spelling() -> None:
    one = compiled(task("a", cpu=1, gpu=0), description="", tags=["x", "x"])
    two = compile_pipeline(
        {"tags": ["x"], "tasks": [{"upstream_tasks": [], "cpu": 1.0, "operator": "script", "name": "a"}],
         "name": "example"}, OPERATORS, Site(retries=9),
    )  # fmt: skip
    assert one.content_hash == two.content_hash
    assert one.content_hash != compiled(task("a", cpu=2)).content_hash


def test_the_normalised_definition_compiles_to_the_same_again() -> None:
    first = compiled(task("a", "make", gpu=1.0), task("t", "train", "a", labels={"x": "y"}, critical=False), tags=["m"])
    again = compile_pipeline(json.loads(json.dumps(first.definition)), OPERATORS, SITE)
    assert again == first


def test_a_plan_survives_its_json() -> None:
    plan = compiled(
        task("a", "make", parameters={"source": "warehouse"}, labels={"x": "y"}, timeout_seconds=5),
        task("t", "train", "a", gpu=2, gpu_memory_gb=16),
    ).plan
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan


def test_a_plan_of_a_newer_release_is_refused() -> None:
    with pytest.raises(ValueError, match="newer release"):
        plan_from_json({"format": 99, "tasks": []})


def test_the_description_tells_order_queues_resources_and_inputs() -> None:
    shown = describe(compiled(task("t", "train", "a", gpu=1), task("a", "make", cpu=1.5), task("lone", "train")))
    assert shown["order"] == ["a", "lone", "t"]
    assert shown["depth"] == 2
    assert shown["tasks"][2]["queue"] == "gpu"
    assert shown["tasks"][2]["inputs"] == {"data": {"kind": "dataset", "task": "a"}}
    assert shown["tasks"][0]["cpu"] == 1.5
    assert shown["run_needs"] == [{"task": "lone", "parameter": "data", "kind": "dataset"}]
    json.dumps(shown, allow_nan=False)


# ── the faults ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_faults_come_at_once_in_the_order_of_the_document() -> None:
    found = faults({
        "name": "no spaces please",
        "color": "blue",
        "tasks": [
            task("a", "scrip", "ghost", cpu=-1),
            task("a", "make", queue="cup", parameters={"rows": "many", "sauce": 1}),
            task("t", "train", parameters={}),
            "not a task",
        ],
    })  # fmt: skip
    assert list(found) == [
        "/color",
        "/name",
        "/tasks/0/cpu",
        "/tasks/0/operator",
        "/tasks/0/upstream_tasks/0",
        "/tasks/1/name",
        "/tasks/1/parameters/rows",
        "/tasks/1/parameters/sauce",
        "/tasks/1/queue",
        "/tasks/2/parameters/algorithm",
        "/tasks/3",
    ]
    assert all(message.endswith((".", "?")) for message in found.values())


def test_faults_of_the_graph_of_a_task_and_of_a_limit_come_at_once() -> None:
    found = faults(pipeline(
        task("a", "make"), task("b", "make"), task("t", "train", "a", "b", queue="cup", when="params.x >"),
        concurrency=[{"key": "{{ map.item }}", "limit": 1}],
    ))  # fmt: skip
    assert list(found) == ["/concurrency/0/key", "/tasks/2/parameters/data", "/tasks/2/queue", "/tasks/2/when"]
    beside = faults(pipeline(task("a", cpu=0), concurrency=[{"key": "{{ map.item }}", "limit": 1}]))
    assert list(beside) == ["/concurrency/0/key", "/tasks/0/cpu"]


def test_faults_of_fields_hide_no_faults_of_names() -> None:
    """All at once: a definition is not mended layer by layer."""
    wrong = task("t", "scrip", "zz", trigger_rule="al_done", whn="true", when="params.x > tasks.zzz.outputs.y",
                 parameters={"a": "{{ tasks.zzzz.outputs }}"})  # fmt: skip
    limits = [{"key": "{{ tasks.a.outputs.x }}", "limit": 0}, "no limit", {"key": "{{ nope }}", "limit": 1}]
    found = faults(pipeline(
        task("a", "make"), wrong,
        task("m", map={"over": "{{ tasks.zz.outputs }}", "max_parallel": 0, "key": "{{ map.itm }}"},
             concurrency=limits),
        {"operator": "scrip"},
        {"name": "g", "map": {"over": [1]}, "tasks": [task("x", "scrip", cpu=0), task("y", "script", "zz")]},
        task("r", retry={"on": [{"match": {"reason": "oom"}, "action": "again", "resources": {"queue": "cup"}}]}),
        concurrency=[{"key": "{{ map.item }}", "limit": 0}],
    ))  # fmt: skip
    assert list(found) == [
        "/concurrency/0/key", "/concurrency/0/limit",
        "/tasks/1/operator", "/tasks/1/parameters/a", "/tasks/1/trigger_rule", "/tasks/1/upstream_tasks/0",
        "/tasks/1/when", "/tasks/1/whn",
        "/tasks/2/concurrency/0/key", "/tasks/2/concurrency/0/limit", "/tasks/2/concurrency/1",
        "/tasks/2/concurrency/2/key", "/tasks/2/map/key", "/tasks/2/map/max_parallel", "/tasks/2/map/over",
        "/tasks/3/name", "/tasks/3/operator",
        "/tasks/4/tasks/0/cpu", "/tasks/4/tasks/0/operator", "/tasks/4/tasks/1/upstream_tasks/0",
        "/tasks/5/retry/on/0/action", "/tasks/5/retry/on/0/resources/queue",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "tasks",
    [
        [task("a"), task("b", upstream_tasks="a", trigger_rule="one_failed")],
        [task("a"), task("b", upstream_tasks="a", teardown=["a"])],
        [task("a"), task("b", upstream_tasks="a", parameters={"x": "{{ tasks.a.outputs }}"})],
        [task("a"), task("b", "script", "a", trigger_rule="al_done", when="tasks.a.state == 'failed'")],
        [task("a", "train", parameters=[])],
        [task("a", map=5, parameters={"x": "{{ map.item }}"})],
        [task("a", repeat=5, parameters={"x": "{{ repeat.index }}"})],
        [{"name": "g", "map": 5, "tasks": [task("a", parameters={"x": "{{ map.item.y }}"})]}],
        [task("a", map={"over": {"grid": {"x": 5}}}, parameters={"x": "{{ map.item.x }}"})],
        [task("a", gpu="one", gpu_memory_gb=4)],
        [task("a", outputs=5), task("b", "script", "a", when="tasks.a.outputs.x > 1")],
        [{"name": "a", "approval": {"message": "go?", "input": 5}},
         task("b", "script", "a", when="tasks.a.outputs.input.x > 1")],
        [{"name": "a", "approval": 5}],
        [{"name": "a", "tasks": 5, "map": {"over": [1]}}, task("b", "script", "a", when="tasks.a.outputs[0].x > 1")],
        [task("a b"), task("c", "script", "a b")],
        [{"operator": "script"}, task("c")],
        ["text", task("c", "script", when="true")],
        [task("a", "scrip", parameters={"script_content": "${{ github }}"})],
    ],
)  # fmt: skip
def test_one_fault_is_told_as_one(tasks: list[Any]) -> None:
    like: Any = OPERATORS["script"]
    script = type("Script", (like,), {"verbatim": frozenset({"script_content"})})
    with pytest.raises(InvalidDefinition) as caught:
        compile_pipeline(pipeline(*tasks), {**OPERATORS, "script": script}, SITE)
    assert len(caught.value.problems) == 1, caught.value.problems


@pytest.mark.parametrize(
    ("document", "pointer", "words"),
    [
        ([], "", "not a list"),
        ("text", "", "not a text"),
        ({}, "/name", "missing"),
        ({"name": "a", "tasks": []}, "/tasks", "at least one"),
        ({"name": "a", "tasks": {}}, "/tasks", "not an object"),
        ({"name": "-a", "tasks": [task("a")]}, "/name", "letters"),
        ({"name": "a" * 129, "tasks": [task("a")]}, "/name", "128"),
        ({"name": "a\n", "tasks": [task("a")]}, "/name", "letters"),
        (pipeline(task("a"), task("b"), task("a")), "/tasks/2/name", "position 0"),
        (pipeline(task("a"), tags="x"), "/tags", "list of texts"),
        (pipeline(task("a"), tags=[None]), "/tags", "list of texts"),
        (pipeline(task("a"), priority=1.5), "/priority", "whole number"),
        (pipeline(task("a"), priority=True), "/priority", "true or false"),
        (pipeline(task("a"), parameters={"x": "y" * 70_000}), "/parameters", "65536"),
        (pipeline(task("a"), descripton="x"), "/descripton", "Did you mean 'description'?"),
        (pipeline(task("a"), task("b", "script", "aa")), "/tasks/1/upstream_tasks/0", "Did you mean 'a'?"),
        (pipeline(task("a"), task("b", "script", "a", "a")), "/tasks/1/upstream_tasks", "more than once"),
        (pipeline(task("a", upstream_tasks="b")), "/tasks/0/upstream_tasks", "list of texts"),
        (pipeline(task("a", "trian")), "/tasks/0/operator", "Did you mean 'train'?"),
        (pipeline(task("a", 7)), "/tasks/0/operator", "not a number"),  # type: ignore[arg-type]
        (pipeline(task("a", "make", parameters={"rows": 0})), "/tasks/0/parameters/rows", "minimum"),
        (pipeline(task("a", "make", parameters={"rows": 13})), "/tasks/0/parameters/rows", "bad luck"),
        (pipeline(task("a", "make", parameters={"row": 1})), "/tasks/0/parameters/row", "Did you mean 'rows'?"),
        (pipeline(task("a", "make", parameters=[])), "/tasks/0/parameters", "must be an object"),
        (pipeline(task("a", "train", parameters={})), "/tasks/0/parameters/algorithm", "missing"),
        (pipeline(task("a", "train", parameters={"algorithm": "svm", "options": {"depth": "x"}})),
         "/tasks/0/parameters/options/depth", "integer"),
        (pipeline(task("a", trigger_rule="all_sucess")), "/tasks/0/trigger_rule", "Did you mean 'all_success'?"),
        (pipeline(task("a", trigger_rule="one_failed")), "/tasks/0/trigger_rule", "without upstreams"),
        (pipeline(task("a", cpu=0)), "/tasks/0/cpu", "above 0"),
        (pipeline(task("a", cpu="1")), "/tasks/0/cpu", "not a text"),
        (pipeline(task("a", cpu=None)), "/tasks/0/cpu", "not null"),
        (pipeline(task("a", memory_gb=-8)), "/tasks/0/memory_gb", "above 0"),
        (pipeline(task("a", gpu=-1)), "/tasks/0/gpu", "whole number"),
        (pipeline(task("a", gpu=0.5)), "/tasks/0/gpu", "whole number"),
        (pipeline(task("a", gpu=True)), "/tasks/0/gpu", "true or false"),
        (pipeline(task("a", gpu_memory_gb=8)), "/tasks/0/gpu_memory_gb", "no GPU"),
        (pipeline(task("a", gpu=1, queue="cpu")), "/tasks/0/queue", "without a GPU"),
        (pipeline(task("a", queue="gup")), "/tasks/0/queue", "Did you mean 'gpu'?"),
        (pipeline(task("a", retries=-1)), "/tasks/0/retries", "from 0"),
        (pipeline(task("a", retry_delay_seconds=10, retry_max_delay_seconds=5)),
         "/tasks/0/retry_max_delay_seconds", "below the first"),
        (pipeline(task("a", timeout_seconds=0)), "/tasks/0/timeout_seconds", "above 0"),
        (pipeline(task("a", labels={"x": 1})), "/tasks/0/labels", "names to texts"),
        (pipeline(task("a", exclusive="yes")), "/tasks/0/exclusive", "true or false"),
        (pipeline(task("a"), task("b", "script", "a", teardown=["c"])), "/tasks/1/teardown/0", "no task 'c'"),
        (pipeline(task("a"), task("c"), task("b", "script", "a", teardown=["c"])), "/tasks/2/teardown/0",
         "'c' does not come before 'b'"),
        (pipeline(task("a", teardown=True)), "/tasks/0/teardown", "add upstream_tasks"),
        (pipeline(task("a"), task("b", "script", "a", teardown=True, map={"over": [1]})), "/tasks/1/map",
         "without 'map'"),
        (pipeline(task("a"), {"name": "b", "upstream_tasks": ["a"], "teardown": True, "event": {}}), "/tasks/1/event",
         "without 'event'"),
        (pipeline(task("a"), task("b", "script", "a", teardown=True, trigger_rule="one_failed")),
         "/tasks/1/trigger_rule", "leave the rule out"),
        (pipeline(task("a"), task("b", "script", "a", teardown=True, cache=True)), "/tasks/1/cache", "has to act"),
        (pipeline(task("a", exclusive=True, cache=True)), "/tasks/0/cache", "leave one of the two out"),
        (pipeline(task("a", exclusive=True, on_worker_loss="adopt")), "/tasks/0/on_worker_loss", "contradict"),
        (pipeline(task("a", gpu=1, retry={"on": [{"match": {"reason": "oom"}, "action": "retry",
                                                  "resources": {"queue": "cpu"}}]})),
         "/tasks/0/retry/on/0/resources/queue", "without a GPU"),
        (pipeline(task("a", retry={"on": [{"match": {"reason": "oom"}, "action": "retry",
                                           "resources": {"queue": "highmen"}}]})),
         "/tasks/0/retry/on/0/resources/queue", "Did you mean 'highmem'?"),
        (pipeline(task("a", memory_gb=8, retry={"on": [{"match": {"reason": "oom"}, "action": "retry", "resources": {
            "memory_gb": "x2", "max_memory_gb": 8}}]})),
         "/tasks/0/retry/on/0/resources/max_memory_gb", "lets nothing grow"),
        (pipeline(task("a", cpu=float("nan"))), "/tasks/0/cpu", "no JSON number"),
        (pipeline(task("a", parameters={"x": [float("inf")]})), "/tasks/0/parameters/x/0", "no JSON number"),
        (pipeline(task("a", parameters={"a/b~c": "\0"})), "/tasks/0/parameters/a~1b~0c", "NUL"),
        (pipeline(task("a", parameters={"x\0": 1})), "/tasks/0/parameters", "NUL"),
        (pipeline(task("a", description="\ud800")), "/tasks/0/description", "surrogate"),
        (pipeline(task("a", parameters={"x": 2**70})), "/tasks/0/parameters/x", "64 bits"),
        (pipeline(task("a", parameters={"text": "x" * 300_000})), "/tasks/0", "262144"),
        (pipeline(task("a", parameters={str(n): "x" * 1000 for n in range(80)})), "/tasks/0", "65536"),
    ],
)  # fmt: skip
def test_a_fault_is_told_at_its_place_with_a_way_out(document: object, pointer: str, words: str) -> None:
    found = faults(document)
    assert pointer in found, found
    assert words in found[pointer], found[pointer]


def test_a_script_of_a_quarter_megabyte_is_taken() -> None:
    assert compiled(task("a", parameters={"script": 'print("x")\n' * 21_000}))


def test_a_document_nested_like_an_abyss_is_refused() -> None:
    deep: Any = {}
    for _ in range(5000):
        deep = {"x": deep}
    (message,) = faults(pipeline(task("a", parameters=deep))).values()
    assert "nested more than 32 deep" in message


def test_a_cycle_is_told_as_its_path() -> None:
    found = faults(pipeline(task("a", "script", "c"), task("b", "script", "a"), task("c", "script", "b"), task("d")))
    (message,) = found.values()
    path = message.rpartition(": ")[2].rstrip(".").split(" → ")
    assert path[0] == path[-1]
    assert [*pairwise(path)] in (
        [("a", "b"), ("b", "c"), ("c", "a")],
        [("b", "c"), ("c", "a"), ("a", "b")],
        [("c", "a"), ("a", "b"), ("b", "c")],
    )


def test_a_task_that_waits_for_itself_is_told_so() -> None:
    assert "a → a" in faults(pipeline(task("a", "script", "a")))["/tasks/0/upstream_tasks"]


def test_a_cycle_is_seen_beside_other_faults() -> None:
    found = faults(pipeline(task("a", "script", "b", "ghost"), task("b", "script", "a", cpu=0), task("c", "make")))
    assert "/tasks/0/upstream_tasks/1" in found
    assert "/tasks/1/cpu" in found


def test_too_many_tasks_edges_or_levels_are_refused() -> None:
    many = faults(pipeline(*(task(f"t{n}") for n in range(10_001))))
    assert "at most 10000" in many["/tasks"]
    levels = [task("t0"), *(task(f"t{n}", "script", f"t{n - 1}") for n in range(1, 201))]
    assert "at most 200" in faults(pipeline(*levels))["/tasks"]
    wide = [task(f"a{n}") for n in range(250)]
    wide += [task(f"b{n}", "script", *(f"a{m}" for m in range(250))) for n in range(250)]
    assert "at most 50000" in faults(pipeline(*wide))["/tasks"]


def test_no_more_than_two_hundred_problems_are_listed() -> None:
    with pytest.raises(InvalidDefinition) as caught:
        compiled(*(task(f"t{n}", "nothing") for n in range(300)))
    assert len(caught.value.problems) == 201
    assert caught.value.problems[-1].message == "100 more problems are not listed."


def test_an_operator_that_breaks_its_promise_is_named() -> None:
    class Broken(Script):
        name = "broken"

        @classmethod
        def problems(cls, parameters: Mapping[str, Json]) -> list[tuple[str, str]]:
            raise KeyError("oops")

    with pytest.raises(InvalidDefinition, match="'broken' failed to check"):
        compile_pipeline(pipeline(task("a", "broken")), {"broken": Broken}, SITE)


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("not even this")


@pytest.mark.parametrize("question", ["problems", "produces", "active_inputs", "connection_names"])
@pytest.mark.parametrize("answer", [ZeroDivisionError("oops"), None, "dataset", [1], [Unprintable()], "attribute"])
def test_whatever_an_operator_of_a_third_party_answers_is_a_plan_or_a_problem(question: str, answer: Any) -> None:
    def told(parameters: Mapping[str, Json]) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    broken = type("Broken", (Script,), {"name": "broken", question: "x" if answer == "attribute" else told})
    document = pipeline(task("a", "make"), task("b", "broken", "a"))
    with pytest.raises(InvalidDefinition) as caught:
        compile_pipeline(document, {**OPERATORS, "broken": broken}, SITE)
    [problem] = caught.value.problems
    assert problem.pointer == "/tasks/1/parameters"
    assert "'broken'" in problem.message
    assert problem.message.endswith(".")


@pytest.mark.parametrize("schema", [{"type": "objet"}, {"properties": 7}, {"$ref": "#/nowhere"}, None])
def test_an_operator_with_a_broken_schema_is_named(schema: Any) -> None:
    broken = type("Broken", (Script,), {"name": "broken", "parameters_schema": schema})
    with pytest.raises(InvalidDefinition, match="'broken' failed to check"):
        compile_pipeline(pipeline(task("a", "broken", parameters={"a": 1})), {"broken": broken}, SITE)


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
field_names = st.sampled_from(["name", "operator", "upstream_tasks", "parameters", "cpu", "labels", "queue", "x"])


@given(any_json | st.fixed_dictionaries({
    "name": st.just("a") | any_json,
    "tasks": st.lists(st.dictionaries(field_names, any_json, max_size=6) | any_json, max_size=3),
}))  # fmt: skip
def test_any_document_compiles_or_is_refused_with_sentences(document: object) -> None:
    try:
        compile_pipeline(document, OPERATORS, SITE)
    except InvalidDefinition as error:
        problems = error.problems
    else:
        return
    assert problems
    assert all(problem.pointer == "" or problem.pointer.startswith("/") for problem in problems)


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def run_faults(result: Compiled, parameters: object, **more: Any) -> dict[str, str]:
    site = Site(connections=frozenset({"warehouse"}))
    return {problem.pointer: problem.message for problem in run_problems(result.plan, parameters, site, **more)}


def test_a_run_is_refused_without_what_only_it_can_give() -> None:
    result = compiled(task("t", "train"))
    assert "'t' needs a dataset" in run_faults(result, {})["/parameters/data"]
    assert run_faults(result, {"data": "x.csv"}) == {}
    assert run_faults(result, {}, defaults={"data": "x.csv"}) == {}
    assert "as a text" in run_faults(result, {"data": 7})["/parameters/data"]
    assert "as a text" in run_faults(result, {"data": "x.csv", "start": ""})["/parameters/start"]


def test_a_run_gives_only_what_its_pipeline_declares_or_its_tasks_take() -> None:
    read = task("r", parameters={"x": "{{ params.region }}"})
    result = compiled(task("t", "train"), read, parameters={"max_errors": 1, "depths": [1], "any": None})
    defaults = result.definition["parameters"]
    wanted = {"data": "x.csv", "region": "eu"}

    def told(named: dict[str, Any]) -> dict[str, str]:
        return run_faults(result, {**wanted, **named}, defaults=defaults)

    assert told({"max_errors": 2.5, "depths": [], "any": {"x": 1}, "start": "y.csv"}) == {}
    assert told({"max_erors": 1}) == {
        "/parameters/max_erors": "The pipeline's parameters have no 'max_erors'. Did you mean 'max_errors'?"
    }
    assert "'max_errors', 'depths', 'any'; add it there" in told({"q/r": 1})["/parameters/q~1r"]
    assert run_faults(compiled(task("a")), {"whatever": 1}, defaults={}) == {}, (
        "a pipeline that declares none takes any"
    )


@pytest.mark.parametrize(
    ("default", "value", "words"),
    [
        (1, "text", "is a number by its default in the pipeline, and this is a text; give one like 1."),
        (1, True, "this is true or false"),
        (1, None, "this is null; leave it out, or make null its default there."),
        ([1, 2], 5, "is a list by its default in the pipeline, and this is a number; give one like [1, 2]."),
        ("2026", 2026, 'this is a number; put it in quotes, as in "2026".'),
        (False, "false", "is true or false by its default in the pipeline, and this is a text; give one like false."),
        ({}, [], "is an object"),
    ],
)
def test_a_run_gives_values_of_the_types_of_the_defaults(default: Any, value: Any, words: str) -> None:
    result = compiled(task("a"), parameters={"x": default})
    assert words in run_faults(result, {"x": value}, defaults={"x": default})["/parameters/x"]
    assert run_faults(result, {"x": value}, defaults={"x": None}) == {}
    assert run_faults(result, {"x": value}, defaults={"x": default}, named={}) == {}, "it came from another run"


def test_a_run_is_refused_where_a_connection_is_missing() -> None:
    result = compiled(task("a", "make", parameters={"source": "warehose"}))
    assert "Did you mean 'warehouse'?" in run_faults(result, {})[""]
    assert run_faults(compiled(task("a", "make", parameters={"source": "warehouse"})), {}) == {}


@pytest.mark.parametrize(
    ("parameters", "pointer"),
    [
        ([], "/parameters"),
        ({"x": float("nan")}, "/parameters/x"),
        ({"x": "y" * 70_000}, "/parameters"),
        (None, "/parameters"),
    ],
)
def test_unfit_run_parameters_are_refused(parameters: object, pointer: str) -> None:
    assert pointer in run_faults(compiled(task("a")), parameters)


def test_the_runs_parameter_fills_the_input_that_nothing_makes() -> None:
    from orchestrator.store.sight import resolve_parameters

    (wanted,) = compiled(task("t", "train")).plan.tasks
    assert resolve_parameters(wanted, {}, {"data": "x.csv", "other": 1}) == {"algorithm": "forest", "data": "x.csv"}


# ── the real operators ───────────────────────────────────────────────────────────────────────────────────────────────

SEEDS: dict[str, list[dict[str, Any]]] = {
    "training": [
        task("ingest", "data_ingestion", parameters={"source_type": "s3", "source_path": "s3://data/training-data.csv"},
             cpu=1.0, memory_gb=2.0),
        task("validate", "data_validation", "ingest", parameters={"max_error_rate": 0.05}, cpu=0.5, memory_gb=1.0),
        task("train", "model_training", "validate", cpu=4.0, memory_gb=8.0, gpu=1,
             parameters={"model_type": "classification", "algorithm": "random_forest",
                         "hyperparameters": {"n_estimators": 100, "max_depth": 10}}),
    ],
    "processing": [
        task("extract", "data_ingestion", parameters={"source": "database"}),
        task("transform", "custom_script", "extract",
             parameters={"script_type": "python", "script_content": "# logic"}),
        task("load", "data_ingestion", "transform", parameters={"destination": "warehouse"}),
    ],
    "validated training": [
        task("prepare", "data_validation", parameters={"validation_rules": {}}),
        task("train", "model_training", "prepare", parameters={}),
        task("check", "custom_script", "train", parameters={"script_content": "# logic"}),
        task("register", "model_registration", "check", trigger_rule="all_success"),
    ],
    "registration": [
        task("register", "model_registration",
             parameters={"registry_url": "http://model-registry:8000", "model_name": "customer-churn-v1"}),
    ],
    "features": [task("features", "custom_script", parameters={"script_content": "# code"})],
    "reference": [
        task("ingest", "data_ingestion", parameters={"source_type": "local", "source_path": "path/to/data",
                                                     "output_path": "path/to/output", "format": "csv"}),
        task("validate", "data_validation", "ingest",
             parameters={"input_path": "path/to/data", "validation_rules": {}, "max_error_rate": 0.05}),
        task("train", "model_training", "validate",
             parameters={"model_type": "classification", "algorithm": "random_forest", "hyperparameters": {},
                         "training_data_path": "path/to/training/data", "min_accuracy": 0.8}),
        task("register", "model_registration", "train",
             parameters={"model_name": "fraud-detection-v1", "model_version": "1.0.0", "description": "Model",
                         "tags": ["production", "fraud", "ml"]}),
        task("script", "custom_script", "register",
             parameters={"script_type": "python", "script_content": "print('Hello, World!')"}),
    ],
}  # fmt: skip


def real(document: object) -> Compiled:
    return compile_pipeline(document, load_operators(), Site.of(load_settings({})))


@pytest.mark.parametrize("tasks", SEEDS.values(), ids=SEEDS)
def test_the_pipelines_of_the_first_documents_compile(tasks: list[dict[str, Any]]) -> None:
    assert real(pipeline(*tasks)).plan.tasks


def test_the_training_pipeline_is_wired_along_its_path() -> None:
    plan = {task.name: task for task in real(pipeline(*SEEDS["training"])).plan.tasks}
    assert [task.queue for task in plan.values()] == ["cpu", "cpu", "gpu"]
    assert [link.kind for link in plan["train"].links] == ["dataset"]


def test_what_only_the_run_can_know_is_asked_of_the_run() -> None:
    result = real(pipeline(*SEEDS["validated training"]))
    assert [(need.task, need.kind) for need in result.run_needs] == [("prepare", "dataset")]
    assert [link.source for link in result.plan.tasks[-1].links] == ["train"]
    assert set(real(pipeline(*SEEDS["processing"])).connections) == {"database", "warehouse"}


SEED_FILES = sorted((Path(__file__).parents[1] / "seed_pipelines").glob("*.json"))


@pytest.mark.parametrize("file", SEED_FILES, ids=lambda file: file.stem)
def test_the_seeds_own_files_compile(file: Path) -> None:
    assert real(json.loads(file.read_text())).plan.tasks


def test_a_thousand_tasks_compile_in_a_moment() -> None:
    kinds = [
        ("data_ingestion", {"source_type": "local", "source_path": "a.csv"}),
        ("data_validation", {"max_error_rate": 0.05}),
        ("model_training", {"algorithm": "random_forest", "hyperparameters": {"n_estimators": 50}}),
        ("custom_script", {"script_content": "print(1)"}),
    ]
    tasks = [
        task(f"t{n}", kinds[n % 4][0], *([f"t{n - 1}"] if n % 4 else []), parameters=kinds[n % 4][1], cpu=1)
        for n in range(1000)
    ]
    whole, quarter = _compile_seconds(tasks), _compile_seconds(tasks[:250])
    print(f"250 tasks: {quarter:.3f} s, 1,000 tasks: {whole:.3f} s")
    assert whole < 10 * quarter, "four times the tasks; a quadratic algorithm takes sixteen times as long"
    assert whole < 5


def _compile_seconds(tasks: Sequence[Json]) -> float:
    """Return the processor time of the quickest of three compilations."""
    seconds = []
    for _ in range(3):
        started = time.process_time()
        assert len(real(pipeline(*tasks)).plan.tasks) == len(tasks)
        seconds.append(time.process_time() - started)
    return min(seconds)
