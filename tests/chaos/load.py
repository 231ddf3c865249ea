"""The common load: seeded runs of every shape and rule, the wait for their end, and what they must have kept."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.client import ApiError
from tests.chaos.checker import Bounds, Violation, check
from tests.chaos.history import History
from tests.chaos.ledger import read_ledger
from tests.chaos.site import LEDGER, ChaosSite

Task = dict[str, Any]


def task(name: str, *upstream: str, rule: str = "all_success", **parameters: Any) -> Task:
    """Return a chaos task that notes itself in the site's ledger.

    :param parameters: of the operator; ``cpu``, ``retries``, ``timeout_seconds`` and other fields of a task are taken
        out of them.
    """
    fields = {key: parameters.pop(key) for key in FIELDS if key in parameters}
    return {
        "name": name,
        "operator": "chaos_task",
        "upstream_tasks": list(upstream),
        "trigger_rule": rule,
        "cpu": 0.5,
        "memory_gb": 0.25,
        "retries": 3,
        "retry_delay_seconds": 0.2,
        "parameters": {"path": f"data:{LEDGER}", "seconds": 0.2, **parameters},
        **fields,
    }


FIELDS = (
    *(
        "cpu",
        "memory_gb",
        "retries",
        "retry_delay_seconds",
        "timeout_seconds",
        "grace_seconds",
        "exclusive",
        "critical",
    ),
    *("on_drain", "on_worker_loss", "queue", "gpu"),
)


def pipeline(name: str, tasks: Sequence[Task], **fields: Any) -> dict[str, Any]:
    """Return a definition of these tasks."""
    return {"name": name, "tasks": list(tasks), **fields}


def diamond(dice: random.Random) -> list[Task]:
    """Two ways from one task to another; one way needs a second try."""
    return [
        task("a", seconds=_seconds(dice)),
        task("b", "a", seconds=_seconds(dice), fail_times=1),
        task("c", "a", seconds=_seconds(dice)),
        task("d", "b", "c", seconds=_seconds(dice)),
        task("e", "d", seconds=_seconds(dice), cpu=1.0),
        task("f", "d", rule="none_failed", seconds=_seconds(dice)),
    ]


def fan(dice: random.Random) -> list[Task]:
    """Four at once, joined by a task that takes them as they ended."""
    parts = [task(f"part{n}", "split", seconds=_seconds(dice), fail_times=dice.choice((0, 0, 1))) for n in range(4)]
    names = [part["name"] for part in parts]
    return [
        task("split", seconds=_seconds(dice)),
        *parts,
        task("join", *names, rule="all_done", seconds=_seconds(dice)),
    ]


def chain(dice: random.Random) -> list[Task]:
    """Six in a row."""
    names = [f"t{n}" for n in range(6)]
    return [
        task(name, *names[max(0, n - 1) : n], seconds=_seconds(dice, 0.4), fail_times=dice.choice((0, 0, 0, 2)))
        for n, name in enumerate(names)
    ]


def failing(dice: random.Random) -> list[Task]:
    """One task fails for good: one waits for just that, one for all, one is skipped with what follows."""
    return [
        task("good", seconds=_seconds(dice)),
        task("bad", seconds=_seconds(dice), fail_times=99, retries=1),
        task("alarm", "good", "bad", rule="one_failed", seconds=_seconds(dice)),
        task("tidy", "good", "bad", rule="all_done", seconds=_seconds(dice)),
        task("never", "bad", seconds=_seconds(dice)),
        task("quiet", "good", rule="one_failed", seconds=_seconds(dice)),
        task("after", "quiet", "good", rule="none_failed", seconds=_seconds(dice)),
    ]


SHAPES = {"diamond": diamond, "fan": fan, "chain": chain, "failing": failing}


def definitions(dice: random.Random, of_each: int = 2) -> list[dict[str, Any]]:
    """Return pipelines of every shape, ``of_each`` with durations of their own."""
    return [pipeline(f"{name}-{number}", shape(dice)) for number in range(of_each) for name, shape in SHAPES.items()]


def run_load(
    site: ChaosSite, runs: int = 20, *, of_each: int = 2, cancelled: float = 0.1, purpose: str = "load"
) -> list[str]:
    """Save the pipelines and start runs of them; returns the runs' ids.

    :param of_each: how many pipelines there are of each shape.
    :param cancelled: share of the runs that are asked to be cancelled soon after.
    :param purpose: another word makes other choices.
    """
    dice = site.dice(purpose)
    names = [definition["name"] for definition in definitions_saved(site, definitions(dice, of_each))]
    started: list[str] = []
    for _ in range(runs):
        started.append(start_run(site, dice.choice(names)))
        if dice.random() < cancelled:
            cancel(site, dice.choice(started))
    return started


def cancel(site: ChaosSite, run_id: str) -> bool:
    """Ask for a run to be cancelled; returns whether it had not ended yet."""
    try:
        site.client.cancel(run_id)
    except ApiError as error:
        if error.status != 409:
            raise
        return False
    return True


def definitions_saved(site: ChaosSite, wanted: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Save the pipelines and return them."""
    for definition in wanted:
        site.client.save_pipeline(definition)
    return wanted


