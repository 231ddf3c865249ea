"""The plans of the simulation: of each kind of task and container one, small enough to be seen to their ends; and plans
made at random of containers inside of containers."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

from orchestrator.records import (
    ApprovalPlan,
    ChildPlan,
    EventPlan,
    MapPlan,
    Plan,
    PlannedTask,
    RepeatPlan,
    Resources,
    RetryPolicy,
)

GIB = 2**30
RETRY = RetryPolicy(retries=1, delay=10, factor=2, max_delay=20, jitter=0.1)


def task(
    name: str,
    *upstream: str,
    rule: str = "all_success",
    cpu: int = 1000,
    memory: int = GIB,
    gpus: int = 0,
    queue: str = "cpu",
    **fields: Any,
) -> PlannedTask:
    """Build a planned task; ``fields`` are ``timeout``, ``on_drain``, ``when`` …"""
    asked = Resources(cpu, memory, gpus)
    return PlannedTask(name, "custom_script", upstream, rule, queue, asked, retry=RETRY, **fields)


def mapped(name: str, *upstream: str, over: Any, body: tuple[PlannedTask, ...] = (), **fields: Any) -> PlannedTask:
    """Build a map; ``fields`` of a map are its own, the others are the task's."""
    own = {key: fields.pop(key) for key in ("max_parallel", "success", "least", "fail_fast") if key in fields}
    plan = Plan(body or (task(name),))
    return task(name, *upstream, map=MapPlan(over, **own), body=plan, is_group=bool(body), **fields)


def repeated(
    name: str, *upstream: str, until: str, delay: float = 0.0, body: tuple[PlannedTask, ...] = (), **fields: Any
) -> PlannedTask:
    plan = RepeatPlan(until, 3, delay, "succeed")
    return task(name, *upstream, repeat=plan, body=Plan(body or (task(name),)), is_group=bool(body), **fields)


PIPELINES = {
    "inner": Plan((task("a"), mapped("b", "a", over=[1, 2]))),
    "deeper": Plan((task("sub", child=ChildPlan("inner")), task("more", "sub", rule="all_done"))),
}
"""By name, for runs that are tasks."""

SIMPLE = (
    Plan((task("only"),)),
    Plan((task("poison"), task("victim", "poison", rule="all_done"))),
    Plan((task("big", cpu=4000, memory=GIB, on_worker_loss="adopt"), task("after", "big", timeout=30.0))),
    Plan((task("first"), task("second", "first"), task("third", "second", rule="all_done"))),
    Plan(
        (
            task("left", on_drain="checkpoint"),
            task("right", cpu=2000, on_worker_loss="adopt"),
            task("join", "left", "right"),
            task("repair", "left", "right", rule="one_failed"),
            task("last", "join", "repair", rule="none_failed"),
        )
    ),
    Plan(
        (
            task("train", gpus=1, queue="gpu", timeout=20.0, on_worker_loss="adopt", on_drain="checkpoint"),
            task("more", gpus=1, queue="gpu", on_drain="kill"),
            task("report", "train", "more", rule="all_done_min_one_success"),
        )
    ),
    Plan(
        (
            *(task(f"part{n}", memory=2 * GIB) for n in range(4)),
            task("merge", *(f"part{n}" for n in range(4)), rule="none_skipped"),
        )
    ),
    Plan(
        (
            task("long", on_worker_loss="adopt", on_drain="checkpoint"),
            task("longer", on_worker_loss="adopt", gpus=1, queue="gpu", timeout=60.0),
            task("brief", on_drain="kill"),
            task("end", "long", "longer", "brief", rule="all_done"),
        )
    ),
)
"""Without containers and waits."""

