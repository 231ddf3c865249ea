"""Every kind of task and every policy reads from a document; each fault has its place; documents come back as read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.compile import Site, compile_pipeline
from orchestrator.registry import load_operators
from orchestrator.spec_document import to_document
from orchestrator.spec_policies import memory_factor
from orchestrator.spec_reading import MAX_GROUPS, read_pipeline

ROOT = Path(__file__).parents[2]


def task(name: str = "a", **fields: Any) -> dict[str, Any]:
    kinds = {"operator", "tasks", "pipeline", "approval", "event"}
    return {"name": name, **({} if fields.keys() & kinds else {"operator": "script"}), **fields}


def pipeline(*tasks: Any, **fields: Any) -> dict[str, Any]:
    return {"name": "example", "tasks": list(tasks), **fields}


def faults(*tasks: Any, **fields: Any) -> dict[str, str]:
    return {problem.pointer: problem.message for problem in read_pipeline(pipeline(*tasks, **fields)).problems}


RULE = {"match": {"reason": ["oom"], "message": "killed"}, "action": "retry", "delay_seconds": 5,
        "resources": {"memory_gb": "x1.5", "max_memory_gb": 64, "queue": "highmem"}}  # fmt: skip
FORKING = {**{f"a{at}": {"allOf": [{"$ref": f"#/$defs/a{at + 1}"}] * 2} for at in range(30)}, "a30": {}}
EVERYTHING = pipeline(
    task("ingest", memory_gb="auto", cache=True, outputs={"type": "object", "required": ["rows"]},
         retry={"on": [RULE, {"match": {"exit_code": 64}, "action": "skip"}], "jitter": 0.5, "infrastructure": 0},
         max_queued_seconds=60, progress_timeout_seconds=30, deadline_seconds=3600,
         concurrency=[{"key": "{{ params.customer }}", "limit": 1, "on_limit": "fail"}],
         rate_limit={"key": "api", "units": 10, "per_seconds": 60}),
    task("train", upstream_tasks=["ingest"], when="tasks.ingest.outputs.rows > 0",
         cache={"mode": "read", "key": ["a", "{{ map.item }}"], "ttl_seconds": 60, "scope": "tenant",
                "single_flight": False},
         map={"over": {"grid": {"lr": [0.1, 0.2]}}, "max_parallel": 2, "max_size": 10, "success": {"min_ratio": 0.5},
              "fail_fast": True, "key": "{{ map.item.lr }}"}),
    task("folds", map={"over": "{{ params.folds }}"}, upstream_tasks=["ingest"], tasks=[
        task("fit"),
        task("tune", repeat={"until": "outputs.loss < 0.1", "max": 5, "delay_seconds": 1, "on_max": "succeed"},
             upstream_tasks=["fit"]),
    ]),
    task("child", pipeline={"name": "other", "version": 3, "parameters": {"x": "{{ run.id }}"}, "wait": False,
                            "inherit": False}),
    task("ok", approval={"message": "Go?", "input": {"type": "object"}, "timeout_seconds": 60, "on_timeout": "reject",
                         "on_reject": "skip"}, upstream_tasks=["train"]),
    task("told", event={"timeout_seconds": 60, "on_timeout": "skip", "payload": {"type": "object"}}),
    task("clean", teardown=["ingest"], upstream_tasks=["train"]),
    parameters={"folds": [1, 2], "customer": None}, deadline_seconds=7200, max_active_runs=2,
    concurrency=[{"key": "{{ params.customer }}", "limit": 1}],
)  # fmt: skip


def test_a_document_with_everything_reads_and_comes_back() -> None:
    reading = read_pipeline(EVERYTHING)
    assert reading.problems == ()
    assert reading.spec is not None
    document = to_document(reading.spec)
    again = read_pipeline(json.loads(json.dumps(document)))
    assert again.spec == reading.spec
    assert to_document(reading.spec) == document
    assert [spec.kind for spec in reading.spec.tasks] == [
        "operator", "operator", "tasks", "pipeline", "approval", "event", "operator",
    ]  # fmt: skip
    assert [inner.name for inner in reading.spec.tasks[2].tasks] == ["fit", "tune"]


OLD_HASHES = {
    "tests/seed_pipelines/01-ml-training-pipeline.json":
        "sha256:c966cb0787699159ef8d5924a2446dda8e8dcc6dac219408028877051f27e7a9",
    "tests/seed_pipelines/06-operators-reference.json":
        "sha256:d6c1c2a31cbfd1294a9484d7e23d1464b2badd3767150973cf85abb0a77b00d6",
}  # fmt: skip


@pytest.mark.parametrize("file", OLD_HASHES)
def test_a_document_of_an_earlier_release_keeps_its_content_hash(file: str) -> None:
    document = json.loads((ROOT / file).read_text())
    assert compile_pipeline(document, load_operators(), Site()).content_hash == OLD_HASHES[file]


def test_what_is_left_out_is_the_same_as_its_default() -> None:
    plain = read_pipeline(pipeline(task()))
    said = read_pipeline(pipeline(task(cache=False, teardown=False, concurrency=[], critical=True), concurrency=[]))
    assert said.spec is not None
    assert said.spec == plain.spec


@pytest.mark.parametrize(
    ("fields", "pointer", "words"),
    [
        ({"operator": "x", "event": {}}, "/event", "'operator' and 'event'"),
        ({"map": {"over": [1], "success": "al"}}, "/map/success",
         """'success' must be "all", "any", {"min_count": 3} or {"min_ratio": 0.8}. Did you mean 'all'?"""),
        ({"map": {"over": [1], "success": 5}}, "/map/success", '{"min_ratio": 0.8}.'),
        ({"tasks": [], "map": {"over": [1]}}, "/tasks", "is empty; a group has at least one task."),
        ({"timeout_seconds": 1e9}, "/timeout_seconds", "at most 31622400, not 1000000000."),
        ({"operator": "x", "pipeline": {"name": "p"}}, "/pipeline", "exactly one of operator, tasks, pipeline"),
        ({"tasks": [task("b")]}, "/tasks", "add 'map' or 'repeat'"),
        ({"tasks": [], "map": {"over": [1]}}, "/tasks", "empty"),
        ({"tasks": [1], "map": {"over": [1]}}, "/tasks/0", "A task is an object"),
        ({"tasks": [task("b", cpu=0)], "map": {"over": [1]}}, "/tasks/0/cpu", "above 0"),
        ({"tasks": [task("a")], "map": {"over": [1]}}, "/tasks/0/name", "position 0"),
        ({"tasks": [task("b"), task("b")], "map": {"over": [1]}}, "/tasks/1/name", "at /tasks/0/tasks/0"),
        ({"map": {"over": [1]}, "repeat": {"until": "true", "max": 1}}, "/repeat", "put a task with one of them"),
        ({"tasks": [task("b")], "map": {"over": [1]}, "cpu": 1}, "/cpu", "give it to the tasks inside"),
        ({"approval": {"message": "x"}, "retries": 1}, "/retries", "leave it out"),
        ({"pipeline": {"name": "x"}, "concurrency": []}, "/concurrency", "no 'concurrency'"),
        ({"operatr": "x"}, "/operatr", "Did you mean 'operator'?"),
        ({"when": ""}, "/when", "empty"),
        ({"when": "x" * 501}, "/when", "at most 500"),
        ({"when": True}, "/when", "a text"),
        ({"teardown": []}, "/teardown", "write true"),
        ({"teardown": "a"}, "/teardown", "must be true or a list"),
        ({"map": []}, "/map", "must be an object"),
        ({"map": {}}, "/map/over", "missing"),
        ({"map": {"over": 3}}, "/map/over", '{"range": n}'),
        ({"map": {"over": [1, 2], "max_size": 1}}, "/map/over", "at most 1 "),
        ({"map": {"over": {"grid": {"a": 1}}}}, "/map/over/grid/a", "give a list"),
        ({"map": {"over": [], "max_size": 10_001}}, "/map/max_size", "10000"),
        ({"map": {"over": [], "max_paralel": 1}}, "/map/max_paralel", "Did you mean 'max_parallel'?"),
        ({"map": {"over": [], "success": "most"}}, "/map/success", "min_ratio"),
        ({"map": {"over": [1, 2], "success": {"min_count": 3}}}, "/map/success/min_count", "has 2 items, so 3 of them"),
        ({"map": {"over": [], "success": {"min_ratio": 1.1}}}, "/map/success/min_ratio", "at most 1"),
        ({"map": {"over": [], "success": {"min_count": 1, "min_ratio": 1}}}, "/map/success", "exactly one"),
        ({"repeat": {"until": "true"}}, "/repeat/max", "missing"),
        ({"repeat": {"until": "true", "max": 1001}}, "/repeat/max", "1000"),
        ({"repeat": {"until": 1, "max": 1}}, "/repeat/until", "a text"),
        ({"repeat": {"until": "true", "max": 1, "on_max": "skip"}}, "/repeat/on_max", "fail, succeed"),
        ({"pipeline": {}}, "/pipeline/name", "missing"),
        ({"pipeline": {"name": "x", "version": 0}}, "/pipeline/version", "from 1"),
        ({"pipeline": {"name": "x", "parameters": {"a": "x" * 70_000}}}, "/pipeline/parameters", "65536"),
        ({"approval": {}}, "/approval/message", "missing"),
        ({"approval": {"message": "x", "on_timeout": "fail"}}, "/approval/on_timeout", "never times out"),
        ({"approval": {"message": "x", "input": {"pattern": "(a+)+b"}}},
         "/approval/input/pattern", "not for what is sent"),
        ({"approval": {"message": "x", "input": {"properties": {"a": {"$ref": "#"}}}}},
         "/approval/input/properties/a/$ref", "not for what is sent"),
        ({"approval": {"message": "x", "input": {"type": "objet"}}}, "/approval/input/type", "no JSON schema"),
        ({"event": {"payload": {"anyOf": [{"patternProperties": {}}]}}},
         "/event/payload/anyOf/0/patternProperties", "sent"),
        ({"event": {"on_timeout": "approve", "timeout_seconds": 1}}, "/event/on_timeout", "fail, skip"),
        ({"outputs": {"type": "objet"}}, "/outputs/type", "no JSON schema"),
        ({"outputs": {"$ref": "https://example.com/schema"}}, "/outputs/$ref", "outside"),
        ({"outputs": {"items": [{"$ref": "file:///etc/passwd"}]}}, "/outputs/items/0/$ref", "outside"),
        ({"outputs": {"$ref": "#"}}, "/outputs", "refers to itself"),
        ({"outputs": {"$ref": "#/$defs/x"}}, "/outputs", "no usable"),
        ({"outputs": {"$id": "https://example.com/x"}}, "/outputs/$id", "leave it out"),
        ({"outputs": {"$schema": "http://json-schema.org/draft-07/schema#"}}, "/outputs/$schema", "2020-12"),
        ({"outputs": []}, "/outputs", "must be an object"),
        ({"outputs": {"items": {"$schema": "https://json-schema.org/draft/2020-12/schema"}}},
         "/outputs/items/$schema", "leave '$schema' out"),
        ({"outputs": {"$ref": "#/$defs/a0", "$defs": FORKING}}, "/outputs", "fork so often"),
        ({"outputs": {"allOf": [True] * 2000}}, "/outputs", "2002 objects and lists; at most 2000"),
        ({"outputs": {"description": "x" * 70_000}}, "/outputs", "at most 65536"),
        ({"outputs": {"type": [{"a": at} for at in range(900)]}}, "/outputs/type", "900 types; there are only 7"),
        ({"event": {"payload": {"items": {"allOf": [{"minimum": 0}] * 200}}}},
         "/event/payload", "More than 200 schemas"),
        ({"cache": "yes"}, "/cache", "true or an object"),
        ({"cache": {"mode": "rw"}}, "/cache/mode", "read_write"),
        ({"cache": {"key": []}}, "/cache/key", "empty"),
        ({"cache": {"ttl_second": 1}}, "/cache/ttl_second", "Did you mean 'ttl_seconds'?"),
        ({"concurrency": {"key": "x", "limit": 1}}, "/concurrency", "list of limits"),
        ({"concurrency": [{"key": "x"}]}, "/concurrency/0/limit", "missing"),
        ({"concurrency": [{"key": "x", "limit": 0}]}, "/concurrency/0/limit", "from 1"),
        ({"concurrency": [1]}, "/concurrency/0", "an object with key and limit"),
        ({"rate_limit": {"key": "x", "units": 1}}, "/rate_limit/per_seconds", "missing"),
        ({"rate_limit": {"key": "x", "units": 10_001, "per_seconds": 1}}, "/rate_limit/units", "from 1 to 10000"),
        ({"rate_limit": {"key": "x", "units": 1, "per_seconds": 86_401}}, "/rate_limit/per_seconds", "86400"),
        ({"memory_gb": "lots"}, "/memory_gb", '"auto"'),
        ({"memory_gb": 0}, "/memory_gb", "above 0"),
        ({"retry": []}, "/retry", "must be an object"),
        ({"retry": {"on": {}}}, "/retry/on", "list of rules"),
        ({"retry": {"on": [1]}}, "/retry/on/0", "A rule is an object"),
        ({"retry": {"on": [RULE] * 51}}, "/retry/on", "There are 51 rules; at most 50"),
        ({"outputs": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}},
         "/outputs", "refers to itself"),
        ({"retry": {"on": [{"match": {"reason": "x"}}]}}, "/retry/on/0/action", "missing"),
        ({"retry": {"on": [{"match": {}, "action": "retry"}]}}, "/retry/on/0/match", "matches nothing"),
        ({"retry": {"on": [{"match": {"raeson": "x"}, "action": "retry"}]}},
         "/retry/on/0/match/raeson", "Did you mean"),
        ({"retry": {"on": [{"match": {"exit_code": "1"}, "action": "retry"}]}},
         "/retry/on/0/match/exit_code", "whole number"),
        ({"retry": {"on": [{"match": {"reason": ["a", 1]}, "action": "retry"}]}}, "/retry/on/0/match/reason", "a text"),
        ({"retry": {"on": [{"match": {"reason": "x"}, "action": "fail", "resources": {}}]}},
         "/retry/on/0/resources", "makes none"),
        ({"retry": {"on": [{"match": {"reason": "x"}, "action": "retry", "resources": {"memory_gb": "1.5"}}]}},
         "/retry/on/0/resources/memory_gb", "x1.5"),
        ({"retry": {"on": [{"match": {"reason": "x"}, "action": "retry", "resources": {"max_memory_gb": 2}}]}},
         "/retry/on/0/resources/max_memory_gb", "nothing that grows"),
        ({"retry": {"jitter": 2}}, "/retry/jitter", "to 1"),
        ({"deadline_seconds": 0}, "/deadline_seconds", "above 0"),
        ({"progress_timeout_seconds": "1"}, "/progress_timeout_seconds", "not a text"),
    ],
)  # fmt: skip
def test_a_fault_is_told_at_its_place(fields: dict[str, Any], pointer: str, words: str) -> None:
    found = faults(task(**fields))
    here = f"/tasks/0{pointer}"
    assert here in found, found
    assert words in found[here], found[here]
    assert all(message.endswith((".", "?")) for message in found.values())


def test_a_name_that_yaml_took_for_true_or_false_is_told_as_such() -> None:
    found = faults(task(retry={True: [RULE]}), task("b", parameters={"switch": {False: 1, 3: 2, None: 3}}))
    assert '"on" or "yes"' in found["/tasks/0/retry"]
    assert found.keys() == {"/tasks/0/retry", "/tasks/1/parameters/switch"}
    messages = [problem.message for problem in read_pipeline(pipeline({True: 1})).problems]
    assert messages == [found["/tasks/0/retry"]]
    messages = [problem.message for problem in read_pipeline(pipeline(task(parameters={None: 1}))).problems]
    assert messages == ["A field's name is null and no text; put it in quotes."]


def test_faults_of_the_pipeline_itself_are_told() -> None:
    found = faults(task(), deadline_seconds=-1, max_active_runs=0, concurrency=[{"key": "x", "limit": 1.5}])
    assert set(found) == {"/deadline_seconds", "/max_active_runs", "/concurrency/0/limit"}


def nested(depth: int) -> dict[str, Any]:
    inner = task("t0")
    for level in range(depth):
        inner = task(f"g{level}", tasks=[inner], map={"over": [1]})
    return inner


def test_groups_nest_four_deep_and_no_deeper() -> None:
    assert MAX_GROUPS == 4
    assert faults(nested(4)) == {}
    (message,) = faults(nested(5)).values()
    assert "more than 4 deep" in message


def test_tasks_inside_of_groups_count() -> None:
    group = task("g", tasks=[task(f"t{n}") for n in range(10)], map={"over": [1]})
    assert read_pipeline(pipeline(group), max_tasks=11).problems == ()
    (problem,) = read_pipeline(pipeline(group), max_tasks=10).problems
    assert (problem.pointer, "has 11 tasks" in problem.message) == ("/tasks", True)


@pytest.mark.parametrize(
    ("text", "factor"),
    [("x1.5", 1.5), ("x2", 2.0), ("x100", 100.0), ("x1", None), ("x101", None), ("1.5", None), ("x", None),
     ("x-2", None), ("xx2", None), ("x1e3", None), ("x²", None), ("x1.5.2", None), ("xnan", None)],
)  # fmt: skip
def test_memory_grows_by_a_factor(text: str, factor: float | None) -> None:
    assert memory_factor(text) == factor
