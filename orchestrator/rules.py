"""The twelve trigger rules, the results of runs and of maps: pure functions of counts and states, so that the order of
events can't matter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType

from orchestrator.states import RunState, TaskState


class Verdict(StrEnum):
    """What a task's trigger rule says of its upstream states."""

    WAIT = "wait"
    RUN = "run"
    UPSTREAM_FAILED = "upstream_failed"
    SKIP = "skip"


_WAIT, _RUN, _FAIL, _SKIP = Verdict.WAIT, Verdict.RUN, Verdict.UPSTREAM_FAILED, Verdict.SKIP

# Every rule takes: good (S), bad (F+U+C), skipped (K), total (N). Done (D) is good + bad + skipped.


def _all_success(good: int, bad: int, skipped: int, total: int) -> Verdict:
    if bad:
        return _FAIL
    if good == total:
        return _RUN
    return _SKIP if good + skipped == total else _WAIT


def _all_failed(good: int, bad: int, skipped: int, total: int) -> Verdict:
    if bad == total:
        return _RUN
    return _SKIP if good + skipped else _WAIT


def _all_done(good: int, bad: int, skipped: int, total: int) -> Verdict:
    return _RUN if good + bad + skipped == total else _WAIT


def _all_done_min_one_success(good: int, bad: int, skipped: int, total: int) -> Verdict:
    if good + bad + skipped < total:
        return _WAIT
    if good:
        return _RUN
    return _FAIL if bad else _SKIP


def _all_skipped(good: int, bad: int, skipped: int, total: int) -> Verdict:
    if skipped == total:
        return _RUN
    return _SKIP if good + bad else _WAIT


def _one_success(good: int, bad: int, skipped: int, total: int) -> Verdict:
    if good:
        return _RUN
    if bad + skipped < total:
        return _WAIT
    return _FAIL if bad else _SKIP


def _one_failed(good: int, bad: int, skipped: int, total: int) -> Verdict:
    if bad:
        return _RUN
    return _SKIP if good + skipped == total else _WAIT


def _one_done(good: int, bad: int, skipped: int, total: int) -> Verdict:
    if good + bad:
        return _RUN
    return _SKIP if skipped == total else _WAIT


def _none_failed(good: int, bad: int, skipped: int, total: int) -> Verdict:
    if bad:
        return _FAIL
    return _RUN if good + skipped == total else _WAIT


def _none_failed_min_one_success(good: int, bad: int, skipped: int, total: int) -> Verdict:
    if bad:
        return _FAIL
    if good + skipped < total:
        return _WAIT
    return _RUN if good else _SKIP


def _none_skipped(good: int, bad: int, skipped: int, total: int) -> Verdict:
    if skipped:
        return _SKIP
    return _RUN if good + bad == total else _WAIT


RULES: dict[str, Callable[[int, int, int, int], Verdict]] = {
    "all_success": _all_success,
    "all_failed": _all_failed,
    "all_done": _all_done,
    "all_done_min_one_success": _all_done_min_one_success,
    "all_skipped": _all_skipped,
    "one_success": _one_success,
    "one_failed": _one_failed,
    "one_done": _one_done,
    "none_failed": _none_failed,
    "none_failed_min_one_success": _none_failed_min_one_success,
    "none_skipped": _none_skipped,
    "always": lambda good, bad, skipped, total: _RUN,  # noqa: ARG005 the shape of every rule
}
"""Airflow's names (DESIGN §10)."""

ROOT_RULES = frozenset({"always", "all_success", "all_done", "none_failed", "none_skipped"})
"""The rules a task without upstreams may have; the others would never run it, or mean nothing."""

HANDLING_RULES = frozenset({"one_failed", "all_failed"})
"""A downstream with one of these that ran and succeeded has handled the failure it ran for."""

NOBODY: Mapping[int, Sequence[int]] = MappingProxyType({})
_ROUNDING = 1e-9
"""A ratio such as 0.7 is a little less or more than that as a float."""


