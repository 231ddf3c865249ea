"""Planted faults of states, tokens, rules and epochs (I1, I2, I3, I9)."""

from __future__ import annotations

from dataclasses import replace

from tests.chaos.history import History, ModelRow
from tests.chaos.planting import Plant, changed, later, of, row, without, without_row
from tests.chaos.story import Story, task


def an_attempt_ends_twice(story: Story) -> None:
    story.of_attempt("r1.a#2", "succeeded", "failed", cause="outcome")


def an_attempt_ends_twice_and_its_row_follows(story: Story) -> History:
    story.of_attempt("r1.a#2", "succeeded", "lost", cause="lease")
    return row(story, "attempts", "r1.a#2", state="lost")


def a_row_is_not_as_its_audit(story: Story) -> History:
    return row(story, "attempts", "r1.d#1", state="failed")


def a_row_is_without_audit(story: Story) -> History:
    return row(story, "tasks", "r3.quiet", state="failed")


def an_attempts_row_is_gone(story: Story) -> History:
    return without_row(story, "attempts", "r1.d#1")


def a_transition_is_missing(story: Story) -> History:
    return without(story, of(story, "r1.d#1", "running"))


def a_transition_is_not_allowed(story: Story) -> None:
    story.tell("run", "r1", "success", "running", run_id="r1", cause="resume")


def a_success_of_what_never_ran(story: Story) -> None:
    story.submit("r6", [task("a")])
    story.move_task("r6", "a", "success", cause="upstream")
    story.settle("r6")


def a_loss_of_what_was_never_granted(story: Story) -> None:
    story.submit("r6", [task("a")])
    attempt = story.dispatch("r6", "a")
    story.end_attempt(attempt, "lost", reason="never_started")
    story.move_task("r6", "a", "ready", reason="never_started", attempt_id=None)
    story.run_task("r6", "a")


def a_second_try_that_did_not_wait_in_line(story: Story) -> None:
    story.submit("r6", [task("a")])
    attempt = story.dispatch("r6", "a")
    story.grant(attempt)
    story.end_attempt(attempt, "preempted", reason="preempted")
    story.move_task("r6", "a", "retry_wait", attempt_id=None)
    story.run_task("r6", "a")


def a_reopening_that_nobody_asked_for(story: Story) -> History:
    return changed(story, next(e for e in story.events if e.cause == "rerun"), cause="reconcile")


def a_success_of_an_attempt_that_was_lost(story: Story) -> History:
    return changed(story, of(story, "r1.d#1", "succeeded"), after="lost", reason="never_started")


def a_success_without_attempt(story: Story) -> History:
    mine = [e for e in story.events if e.entity_id == "r1.d#1"]
    history = without(story, *mine)
    return replace(history, attempts={k: v for k, v in history.attempts.items() if k != "r1.d#1"})


def outputs_of_a_lost_attempt(story: Story) -> History:
    return row(story, "tasks", "r1.a", fence="token-r1.a#1")


def outputs_of_the_earlier_generation(story: Story) -> History:
    story.rerun("r1", "d")
    again = story.run_task("r1", "d")
    return row(story, "tasks", "r1.d", fence=again.replace("#2", "#1").join(("token-", "")))


def a_token_that_changes(story: Story) -> History:
    return changed(story, of(story, "r1.d#1", "running"), token="another")


def a_generation_too_many(story: Story) -> History:
    return row(story, "tasks", "r1.d", generation=2)


def two_live_attempts(story: Story) -> History:
    lost = of(story, "r1.a#1", "lost")
    return later(story, lost, behind=of(story, "r1.a#2", "dispatched"))


def two_running_attempts(story: Story) -> History:
    lost = of(story, "r1.a#1", "lost")
    return later(story, lost, behind=of(story, "r1.a#2", "succeeded"))


def a_token_given_twice(story: Story) -> History:
    first = of(story, "r1.a#1", "dispatched").token
    return changed(story, of(story, "r1.b#1", "dispatched"), token=first)


def a_start_that_nobody_granted(story: Story) -> History:
    story.submit("r6", [task("a")])
    attempt = story.dispatch("r6", "a")
    story.line(attempt, "start")
    story.end_attempt(attempt, "expired")
    story.move_task("r6", "a", "ready", attempt_id=None)
    story.run_task("r6", "a")
    return story.history()


