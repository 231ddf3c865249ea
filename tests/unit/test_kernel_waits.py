"""Waits hold no slot: approvals, events from outside, and what is not there yet."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.effects import CloseCommand, Transition
from orchestrator.events import Command
from orchestrator.records import ApprovalPlan, EventPlan, Outcome, PlannedTask
from orchestrator.states import AttemptState, RunState, TaskState
from tests.unit.kernel_driver import NO_JITTER, task
from tests.unit.test_kernel_maps import started
from tests.unit.written_driver import Written, mapped


def gate(name: str = "gate", *upstream: str, when: str = "", **fields: object) -> PlannedTask:
    return PlannedTask(name, "approval", upstream, retry=NO_JITTER, when=when, approval=ApprovalPlan(**fields))  # type: ignore[arg-type]


def signal(**fields: object) -> PlannedTask:
    return PlannedTask("signal", "event", retry=NO_JITTER, event=EventPlan(**fields))  # type: ignore[arg-type]


def after_gate() -> tuple[PlannedTask, ...]:
    return (task("yes", "gate", when="tasks.gate.outputs.input.ok"), task("no", "gate", rule="one_failed"))


def test_an_approval_waits_without_a_slot_and_lets_go_on_with_what_the_person_gave() -> None:
    driver = started(gate(message="Model {{ params.model }}?"), *after_gate(), parameters={"model": "m"})
    assert driver.told("gate") == (TaskState.WAITING, "approval")
    assert driver.row("gate").message == "Model m?"
    assert not driver.held()
    driver.take_over()
    assert driver.ask("approve", task="gate", input={"ok": True}, at="2026-01-01") == "Task gate of run r1 is approved."
    assert driver.row("gate").outputs == {"approved": True, "by": "ann", "at": "2026-01-01", "input": {"ok": True}}
    assert driver.queued() == ["yes"]


def test_a_second_decision_is_refused_whatever_it_says() -> None:
    for first, second, state in (("approve", "reject", "success"), ("reject", "approve", "failed")):
        driver = started(gate(), signal())
        driver.feed(
            Command(1, first, "ann", "r1", "gate", payload={}), Command(2, second, "bob", "r1", "gate", payload={})
        )
        told = [one.result for one in driver.of(CloseCommand)]
        assert not told[0].startswith("Refused")
        assert told[1].startswith(f"Refused: task gate of run r1 is {state} already")
        assert driver.state("gate") == state
    driver = started(gate(timeout=60.0, on_timeout="approve"), signal())
    driver.tick(after=61)
    assert driver.ask("reject", task="gate").startswith("Refused: task gate of run r1 is success already")


def test_a_message_that_is_too_long_is_cut_and_says_so() -> None:
    long = {"text": "x" * 60_000, "fits": "y" * 8_000}
    driver = started(
        gate(message="{{ params.text }}" * 100), gate("other", message="{{ params.fits }}"), parameters=long
    )
    message = driver.row("gate").message
    assert len(message) == 8_000
    assert message.startswith("xxxx")
    assert message.endswith("[cut: the message has more than 8000 characters, and the rest of it is not shown]")
    assert driver.row("other").message == "y" * 8_000
    assert max(len(effect.message) for effect in driver.all_of(Transition)) == 8_000, "no more of it was ever kept"


def test_a_message_of_one_null_is_shown_as_such() -> None:
    assert started(gate(message="{{ params.none }}"), parameters={"none": None}).row("gate").message == "null"


def test_why_it_was_approved_is_told() -> None:
    driver = started(gate(), *after_gate())
    driver.ask("approve", task="gate", reason="looks right")
    assert driver.row("gate").message == "ann: looks right"


def test_a_rejection_fails_or_skips() -> None:
    driver = started(gate(), *after_gate())
    driver.ask("reject", task="gate", reason="too risky")
    assert driver.told("gate") == (TaskState.FAILED, "rejected")
    assert driver.row("gate").message == "ann: too risky"
    assert driver.queued() == ["no"]
    driver = started(gate(on_reject="skip"))
    driver.ask("reject", task="gate")
    assert driver.told("gate") == (TaskState.SKIPPED, "rejected")


@pytest.mark.parametrize(
    ("on_timeout", "on_reject", "after"),
    [
        ("fail", "fail", TaskState.FAILED),
        ("approve", "fail", TaskState.SUCCESS),
        ("reject", "fail", TaskState.FAILED),
        ("reject", "skip", TaskState.SKIPPED),
    ],
)
def test_an_approval_that_nobody_answers_ends_as_it_says(on_timeout: str, on_reject: str, after: TaskState) -> None:
    driver = started(gate(timeout=60.0, on_timeout=on_timeout, on_reject=on_reject))
    driver.tick(after=30)
    driver.take_over()
    driver.tick(after=29)
    assert driver.state("gate") is TaskState.WAITING
    driver.tick(after=2)
    assert driver.told("gate") == (after, "approval_timeout")


def test_an_event_is_reported_by_its_token_once() -> None:
    driver = started(signal(), task("next", "signal", when="tasks.signal.outputs.payload.n == 1"))
    assert driver.told("signal") == (TaskState.WAITING, "event")
    token = driver.row("signal").wait_token
    assert token
    assert "not the token" in driver.ask("event", task="signal", token="another", payload={"n": 1})
    driver.take_over()
    driver.ask("event", task="signal", token=token, payload={"n": 1}, at="2026-01-01")
    assert driver.row("signal").outputs == {"payload": {"n": 1}, "at": "2026-01-01"}
    assert driver.queued() == ["next"]
    assert driver.ask("event", task="signal", token=token, payload={"n": 2}).startswith(
        "Refused: task signal of run r1 is success already"
    )


@pytest.mark.parametrize(("on_timeout", "after"), [("fail", TaskState.FAILED), ("skip", TaskState.SKIPPED)])
def test_an_event_that_does_not_come_ends_as_it_says(on_timeout: str, after: TaskState) -> None:
    driver = started(signal(timeout=60.0, on_timeout=on_timeout))
    driver.tick(after=61)
    assert driver.told("signal") == (after, "event_timeout")


def test_waits_are_cancelled_at_once_and_answers_for_others_are_refused() -> None:
    driver = started(gate(), task("work"))
    assert "does not wait for a person" in driver.ask("approve", task="work")
    assert "does not wait for an event" in driver.ask("event", task="gate")
    assert "no task 'x'" in driver.ask("approve", task="x")
    driver.ask("cancel", task="gate")
    assert driver.state("gate") is TaskState.CANCELLED


def test_each_index_may_wait_for_its_own_approval() -> None:
    driver = started(mapped("each", over=["a", "b"], body=(gate(message="{{ map.item }}"), task("go", "gate"))))
    assert driver.row("each[1].gate").message == "b"
    driver.ask("approve", task="each[1].gate")
    assert driver.queued() == ["each[1].go"]


NOT_YET = Outcome(AttemptState.FAILED, "not_yet", "The file is not there.", retry_after=30.0, again=True)


def looked() -> Written:
    driver = started(task("wait"))
    driver.finish("wait", outcome=NOT_YET)
    return driver


def test_what_is_not_there_yet_is_looked_at_again_and_charged_to_nobody() -> None:
    driver = looked()
    assert driver.told("wait") == (TaskState.WAITING, "not_yet")
    assert not driver.held()
    for _ in range(5):
        driver.tick(after=20)
        driver.take_over()
        driver.tick(after=9)
        assert driver.state("wait") is TaskState.WAITING
        driver.tick(after=2)
        driver.finish("wait", outcome=NOT_YET)
    row = driver.row("wait")
    assert (row.failures, row.losses, row.attempts) == (0, 0, 6)
    driver.tick(after=31)
    driver.finish("wait")
    assert driver.run_state() is RunState.SUCCESS


def test_a_look_is_put_off_for_a_day_at_most() -> None:
    for asked in (999_999_999.0, 1e300):
        driver = started(task("wait"))
        driver.finish("wait", outcome=replace(NOT_YET, retry_after=asked))
        assert "The next look is in 86400 s." in driver.row("wait").message
        driver.tick(after=86_401)
        assert driver.state("wait") is not TaskState.WAITING


def test_a_wait_is_cancelled_between_two_looks() -> None:
    driver = looked()
    driver.ask("cancel")
    assert driver.run_state() is RunState.CANCELLED


def test_an_answer_names_an_index_by_its_key_too_and_never_several_at_once() -> None:
    driver = started(mapped("gate", over=["x", "y"], key="{{ map.item }}", body=(gate("ask"),)))
    assert driver.ask("approve", task="gate[y].ask") == "Task gate[1].ask of run r1 is approved."
    assert driver.ask("approve", task="gate[z]") == "Refused: run r1 has no task 'gate[z]'."
    assert driver.ask("reject", task="gate[x]") == "Task gate[0].ask of run r1 is rejected: it is failed."
    both = started(mapped("gate", over=["x"], body=(gate("ask"), gate("again"))))
    assert both.ask("approve", task="gate[0]") == "Refused: 'gate[0]' is 2 task runs of run r1; name one of them."
