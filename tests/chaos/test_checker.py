"""The checker finds nothing in clean histories, and each planted fault by its name."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from orchestrator import retry, states
from tests.chaos.checker import Bounds, Violation, check
from tests.chaos.checker_specification import ARROWS, NEVER_BEGAN
from tests.chaos.eventful import eventful, tell_everything
from tests.chaos.history import History
from tests.chaos.ledger import Line, read_ledger
from tests.chaos.planted_states import (
    PLANTED_STATES,
    a_grant_that_started_twice,
    a_loss_of_what_was_never_granted,
    a_start_of_no_attempt,
    a_start_on_another_host,
    a_start_that_nobody_granted,
    a_start_under_another_token,
    a_transition_is_not_allowed,
)
from tests.chaos.planted_work import (
    PLANTED_WORK,
    a_loss_that_a_word_excuses,
    a_preemption_that_was_charged,
    a_zombie_that_is_never_released,
)
from tests.chaos.planting import Plant, row
from tests.chaos.story import ENDED, Story, task

BOUNDS = Bounds(stop_seconds=7.0)
PLANTED = {**PLANTED_STATES, **PLANTED_WORK}


def judge(story: Story, history: History | None = None, **options: Any) -> list[Violation]:
    options = {"quiescent": True, "bounds": BOUNDS, **options}
    return check(history or story.history(), story.lines, story.accepted, story.cancels, **options)


def test_a_clean_history_of_everything_is_clean() -> None:
    assert judge(eventful()) == []


class JudgedStory(Story):
    """Judges itself whenever a transaction is over."""

    def commit(self) -> None:
        assert judge(self, quiescent=False) == []
        super().commit()


def test_a_clean_history_is_clean_after_every_transaction() -> None:
    tell_everything(story := JudgedStory())
    assert story.txn > 50


@pytest.mark.parametrize("seed", range(20))
def test_random_clean_histories_are_clean(seed: int) -> None:
    dice = random.Random(seed)
    story = Story()
    story.join("w1", "h1", cpu=400)
    story.join("w2", "h2", cpu=400)
    for number in range(4):
        story.submit(f"r{number}")
    live: list[str] = []
    for _ in range(400):
        ready = [row for row in story.tasks.values() if row.state == "ready"]
        if ready and len(live) < 6 and (not live or dice.random() < 0.5):
            row = dice.choice(ready)
            held = {worker: sum(r.worker_id == worker for r in story.reservations.values()) for worker in ("w1", "w2")}
            live.append(story.dispatch(row.run_id, row.name, min(held, key=lambda worker: held[worker])))
        elif live:
            _go_on(story, live, dice)
        for attempt in [r.attempt_id for r in story.reservations.values() if r.zombie]:
            story.release(attempt)
    assert all(row.state in ENDED for row in story.tasks.values() if row.state != "pending"), f"seed {seed}"
    found = [v for v in judge(story) if v.invariant != "I4"]  # a run behind a task that failed is not settled here
    assert found == [], f"seed {seed}"


def _go_on(story: Story, live: list[str], dice: random.Random) -> None:
    attempt = dice.choice(live)
    if story.attempts[attempt].state == "dispatched":
        story.grant(attempt)
        return
    live.remove(attempt)
    ends: list[Callable[[str], None]] = [story.succeed, story.lose, lambda id_: story.fail(id_, again=True)]
    dice.choices(ends, [6, 1, 1])[0](attempt)


@pytest.mark.parametrize(
    ("invariant", "plant"),
    [pytest.param(name, plant, id=f"{name}-{plant.__name__}") for name, plants in PLANTED.items() for plant in plants],
)
def test_a_planted_fault_is_found_and_named(invariant: str, plant: Plant) -> None:
    story = eventful()
    history = plant(story)
    found = judge(story, history)
    print("\n".join(map(str, found)))
    assert invariant in {violation.invariant for violation in found}


def test_every_invariant_that_the_checker_decides_has_two_planted_faults() -> None:
    assert {name: len(plants) >= 2 for name, plants in PLANTED.items()} == dict.fromkeys(
        ("I1", "I2", "I3", "I4", "I5", "I9", "I10", "I12", "I13"), True
    )


@pytest.mark.parametrize(
    "check_",
    [
        *("checker.check_transition", "checker.check_live", "checker.check_rule", "checker.check_success"),
        *("checker.check_epochs", "checker.check_rows", "checker.check_lines", "checker.check_published"),
        *("checker.check_afterlife", "checker.check_cancels", "checker.check_reservations"),
        *("checker.check_accepted", "checker.check_progress", "checker.check_commands", "checker.check_refusals"),
        *("checker_losses.LossWatch._see_task", "checker_losses.LossWatch.end"),
        *("checker_charges.ChargeWatch.see", "checker_charges.ChargeWatch.committed"),
    ],
)
def test_without_any_one_of_its_checks_some_planted_fault_is_missed(
    check_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"tests.chaos.{check_}", lambda *_: iter(()))
    missed = []
    for invariant, plants in PLANTED.items():
        for plant in plants:
            history = plant(story := eventful())
            if invariant not in {violation.invariant for violation in judge(story, history)}:
                missed.append(plant.__name__)
    assert missed


# What is no fault


def test_a_run_whose_answer_was_lost_is_no_fault_if_its_key_was_sent() -> None:
    story = eventful()
    story.accepted.pop(0)
    assert judge(story, asked={"key-r1"}) == []


def test_a_cancel_that_found_its_run_being_cancelled_needs_no_record_of_its_own() -> None:
    story = eventful()
    story.cancels.append(replace(story.cancels[0], at=story.cancels[0].at + 0.1, is_repeat=True))
    assert judge(story) == []
    story.cancels[-1] = replace(story.cancels[-1], is_repeat=False)
    assert [violation.invariant for violation in judge(story)] == ["I5"]


def test_a_zombie_on_a_host_that_was_given_up_is_no_leak() -> None:
    story = eventful()
    a_zombie_that_is_never_released(story)
    for worker in ("w1", "w3"):
        story.lose_worker(worker)
    assert judge(story) == []


def test_a_swap_inside_one_transaction_is_judged_at_its_end() -> None:
    story = eventful()
    story.submit("r6", [task("a"), task("b")])
    first, second = story.dispatch("r6", "a", cpu=950), story.dispatch("r6", "b", "w2", cpu=950)
    story.commit()
    for attempt, worker in ((first, "w2"), (second, "w1")):
        story.of_attempt(
            attempt, "dispatched", "dispatched", cause="moved", detail=story.charge(attempt, worker, cpu=950)
        )
        story.attempts[attempt] = replace(
            story.attempts[attempt], worker_id=worker, host_id=story.workers[worker].host_id
        )
    for attempt in (first, second):
        story.grant(attempt)
        story.succeed(attempt)
    assert judge(story) == []


def test_a_host_that_shrinks_under_what_it_holds_is_no_fault_but_a_dispatch_to_it_is() -> None:
    story = eventful()
    story.submit("r6", [task("a"), task("b")])
    first = story.dispatch("r6", "a", cpu=900)
    story.commit()
    detail = {"host": "h1", "cpu": 500, "memory": 1000, "gpus": [], "slots": 4}
    story.tell("host", "h1", None, "resized", cause="heartbeat", detail=detail)
    story.grant(first)
    assert not [v for v in judge(story, quiescent=False) if v.invariant == "I13"]
    story.dispatch("r6", "b")
    assert "I13" in {v.invariant for v in judge(story, quiescent=False)}


LOSSY = replace(BOUNDS, commits_lost=True)


def a_grant_that_was_lost(story: Story) -> None:
    """Granted to one host, taken back by a crash, and granted to another, which starts it too."""
    first = story.lines[0]
    story.lines.insert(0, replace(first, host="h2", pid=2, at=first.at - 5.0))


@pytest.mark.parametrize(
    "plant", [a_start_of_no_attempt, a_start_that_nobody_granted, a_grant_that_started_twice, a_grant_that_was_lost]
)
def test_what_started_is_no_proof_when_the_database_lost_commits(plant: Plant) -> None:
    story = eventful()
    history = plant(story)
    assert judge(story, history) != []
    assert judge(story, history, bounds=LOSSY) == []


@pytest.mark.parametrize("plant", [a_start_under_another_token, a_start_on_another_host])
def test_what_the_rows_know_has_its_token_and_its_host_though_the_database_lost_commits(plant: Plant) -> None:
    story = eventful()
    history = plant(story)
    assert [v.invariant for v in judge(story, history, bounds=LOSSY)] == ["I2"]


# The checker's tables are its own


@pytest.mark.parametrize(
    ("invariant", "plant"),
    [
        ("I1", a_transition_is_not_allowed),
        ("I1", a_loss_of_what_was_never_granted),
        ("I12", a_preemption_that_was_charged),
        ("I12", a_loss_that_a_word_excuses),
    ],
)
def test_a_wrong_row_in_the_products_tables_hides_no_fault(
    invariant: str, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    for entity, of_entity in states.TRANSITIONS.items():
        anything = frozenset(chain(of_entity, *of_entity.values()))
        monkeypatch.setitem(states.TRANSITIONS, entity, dict.fromkeys(anything, anything))
    monkeypatch.setattr(retry, "UNCHARGED", retry.UNCHARGED | {"worker_lost"})
    monkeypatch.setattr(retry, "is_infrastructure", lambda _outcome: False)
    history = plant(story := eventful())
    assert invariant in {violation.invariant for violation in judge(story, history)}


def test_the_products_tables_allow_and_excuse_all_that_the_checkers_do() -> None:
    for entity, arrows in ARROWS.items():
        if entity != "reservation":
            of_entity = states.TRANSITIONS[states.Entity(entity)]
            for before, after in arrows.items():
                known = {str(state) for one, those in of_entity.items() if one == before for state in those}
                assert set(after) <= known, f"{entity} {before}"
    assert NEVER_BEGAN <= retry.UNCHARGED


def test_what_leaders_of_an_older_release_did_not_tell_is_no_fault_and_what_newer_ones_do_is_judged() -> None:
    story = Story()
    story.join("w1", "h1")
    story.submit("r1", [task("a"), task("b")])
    lost, kept = story.dispatch("r1", "a"), story.dispatch("r1", "b")
    for attempt in (lost, kept):
        story.grant(attempt)
    story.end_attempt(lost, "lost", held=True, reason="worker_lost")
    story.move_task("r1", "a", "ready", reason="worker_lost", losses=1, attempt_id=None)
    story.events = [replace(event, detail={}) for event in story.events]
    story.epoch = 2
    story.release(lost)
    story.succeed(kept)
    story.run_task("r1", "a")
    terse = replace(BOUNDS, terse_epochs={1})
    assert "I13" in {v.invariant for v in judge(story)}
    assert judge(story, bounds=terse) == []
    story.join("w2", "h2", cpu=100)
    story.submit("r2", [task("a")])
    story.dispatch("r2", "a", "w2", cpu=200)
    assert [v.invariant for v in judge(story, quiescent=False, bounds=terse)] == ["I13"]


def test_before_the_end_a_task_may_wait_for_what_it_names() -> None:
    story = eventful()
    story.submit("r6")
    assert judge(story, quiescent=False) == []
    history = row(story, "tasks", "r6.a", reason="")
    assert [v.subject for v in judge(story, history, quiescent=False)] == ["task a of run r6"]


def test_before_the_end_an_owner_must_live() -> None:
    story = eventful()
    story.submit("r6")
    attempt = story.dispatch("r6", "a")
    assert judge(story, quiescent=False) == []
    story.grant(attempt)
    assert judge(story, quiescent=False) == []
    story.lose_worker("w1")
    assert [v.invariant for v in judge(story, quiescent=False)] == ["I4"]
    orphaned = row(story, "attempts", attempt, is_orphaned=True)
    assert judge(story, orphaned, quiescent=False) == []


# The ledger's file


LINE = '{"what": "start", "run": "r", "task": "t", "attempt": "a", "fence": "f", "host": "h", "pid": 1, "at": %s}\n'


def test_a_torn_last_line_of_a_ledger_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "ledger"
    file.write_text(LINE % 2.0 + LINE % 1.0 + '{"what": "sta')
    assert [line.at for line in read_ledger(file, tmp_path / "nowhere")] == [1.0, 2.0]
    assert isinstance(read_ledger(file)[0], Line)


def test_a_torn_line_in_the_middle_of_a_ledger_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ledger"
    file.write_text('{"what": "sta\n' + LINE % 1.0)
    with pytest.raises(ValueError, match="Line 1"):
        read_ledger(file)