def start_run(site: ChaosSite, name: str) -> str:
    """Start a run of a saved pipeline; returns its id."""
    return str(site.client.start_run(name)["id"])


def wait_until_quiet(site: ChaosSite, seconds: float = 40.0) -> None:
    """Wait until all accepted runs have ended, nothing is held for them and nothing of them lives."""
    site.wait_until_quiet(seconds)
    site.wait_until_no_survivors()


def _seconds(dice: random.Random, longest: float = 1.5) -> float:
    """Most tasks are short, a few are long."""
    return round(min(longest, 0.05 + dice.expovariate(3.0)), 2)


def assert_contract(
    site: ChaosSite, *, quiescent: bool = True, bounds: Bounds | None = None, clock_jumped: bool = False
) -> None:
    """Hold what the site did against what it promised (DESIGN §7); says each violation with its run's last events.

    :param quiescent: all was given time to end (:func:`wait_until_quiet`).
    :param clock_jumped: the database's clock did, so that its times can't be held against the ledger's.
    """
    history = site.history()
    if clock_jumped:
        history = replace(history, clock=None)
    ledger = read_ledger(site.ledger_file)
    violations = check(
        history,
        ledger,
        site.memory.accepted,
        site.memory.cancels,
        quiescent=quiescent,
        asked=site.memory.asked,
        bounds=bounds,
    )
    if not violations:
        site.note(f"the contract holds over {len(history.events)} events and {len(ledger)} lines of the ledger")
        return
    told = [run_of(violation, history) for violation in violations]
    for run_id in list(dict.fromkeys(filter(None, told)))[:2]:
        print(f"--- the last events of run {run_id}", *_last_events(history, run_id), sep="\n")
    sentences = "\n".join(map(str, violations[:20]))
    raise AssertionError(f"{len(violations)} promises were broken (seed {site.seed}):\n{sentences}")


def run_of(violation: Violation, history: History) -> str | None:
    """Return the run that a violation is about."""
    for id_ in violation.subject.split():
        if id_ in history.attempts:
            return history.attempts[id_].run_id
        if id_ in history.tasks:
            return history.tasks[id_].run_id
        if id_ in history.runs:
            return id_
    return None


def _last_events(history: History, run_id: str) -> list[str]:
    return [
        f"{one.id} {one.at % 1000:8.3f} epoch {one.epoch} {one.entity} {one.task or one.entity_id}: "
        f"{one.before} → {one.after} {one.reason} ({one.cause}) {dict(one.detail) or ''}"
        for one in history.events
        if one.run_id == run_id
    ][-200:]