def a_start_under_another_token(story: Story) -> None:
    story.lines[0] = replace(story.lines[0], fence="stolen")


def a_start_of_no_attempt(story: Story) -> None:
    story.lines[0] = replace(story.lines[0], attempt="nobody")


def a_grant_that_started_twice(story: Story) -> None:
    story.lines.append(replace(story.lines[0], pid=2))


def a_start_on_another_host(story: Story) -> None:
    story.lines[0] = replace(story.lines[0], host="h2")


def outputs_of_a_stranger(story: Story) -> History:
    return row(story, "tasks", "r1.a", fence="token-r1.b#2")


def a_model_of_a_task_that_failed(story: Story) -> History:
    return replace(story.history(), models=(ModelRow("m", "1", "r2", "poison"),))


def a_model_of_a_run_that_was_cancelled(story: Story) -> History:
    return replace(story.history(), models=(ModelRow("m", "1", "r4", "a"),))


def a_dispatch_before_its_upstream(story: Story) -> History:
    ended = of(story, "r1.c", "success")
    return later(story, ended, behind=of(story, "r1.d#1", "dispatched"))


def a_dispatch_against_its_rule(story: Story) -> History:
    history = story.history()
    plan = {**history.plans["r3"], "quiet": task("quiet", "a", rule="one_success")}
    return replace(history, plans={**history.plans, "r3": plan})


def a_retry_after_its_upstream_was_reopened(story: Story) -> None:
    story.submit("r6", [task("a"), task("b", "a")])
    story.run_task("r6", "a")
    attempt = story.dispatch("r6", "b")
    story.grant(attempt)
    story.move_task("r6", "a", "pending", cause="rerun", generation=2, fence=None)
    story.fail(attempt, again=True)
    story.run_task("r6", "b")


def a_task_skipped_that_had_to_fail(story: Story) -> History:
    event = of(story, "r3.dead", "upstream_failed")
    history = changed(story, event, after="skipped")
    return replace(history, tasks={**history.tasks, "r3.dead": replace(history.tasks["r3.dead"], state="skipped")})


def a_task_settled_too_early(story: Story) -> History:
    settled = of(story, "r3.unlucky", "skipped")
    return later(story, settled, behind=of(story, "r3.alarm", "ready"))


def a_thawed_leader_writes(story: Story) -> History:
    return changed(story, story.events[-1], epoch=1)


def an_epoch_that_nobody_was_given(story: Story) -> History:
    return changed(story, story.events[-1], epoch=3)


PLANTED_STATES: dict[str, list[Plant]] = {
    "I1": [
        an_attempt_ends_twice,
        an_attempt_ends_twice_and_its_row_follows,
        a_row_is_not_as_its_audit,
        a_row_is_without_audit,
        an_attempts_row_is_gone,
        a_transition_is_missing,
        a_transition_is_not_allowed,
        a_success_of_what_never_ran,
        a_loss_of_what_was_never_granted,
        a_second_try_that_did_not_wait_in_line,
        a_reopening_that_nobody_asked_for,
        a_success_of_an_attempt_that_was_lost,
        a_success_without_attempt,
        outputs_of_a_lost_attempt,
        outputs_of_the_earlier_generation,
        a_token_that_changes,
        a_generation_too_many,
    ],
    "I2": [
        two_live_attempts,
        two_running_attempts,
        a_token_given_twice,
        a_start_that_nobody_granted,
        a_start_under_another_token,
        a_start_of_no_attempt,
        a_grant_that_started_twice,
        a_start_on_another_host,
        outputs_of_a_stranger,
        a_model_of_a_task_that_failed,
        a_model_of_a_run_that_was_cancelled,
    ],
    "I3": [
        a_dispatch_before_its_upstream,
        a_dispatch_against_its_rule,
        a_retry_after_its_upstream_was_reopened,
        a_task_skipped_that_had_to_fail,
        a_task_settled_too_early,
    ],
    "I9": [a_thawed_leader_writes, an_epoch_that_nobody_was_given],
}
