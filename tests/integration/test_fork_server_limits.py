"""Set-up, time limits, silence and forced stops of attempts, on real processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.records import Outcome
from orchestrator.states import AttemptState
from tests.integration.fork_server_site import ForkSite, wait_for

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ForkSite]:
    made = ForkSite(tmp_path)
    yield made
    made.close()


def phase(site: ForkSite, attempt: str) -> str:
    return str(site.folder(attempt).read("usage").get("phase", ""))


def test_the_time_limit_counts_from_the_operators_start_and_set_up_is_told_apart(site: ForkSite) -> None:
    parameters = {"setup_seconds": 2.0, "seconds": 0.1}
    attempt = site.start("sleep", timeout=1.5, progress_timeout=1.5, parameters=parameters)
    wait_for(lambda: phase(site, attempt) == "setup")
    wait_for(lambda: phase(site, attempt) == "running")
    outcome = site.outcome(attempt)
    assert outcome.state is AttemptState.SUCCEEDED, outcome
    assert 2.0 <= outcome.usage.setup_seconds <= outcome.usage.wall_seconds


def test_a_set_up_that_hangs_is_stopped_and_is_no_fault_of_the_task(tmp_path: Path) -> None:
    site = ForkSite(tmp_path, setup_seconds=1.0)
    try:
        outcome = site.outcome(site.start("sleep", grace=0.5, timeout=600.0, parameters={"setup_seconds": 600}))
        assert (outcome.state, outcome.reason, outcome.infrastructure) == (AttemptState.LOST, "setup_timeout", True)
        assert outcome.usage.setup_seconds >= 1.0
    finally:
        site.close()


def test_an_attempt_that_gives_no_sign_of_life_is_stopped(site: ForkSite) -> None:
    parameters = {"by": "log", "signs": 1, "silence": 600}
    outcome = site.outcome(site.start("live", progress_timeout=1.0, grace=0.5, parameters=parameters))
    assert (outcome.state, outcome.reason) == (AttemptState.TIMED_OUT, "no_progress")
    assert outcome.retryable
    assert not outcome.infrastructure


@pytest.mark.parametrize("by", ["log", "progress", "checkpoint", "state"])
def test_every_sign_of_life_counts(site: ForkSite, by: str) -> None:
    attempt = site.start("live", progress_timeout=3.0, parameters={"by": by, "signs": 12})
    outcome = site.outcome(attempt)
    assert outcome.state is AttemptState.SUCCEEDED, outcome
    assert outcome.usage.wall_seconds - outcome.usage.setup_seconds > 4.0


def stopped(site: ForkSite, *graces: float, seconds: float) -> Outcome:
    """Stop an attempt that ignores TERM, by orders that follow one another; it must be dead within ``seconds``."""
    notes = site.tmp_path / "notes"
    attempt = site.start("escape", grace=600.0, parameters={"notes": str(notes)})
    wait_for(lambda: notes.exists() and len(notes.read_text().split()) == 4)
    for grace in graces:
        site.client.stop(attempt, "cancelled", grace)
        time.sleep(0.3)  # they are one stop when they come together
    began = time.monotonic()
    outcome = site.outcome(attempt, seconds=60)
    assert time.monotonic() - began < seconds
    return outcome


def test_a_forced_stop_cuts_a_grace_short_that_is_under_way(site: ForkSite) -> None:
    assert stopped(site, 600.0, 0.0, seconds=30).state is AttemptState.CANCELLED


def test_a_shorter_grace_counts_from_its_own_order_and_a_longer_one_not_at_all(site: ForkSite) -> None:
    assert stopped(site, 600.0, 1.0, 300.0, seconds=30).state is AttemptState.CANCELLED


def test_a_forced_stop_of_an_attempt_in_its_set_up_lets_nothing_run(site: ForkSite) -> None:
    ledger = site.tmp_path / "ledger"
    parameters = {"setup_seconds": 600, "ledger": str(ledger), "end": str(ledger)}
    attempt = site.start("keep_ledger", parameters=parameters)
    wait_for(lambda: phase(site, attempt) == "setup")
    site.client.stop(attempt, "cancelled", 0.0)
    assert site.outcome(attempt).state is AttemptState.CANCELLED
    assert not ledger.exists()
