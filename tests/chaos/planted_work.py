"""Planted faults of promises, cancels, losses and reservations (I4, I5, I10, I12, I13)."""

from __future__ import annotations

from dataclasses import replace

from tests.chaos.history import CommandRow, History
from tests.chaos.ledger import Accepted, CancelAsked
from tests.chaos.planting import Plant, changed, of, row
from tests.chaos.story import Story, task


def a_run_that_hangs(story: Story) -> None:
    story.submit("r6")


def a_run_that_never_starts(story: Story) -> History:
    story.submit("r6")
    history = row(story, "runs", "r6", state="queued")
    return replace(history, events=tuple(e for e in history.events if e.run_id != "r6" or e.epoch == 0))


def an_ended_run_with_an_open_task(story: Story) -> History:
    return row(story, "tasks", "r1.d", state="ready")


def an_accepted_run_that_is_gone(story: Story) -> None:
    story.accepted.append(Accepted("r9", "key-r9", 1.0))


def a_key_that_made_two_runs(story: Story) -> None:
    story.accepted.append(Accepted("r2", "key-r1", 1.0))


def a_run_that_nobody_asked_for(story: Story) -> None:
    story.accepted.pop(0)


def a_key_that_was_forgotten(story: Story) -> None:
    del story.keys["key-r1"]


def a_start_after_the_cancel(story: Story) -> None:
    story.line("r4.a#1", "start")


def a_survivor_of_the_cancel(story: Story) -> None:
    story.line("r4.a#1", "beat")


def a_survivor_of_a_success(story: Story) -> None:
    story.line("r1.a#2", "beat")


def a_zombie_after_its_release(story: Story) -> None:
    story.line("r1.a#1", "end")


def a_dispatch_in_a_run_that_is_cancelled(story: Story) -> History:
    cancelling = of(story, "r4", "cancelling")
    first = of(story, "r4.a", "queued")
    events = [e for e in story.events if e is not cancelling]
    events.insert(events.index(first), cancelling)
    return replace(story.history(), events=tuple(replace(e, id=n) for n, e in enumerate(events, start=1)))


def a_cancel_that_takes_too_long(story: Story) -> None:
    story.cancels[0] = replace(story.cancels[0], grace=0.0, at=story.cancels[0].at - 10.0)


def a_cancel_that_was_never_applied(story: Story) -> None:
    story.commands[0] = replace(story.commands[0], result=None)


def a_cancel_that_left_no_trace(story: Story) -> None:
    story.commands.clear()


def a_repeated_cancel_of_one_that_left_no_trace(story: Story) -> None:
    story.cancels[:] = [replace(cancel, is_repeat=True) for cancel in story.cancels]
    story.commands.clear()


def a_cancel_that_was_only_said(story: Story) -> None:
    story.cancels.append(CancelAsked("r1", 1.0, grace=5.0))
    story.commands.append(CommandRow("cancel", "r1", None, "Run r1 is being cancelled."))


def a_fault_that_was_repaired(story: Story) -> None:
    story.refusals["repaired"] = 1


def a_transition_that_was_refused(story: Story) -> None:
    story.refusals["refused_transition"] = 2


def a_fourth_try_after_three_losses(story: Story) -> None:
    story.submit("r6", [task("a")])
    for number in range(3):
        attempt = story.dispatch("r6", "a")
        story.grant(attempt)
        story.end_attempt(attempt, "lost", reason="worker_lost")
        story.move_task("r6", "a", "ready", losses=number + 1, attempt_id=None)
    story.run_task("r6", "a")


def a_loss_that_was_not_charged(story: Story) -> History:
    return row(story, "tasks", "r1.a", losses=0)


def a_preemption_that_was_charged(story: Story) -> History:
    return changed(story, of(story, "r2.poison#1", "preempted"), after="lost", reason="worker_lost")


def a_loss_that_a_word_excuses(story: Story) -> None:
    story.submit("r6", [task("a")])
    attempt = story.dispatch("r6", "a")
    story.grant(attempt)
    story.end_attempt(attempt, "failed", reason="worker_left", infrastructure=True)
    story.move_task("r6", "a", "ready", reason="worker_left", attempt_id=None)
    story.run_task("r6", "a")


def a_start_that_failed_and_was_charged(story: Story) -> None:
    story.submit("r6", [task("a")])
    attempt = story.dispatch("r6", "a")
    story.grant(attempt)
    story.lose(attempt, held=False, reason="fork_failed")
    story.run_task("r6", "a")


def a_lack_of_memory_that_was_charged_as_a_loss(story: Story) -> None:
    story.submit("r6", [task("a")])
    attempt = story.dispatch("r6", "a")
    story.grant(attempt)
    story.end_attempt(attempt, "failed", reason="oom", infrastructure=True)
    story.move_task("r6", "a", "ready", reason="oom", losses=1, attempt_id=None)
    story.run_task("r6", "a")


