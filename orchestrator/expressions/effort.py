"""How much an expression may read: each step is charged for what it looks at, before it is done.

A unit stands for some ten nanoseconds. What an operator does to a value is charged by the value's entries and
characters, so that no expression takes longer than a few milliseconds, however large the values and many its steps.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.errors import ExpressionError

MOST_READ = 600_000
"""Units of one evaluation: some five milliseconds."""
TOO_MUCH = (
    "It reads too much. Ask for less of it, or let a task upstream leave what is to be asked for, such as a count."
)

BEGIN, STEP = 2_000, 100
"""What it costs to begin, and each operator, value and function by itself."""
_COMPARED, _WRITTEN = 12, 24
"""For each entry, at any depth, of what is compared as a whole, or becomes text."""
_SHORT, _MIDDLE = 2_500, 30_000
"""Below, CPython looks for one text in another in a time that is their product; or, at worst, ten times as slowly."""

_MEMBERSHIP = (ast.In, ast.NotIn)
_EQUALITY = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot)


class Effort:
    """What one evaluation has read so far."""

    __slots__ = ("_most", "spent")

    def __init__(self, most: int = MOST_READ) -> None:
        self._most = most
        self.spent = BEGIN

    def charge(self, units: int) -> None:
        """Charge a step.

        :raises ExpressionError: that is more than an evaluation may read.
        """
        self.spent += units
        if self.spent > self._most:
            raise ExpressionError(TOO_MUCH)

    def comparing(self, sign: ast.cmpop, left: Any, right: Any) -> None:
        """Charge a comparison."""
        if isinstance(sign, _MEMBERSHIP):
            self._searching(right, left)
        elif isinstance(left, str) and isinstance(right, str):
            if len(left) == len(right) or not isinstance(sign, _EQUALITY):
                self.charge(min(len(left), len(right)) >> 6)
        elif isinstance(sign, _EQUALITY) and _has_entries(left) and _has_entries(right) and len(left) == len(right):
            self._whole(left, _COMPARED)

    def calling(self, function: str, given: Sequence[Any]) -> None:
        """Charge a function."""
        if function == "contains":
            self._searching(given[0], given[1])
        elif function == "str" and _has_entries(given[0]):
            self._whole(given[0], _WRITTEN)
        elif function in ("min", "max", "sum", "any", "all"):
            values = given[0] if len(given) == 1 else given
            if isinstance(values, (list, tuple)):
                self.charge(2 * len(values))
                if values and isinstance(values[0], str):
                    self.charge(5 * len(values))
                    self.charge(sum(len(value) for value in values if isinstance(value, str)) >> 3)

    def _searching(self, container: Any, item: Any) -> None:
        if isinstance(container, str):
            if isinstance(item, str):
                self.charge(_search(len(container), len(item)))
        elif isinstance(container, (list, tuple)):
            if _has_entries(item):
                self._whole(container, _COMPARED)
            else:
                self.charge(len(container) * (1 + (len(item) >> 4 if isinstance(item, str) else 0)))

    def _whole(self, value: Any, each: int) -> None:
        """Charge all that is in a value, at any depth; stops where that is too much already."""
        self.charge(each)
        unseen = [value]
        while unseen:
            found = unseen.pop()
            kind = type(found)
            if kind is str:
                self.charge(len(found) >> 3)
            elif kind is int:
                if found.bit_length() > 64:
                    # To write a number takes the square of its length; this one may have thousands of digits.
                    self.charge(found.bit_length() ** 2 // 10_000)
            elif isinstance(found, (list, tuple)):
                self.charge(each * len(found))
                unseen += found
            elif kind is dict or isinstance(found, Mapping):
                self.charge(2 * each * len(found) + (sum(map(len, found)) >> 3))
                unseen += found.values()


def _search(most: int, part: int) -> int:
    """Return what it costs at worst to look for a text in another one; both lengths are given."""
    if part == 1:
        return most >> 6
    if most < _SHORT:
        return most * min(part, 100) // 10
    return most if most < _MIDDLE else most >> 1


def _has_entries(value: Any) -> bool:
    return isinstance(value, (list, tuple, Mapping))
