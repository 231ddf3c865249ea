"""What a map goes over: a list, a range, a grid, random samples or a zip become one list of items; pure and repeatable.

The same ``over`` gives the same items on every host and release, in the same order: names of parameters are taken in
the order of the alphabet (JSON keeps none), and random numbers come from ``random.Random.random()`` alone, the one
method whose sequence Python promises to keep.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.documents import did_you_mean, escaped, kind_of
from orchestrator.errors import Problem, SweepError
from orchestrator.expressions.templates import OPEN

KINDS = ("range", "grid", "random", "zip")
MAX_SIZE = 10_000
MAX_EXPANDED = 10_000
"""Task runs that a map makes at once: its items by the tasks of its group."""
MAX_TASK_RUNS = 20_000
"""Task runs of a run, those of all its maps and repeats included."""
MAX_NAMES = 50
_BESIDE = ("samples", "seed")
_SPREAD = ("low", "high", "log", "integer")
_LARGEST = 2**53
"""Up to which every whole number is a float too."""
_DEFAULT_SEED = 0


def items(over: Any, max_size: int = MAX_SIZE) -> list[Any]:
    """Return the items of a map, each a JSON value; of a grid, samples or a zip an object with a value for each name.

    :param over: with its templates resolved.
    :raises SweepError: it is nothing to go over, or has more than ``max_size`` items; none of them is built then.
    """
    _require_size(_Reader(templates=False).size(over), max_size)
    if isinstance(over, (list, tuple)):
        return list(over)
    if "range" in over:
        return list(range(*_bounds(over["range"])))
    kind = next(kind for kind in KINDS if kind in over)
    names = sorted(over[kind])
    values = [over[kind][name] for name in names]
    if kind == "grid":
        rows: Iterator[tuple[Any, ...]] = itertools.product(*values)
    elif kind == "zip":
        rows = zip(*values, strict=True)
    else:
        rows = _samples(names, values, over["samples"], over.get("seed", _DEFAULT_SEED))
    return [dict(zip(names, row, strict=True)) for row in rows]


def over_problems(over: Any, max_size: int, pointer: str) -> list[Problem]:
    """Return what can be seen to be wrong before templates are resolved: the first fault, if there is one.

    :param pointer: where ``over`` stands in the document.
    """
    try:
        size = _Reader(templates=True).size(over)
        if size is not None:
            _require_size(size, max_size)
    except SweepError as error:
        return [Problem(f"{pointer}{error.pointer}", str(error))]
    return []


def known_size(over: Any) -> int | None:
    """Return how many items there will be, ``None`` where a template decides, or where a fault is in it."""
    try:
        return _Reader(templates=True).size(over)
    except SweepError:
        return None


class _Reader:
    """Counts items without building any. Where a template stands for a list or a number, nothing is known yet."""

    def __init__(self, *, templates: bool) -> None:
        self._templates = templates

    def size(self, over: Any) -> int | None:
        """Return how many items there are; ``None``: a template decides.

        :raises SweepError: a part of it is not what it has to be.
        """
        if self._is_open(over):
            return None
        if isinstance(over, (list, tuple)):
            return len(over)
        if not isinstance(over, Mapping):
            hint = ' For the numbers below n write {"range": n}.' if _is_whole(over) else ""
            raise SweepError(f"A map goes over a list, or an object with {_words()}; not over {kind_of(over)}.{hint}")
        kind = _kind_of_sweep(over)
        if kind == "range":
            return self._range(over["range"])
        lengths = self._lengths(kind, over[kind])
        if kind == "random":
            return self._samples(over)
        known = [length for length in lengths if length is not None]
        if kind == "grid":
            return math.prod(known) if len(known) == len(lengths) or 0 in known else None
        if len(set(known)) > 1:
            raise SweepError("The lists of a zip have different lengths; make them equally long.", "/zip")
        return known[0] if known else None

    def _range(self, value: Any) -> int | None:
        parts = list(value) if isinstance(value, (list, tuple)) else [value]
        if not 1 <= len(parts) <= 3:
            raise SweepError("A range is a number, or [start, stop] or [start, stop, step].", "/range")
        if any(self._is_open(part) for part in parts):
            return None
        if not all(map(_is_whole, parts)):
            raise SweepError("A range is of whole numbers; write a list for others.", "/range")
        if len(parts) == 3 and parts[2] == 0:
            raise SweepError("The step of a range is not 0.", "/range/2")
        start, stop, step = _bounds(value)
        return max(0, -((start - stop) // step))

    def _lengths(self, kind: str, named: Any) -> list[int | None]:
        """Return the length of each name's list; of samples every spread counts as one."""
        if not isinstance(named, Mapping):
            raise SweepError(f"{kind!r} is an object of names to lists, not {kind_of(named)}.", f"/{kind}")
        if not 1 <= len(named) <= MAX_NAMES:
            raise SweepError(f"{kind!r} has {len(named)} names; 1 to {MAX_NAMES} are allowed.", f"/{kind}")
        return [self._length(kind, value, f"/{kind}/{escaped(name)}") for name, value in sorted(named.items())]

    def _length(self, kind: str, value: Any, pointer: str) -> int | None:
        if self._is_open(value):
            return None
        if isinstance(value, (list, tuple)):
            if kind == "random" and not value:
                raise SweepError("There is nothing to choose from.", pointer)
            return len(value)
        if kind == "random" and isinstance(value, Mapping):
            self._spread(value, pointer)
            return 1
        wanted = 'a list or {"low": …, "high": …}' if kind == "random" else "a list"
        raise SweepError(f"This is {kind_of(value)}; give {wanted}.", pointer)

    def _spread(self, value: Mapping[str, Any], pointer: str) -> None:
        for name in value:
            if name not in _SPREAD:
                hint = did_you_mean(str(name), _SPREAD)
                raise SweepError(f"There is no field {str(name)[:100]!r} here.{hint}", f"{pointer}/{escaped(name)}")
        for name in ("log", "integer"):
            if not isinstance(value.get(name, False), bool):
                raise SweepError(f"{name!r} is true or false.", f"{pointer}/{name}")
        for name in ("low", "high"):
            self._end(value, name, pointer)
        low, high = value["low"], value["high"]
        if _is_number(low) and value.get("log") and low <= 0:
            raise SweepError("A logarithmic spread begins above 0.", f"{pointer}/low")
        if _is_number(low) and _is_number(high) and high < low:
            raise SweepError(f"'high' ({high:g}) is below 'low' ({low:g}).", f"{pointer}/high")

    def _end(self, value: Mapping[str, Any], name: str, pointer: str) -> None:
        """Refuse an end of a spread that is no number, or no whole one where whole ones are wanted."""
        if name not in value:
            raise SweepError(f"{name!r} is missing.", f"{pointer}/{name}")
        if self._is_open(value[name]):
            return
        if not _is_number(value[name]):
            raise SweepError(f"{name!r} is a number from -2**53 to 2**53.", f"{pointer}/{name}")
        if value.get("integer") and not _is_whole(value[name]):
            raise SweepError(f"{name!r} of whole numbers is a whole number.", f"{pointer}/{name}")

    def _samples(self, over: Mapping[str, Any]) -> int | None:
        if "samples" not in over:
            raise SweepError("'samples' is missing: how many to draw.", "/samples")
        seed = over.get("seed", _DEFAULT_SEED)
        if not self._is_open(seed) and not _is_whole(seed):
            raise SweepError("'seed' is a whole number.", "/seed")
        samples = over["samples"]
        if self._is_open(samples):
            return None
        if not _is_whole(samples) or samples < 1:
            raise SweepError("'samples' is a whole number from 1.", "/samples")
        return int(samples)

    def _is_open(self, value: Any) -> bool:
        return self._templates and isinstance(value, str) and OPEN in value


