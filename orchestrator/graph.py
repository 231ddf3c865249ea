"""Questions about a graph of tasks, given as each task's upstreams; pure, and stable in the order of definition."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from graphlib import CycleError, TopologicalSorter

Upstreams = Mapping[str, Sequence[str]]
"""Task → the tasks it waits for; every task has an entry, and every name mentioned is a task."""


def find_cycle(upstreams: Upstreams) -> tuple[str, ...]:
    """Return a cycle as a path along the flow, its first task again at the end; empty when there is none."""
    try:
        TopologicalSorter(upstreams).prepare()
    except CycleError as error:
        return tuple(error.args[1])
    return ()


def topological_order(upstreams: Upstreams) -> tuple[str, ...]:
    """Return all tasks, each after its upstreams; level by level, inside a level as they are defined.

    :raises graphlib.CycleError: there is a cycle; ask :func:`find_cycle` first.
    """
    position = {name: at for at, name in enumerate(upstreams)}
    sorter = TopologicalSorter(upstreams)
    sorter.prepare()
    order: list[str] = []
    while sorter.is_active():
        level = sorted(sorter.get_ready(), key=position.__getitem__)
        order += level
        sorter.done(*level)
    return tuple(order)


def above(upstreams: Upstreams, order: Sequence[str]) -> dict[str, int]:
    """Return, for each task, everything upstream of it as bits: bit n is the n-th task of ``order``.

    One pass for all tasks; asked task by task, the same would take quadratic time.

    :param order: a topological order of all tasks; none gives nothing.
    """
    bit = {name: 1 << at for at, name in enumerate(order)}
    found: dict[str, int] = {}
    for name in order:
        mask = 0
        for up in upstreams[name]:
            mask |= found[up] | bit[up]
        found[name] = mask
    return found


def nearest_ancestors(
    upstreams: Upstreams, order: Sequence[str], wanted: Collection[str]
) -> Callable[[str], tuple[int, frozenset[str]]]:
    """Return what tells of a task how many edges away its nearest ancestors among ``wanted`` are, and which they are.

    One pass for all tasks, with the ancestors as bits: as sets, a thousand of them below each other's thousand would
    take a gigabyte. A task without such an ancestor has none at distance 0.

    :param order: a topological order of all tasks.
    """
    names = list(wanted)
    bits = {name: 1 << at for at, name in enumerate(names)}
    found: dict[str, tuple[int, int]] = {}
    for name in order:
        distance, nearest = 0, 0
        for up in upstreams[name]:
            if up in bits:
                reach, these = 1, bits[up]
            elif up in found:
                reach, these = found[up][0] + 1, found[up][1]
            else:
                continue
            if not nearest or reach < distance:
                distance, nearest = reach, these
            elif reach == distance:
                nearest |= these
        if nearest:
            found[name] = (distance, nearest)

    @cache
    def named(bits: int) -> frozenset[str]:
        # Mostly one, or a few beside each other: what lies before the first need not be looked at.
        first = (bits & -bits).bit_length() - 1 if bits else 0
        written = reversed(f"{bits >> first:b}")
        return frozenset(names[at] for at, bit in enumerate(written, first) if bit == "1")

    def nearest_of(task: str) -> tuple[int, frozenset[str]]:
        distance, nearest = found.get(task, (0, 0))
        return distance, named(nearest)

    return nearest_of


def depth(upstreams: Upstreams, order: Sequence[str]) -> int:
    """Return the number of tasks on the longest path; 0 for an empty graph."""
    levels: dict[str, int] = {}
    for name in order:
        levels[name] = 1 + max((levels[up] for up in upstreams[name]), default=0)
    return max(levels.values(), default=0)
