"""The Python builder gives the same document as a hand-written definition, and its mistakes are errors at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Pipeline, group, task
from orchestrator.builder import KINDS, PipelineFields, TaskFields
from orchestrator.compile import Site, compile_pipeline
from orchestrator.definition_text import read_documents
from orchestrator.registry import load_operators
from orchestrator.spec_reading import read_pipeline
from tests.unit.played_api import Play

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> Any:
    file = EXAMPLES / name
    [document] = read_documents(file.read_text(encoding="utf-8"), str(file))
    return document.value


def test_the_builder_writes_the_ab_test_as_it_stands_in_its_file() -> None:
    written = example("ab-testing.json")
    with Pipeline("ab-testing", description=written["description"], owner="data-science-team") as built:
        prepare = task(
            "prepare-data",
            operator="data_ingestion",
            parameters={"source_type": "local", "source_path": "examples:digits.parquet", "format": "parquet"},
            cpu=0.5,
            memory_gb=0.5,
        )
        models = [
            task(
                f"train-model-{letter}",
                operator="model_training",
                parameters={"algorithm": algorithm, "hyperparameters": given, "target": "digit", "seed": 42},
                cpu=1.0,
                memory_gb=1.0,
            )
            for letter, algorithm, given in (
                ("a", "random_forest", {"n_estimators": 150}),
                ("b", "svm", {"C": 10, "gamma": "scale"}),
            )
        ]
        compare = task(
            "compare-models",
            operator="custom_script",
            parameters={
                "script_type": "python",
                "script_content": written["tasks"][3]["parameters"]["script_content"],
                "arguments": {"metric": "accuracy"},
                "produces": ["model"],
            },
            cpu=0.25,
            memory_gb=0.25,
        )
        register = task(
            "register-winner",
            operator="model_registration",
            parameters=written["tasks"][4]["parameters"],
            cpu=0.25,
            memory_gb=0.25,
        )
        prepare >> models >> compare >> register
    assert built.to_dict() == written
    assert read_documents(built.to_yaml(), "built.yaml")[0].value == written
    assert json.loads(built.to_json()) == written


def test_plain_calls_write_the_third_partys_operator_as_it_stands_in_its_file() -> None:
    written = example("custom-operator.json")
    built = Pipeline("custom-operator", description=written["description"], owner=written["owner"])
    for position, (name, above) in enumerate(
        (("ingest-data", None), ("check-drift", "ingest-data"), ("train-model", "check-drift"))
    ):
        given = written["tasks"][position]
        fields: dict[str, Any] = {"upstream": above} if above else {}
        built.task(
            name,
            operator=given["operator"],
            parameters=given["parameters"],
            cpu=given["cpu"],
            memory_gb=given["memory_gb"],
            **fields,
        )
    assert built.to_dict() == written


def test_the_builder_knows_exactly_the_fields_that_a_definition_may_have() -> None:
    """A field that is added to definitions is to be added to the builder, so that unknown keywords stay errors."""
    from orchestrator import spec, spec_fields

    ours = {"upstream_tasks" if name == "upstream" else name for name in TaskFields.__annotations__}
    assert ours | {"name", "tasks"} == set(spec_fields.TASK_FIELDS)
    assert set(PipelineFields.__annotations__) | {"name", "tasks"} == set(spec_fields.PIPELINE_FIELDS)
    assert KINDS == spec.KINDS


def test_references_groups_and_conditions_make_a_definition_that_compiles() -> None:
    with Pipeline("sweep", parameters={"rates": [0.1, 0.2]}) as built:
        start = task("start", operator="custom_script", parameters={"script_content": "print(1)"})
        with group("folds", map={"over": built.param("rates"), "max_parallel": 2}, upstream=start) as folds:
            script = {
                "script_content": "print(2)",
                "arguments": {"rate": "{{ map.item }}", "of": start.output("a.b[0]")},
            }
            train = task("train", operator="custom_script", parameters=script)
            task("test", operator="custom_script", parameters={"script_content": "print(3)"}, upstream=[train])
        ask = task("ask", approval={"message": "Go on?"}, when=f"{start.output('n').expression} > 1")
        [start, folds] >> ask
        task("clean", operator="custom_script", parameters={"script_content": ""}, upstream=ask, teardown=[start])
    document = built.to_dict()
    assert document["tasks"][1]["map"] == {"over": "{{ params.rates }}", "max_parallel": 2}
    assert [inner["name"] for inner in document["tasks"][1]["tasks"]] == ["train", "test"]
    assert document["tasks"][2]["upstream_tasks"] == ["start", "folds"]
    assert document["tasks"][2]["when"] == "tasks['start'].outputs.n > 1"
    assert document["tasks"][3]["teardown"] == ["start"]
    assert read_pipeline(document).problems == ()
    compile_pipeline(document, load_operators(), Site())


def test_references_are_texts() -> None:
    built = Pipeline("p")
    ingest = built.task("ingest-data", operator="x")
    assert ingest.output("dataset.uri") == "{{ tasks['ingest-data'].outputs.dataset.uri }}"
    assert ingest.output() == "{{ tasks['ingest-data'].outputs }}"
    assert ingest.output("['a-b'][0].c") == "{{ tasks['ingest-data'].outputs['a-b'][0].c }}"
    assert ingest.state == "tasks['ingest-data'].state"
    assert built.param("model.depth").expression == "params.model.depth"


def two_tasks() -> Pipeline:
    built = Pipeline("p")
    built.task("a", operator="x")
    built.task("b", operator="x")
    return built


def test_mistakes_are_errors_at_once() -> None:
    built = two_tasks()
    other = Pipeline("other").task("c", operator="x")
    a = built.task("c", operator="x")
    with pytest.raises(ValueError, match="already"):
        built.task("a", operator="x")
    with pytest.raises(TypeError, match=r"no field 'operatr'\. Did you mean 'operator'"):
        built.task("d", operatr="x")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="Pipeline 'q' has no field 'tag'"):
        Pipeline("q", tag=[])  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="none is given"):
        built.task("d")
    with pytest.raises(ValueError, match="operator and approval are given"):
        built.task("d", operator="x", approval={"message": "?"})
    with pytest.raises(ValueError, match="needs either map or repeat"):
        built.group("d")
    with pytest.raises(ValueError, match="can't wait for itself"):
        a >> a
    with pytest.raises(ValueError, match="another pipeline"):
        a >> other
    with pytest.raises(ValueError, match="no path"):
        a.output("x..y")
    with pytest.raises(ValueError, match="There is no pipeline here"):
        task("d", operator="x")


def test_waiting_for_a_task_that_is_not_there_is_an_error_when_the_definition_is_asked_for() -> None:
    built = two_tasks()
    built.task("c", operator="x", upstream="missing")
    with pytest.raises(ValueError, match="waits for 'missing'"):
        built.to_dict()


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (object(), TypeError, "object is no JSON value; it is in parameters of task 'a'"),
        (float("nan"), ValueError, "nan is no JSON number; it is in parameters of task 'a'"),
        ([float("-inf")], ValueError, "-inf is no JSON number"),
        ({"a", "b", "c"}, TypeError, "has no order"),
        (frozenset("ab"), TypeError, "has no order"),
        ({1: 2}, TypeError, "1 is no text"),
        (b"x", TypeError, "bytes is no JSON value"),
    ],
    ids=["object", "nan", "infinite", "set", "frozenset", "key", "bytes"],
)
def test_a_value_that_json_has_not_is_refused_at_once_with_its_place(
    value: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        Pipeline("p").task("a", operator="x", parameters={"arguments": {"x": value}})
    with pytest.raises(kind, match="parameters of pipeline 'p'"):
        Pipeline("p", parameters={"x": value})


def test_what_json_has_in_other_words_is_taken() -> None:
    keys: Any = dict.fromkeys(["b", "a"]).keys()
    built = Pipeline("p", tags=keys, parameters={"x": (1, range(2))})
    built.task("a", operator="x", map={"over": (n * n for n in range(3))})
    document = built.to_dict()
    assert (document["tags"], document["parameters"]) == (["b", "a"], {"x": [1, [0, 1]]})
    assert document["tasks"][0]["map"] == {"over": [0, 1, 4]}
    assert built.to_dict() == document


def test_a_parameter_that_the_pipeline_has_not_is_refused() -> None:
    built = Pipeline("p", parameters={"rate": 0.1, "model": {"depth": 3}})
    assert (built.param("rate"), built.param("model.depth")) == ("{{ params.rate }}", "{{ params.model.depth }}")
    assert built.param("['rate']") == "{{ params['rate'] }}"
    for path, words in (("rat", "Did you mean 'rate'"), ("nope[0]", "no parameter 'nope'"), ("['x y']", "'x y'")):
        with pytest.raises(ValueError, match=words):
            built.param(path)
    assert built.param("nope", required=True) == "{{ params.nope }}"
    assert Pipeline("q").param("nope") == "{{ params.nope }}", "a pipeline that declares none takes any"


def test_tasks_that_wait_for_each_other_are_an_error_when_the_definition_is_asked_for() -> None:
    built = two_tasks()
    a, b = built.task("c", operator="x"), built.task("d", operator="x")
    a >> b >> a
    for write in (built.to_dict, built.to_json, built.to_yaml):
        with pytest.raises(ValueError, match=r"in a circle: \w → \w → \w\."):
            write()


def test_an_error_in_a_block_leaves_no_pipeline_open() -> None:
    with pytest.raises(RuntimeError), Pipeline("p"):
        raise RuntimeError
    with pytest.raises(ValueError, match="There is no pipeline here"):
        task("a", operator="x")


def test_a_pipeline_saves_itself_and_starts_a_run(play: Play) -> None:
    client, api = play((201, {"name": "p"}), (201, {"id": "r1"}))
    assert two_tasks().run(client, {"x": 1}) == {"id": "r1"}
    assert api.sent() == ["POST /api/v1/pipelines", "POST /api/v1/runs"]
    assert api.bodies()[1] == {"pipeline_name": "p", "parameters": {"x": 1}}


def test_importing_the_builder_imports_no_framework() -> None:
    code = (
        "import sys; from orchestrator import Pipeline, task; Pipeline('p').task('a', operator='x').pipeline.to_dict();"
        "found = {name.partition('.')[0] for name in sys.modules};"
        "print(found & {'flask', 'sqlalchemy', 'celery', 'redis', 'requests', 'yaml'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_builders_example_writes_the_yaml_example() -> None:
    program = subprocess.run(
        [sys.executable, str(EXAMPLES / "dag" / "fan_out.py")], capture_output=True, text=True, check=True
    )
    assert read_documents(program.stdout, "standard input")[0].value == example("dag/fan-out.yaml")
