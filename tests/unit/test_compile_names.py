"""Templates and expressions are checked when saved: unknown names, what does not come before, what is outside."""

from __future__ import annotations

import time
from typing import Any

import pytest

from orchestrator.compile import compile_pipeline, run_problems
from orchestrator.errors import InvalidDefinition
from tests.unit.test_compile import OPERATORS, SITE, compiled, faults, pipeline, task

FLOW = [task("load"), task("check", "script", "load"), task("train-model", "script", "check"), task("beside")]


def fault(last: dict[str, Any], *more: Any, **fields: Any) -> dict[str, str]:
    """Return the faults of a task that comes after load, check and train-model, by pointers inside of it."""
    before = [*FLOW, *more]
    found = faults(pipeline(*before, {"upstream_tasks": ["train-model"], **last}, **fields))
    return {pointer.removeprefix(f"/tasks/{len(before)}"): message for pointer, message in found.items()}


def template(path: str) -> dict[str, Any]:
    return task("t", parameters={"x": [f"a {{{{ {path} }}}}"]})


def last(**fields: Any) -> dict[str, Any]:
    return {"name": "t", "operator": "script", "upstream_tasks": ["train-model"], **fields}


GOOD = [
    "params.anything.at[0].all",
    "tasks.load.outputs.dataset.uri",
    "tasks['train-model'].outputs",
    "tasks.train-model.state",
    "run.id",
    "run.pipeline",
]


@pytest.mark.parametrize("path", GOOD)
def test_what_comes_before_may_be_named(path: str) -> None:
    compiled(*FLOW, last(parameters={"x": f"{{{{ {path} }}}}"}))
    if "train-model.state" not in path:
        compiled(*FLOW, last(when=f"{path} == 1"))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("tasks.laod.outputs", "Did you mean 'load'?"),
        ("tasks.beside.outputs", "'beside' does not come before 't'"),
        ("tasks.t.outputs", "its own outputs"),
        ("tasks.load", "write tasks.load.outputs"),
        ("tasks.load.output.x", "write tasks.load.outputs"),
        ("tasks.load.state.x", "write tasks.load.outputs"),
        ("tasks", "write tasks.load.outputs"),
        ("run", "there are run.id, run.pipeline"),
        ("run.name", "there are run.id, run.pipeline"),
        ("run.id.x", "there are run.id"),
        ("map.item", "only inside of a task with 'map'"),
        ("repeat.index", "only inside of a task with 'repeat'"),
        ("param.x", "Did you mean 'params'?"),
        ("load.outputs", "The outputs of the task are tasks.load.outputs"),
        ("threshold", "The run's parameter is params.threshold"),
        ("outputs.x", "no 'outputs' here"),
    ],
)
def test_what_can_not_be_read_there_is_told(path: str, words: str) -> None:
    found = fault(last(parameters={"x": [f"a {{{{ {path} }}}}"]}), parameters={"threshold": 1})
    assert list(found) == ["/parameters/x/0"]
    assert words in found["/parameters/x/0"], found
    found = fault(last(when=f"{path} == 1"), parameters={"threshold": 1})
    assert list(found) == ["/when"]
    assert words in found["/when"], found


def test_a_name_with_a_hyphen_in_an_expression_is_told_apart_from_a_minus() -> None:
    found = fault(last(when="tasks.train-model.outputs.accuracy > 0.9"))
    assert "tasks['train-model']" in found["/when"]