def _kind_of_sweep(over: Mapping[str, Any]) -> str:
    """Return which of the kinds an object is, and refuse what does not belong beside it."""
    kinds = [kind for kind in KINDS if kind in over]
    if len(kinds) != 1:
        raise SweepError(f"What a map goes over has exactly one of {_words()}, and this has {len(kinds)} of them.")
    (kind,) = kinds
    allowed = (kind, *_BESIDE) if kind == "random" else (kind,)
    for name in over:
        if name not in allowed:
            hint = did_you_mean(str(name), allowed)
            raise SweepError(f"There is no field {str(name)[:100]!r} beside {kind!r}.{hint}", f"/{escaped(name)}")
    return kind


def _samples(names: list[str], spreads: list[Any], samples: int, seed: int) -> Iterator[tuple[Any, ...]]:
    """Draw; every name has numbers of its own, so that another one beside it changes none of them."""
    # A text as seed goes through SHA-512, on every release of Python alike.
    draws = [random.Random(f"{int(seed)}/{name}") for name in names]
    for _ in range(int(samples)):
        yield tuple(_drawn(spread, draw.random()) for spread, draw in zip(spreads, draws, strict=True))


def _drawn(spread: Any, share: float) -> Any:
    """Return the value that lies at this share (from 0 to below 1) of a list or a spread."""
    if isinstance(spread, (list, tuple)):
        return spread[int(share * len(spread))]
    low, high = spread["low"], spread["high"]
    above = high + 1 if spread.get("integer") else high
    if spread.get("log"):
        found = math.exp(math.log(low) + share * (math.log(above) - math.log(low)))
    else:
        found = low + share * (above - low)
    # Rounding may lead past an end.
    return min(max(math.floor(found), int(low)), int(high)) if spread.get("integer") else min(max(found, low), high)


def _require_size(size: int | None, max_size: int) -> None:
    if size is None:
        raise SweepError("What the map goes over holds a template that was not resolved.")
    if size > max_size:
        message = f"The map has {size} items; at most {max_size} are allowed. Raise max_size or go over fewer."
        raise SweepError(message, too_many=True)


def _bounds(value: Any) -> tuple[int, int, int]:
    parts = [int(part) for part in value] if isinstance(value, (list, tuple)) else [int(value)]
    if len(parts) == 1:
        return 0, parts[0], 1
    return parts[0], parts[1], parts[2] if len(parts) == 3 else 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value == int(value)


def _words() -> str:
    return ", ".join(repr(kind) for kind in KINDS[:-1]) + f" or {KINDS[-1]!r}"
