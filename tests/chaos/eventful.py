"""One clean history with something of everything in it."""

from __future__ import annotations

from tests.chaos.story import Story, task


def eventful() -> Story:
    """Return a story with one of everything."""
    tell_everything(story := Story())
    return story


def tell_everything(story: Story) -> None:
    """Tell of a diamond with a retry, a loss with a zombie, moves, a poisoned task, a settled one, a preemption, a
    take-over, a cancel and a rerun."""
    story.join("w1", "h1")
    story.join("w2", "h2", gpus=("GPU-1", "GPU-2"))
    story.join("w3", "h1")
    _diamond(story)
    _poisoned(story)
    story.epoch = 2
    _rules(story)
    _cancelled(story)
    _rerun(story)


def _diamond(story: Story) -> None:
    """``a`` is lost at first, ``b`` fails at first, ``c`` moves twice."""
    story.submit("r1")
    first = story.dispatch("r1", "a")
    story.grant(first)
    story.lose(first)
    story.run_task("r1", "a", "w2")
    story.line(first, "end")  # a zombie may go on until its host has said that it is dead
    story.release(first)
    retried = story.dispatch("r1", "b")
    story.grant(retried)
    story.fail(retried, again=True)
    story.run_task("r1", "b")
    moving = story.dispatch("r1", "c", "w2", devices=("GPU-1",))
    story.commit()
    story.move(moving, "w1")
    story.grant(moving)
    story.move(moving, "w3")
    story.succeed(moving)
    story.run_task("r1", "d")


def _poisoned(story: Story) -> None:
    """Three losses and one that is charged to nobody."""
    story.submit("r2", [task("poison")])
    gone = story.dispatch("r2", "poison")
    story.grant(gone)
    story.end_attempt(gone, "preempted", reason="preempted")
    story.move_task("r2", "poison", "retry_wait", attempt_id=None)
    story.move_task("r2", "poison", "ready", cause="timer")
    for _ in range(3):
        attempt = story.dispatch("r2", "poison")
        story.grant(attempt)
        story.lose(attempt, held=False)
    story.settle("r2")


def _rules(story: Story) -> None:
    """A failure settles one task, lets another run, and skips a third."""
    plan = [
        task("a"),
        task("dead", "a"),
        task("alarm", "a", rule="one_failed"),
        task("quiet", "a", rule="none_skipped"),
    ]
    story.submit("r3", [*plan, task("unlucky", "alarm", rule="all_failed")])
    attempt = story.dispatch("r3", "a")
    story.grant(attempt)
    story.fail(attempt, again=False)
    story.move_task("r3", "dead", "upstream_failed", cause="upstream")
    story.move_task("r3", "alarm", "ready", cause="upstream")
    story.move_task("r3", "quiet", "ready", cause="upstream")
    story.run_task("r3", "alarm")
    story.move_task("r3", "unlucky", "skipped", cause="upstream")
    story.run_task("r3", "quiet")


def _cancelled(story: Story) -> None:
    story.submit("r4")
    attempt = story.dispatch("r4", "a")
    story.grant(attempt)
    story.cancel("r4", attempt)


def _rerun(story: Story) -> None:
    story.submit("r5", [task("a"), task("b", "a")])
    story.run_task("r5", "a")
    for _ in range(2):
        attempt = story.dispatch("r5", "b")
        story.grant(attempt)
        story.lose(attempt, held=False)
    attempt = story.dispatch("r5", "b")
    story.grant(attempt)
    story.fail(attempt, again=False)
    story.settle("r5")
    story.rerun("r5", "b")
    story.run_task("r5", "b")
