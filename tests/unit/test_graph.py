"""The graph's answers hold for any graph, not only for the ones we thought of."""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.graph import depth, find_cycle, nearest_ancestors, topological_order
from orchestrator.kernel.shape import Shape
from orchestrator.records import Plan, PlannedTask

Graph = dict[str, list[str]]

DIAMOND: Graph = {"load": ["left", "right"], "left": ["extract"], "right": ["extract"], "extract": []}


@st.composite
def dags(draw: st.DrawFn) -> Graph:
    """Any acyclic graph, defined in any order."""
    count = draw(st.integers(0, 12))
    graph: Graph = {}
    for number in range(count):
        picks = draw(st.sets(st.integers(0, number - 1), max_size=4)) if number else set()
        graph[f"t{number}"] = [f"t{pick}" for pick in sorted(picks)]
    names = draw(st.permutations(list(graph)))
    return {name: graph[name] for name in names}


@st.composite
def graphs_with_a_cycle(draw: st.DrawFn) -> Graph:
    graph = draw(dags().filter(bool))
    names = list(graph)
    members = draw(st.lists(st.sampled_from(names), min_size=1, max_size=5, unique=True))
    for before, after in zip(members, [*members[1:], members[0]], strict=True):
        if before not in graph[after]:
            graph[after].append(before)
    return graph


@given(dags())
def test_every_task_comes_once_and_after_its_upstreams(graph: Graph) -> None:
    order = topological_order(graph)
    assert sorted(order) == sorted(graph)
    position = {name: at for at, name in enumerate(order)}
    assert all(position[up] < position[name] for name, ups in graph.items() for up in ups)
    assert find_cycle(graph) == ()


@given(graphs_with_a_cycle())
def test_a_cycle_is_reported_as_a_path_that_is_really_there(graph: Graph) -> None:
    cycle = find_cycle(graph)
    assert cycle[0] == cycle[-1]
    assert len(cycle) >= 2
    assert all(before in graph[after] for before, after in pairwise(cycle))
    with pytest.raises(CycleError):
        topological_order(graph)


def test_a_task_that_waits_for_itself_is_a_cycle() -> None:
    assert find_cycle({"a": ["a"]}) == ("a", "a")


def test_inside_a_level_tasks_stay_as_they_are_defined() -> None:
    assert topological_order({"z": [], "a": [], "m": ["z"]}) == ("z", "a", "m")


def by_level(graph: Graph, name: str) -> Iterator[set[str]]:
    """Yield the direct upstreams, then theirs, and so on; each ancestor once, at its nearest."""
    seen, level = {name}, {name}
    while level := {up for task in level for up in graph[task]} - seen:
        seen |= level
        yield level


@given(dags(), st.data())
def test_the_nearest_ancestors_are_those_of_the_first_level_that_has_any(graph: Graph, data: st.DataObject) -> None:
    wanted = data.draw(st.sets(st.sampled_from(sorted(graph) or ["none"])))
    nearest = nearest_ancestors(graph, topological_order(graph), wanted)
    found = {name: nearest(name) for name in graph if nearest(name)[0]}
    for name in graph:
        expected = next(
            (
                (distance, frozenset(level & wanted))
                for distance, level in enumerate(by_level(graph, name), 1)
                if wanted & level
            ),
            None,
        )
        assert found.get(name) == expected


@given(dags())
def test_the_longest_path_is_the_depth_from_somewhere(graph: Graph) -> None:
    order = topological_order(graph)
    shape = Shape(Plan(tuple(PlannedTask(name, "custom_script", tuple(graph[name])) for name in order)))
    remaining = dict(zip(order, shape.remaining, strict=True))
    assert max(remaining.values(), default=0) == depth(graph, order)
    assert all(remaining[up] > remaining[name] for name, ups in graph.items() for up in ups)


def test_a_diamond_is_three_deep() -> None:
    assert depth(DIAMOND, topological_order(DIAMOND)) == 3
