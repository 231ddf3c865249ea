"""Where task runs stand is worked out once for each plan of a batch, however many task runs are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from orchestrator.records import Plan, PlannedTask
from orchestrator.store.places import Asked, find_places


class Counted(tuple[PlannedTask, ...]):
    """The tasks of a plan, which count how often somebody goes through all of them."""

    __slots__ = ()
    looks = 0

    def __iter__(self) -> Iterator[PlannedTask]:
        type(self).looks += 1
        return super().__iter__()


def chain(name: str) -> Any:
    fields = {"parent_id": None, "map_index": None, "map_key": "", "item": None}
    return SimpleNamespace(asked=name, id=name, run_id="r", name=name, **fields)


def test_a_batch_of_grants_goes_through_its_plan_once() -> None:
    def upstream(n: int) -> tuple[str, ...]:
        return tuple(f"t{m}" for m in (n - 1, n - 2) if m >= 0)

    plan = Plan(Counted(PlannedTask(f"t{n}", "custom_script", upstream(n)) for n in range(50)))
    found_rows = [chain(f"t{n}") for n in range(50)]
    connection: Any = SimpleNamespace(execute=lambda *_: found_rows)
    Counted.looks = 0
    places = find_places(connection, [Asked(row.id, plan) for row in found_rows])
    assert Counted.looks == 1
    assert places["t3"].own.ancestors == {"t0", "t1", "t2"}
    assert places["t3"].own.plain == ("t0", "t1", "t2")
    assert places["t0"].own.plain == ()