@pytest.mark.parametrize(
    ("fields", "pointer", "words"),
    [
        ({"when": "1 +"}, "/when", "can't be read"),
        ({"parameters": {"a/b": "{{ 1 }}"}}, "/parameters/a~1b", "no path"),
        ({"map": {"over": "{{ tasks.beside.outputs }}"}}, "/map/over", "does not come before"),
        ({"map": {"over": {"grid": {"a": "{{ map.item }}"}}}}, "/map/over/grid/a", "only inside"),
        ({"map": {"over": [1], "key": "{{ map.index }}{{ repeat.index }}"}}, "/map/key", "only inside"),
        ({"map": {"over": [1], "key": "{{ map.value }}"}}, "/map/key", "there are map.item"),
        ({"map": {"over": [1]}, "when": "map.size > 1"}, "/when", "map.size"),
        ({"map": {"over": [1]}, "parameters": {"x": "{{ map.index.y }}"}}, "/parameters/x", "map.index.y"),
        ({"repeat": {"until": "tasks.beside.state == 1", "max": 2}}, "/repeat/until", "does not come before"),
        ({"repeat": {"until": "repeat.previous.loss > 1", "max": 2}}, "/repeat/until", "repeat.previous.outputs"),
        ({"repeat": {"until": "true", "max": 2}, "when": "repeat.index > 1"}, "/when", "only inside"),
        ({"repeat": {"until": "true", "max": 2}, "when": "outputs.x > 1"}, "/when", "no 'outputs'"),
        ({"cache": {"key": ["{{ x }}"]}}, "/cache/key/0", "no 'x' here"),
        ({"concurrency": [{"key": "{{ tasks.load.outputs.x }}", "limit": 1}]}, "/concurrency/0/key", "before any task"),
        ({"rate_limit": {"key": "{{ tasks.load.state }}", "units": 1, "per_seconds": 1}},
         "/rate_limit/key", "before any"),
        ({"operator": None, "pipeline": {"name": "p", "parameters": {"x": "{{ nope }}"}}},
         "/pipeline/parameters/x", "no 'nope'"),
        ({"operator": None, "approval": {"message": "Go {{ nope }}?"}}, "/approval/message", "no 'nope'"),
    ],
)  # fmt: skip
def test_every_text_is_looked_at(fields: dict[str, Any], pointer: str, words: str) -> None:
    found = fault({name: value for name, value in last(**fields).items() if value is not None})
    assert list(found) == [pointer], found
    assert words in found[pointer]


def test_keys_of_the_pipelines_own_limits_name_only_parameters_and_the_run() -> None:
    good = [{"key": "{{ params.x }}/{{ run.pipeline }}", "limit": 1}]
    assert compiled(*FLOW, concurrency=good).plan.concurrency[0].limit == 1
    for path in ("tasks.load.outputs.x", "map.item"):
        found = faults(pipeline(*FLOW, concurrency=[{"key": f"{{{{ {path} }}}}", "limit": 1}]))
        assert list(found) == ["/concurrency/0/key"]


GROUP = task("folds", "script", "load", tasks=[task("fit"), task("score", "script", "fit")], map={"over": [1]})
GROUP.pop("operator")


def group(*inner: Any, **fields: Any) -> dict[str, Any]:
    return {"name": "folds", "upstream_tasks": ["load"], "tasks": list(inner), "map": {"over": [1]}, **fields}


def test_inside_of_a_group_the_outside_before_it_and_the_own_graph_are_seen() -> None:
    path = "{{ tasks.load.outputs.x }} {{ tasks.fit.outputs }} {{ map.item }} {{ map.key }}"
    compiled(task("load"), group(task("fit"), task("score", "script", "fit", parameters={"x": path})))


@pytest.mark.parametrize(
    ("tasks", "pointer", "words"),
    [
        ([task("load"),
          group(task("fit", parameters={"x": "{{ tasks.score.outputs }}"}), task("score", "script", "fit"))],
         "/tasks/1/tasks/0/parameters/x", "does not come before 'fit'"),
        ([task("load"), group(task("fit")),
          task("end", "script", "folds", parameters={"x": "{{ tasks.fit.outputs }}"})],
         "/tasks/2/parameters/x", "read tasks.folds.outputs"),
        ([task("load"), group(task("fit", parameters={"x": "{{ tasks.folds.outputs }}"}))],
         "/tasks/1/tasks/0/parameters/x", "does not come before"),
        ([task("load"), group(task("fit", parameters={"x": "{{ tasks.after.outputs }}"})),
          task("after", "script", "folds")],
         "/tasks/1/tasks/0/parameters/x", "does not come before"),
        ([task("load"), group(task("fit", "script", "load"))], "/tasks/1/tasks/0/upstream_tasks/0", "let 'folds' wait"),
        ([task("load"), group(task("fit")), task("end", "script", "fit")],
         "/tasks/2/upstream_tasks/0", "wait for 'folds'"),
        ([task("load"), group(task("fit")), {**group(task("two", "script", "fit")), "name": "more"}],
         "/tasks/2/tasks/0/upstream_tasks/0", "inside of the group 'folds'"),
        ([task("load"), group(task("fit"), when="map.item > 1")], "/tasks/1/when", "only inside"),
        ([task("load"), group(task("fit"), map={"over": "{{ map.item }}"})], "/tasks/1/map/over", "only inside"),
    ],
)  # fmt: skip
def test_what_a_group_hides_is_told(tasks: list[Any], pointer: str, words: str) -> None:
    found = faults(pipeline(*tasks))
    assert list(found) == [pointer], found
    assert words in found[pointer]


