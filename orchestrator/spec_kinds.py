"""What may stand in the fields that say how a task runs: map, repeat, pipeline, approval, event, teardown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.documents import did_you_mean, kind_of
from orchestrator.errors import Problem
from orchestrator.field_checks import (
    Check,
    field_problems,
    is_flag,
    is_name,
    is_number,
    is_object,
    is_one_of,
    is_parameters,
    is_text,
    is_upstreams,
)
from orchestrator.spec_policies import MAX_KEY, YEAR, form_problems, is_filled_text
from orchestrator.sweep import MAX_SIZE, known_size, over_problems

ON_MAX = ("fail", "succeed")
ON_APPROVAL_TIMEOUT = ("fail", "approve", "reject")
ON_REJECT = ("fail", "skip")
ON_EVENT_TIMEOUT = ("fail", "skip")
MAX_ROUNDS = 1000
DEFAULT_SIZE = 1000
MAX_EXPRESSION = 500


def _is_over(value: Any) -> str | None:
    if isinstance(value, (str, list, Mapping)):
        return None
    hint = ' For the numbers below n write {"range": n}.' if isinstance(value, int) else ""
    return f"must be a list, a template, or an object with range, grid, random or zip, not {kind_of(value)}.{hint}"


def _is_success(value: Any) -> str | None:
    if isinstance(value, Mapping):
        return None
    if value in ("all", "any"):
        return None
    hint = did_you_mean(value, ("all", "any")) if isinstance(value, str) else ""
    return f'must be "all", "any", {{"min_count": 3}} or {{"min_ratio": 0.8}}.{hint}'


_MAP: Mapping[str, Check] = {
    "over": _is_over,
    "max_parallel": is_number(1, MAX_SIZE, whole=True),
    "max_size": is_number(1, MAX_SIZE, whole=True),
    "success": _is_success,
    "fail_fast": is_flag,
    "key": is_filled_text(MAX_KEY),
}
_SUCCESS: Mapping[str, Check] = {
    "min_count": is_number(1, MAX_SIZE, whole=True),
    "min_ratio": is_number(0, 1, above=True),
}
_REPEAT: Mapping[str, Check] = {
    "until": is_filled_text(MAX_EXPRESSION),
    "max": is_number(1, MAX_ROUNDS, whole=True),
    "delay_seconds": is_number(0, YEAR),
    "on_max": is_one_of(*ON_MAX),
}
_PIPELINE: Mapping[str, Check] = {
    "name": is_name,
    "version": is_number(1, 2**31 - 1, whole=True),
    "parameters": is_parameters,
    "wait": is_flag,
    "inherit": is_flag,
}
_APPROVAL: Mapping[str, Check] = {
    "message": is_text(10_000),
    "input": is_object,
    "timeout_seconds": is_number(0, YEAR, above=True),
    "on_timeout": is_one_of(*ON_APPROVAL_TIMEOUT),
    "on_reject": is_one_of(*ON_REJECT),
}
_EVENT: Mapping[str, Check] = {
    "timeout_seconds": is_number(0, YEAR, above=True),
    "on_timeout": is_one_of(*ON_EVENT_TIMEOUT),
    "payload": is_object,
}


def is_teardown(value: Any) -> str | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, list):
        return is_upstreams(value) or (None if value else "is empty; name its set-up tasks, or write true")
    return f"must be true or a list of its set-up tasks, not {kind_of(value)}"


def map_problems(map_: Mapping[str, Any], pointer: str) -> Iterator[Problem]:
    """Yield what is wrong with ``map``."""
    found = field_problems(map_, _MAP, pointer, ("over",))
    yield from found
    faulty = {problem.pointer for problem in found}
    success = map_.get("success")
    if isinstance(success, Mapping):
        here = f"{pointer}/success"
        yield from field_problems(success, _SUCCESS, here, ())
        if len(success) != 1:
            yield Problem(here, 'Give exactly one of {"min_count": 3} and {"min_ratio": 0.8}, or "all" or "any".')
    if "over" in map_ and not faulty & {f"{pointer}/over", f"{pointer}/max_size"}:
        found = over_problems(map_["over"], int(map_.get("max_size", DEFAULT_SIZE)), f"{pointer}/over")
        yield from found
        if not found:
            yield from _unreachable(map_, f"{pointer}/success/min_count")


def _unreachable(map_: Mapping[str, Any], pointer: str) -> Iterator[Problem]:
    success, size = map_.get("success"), known_size(map_["over"])
    least = success.get("min_count") if isinstance(success, Mapping) else None
    if size and isinstance(least, (int, float)) and least > size:
        message = f"The map has {size} item{'s' if size > 1 else ''}, so {least:g} of them never succeed; lower it."
        yield Problem(pointer, message)


def repeat_problems(repeat: Mapping[str, Any], pointer: str) -> Iterator[Problem]:
    """Yield what is wrong with ``repeat``."""
    yield from field_problems(repeat, _REPEAT, pointer, ("until", "max"))


def pipeline_problems(child: Mapping[str, Any], pointer: str) -> Iterator[Problem]:
    """Yield what is wrong with ``pipeline``, a run of another pipeline."""
    yield from field_problems(child, _PIPELINE, pointer, ("name",))


def approval_problems(approval: Mapping[str, Any], pointer: str) -> Iterator[Problem]:
    """Yield what is wrong with ``approval``."""
    yield from field_problems(approval, _APPROVAL, pointer, ("message",))
    yield from _without_timeout(approval, pointer)
    if isinstance(approval.get("input"), Mapping):
        yield from form_problems(approval["input"], f"{pointer}/input")


def event_problems(event: Mapping[str, Any], pointer: str) -> Iterator[Problem]:
    """Yield what is wrong with ``event``."""
    yield from field_problems(event, _EVENT, pointer, ())
    yield from _without_timeout(event, pointer)
    if isinstance(event.get("payload"), Mapping):
        yield from form_problems(event["payload"], f"{pointer}/payload")


def _without_timeout(waiting: Mapping[str, Any], pointer: str) -> Iterator[Problem]:
    if "on_timeout" in waiting and "timeout_seconds" not in waiting:
        yield Problem(f"{pointer}/on_timeout", "It never times out; add 'timeout_seconds' or leave 'on_timeout' out.")
