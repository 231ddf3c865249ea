"""Commands of people: cancel, pause, resume, drain."""

from __future__ import annotations

from orchestrator.effects import CloseCommand, SaveOutcome, SendHint, Transition
from orchestrator.events import WorkerLeft
from orchestrator.records import Outcome
from orchestrator.states import AttemptState, RunState, TaskState, WorkerState
from orchestrator.store.command_queries import with_state
from tests.unit.kernel_driver import Driver, task

STOPPED = Outcome(AttemptState.CANCELLED, "cancelled")


def started(*names: str) -> Driver:
    driver = Driver()
    driver.worker(slots=2)
    driver.run(task("a"), task("b"), task("c"), task("d", "a"))
    driver.start(*names)
    return driver


def test_cancel_ends_what_has_not_started_at_once_and_waits_for_what_runs() -> None:
    driver = started("a")
    attempt = driver.attempt("a")
    driver.command("cancel", run_id="r1")
    assert [driver.state(name) for name in "abcd"] == [
        TaskState.CANCELLING,
        TaskState.CANCELLED,
        TaskState.CANCELLED,
        TaskState.CANCELLED,
    ]
    assert driver.run_state() is RunState.CANCELLING
    assert driver.kernel.desired("w1").cancel == ((attempt.id, 10.0),)
    driver.end("a", STOPPED)
    assert driver.run_state() is RunState.CANCELLED
    assert not driver.held()


def test_cancel_twice_is_cancel_once() -> None:
    driver = started("a")
    driver.command("cancel", run_id="r1")
    driver.command("cancel", run_id="r1")
    assert not driver.of(Transition)
    assert driver.of(CloseCommand)


def test_a_success_that_comes_after_the_cancel_is_not_published() -> None:
    driver = started("a")
    driver.command("cancel", run_id="r1")
    driver.end("a")
    assert driver.verdicts() == ["committed"]
    assert not driver.of(SaveOutcome)[0].publish
    assert driver.state("a") is TaskState.CANCELLED


def test_a_failure_during_the_cancel_is_not_tried_again() -> None:
    driver = started("a")
    driver.command("cancel", run_id="r1")
    driver.end("a", Outcome(AttemptState.FAILED, "exception"))
    assert driver.run_state() is RunState.CANCELLED


def test_a_worker_lost_during_the_cancel_settles_it() -> None:
    driver = started("a")
    driver.command("cancel", run_id="r1")
    driver.tick(after=31)
    assert driver.run_state() is RunState.CANCELLED


def test_the_grace_of_a_cancel_may_be_given_with_it() -> None:
    driver = started("a")
    attempt = driver.attempt("a")
    driver.command("cancel", run_id="r1", payload={"grace_seconds": 0})
    assert driver.kernel.desired("w1").cancel == ((attempt.id, 0.0),)


def test_a_cancelled_task_counts_as_failed_downstream_and_the_run_goes_on() -> None:
    driver = started()
    driver.command("cancel", run_id="r1", task="a")
    assert driver.state("a") is TaskState.CANCELLED
    assert driver.state("d") is TaskState.UPSTREAM_FAILED
    assert driver.dispatched() == ["c"], "its slot was freed"
    assert driver.run_state() is RunState.RUNNING


def test_a_queued_run_is_cancelled_without_being_started() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"), hold=True)
    assert not driver.effects
    driver.command("cancel", run_id="r1")
    assert driver.run_state() is RunState.CANCELLED
    assert driver.state("a") is TaskState.CANCELLED
    driver.run(task("a"))
    assert not driver.dispatched(), "its row was read before the cancel"


def test_cancel_of_a_run_that_is_over_says_so() -> None:
    driver = Driver()
    driver.command("cancel", run_id="gone")
    assert "has ended" in driver.of(CloseCommand)[0].result
    assert shown_state(driver) == "done"


def shown_state(driver: Driver) -> str:
    """Return the state in which the API shows a command that was closed with this sentence."""
    return str(with_state({"applied_at": "now", "result": driver.of(CloseCommand)[0].result})["state"])


def test_an_unknown_command_or_task_is_refused_with_a_sentence() -> None:
    driver = started()
    driver.command("explode", run_id="r1")
    assert driver.of(CloseCommand)[0].result == "Refused: there is no command 'explode'."
    assert shown_state(driver) == "refused"
    driver.command("cancel", run_id="r1", task="nobody")
    assert driver.of(CloseCommand)[0].result == "Refused: run r1 has no task 'nobody'."


def test_a_paused_run_starts_nothing_until_it_is_resumed() -> None:
    driver = started("a", "b")
    driver.command("pause", run_id="r1")
    driver.end("a")
    driver.end("b")
    assert driver.state("d") is TaskState.READY
    assert driver.reason("d")[0] == "run_paused"
    assert not driver.dispatched()
    driver.command("resume", run_id="r1")
    assert sorted(driver.dispatched()) == ["c", "d"]


def test_a_pause_or_a_resume_that_is_asked_for_twice_is_no_error() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"))
    for kind, said in (("resume", "Nothing to do"), ("pause", "is paused"), ("pause", "Nothing to do")):
        driver.command(kind, run_id="r1")
        assert said in driver.of(CloseCommand)[0].result
    assert driver.run_state() is RunState.PAUSED


def test_a_paused_run_whose_last_task_ends_is_over() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"))
    driver.start("a")
    driver.command("pause", run_id="r1")
    driver.end("a")
    assert driver.run_state() is RunState.SUCCESS


def test_a_draining_worker_gives_back_what_it_has_not_claimed_and_keeps_what_runs() -> None:
    driver = started("a")
    driver.worker("w2", host="b")
    driver.command("drain", worker_id="w1")
    assert driver.kernel.desired("w1").drain
    assert driver.attempt("a").worker_id == "w1"
    assert driver.attempt("b").worker_id == "w2"
    assert all(hint.queue in {"cpu", "w.w2"} for hint in driver.of(SendHint))
    driver.end("a")
    driver.feed(WorkerLeft("w1"))
    assert driver.kernel.workers["w1"].state is WorkerState.DRAINED


def test_undrain_lets_the_worker_take_work_again() -> None:
    driver = Driver()
    driver.worker()
    driver.command("drain", worker_id="w1")
    driver.run(task("a"))
    assert driver.reason("a")[0] == "waiting_for_worker"
    driver.command("undrain", worker_id="w1")
    assert driver.dispatched() == ["a"]
