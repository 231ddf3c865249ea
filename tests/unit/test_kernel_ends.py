"""How runs of random plans end, whatever was run again in them on the way: as their plans have it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

import pytest

from orchestrator.events import ReconcileDue, Tick
from orchestrator.records import ApprovalPlan, ChildPlan, Outcome, Plan, PlannedTask
from orchestrator.states import RUN_TERMINAL, TaskState
from tests.unit.kernel_driver import GIB, NO_JITTER, task
from tests.unit.simulated_ends import differences
from tests.unit.simulated_graph import Graph
from tests.unit.written_driver import BAD, SKIP, Written, gave, mapped, repeated

SEEDS = int(os.environ.get("SEEDS", "120"))
FIRST = int(os.environ.get("FIRST_SEED", "0"))
RULES = ("all_success", "all_success", "all_done", "none_failed", "one_failed", "one_success", "one_done")
LATE = ("all_failed", "all_done_min_one_success", "none_failed_min_one_success", "none_skipped")


def made(chance: Random, depth: int = 0) -> tuple[PlannedTask, ...]:
    """Make the tasks of a graph so deep inside of containers."""
    tasks: list[PlannedTask] = []
    for letter in "abcd"[: chance.randint(2, 4) - depth]:
        above = [other.name for other in tasks if chance.random() < 0.6]
        fields: dict[str, Any] = {"rule": chance.choice(RULES + LATE)} if above else {}
        if chance.random() < 0.25:
            asked = [f"tasks.{above[0]}.state == 'failed'", f"tasks.{above[0]}.outputs.go"] if above else []
            fields["when"] = chance.choice(["params.x", *asked, *asked])
        tasks.append(_one(chance, f"{letter}{depth or ''}", above, depth, fields))
    return tuple(tasks)


def _one(chance: Random, name: str, above: list[str], depth: int, fields: dict[str, Any]) -> PlannedTask:
    kind = chance.random()
    body = made(chance, depth + 1) if depth < 2 and chance.random() < 0.4 else ()
    if kind < 0.35:
        over: Any = {"range": chance.randint(0, 3)}
        if above and chance.random() < 0.6:
            over = chance.choice((f"{{{{ tasks.{above[0]}.outputs.list }}}}", f"{{{{ tasks.{above[0]}.outputs }}}}"))
        own: dict[str, Any] = {"success": chance.choice(("all", "any")), "fail_fast": chance.random() < 0.5}
        return mapped(name, *above, over=over, max_parallel=chance.choice((None, 1, 2)), body=body, **own, **fields)
    if kind < 0.5:
        until = chance.choice(("false", "repeat.index >= 1", "repeat.index >= 2"))
        return repeated(name, *above, until=until, most=3, delay=chance.choice((0.0, 20.0)), body=body, **fields)
    if kind < 0.57:
        rule = fields.pop("rule", "all_success")
        return PlannedTask(name, "pipeline", tuple(above), rule, retry=NO_JITTER, child=ChildPlan("inner"), **fields)
    if kind < 0.62:
        return task(name, *above, approval=ApprovalPlan(message="Go on?"), **fields)
    if kind < 0.7 and above:
        return task(name, *above, teardown=True, setups=(above[0],))
    return task(name, *above, **fields)


def outcome(chance: Random) -> Outcome:
    good = gave(go=chance.random() < 0.7, list=[chance.randint(0, 9) for _ in range(chance.randint(0, 3))])
    return chance.choice((good, good, good, gave(go="?", list=5), BAD, SKIP))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_a_run_ends_as_its_plan_has_it_whatever_was_run_again(seed: int) -> None:
    chance = Random(seed)
    driver = Written()
    driver.worker(cpu=64_000, memory=64 * GIB, slots=64)
    driver.store.pipelines["inner"] = Plan((task("i"), task("j", "i")))
    driver.run(*made(chance), parameters={"x": chance.random() < 0.7})
    ended: dict[str, int] = {}
    for _ in range(4):
        _let_end(driver, chance, ended)
        graph = driver.store.graph("r1")
        assert not [*differences(graph), *_rounds_out_of_order(graph, ended)], f"seed {seed}"
        names = [row.name for row in driver.rows_of() if not row.superseded]
        driver.again(chance.choice(("failed", "failed", "all", [chance.choice(names)], chance.choices(names, k=2))))
        if chance.random() < 0.15:
            # It goes on being stopped, and what ended so decides nothing; then it is run again.
            _get_on(driver, chance, chance.randint(0, 3), ended)
            driver.ask("cancel", **({"task": chance.choice(names)} if chance.random() < 0.7 else {}))


def _rounds_out_of_order(graph: Graph, ended: Mapping[str, int]) -> Iterator[str]:
    """Yield the rounds in which something stands that has run before a round that comes first."""
    for row in graph.rows:
        if graph.planned(row).repeat is None or row.superseded or not row.begun:
            continue
        latest, inside = 0, graph.inside(row)
        for index in sorted(inside):
            own = [one for one in inside[index] if one.state is TaskState.SUCCESS and graph.planned(one).has_attempts]
            yield from (one.name for one in own if ended[one.name] < latest)
            latest = max([latest, *(ended[one.name] for one in own)])


def _let_end(driver: Written, chance: Random, ended: dict[str, int]) -> None:
    for _ in range(400):
        if driver.run_state() in RUN_TERMINAL:
            return
        _get_on(driver, chance, 1, ended)
    raise AssertionError(f"it hangs: {[(row.name, row.state, row.reason) for row in driver.rows_of()]}")


def _get_on(driver: Written, chance: Random, steps: int, ended: dict[str, int]) -> None:
    """Let something happen, so many times.

    :param ended: by the names of its task runs, when each has last been run, counted up.
    """
    for _ in range(steps):
        queued = [(run_id, name) for run_id in driver.store.runs for name in driver.queued(run_id)]
        waiting = [row.name for row in driver.rows_of() if row.state is TaskState.WAITING]
        if chance.random() < 0.07:
            driver.take_over()
        elif chance.random() < 0.1:
            # It must find nothing to repair.
            driver.feed(ReconcileDue(), Tick())
        elif chance.random() < 0.05 and driver.run_state() not in RUN_TERMINAL:
            driver.ask("pause")
            driver.tick(after=25)
            driver.ask("resume")
        elif queued:
            run_id, name = chance.choice(queued)
            driver.finish(name, run_id=run_id, outcome=outcome(chance))
            if run_id == "r1":
                ended[name] = max(ended.values(), default=0) + 1
        elif waiting:
            driver.ask(chance.choice(("approve", "reject")), task=chance.choice(waiting))
        else:
            driver.tick(after=25)