def test_a_map_inside_of_a_map_may_go_over_the_outer_item() -> None:
    inner = task("fit", map={"over": "{{ map.item.parts }}"}, parameters={"x": "{{ map.item }}"})
    compiled(task("load"), group(inner, map={"over": [{"parts": [1, 2]}]}))


def test_the_rounds_of_a_group_may_be_asked_by_name() -> None:
    rounds = {"until": "tasks.score.outputs.loss < 0.1 and repeat.index > 0", "max": 3}
    inner = task("fit", parameters={"x": "{{ repeat.previous.outputs.score.loss }}"})
    made = group(inner, task("score", "script", "fit"), repeat=rounds)
    made.pop("map")
    compiled(task("load"), made)


def test_a_condition_that_its_own_rule_never_lets_be_asked_is_told() -> None:
    for when in ("tasks.load.state == 'failed'", "tasks['load'].state in ['failed', 'skipped']"):
        found = faults(pipeline(task("load"), task("t", "script", "load", when=when)))
        assert "all_done" in found["/tasks/1/when"]
        compiled(task("load"), task("t", "script", "load", when=when, trigger_rule="all_done"))
    compiled(task("load"), task("t", "script", "load", when="tasks.load.state == 'success'"))
    compiled(task("load"), task("t", "script", "load", when="params.x or tasks.load.state == 'failed'"))


def test_a_parameter_whose_default_is_no_list_is_not_gone_over() -> None:
    def over(value: Any, **parameters: Any) -> dict[str, str]:
        try:
            compiled(task("t", map={"over": value}), parameters=parameters)
        except InvalidDefinition:
            return faults(pipeline(task("t", map={"over": value}), parameters=parameters))
        return {}

    assert "is a number" in over("{{ params.x }}", x=3)["/tasks/0/map/over"]
    assert "is a text" in over({"grid": {"a": "{{ params.x }}"}}, x="abc")["/tasks/0/map/over/grid/a"]
    for value in ([1], {"range": 3}, None):
        assert over("{{ params.x }}", x=value) == {}
    assert over("{{ params.x }}") == {}, "a run may bring it"


def test_a_run_has_to_bring_what_templates_read_and_has_no_default() -> None:
    result = compiled(
        task("a", parameters={"x": "{{ params.a.b }}", "y": "{{ params.given }}"}, when="params.only_asked"),
        task("b", map={"over": "{{ params.list }}"}, concurrency=[{"key": "{{ params.key }}", "limit": 1}]),
        parameters={"given": 1, "only_asked": None},
    )
    assert result.plan.reads == ("a", "key", "list")
    found = {problem.pointer: problem.message for problem in run_problems(result.plan, {"a": 1, "key": None}, SITE)}
    assert list(found) == ["/parameters/list"]
    assert "has no default" in found["/parameters/list"]


def test_parameters_with_templates_pass_the_schema_of_their_operator_as_far_as_they_are_known() -> None:
    def make(**parameters: Any) -> dict[str, str]:
        document = pipeline(task("a", "make", parameters=parameters))
        try:
            compiled(*document["tasks"])
        except InvalidDefinition:
            return faults(document)
        return {}

    assert make(rows="{{ params.rows }}") == {}
    assert "integer" in make(rows="about {{ params.rows }}")["/tasks/0/parameters/rows"], "inside a text it is a text"
    assert "not closed" in make(rows="{{ params.rows")["/tasks/0/parameters/rows"]
    assert "no parameter 'row'" in make(row="{{ params.rows }}")["/tasks/0/parameters/row"]
    assert "connection" in make(source="{{ params.source }}")["/tasks/0/parameters"]
    found = faults(pipeline(task("t", "train", parameters={"data": "{{ params.x }}"})))
    assert "'algorithm' is missing" in found["/tasks/0/parameters/algorithm"]
    compiled(task("t", "train", parameters={"algorithm": "{{ params.x }}", "options": {"depth": "{{ params.y }}"}}))


