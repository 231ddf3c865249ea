"""What attempts hand over, on real processes: outcomes' new fields, outputs, artifacts, checkpoints, trainings."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.records import Resources
from orchestrator.states import AttemptState
from tests.integration.fork_server_site import ForkSite, wait_for

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ForkSite]:
    made = ForkSite(tmp_path)
    yield made
    made.close()


def test_not_yet_ends_the_attempt_and_keeps_its_state_for_the_next_look(site: ForkSite) -> None:
    for number in (1, 2):
        outcome = site.outcome(site.start("wait", number=number))
        assert (outcome.state, outcome.reason, outcome.again) == (AttemptState.FAILED, "not_yet", True)
        assert (outcome.retry_after, outcome.infrastructure, outcome.exit_code) == (12.5, False, 0)
    done = site.outcome(site.start("wait", number=3))
    assert (done.state, done.outputs, done.again) == (AttemptState.SUCCEEDED, {"looks": 3}, False)
    assert site.outcome(site.start("wait", number=4)).again, "what was kept goes when the task has succeeded"


@pytest.mark.parametrize(
    ("do", "exception"),
    [("crash", "builtins.ValueError"), ("fail", "orchestrator.operator.OperatorFailure"), ("die", "")],
)
def test_the_exception_that_ended_an_attempt_is_told_with_its_module(site: ForkSite, do: str, exception: str) -> None:
    assert site.outcome(site.start(do)).exception == exception


def test_the_exit_code_of_a_script_is_that_of_the_outcome(site: ForkSite) -> None:
    parameters = {"script_type": "bash", "script_content": "exit 42"}
    outcome = site.outcome(site.start("", operator="custom_script", parameters=parameters))
    assert (outcome.reason, outcome.exit_code) == ("exit_code", 42)


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"script_type": "ruby", "script_content": "1"}, "/script_type: "),
        ({"script_content": "1", "script_path": "x.py"}, "/script_path: Give script_content or script_path"),
        ({"script_content": 7}, "/script_content: 7 is not of type 'string'"),
    ],
)
def test_parameters_that_templates_have_spoilt_are_refused_before_the_operator_runs(
    site: ForkSite, parameters: dict[str, Any], told: str
) -> None:
    outcome = site.outcome(site.start("", operator="custom_script", parameters=parameters))
    assert (outcome.state, outcome.reason, outcome.retryable) == (AttemptState.FAILED, "bad_parameters", False)
    assert told in outcome.message


def test_outputs_have_to_keep_the_schema_of_their_task(site: ForkSite) -> None:
    schema = {"type": "object", "properties": {"lines": {"type": "integer"}}, "required": ["lines"]}
    good = {"type": "object", "properties": {"saved": {"const": True}}}
    nothing = site.outcome(site.start("sleep", parameters={"seconds": 0}, outputs_schema=schema))
    assert (nothing.state, nothing.reason, nothing.retryable) == (AttemptState.FAILED, "bad_outputs", False)
    assert "'lines' is a required property" in nothing.message
    script = 'printf \'{"lines": "3"}\' > "$ORCHESTRATOR_OUTPUT_FILE"'
    parameters = {"script_type": "bash", "script_content": script}
    wrong = site.outcome(site.start("", operator="custom_script", parameters=parameters, outputs_schema=schema))
    assert "at /lines" in wrong.message
    assert site.outcome(site.start("sleep", parameters={"seconds": 0}, outputs_schema=good)).outputs == {}


@pytest.mark.parametrize("schema", [{"$ref": "http://127.0.0.1:9/x.json"}, {"pattern": "("}, {"type": 7}])
def test_a_schema_that_can_not_be_applied_is_said(site: ForkSite, schema: dict[str, Any]) -> None:
    outer = {"properties": {"found": schema}}
    outcome = site.outcome(site.start("work_in_folder", parameters={"then": "tell"}, outputs_schema=outer))
    assert (outcome.reason, outcome.retryable) == ("bad_outputs", False)
    assert "can't be applied" in outcome.message


def test_outputs_that_are_too_large_are_refused_with_the_way_to_pass_them(site: ForkSite) -> None:
    outcome = site.outcome(site.start("huge"))
    assert (outcome.reason, outcome.retryable) == ("outputs_too_large", False)
    assert "context.artifacts" in outcome.message


@pytest.mark.parametrize("fail", [False, True])
def test_what_an_attempt_left_in_the_artifact_store_is_told_however_it_ended(site: ForkSite, fail: bool) -> None:
    attempt = site.start("leave_artifacts", parameters={"fail": fail}, task="train[3]")
    outcome = site.outcome(attempt)
    assert (outcome.state is AttemptState.FAILED) is fail
    report, weights = outcome.records
    assert report["uri"] == f"artifact://tenant-1/run-1/train@3/{attempt}/report.json"
    assert (report["kind"], report["size"], weights["size"], weights["name"]) == ("artifact", 2, 7, "best")
    assert weights["uri"] == f"artifact://tenant-1/sha256/{weights['digest'].removeprefix('sha256:')}"
    if not fail:
        assert outcome.outputs["saved"] == {name: weights[name] for name in ("uri", "digest", "size")}


def found_by(site: ForkSite, number: int) -> Any:
    """Return what attempt ``number`` finds in its folder."""
    attempt = site.start("work_in_folder", number=number, parameters={"then": "tell"})
    return site.outcome(attempt).outputs["found"]


@pytest.mark.parametrize("then", ["fail", "be stopped", "be killed"])
def test_a_checkpoint_folder_outlives_the_attempt(site: ForkSite, then: str) -> None:
    attempt = site.start("work_in_folder", number=1, parameters={"then": then})
    if then != "fail":
        site.wait_for_log(attempt, "ready")
        site.client.stop(attempt, "preempted", 20.0 if then == "be stopped" else 0.0)
    outcome = site.outcome(attempt)
    assert outcome.state is (AttemptState.FAILED if then == "fail" else AttemptState.PREEMPTED)
    assert found_by(site, 2) == ("1" if then == "be killed" else "12"), (
        "what it saved last, at the latest when it ended"
    )


def test_a_task_that_is_told_to_end_by_somebody_else_keeps_its_folder_and_is_tried_again(site: ForkSite) -> None:
    attempt = site.start("work_in_folder", number=1, parameters={"then": "wait"})
    site.wait_for_log(attempt, "ready")
    supervisor = site.folder(attempt).read("state")["pid"]
    [task] = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    os.kill(int(task), signal.SIGTERM)
    outcome = site.outcome(attempt)
    assert (outcome.state, outcome.reason, outcome.retryable) == (AttemptState.FAILED, "signal", True)
    assert found_by(site, 2) == "12"


def test_an_attempt_that_was_given_up_does_not_overwrite_what_the_next_one_saved(site: ForkSite) -> None:
    old = site.start("work_in_folder", number=1, parameters={"then": "wait"})
    site.wait_for_log(old, "ready")
    assert site.outcome(site.start("work_in_folder", number=2, parameters={"then": "fail"})).exit_code == 7
    site.client.stop(old, "fenced", 20.0)
    assert site.outcome(old).reason == "fenced"
    assert found_by(site, 3) == "112", "the second went on from what the first had saved by then"


def test_a_script_has_its_folder_saved_while_it_runs(site: ForkSite) -> None:
    script = (
        'file="$ORCHESTRATOR_CHECKPOINT_DIR/step"\n'
        'if [ -f "$file" ]; then printf \'{"from": "%s"}\' "$(cat "$file")" > "$ORCHESTRATOR_OUTPUT_FILE"; exit 0; fi\n'
        'printf 40 > "$file"; mark="$ORCHESTRATOR_CHECKPOINT_DIR/.save"; touch "$mark"\n'
        'while [ -e "$mark" ]; do sleep 0.05; done\n'
        'printf 41 > "$file"; echo saved; while true; do sleep 0.05; done'
    )
    parameters = {"script_type": "bash", "script_content": script}
    attempt = site.start("", operator="custom_script", parameters=parameters)
    site.wait_for_log(attempt, "saved")
    site.client.stop(attempt, "preempted", 0.0)
    assert site.outcome(attempt).state is AttemptState.PREEMPTED
    outcome = site.outcome(site.start("", operator="custom_script", parameters=parameters, number=2))
    assert outcome.outputs == {"from": "40"}, "what was written after it had been saved is lost with the host"


def test_a_training_that_is_killed_goes_on_from_its_checkpoint_to_the_same_model(site: ForkSite) -> None:
    data = site.settings.data_dir / "data"
    data.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{n % 7},{(n * n) % 11},{n % 13},{(n * 3 + n // 9) % 2}\n" for n in range(400))
    (data / "x.csv").write_text("a,b,c,target\n" + rows)
    parameters = {
        "training_data_path": str(data / "x.csv"), "hyperparameters": {"n_estimators": 400}, "checkpoint_seconds": 0,
    }  # fmt: skip

    def train(number: int, run: str) -> str:
        fields: dict[str, Any] = {
            "parameters": parameters,
            "run_id": run,
            "number": number,
            "resources": Resources(1000, 2**31),
        }
        return site.start("", operator="model_training", **fields)

    killed = train(1, "run-1")
    log = site.folder(killed).log
    wait_for(lambda: log.exists() and "Kept for another attempt: 160 of 400 trees" in log.read_text(), 60, "its trees")
    site.client.stop(killed, "preempted", 0.0)
    assert site.outcome(killed).state is AttemptState.PREEMPTED
    second = train(2, "run-1")
    went_on = site.outcome(second, seconds=60)
    assert went_on.state is AttemptState.SUCCEEDED, site.log(second)
    assert "Going on from " in site.log(second)
    whole = site.outcome(train(1, "run-2"), seconds=60)
    assert went_on.outputs["model"]["digest"] == whole.outputs["model"]["digest"]
    assert not (site.settings.data_dir / "artifacts" / "checkpoints" / "tenant-1" / "run-1" / "task-1").exists()
