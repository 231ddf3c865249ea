"""Rules, conditions and templates as they are saved and as they run, and definitions as files; on real processes."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Pipeline, task
from orchestrator.client import ApiError
from orchestrator.rules import RULES
from orchestrator.states import TaskState
from orchestrator.yaml_text import write_yaml
from tests.acceptance.system import ROOT, System
from tests.acceptance.test_dag_data import definition, ended, gate, leave, script
from tests.acceptance.test_dag_edges import told
from tests.acceptance.test_dag_examples import orchestrator, states, tasks_of
from tests.unit.rule_oracle import settled_as

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, database: str, redis_server_url: str) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("dag_definitions")
    with System(folder, database, redis_server_url, REDIS_TASK_QUEUE="dag_definitions") as system:
        system.start_api()
        system.start_scheduler()
        system.start_worker("a", slots=4)
        system.wait_until_online(1)
        yield system


def refused(system: System, name: str, tasks: dict[str, Any], **fields: Any) -> dict[str, str]:
    """Return what is wrong with a definition that is not saved, by JSON pointer."""
    with pytest.raises(ApiError) as caught:
        system.client.save_pipeline(definition(name, tasks, **fields))
    assert caught.value.status == 422
    return {problem.pointer: problem.message for problem in caught.value.problems}


# --- rules ---


def test_every_rule_does_what_its_row_says_for_each_pair_of_upstream_states(system: System) -> None:
    """An empty map takes no process: ``skipped`` as ``empty`` it has run, else its rule has settled it."""
    sources = {"good": TaskState.SUCCESS, "bad": TaskState.FAILED, "left-out": TaskState.SKIPPED}
    pairs = [*itertools.combinations(sources, 1), *itertools.combinations(sources, 2), tuple(sources)]
    below = {f"{rule}-{n}".replace("_", "-"): (rule, pair) for rule in RULES for n, pair in enumerate(pairs)}
    tasks = {name: gate() for name in sources} | {
        name: {**script("echo never", *pair), "trigger_rule": rule, "map": {"over": []}}
        for name, (rule, pair) in below.items()
    }
    run_id = system.start_run(definition("rules", tasks))
    for name, state in sources.items():
        system.wait_for_task(run_id, name, "waiting")
        system.client.settled(system.client.mark(run_id, name, state.value))
    found = {name: told(one) for name, one in tasks_of(system.finish(run_id)).items() if name in below}
    as_told = {"run": ("skipped", "empty")}
    assert found == {
        name: as_told.get(verdict, ("skipped" if verdict == "skip" else verdict, rule))
        for name, (rule, pair) in below.items()
        for verdict in (settled_as(rule, [sources[one] for one in pair]),)
    }


@pytest.mark.parametrize(
    ("beside", "state"),
    [
        ({"trigger_rule": "one_failed"}, "success"),
        ({"trigger_rule": "all_failed"}, "success"),
        ({"trigger_rule": "all_done", "when": "tasks.bad.state == 'failed'"}, "success"),
        ({"trigger_rule": "all_done"}, "failed"),
        ({"trigger_rule": "one_failed", "when": "false"}, "failed"),
    ],
)
def test_a_failure_that_somebody_handled_leaves_the_run_a_success(
    system: System, beside: dict[str, Any], state: str
) -> None:
    name = f"handled-{'-'.join(beside.values())}"
    tasks = {"bad": gate(), "after": {**leave("bad", done=1), **beside}}
    run_id = system.start_run(definition(re.sub(r"[^a-z-]", "-", name).strip("-"), tasks))
    system.wait_for_task(run_id, "bad", "waiting")
    system.client.settled(system.client.reject(run_id, "bad"))
    assert system.finish(run_id)["state"] == state


@pytest.mark.parametrize(("critical", "state"), [(True, "failed"), (False, "success")])
def test_what_can_not_run_for_a_task_that_is_not_critical_decides_the_run_all_the_same(
    system: System, critical: bool, state: str
) -> None:
    tasks = {
        "extra": {**gate(), "critical": False},
        "of-extra": {**script("echo never", "extra"), "critical": critical},
    }
    run_id = system.start_run(definition("extra", tasks))
    system.wait_for_task(run_id, "extra", "waiting")
    system.client.settled(system.client.reject(run_id, "extra"))
    run = system.finish(run_id)
    assert (run["state"], states(tasks_of(run))["of-extra"]) == (state, "upstream_failed")


def test_what_is_not_critical_and_what_tears_down_does_not_decide_the_run(system: System) -> None:
    tasks = {
        "extra": {**script("exit 64"), "critical": False},
        "of-extra": {**leave("extra", done=1), "trigger_rule": "all_done"},
        "work": leave(done=1),
        "tidy": {**script("exit 64", "work"), "teardown": ["work"]},
    }
    run = ended(system, "undecided", tasks)
    assert (run["state"], states(tasks_of(run))) == (
        "success", {"extra": "failed", "of-extra": "success", "work": "success", "tidy": "failed"},
    )  # fmt: skip


# --- conditions and templates ---


def test_what_can_be_seen_to_be_wrong_is_refused_when_it_is_saved_and_pointed_at(system: System) -> None:
    schema = {"type": "object", "additionalProperties": False, "properties": {"rows": {"type": "integer"}}}
    typed = {**leave(rows=1), "outputs": schema}
    conditions = {
        "params.threshold > 1": "threshold",
        "tasks.nobody.state == 'failed'": "nobody",
        "tasks.beside.state == 'failed'": "beside",
        "tasks.load.state == 'broken'": "broken",
        "tasks.load.outputs.columns > 1": "columns",
        "tasks.load.outputs.rows > 'a'": "a number and a text have no order",
        "[x for x in [1]]": "comprehension",
        "().__class__": "__class__",
        "open('/etc/passwd')": "open",
        f"1 == {'1' * 500}": "500",
    }
    tasks: dict[str, Any] = {"load": typed, "beside": leave(rows=1)}
    for n, condition in enumerate(conditions):
        tasks[f"when-{n}"] = {**script("echo never", "load"), "when": condition}
    templates = {
        "{{ tasks.nobody.outputs.rows }}": "nobody",
        "{{ tasks.beside.outputs.rows }}": "does not come before",
        "{{ tasks.load.outputs.columns }}": "it has rows",
        "{{ 1 + 1 }}": "is no path",
    }
    for n, template in enumerate(templates):
        tasks[f"template-{n}"] = script("echo never", "load", arguments={"x": template})
    problems = refused(system, "wrong", tasks, parameters={"thresholds": 1})
    named = [*conditions.values(), *templates.values()]
    places = [f"/tasks/{n + 2}/when" for n in range(len(conditions))]
    places += [f"/tasks/{n + 2 + len(conditions)}/parameters/arguments/x" for n in range(len(templates))]
    assert list(problems) == places
    assert all(part in message for part, message in zip(named, problems.values(), strict=True)), problems
    assert not [one for one in system.client.pipelines() if one["name"] == "wrong"]


def test_a_run_that_lacks_a_parameter_or_gives_one_of_another_type_is_refused(system: System) -> None:
    given = {"n": "{{ params.given }}", "text": "{{ params.n }} of {{ params.given }}"}
    tasks = {"one": script('echo "$ORCHESTRATOR_PARAM_N $ORCHESTRATOR_PARAM_TEXT"', arguments=given)}
    system.client.save_pipeline(definition("asks", tasks, parameters={"n": 1}))
    for parameters, pointer in (({}, "given"), ({"given": 2, "n": "one"}, "n"), ({"given": 2, "m": 3}, "m")):
        with pytest.raises(ApiError) as caught:
            system.client.start_run("asks", parameters)
        assert caught.value.status == 422
        assert [problem.pointer for problem in caught.value.problems] == [f"/parameters/{pointer}"]
    run_id = system.client.start_run("asks", {"given": 2})["id"]
    system.succeed(run_id)
    assert "".join(system.client.log_parts(run_id, "one")) == "2 1 of 2\n"


def test_a_condition_that_can_not_be_worked_out_fails_its_task_and_says_why(system: System) -> None:
    run = ended(system, "odd", {"odd": {**script("echo never"), "when": "params.x + 1 > 0"}}, parameters={"x": None})
    found = tasks_of(run)["odd"]
    assert (told(found), found["attempt_number"]) == (("failed", "condition_error"), 0)
    assert "params.x + 1 > 0" in found["message"]


# --- definitions as files ---


def test_the_same_definition_as_json_as_yaml_and_from_python_is_one_version(system: System, tmp_path: Path) -> None:
    with Pipeline("one", parameters={"rows": 3}) as pipeline:
        first = task("first", operator="custom_script", parameters={"script_content": "print('first')"})
        second = task(
            "second",
            operator="custom_script",
            when="params.rows > 1",
            parameters={"script_content": "print('second')", "arguments": {"n": pipeline.param("rows")}},
        )
        first >> second
    document = pipeline.to_dict()
    as_json, as_yaml = tmp_path / "one.json", tmp_path / "one.yaml"
    as_json.write_text(json.dumps(document))
    as_yaml.write_text(write_yaml(document))
    assert pipeline.to_yaml() == as_yaml.read_text()
    assert orchestrator(system, "diff", "-f", str(as_json)).exit_code == 1, "there is nothing yet"
    assert orchestrator(system, "apply", "-f", str(as_json)).output == "one: created, version 1\n"
    assert orchestrator(system, "apply", "-f", str(as_yaml)).output == "one: unchanged, version 1\n"
    assert pipeline.save(system.client)["version"] == 1
    same = orchestrator(system, "diff", "-f", str(as_yaml))
    assert (same.exit_code, same.output) == (0, "")

    stored = system.client.get_pipeline_by_name("one")["definition"]
    assert system.client.validate_pipeline(document)["definition"] == stored
    assert (stored["name"], stored["parameters"]) == (document["name"], document["parameters"])
    for ours, theirs in zip(document["tasks"], stored["tasks"], strict=True):
        assert ours.items() <= theirs.items()

    as_yaml.write_text(as_yaml.read_text().replace("'second'", "'changed'"))
    changed = orchestrator(system, "diff", "-f", str(as_yaml))
    assert changed.exit_code == 1
    lines = [line for line in changed.output.splitlines() if re.match(r"[+-] ", line)]
    assert [(line[0], "changed" in line) for line in lines] == [("-", False), ("+", True)], changed.output
    assert orchestrator(system, "apply", "-f", str(as_yaml)).output == "one: changed, version 1 → 2\n"


def test_one_wrong_file_among_others_keeps_all_of_them_back(system: System, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(write_yaml(definition("good", {"a": leave(x=1)})))
    (tmp_path / "wrong.yaml").write_text("name: wrong\ntasks:\n  - name: a\n    operator: custom_scrip\n")
    applied = orchestrator(system, "apply", "-f", str(tmp_path))
    assert applied.exit_code == 1
    assert "wrong.yaml:4: /tasks/0/operator: There is no operator 'custom_scrip'" in applied.output
    assert "1 problem; nothing was saved." in applied.output
    with pytest.raises(ApiError, match="good"):
        system.client.get_pipeline_by_name("good")


def test_a_run_is_started_followed_read_explained_cancelled_and_run_again_by_the_command_line(system: System) -> None:
    tasks = {"slow": script('echo begun; until [ -e "$ORCHESTRATOR_PARAM_FILE" ]; do sleep 0.1; done; echo over',
                            arguments={"file": "{{ params.file }}"}, grace_seconds=1),
             "ask": gate("slow")}  # fmt: skip
    system.client.save_pipeline(definition("followed", tasks, parameters={"file": "/none"}))
    file = system.folder / "go-on"
    started = orchestrator(system, "run", "followed", "-p", f"file={file}")
    assert started.exit_code == 0, started.output
    run_id = started.output.strip()
    system.wait_until(lambda: "begun" in system.client.logs(run_id, "slow")["text"], "it has begun")
    assert orchestrator(system, "logs", run_id, "slow").output == "begun\n"
    assert "waits for slow, which is running" in orchestrator(system, "explain", run_id, "ask").output
    file.touch()
    assert orchestrator(system, "logs", "-f", run_id, "slow").output == "begun\nover\n"
    system.wait_for_task(run_id, "ask", "waiting")
    cancelled = orchestrator(system, "cancel", run_id, "--reason", "no more", "--wait")
    assert cancelled.exit_code == 0, cancelled.output
    assert system.client.get_run(run_id)["state"] == "cancelled"
    preview = orchestrator(system, "rerun", run_id, "--from", "slow", "--preview").output.splitlines()
    assert preview[0] == "In place, as the next generation:"
    assert [line.split()[:2] for line in preview[1:]] == [["run", "slow"], ["run", "ask"]]
    assert orchestrator(system, "rerun", run_id, "--from", "slow").exit_code == 0
    system.wait_for_task(run_id, "ask", "waiting")
    assert orchestrator(system, "approve", run_id, "ask").exit_code == 0
    assert "slow | over" in orchestrator(system, "logs", "-f", run_id).output.splitlines()
    system.succeed(run_id)


def test_a_run_that_is_followed_shows_its_tasks_as_they_go(system: System) -> None:
    system.client.save_pipeline(definition("shown", {"one": leave(x=1), "two": script("exit 64", "one")}))
    shown = orchestrator(system, "run", "shown", "--follow")
    assert shown.exit_code == 1
    lines = [line.split()[1:3] for line in shown.output.splitlines()]
    expected = [["one", "running"], ["one", "success"], ["two", "running"], ["two", "failed"], ["run", "failed"]]
    assert [line for line in lines if line in expected] == expected, shown.output


def test_the_example_from_python_is_what_the_api_stores(system: System) -> None:
    made: dict[str, Any] = {}
    program = (ROOT / "examples" / "dag" / "fan_out.py").read_text(encoding="utf-8")
    exec(compile(program, "fan_out.py", "exec"), {"__name__": "example"}, made)
    made["pipeline"].save(system.client)
    applied = orchestrator(system, "apply", "-f", str(ROOT / "examples" / "dag" / "fan-out.yaml"))
    assert applied.output == "fan-out: unchanged, version 1\n"