def a_time_out_that_nobody_was_charged_for(story: Story) -> None:
    story.submit("r6", [task("a")])
    attempt = story.dispatch("r6", "a")
    story.grant(attempt)
    story.end_attempt(attempt, "timed_out", reason="timeout")
    story.move_task("r6", "a", "ready", reason="timeout", attempt_id=None)
    story.run_task("r6", "a")


def poison_after_two_losses(story: Story) -> History:
    return changed(story, of(story, "r2.poison#4", "lost"), reason="never_started")


def more_than_there_is(story: Story) -> None:
    story.submit("r6", [task("a")])
    attempt = story.dispatch("r6", "a", cpu=1001)
    story.grant(attempt)
    story.succeed(attempt)


def more_than_there_is_with_a_zombie(story: Story) -> None:
    story.submit("r6", [task("a"), task("b")])
    lost = story.dispatch("r6", "a", cpu=600)
    story.grant(lost)
    story.lose(lost)
    second = story.dispatch("r6", "b", cpu=600)
    story.grant(second)
    story.succeed(second)
    story.release(lost)
    story.run_task("r6", "a")


def more_than_there_is_by_a_move(story: Story) -> None:
    story.submit("r6", [task("a"), task("b")])
    first, second = story.dispatch("r6", "a", cpu=950), story.dispatch("r6", "b", "w2", cpu=950)
    story.commit()
    story.move(second, "w1")
    for attempt in (first, second):
        story.grant(attempt)
        story.succeed(attempt)


def a_device_held_twice(story: Story) -> None:
    story.submit("r6", [task("a"), task("b")])
    both = [story.dispatch("r6", name, "w2", devices=("GPU-1",)) for name in ("a", "b")]
    for attempt in both:
        story.grant(attempt)
        story.succeed(attempt)


def a_device_of_nowhere(story: Story) -> None:
    story.submit("r6", [task("a")])
    attempt = story.dispatch("r6", "a", "w1", devices=("GPU-9",))
    story.grant(attempt)
    story.succeed(attempt)


def a_reservation_that_leaks(story: Story) -> History:
    story.submit("r6", [task("a")])
    attempt = story.dispatch("r6", "a")
    leaked = story.reservations[attempt]
    story.grant(attempt)
    story.succeed(attempt)
    story.reservations[attempt] = leaked
    return story.history()


def a_zombie_that_is_never_released(story: Story) -> None:
    story.submit("r6", [task("a")])
    attempt = story.dispatch("r6", "a")
    story.grant(attempt)
    story.lose(attempt)
    story.run_task("r6", "a")


def a_charge_that_is_not_told(story: Story) -> History:
    return changed(story, of(story, "r1.d#1", "dispatched"), detail={})


def a_release_of_what_was_not_held(story: Story) -> None:
    story.tell("reservation", "r1.d#1", "held", "released", cause="released")


PLANTED_WORK: dict[str, list[Plant]] = {
    "I4": [
        a_run_that_hangs,
        a_run_that_never_starts,
        an_ended_run_with_an_open_task,
        a_fault_that_was_repaired,
        a_transition_that_was_refused,
    ],
    "I5": [
        an_accepted_run_that_is_gone,
        a_key_that_made_two_runs,
        a_run_that_nobody_asked_for,
        a_key_that_was_forgotten,
        a_cancel_that_left_no_trace,
        a_repeated_cancel_of_one_that_left_no_trace,
    ],
    "I10": [
        a_start_after_the_cancel,
        a_survivor_of_the_cancel,
        a_survivor_of_a_success,
        a_zombie_after_its_release,
        a_dispatch_in_a_run_that_is_cancelled,
        a_cancel_that_takes_too_long,
        a_cancel_that_was_never_applied,
        a_cancel_that_was_only_said,
    ],
    "I12": [
        a_fourth_try_after_three_losses,
        a_loss_that_was_not_charged,
        a_preemption_that_was_charged,
        a_loss_that_a_word_excuses,
        a_start_that_failed_and_was_charged,
        a_lack_of_memory_that_was_charged_as_a_loss,
        a_time_out_that_nobody_was_charged_for,
        poison_after_two_losses,
    ],
    "I13": [
        more_than_there_is,
        more_than_there_is_with_a_zombie,
        more_than_there_is_by_a_move,
        a_device_held_twice,
        a_device_of_nowhere,
        a_reservation_that_leaks,
        a_zombie_that_is_never_released,
        a_charge_that_is_not_told,
        a_release_of_what_was_not_held,
    ],
}