def test_a_template_in_an_input_is_its_value() -> None:
    plan = compiled(task("m", "make"), task("t", "train", "m",
                    parameters={"algorithm": "svm", "data": "{{ tasks.m.outputs.dataset.uri }}"})).plan  # fmt: skip
    assert plan.tasks[1].links == ()


def test_names_are_not_judged_while_other_tasks_can_not_be_read() -> None:
    found = faults(pipeline(task("a"), task("b", "script", "a", cpu=0), task("c", "script", "b", when="tasks.a.state")))
    assert list(found) == ["/tasks/1/cpu"]


@pytest.mark.parametrize("field", ["when", "until"])
def test_a_condition_on_a_parameter_that_the_pipeline_does_not_declare_is_told(field: str) -> None:
    def told(expression: str, *more: Any, **parameters: Any) -> str:
        fields = {"when": expression} if field == "when" else {"repeat": {"until": expression, "max": 2}}
        found = fault(last(**fields), *more, **({"parameters": parameters} if parameters else {}))
        return found.get("/when" if field == "when" else "/repeat/until", "")

    def accepted(expression: str, *more: Any, **parameters: Any) -> bool:
        document = pipeline(*FLOW, *more, last(when=expression), **({"parameters": parameters} if parameters else {}))
        compile_pipeline(document, OPERATORS, SITE)
        return True

    assert "no 'max_erors', so it would be null in every run. Did you mean 'max_errors'?" in told(
        "params.max_erors > 1", max_errors=1
    )
    assert "Declare it there, as null where runs may leave it out." in told("params.zz", max_errors=1)
    assert accepted("params.zz"), "a pipeline that declares none takes any"
    assert accepted("params.zz", zz=None)
    assert accepted("params.zz", task("x", parameters={"x": "{{ params.zz }}"}), other=1), (
        "each run has to bring what a template reads"
    )
    assert accepted("params.data", task("m", "train", parameters={"algorithm": "svm"}), other=1)
    assert "params.s is a text, which has no [0]" in told("params.s[0] == 'h'", s="hello")
    assert "params.s is a text, which has no 'x'" in told("params.s.x == 'h'", s="hello")
    assert "write params.l[0].x" in told("params.l.x == 'h'", l=[1])
    assert "params.m.depth is a number" in told("params.m.depth.x", m={"depth": 1})
    assert accepted("params.m.other.x and params.l[7]", m={"depth": 1}, l=[1]), "a run may bring more"


def test_a_state_that_there_is_not_is_not_also_told_to_need_another_rule() -> None:
    found = faults(pipeline(*FLOW, last(when="tasks['train-model'].state == 'succes'")))
    assert "Did you mean 'success'?" in found["/tasks/4/when"]
    assert "all_done" not in found["/tasks/4/when"].partition("one of")[0]


def _refusal_seconds(tasks: int) -> float:
    """Return the processor time of the quickest of three refusals of a pipeline in which every task is faulty."""
    bad = [task(f"task-{n}", "script", f"tsak-{n}", when=f"tasks.tosk{n}.state == x{n}") for n in range(tasks)]
    seconds = []
    for _ in range(3):
        began = time.process_time()
        with pytest.raises(InvalidDefinition) as caught:
            compile_pipeline(pipeline(*bad), OPERATORS, SITE)
        seconds.append(time.process_time() - began)
        assert len(caught.value.problems) == 201, "200 of them, and how many more there are"
    return min(seconds)


def test_a_document_full_of_faults_is_refused_in_a_moment() -> None:
    quarter, whole = _refusal_seconds(2500), _refusal_seconds(10_000)
    print(f"2,500 faulty tasks: {quarter:.3f} s, 10,000: {whole:.3f} s")
    assert whole < 8 * quarter, "four times the tasks; a quadratic algorithm takes sixteen times as long"
    assert whole < 5