RICH = (
    Plan((mapped("train", over=[1, 2, 3], max_parallel=2), task("report", "train", rule="all_done"))),
    Plan(
        (
            task("list"),
            mapped("each", "list", over="{{ tasks.list.outputs.items }}", success="any", fail_fast=True),
            task("well", "list", "each", when="tasks.list.outputs.ok", rule="none_failed"),
            task("ill", "list", rule="all_done", when="tasks.list.state == 'failed'"),
        )
    ),
    Plan(
        (
            mapped(
                "folds",
                over=["x", "y"],
                max_parallel=1,
                success="min_ratio",
                least=0.5,
                body=(
                    task("up"),
                    mapped("fit", "up", over=[1, 2], success="any"),
                    task("down", "up", "fit", teardown=True, setups=("up",)),
                ),
            ),
            task("end", "folds", rule="one_done"),
        )
    ),
    Plan(
        (
            repeated("tune", until="not outputs.ok", delay=10.0),
            mapped("seeds", over=[1, 2], body=(repeated("step", until="repeat.index == 1"),)),
            task("end", "tune", "seeds", rule="all_done"),
        )
    ),
    Plan(
        (
            task("up"),
            task("gate", "up", approval=ApprovalPlan(timeout=60.0, on_timeout="reject", on_reject="skip")),
            task("signal", "up", event=EventPlan(timeout=60.0)),
            task("work", "gate", "signal", rule="none_failed"),
            task("down", "up", "work", teardown=True, setups=("up",)),
        )
    ),
    Plan(
        (
            task("sub", child=ChildPlan("inner")),
            task("deep", child=ChildPlan("deeper")),
            task("nothing", child=ChildPlan("nothing"), critical=False),
            task("end", "sub", "deep", when="tasks.sub.outputs.outputs.b[0].ok"),
            task("down", "end", "deep", teardown=True),
        )
    ),
)
"""With them."""

PLANS = SIMPLE + RICH

RULES = ("all_success", "all_success", "all_done", "one_success", "one_failed", "none_failed", "none_skipped")
MOST_NESTED = 999


@cache
def nested(number: int) -> Plan:
    """Return the plan of this number, made at random: maps and repeats, most of them around others, that fail fast or
    not, of any measure of success, in part and one after the other; some go over what another has left."""
    chance = Random(number)
    while True:
        tasks = _level(chance, 0)
        if any(made.body is not None for made in tasks):
            return Plan(tasks)


def _level(chance: Random, depth: int) -> tuple[PlannedTask, ...]:
    """Make the tasks of a graph so deep inside of containers."""
    made: list[PlannedTask] = []
    for letter in "abc"[: chance.randint(2, 3) if depth == 0 else chance.randint(1, 2)]:
        above = [task_.name for task_ in made if chance.random() < 0.6]
        fields: dict[str, Any] = {"rule": chance.choice(RULES)} if above else {}
        if above and chance.random() < 0.2:
            fields["when"] = f"tasks.{above[0]}.state == {chance.choice(('success', 'failed'))!r}"
        maps = [task_.name for task_ in made if task_.name in above and task_.map is not None]
        over: Any = {"range": chance.randint(1, 3 - depth)}
        if maps and chance.random() < 0.6:
            over = f"{{{{ tasks.{maps[0]}.outputs }}}}"
        made.append(_made(chance, f"{letter}{depth or ''}", above, depth, over, fields))
    return tuple(made)


def _made(chance: Random, name: str, above: list[str], depth: int, over: Any, fields: dict[str, Any]) -> PlannedTask:
    if depth == 2 or chance.random() < (0.3, 0.5)[depth]:
        is_teardown = bool(above) and chance.random() < 0.2
        return task(name, *above, **({"teardown": True, "setups": (above[0],)} if is_teardown else fields))
    body = _level(chance, depth + 1) if chance.random() < 0.7 else ()
    if chance.random() < 0.2:
        return repeated(name, *above, until=f"repeat.index >= {chance.randint(0, 1)}", body=body, **fields)
    success = chance.choice(("all", "all", "any", "min_count"))
    own = {"success": success, "least": 2, "fail_fast": chance.random() < 0.6}
    return mapped(
        name,
        *above,
        over=over,
        body=body,
        max_parallel=chance.choice((None, 1)),
        **own,
        **fields,
    )