def verdict(
    rule: str,
    success: int,
    failed: int,
    upstream_failed: int,
    skipped: int,
    cancelled: int,
    total: int,
    *,
    cancelling: bool = False,
) -> Verdict:
    """Say what the rule makes of these counts of upstream states.

    - A task is settled without running only when no future event could change that; a rule may fire early.
    - ``upstream_failed`` beats ``skip``.
    - A cancelled upstream counts as failed, unless the run is being cancelled: then the cancel settles the task.
    """
    if cancelling and cancelled:
        return _WAIT
    return RULES[rule](success, failed + upstream_failed + cancelled, skipped, total)


_GOOD = frozenset({TaskState.SUCCESS, TaskState.SKIPPED})
_BROKEN = frozenset({TaskState.FAILED, TaskState.CANCELLED})


def run_result(
    states: Sequence[TaskState],
    downstream: Sequence[Sequence[int]],
    rules: Sequence[str],
    critical: Sequence[bool],
    watchers: Mapping[int, Sequence[int]] = NOBODY,
    handled: Collection[int] = (),
) -> RunState:
    """Decide how a run ends whose tasks are all terminal; the parameters are those of :func:`failing`.

    ``success`` only if every leaf is success or skipped, and no task failed without a downstream that handled it. What
    is not critical decides nothing, so that what has only such tasks below it is a leaf too.
    """
    has_failed = next(failing(states, downstream, rules, critical, watchers, handled), None) is not None
    return RunState.FAILED if has_failed else RunState.SUCCESS


def failing(
    states: Sequence[TaskState],
    downstream: Sequence[Sequence[int]],
    rules: Sequence[str],
    critical: Sequence[bool],
    watchers: Mapping[int, Sequence[int]] = NOBODY,
    handled: Collection[int] = (),
) -> Iterator[int]:
    """Yield the positions of the tasks because of which a run fails; all parameters but the last two are by
    position.

    :param critical: of each task whether it decides; a teardown never does.
    :param watchers: by position the tasks whose ``when`` names its state.
    :param handled: the positions whose failure was handled by a task inside of a container.
    """
    for position, state in enumerate(states):
        if not critical[position]:
            continue
        is_bad_leaf = state not in _GOOD and not any(critical[child] for child in downstream[position])
        is_broken = state in _BROKEN and position not in handled
        if is_bad_leaf or (
            is_broken and not _is_handled(position, states, downstream, rules, watchers.get(position, ()))
        ):
            yield position


def _is_handled(
    position: int,
    states: Sequence[TaskState],
    downstream: Sequence[Sequence[int]],
    rules: Sequence[str],
    watchers: Sequence[int],
) -> bool:
    """Look for a handler below a failed task: one that asks for its state, or one with a rule for failures, to which
    the failure travels on through tasks that are ``upstream_failed``."""
    if any(states[watcher] is TaskState.SUCCESS for watcher in watchers):
        return True
    open_, seen = [position], {position}
    while open_:
        for child in downstream[open_.pop()]:
            if child in seen:
                continue
            seen.add(child)
            if states[child] is TaskState.SUCCESS and rules[child] in HANDLING_RULES:
                return True
            if states[child] is TaskState.UPSTREAM_FAILED:
                open_.append(child)
    return False


def map_result(success: str, least: float, good: int, bad: int, skipped: int, total: int) -> TaskState | None:
    """Decide how a map ends, as soon as no index that is still open could change it; ``None`` until then.

    An index that was skipped is neither a success nor a failure, and a ratio is one of the others. Where all were
    skipped the map is skipped.

    :param success: ``all``, ``any``, ``min_count`` or ``min_ratio``; ``least`` is the count or the ratio.
    """
    left = total - good - bad - skipped
    if not good and not bad:
        return None if left else TaskState.SKIPPED
    if success == "min_ratio":
        met = good >= least * (good + bad + left) - _ROUNDING
        lost = good + left < least * (good + bad + left) - _ROUNDING
    else:
        needed = {"all": good + left + bad, "any": 1}.get(success, least)
        lost = good + left < needed
        met = good >= needed and (success != "all" or not left)
    return TaskState.FAILED if lost else TaskState.SUCCESS if met else None
