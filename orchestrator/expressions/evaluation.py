"""Works an expression out: simpleeval's SimpleEval, narrowed to JSON values, paths and a few bounded functions.

What simpleeval offers beyond that is left out here, node by node: attributes of objects, methods, keywords, formatted
texts, slices, comprehensions. So the only objects an expression ever meets are JSON values (CVE-2026-32640 was about
others), and every step is charged for what it reads of the values, before it is done (:class:`Effort`).
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simpleeval import InvalidExpression, SimpleEval

from orchestrator.errors import ExpressionError
from orchestrator.expressions.effort import STEP, Effort
from orchestrator.expressions.paths import Missing, Path, value_at
from orchestrator.expressions.texts import as_text

MAX_TEXT = 100_000
"""Characters of a text that an expression makes."""
MAX_BITS = 1024
"""Of a whole number that an expression makes; floats end there too."""
MAX_DIGITS = 15
"""That a number can be rounded to."""
WORDS: Mapping[str, Any] = {"true": True, "false": False, "null": None}
"""JSON's own, beside Python's True, False and None."""

_NO_PATH: Path = ()
_NUMBERS = frozenset((int, float))
_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression that was read and found harmless; made by :func:`compile_expression`."""

    text: str
    references: frozenset[Path]
    """The paths it reads; where it goes on with a computed index, the part before."""
    tree: ast.expr

    def evaluate(self, values: Mapping[str, Any], effort: Effort | None = None) -> Any:
        """Work it out.

        A path that leads nowhere is null; null is neither less nor greater than anything, and contains nothing.

        :param values: ``{"params": …, "tasks": {name: {"state": …, "outputs": …}}, …}``.
        :param effort: counts what is read; one of its own where there is none.
        :raises ExpressionError: it can't be worked out with these values, or reads too much of them.
        """
        try:
            return _Evaluator(values, effort or Effort()).eval(self.text, self.tree)
        except ExpressionError as error:
            raise ExpressionError(f"{self._shown} can't be worked out: {error}") from error
        except (InvalidExpression, ArithmeticError, TypeError, ValueError, LookupError, RecursionError) as error:
            raise ExpressionError(f"{self._shown} can't be worked out: {error}.") from error

    @property
    def _shown(self) -> str:
        return repr(self.text if len(self.text) <= 100 else f"{self.text[:100]}…")


class _Evaluator(SimpleEval):  # type: ignore[misc]
    """SimpleEval over JSON; one for each evaluation, for it keeps the values."""

    nodes: dict[type, Callable[[Any], Any]]

    def __init__(self, values: Mapping[str, Any], effort: Effort) -> None:
        super().__init__(operators=OPERATORS, functions=FUNCTIONS, names={})
        self._values = values
        self._effort = effort
        own: dict[type, Callable[[Any], Any]] = {
            ast.Name: self._read,
            ast.Attribute: self._read,
            ast.Subscript: self._read,
            ast.List: self._listed,
            ast.Tuple: self._listed,
            ast.Compare: self._compared,
            ast.Call: self._called,
        }
        kept = (ast.Constant, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.IfExp)
        self.nodes = {**{kind: self.nodes[kind] for kind in kept}, **own}

    def _eval(self, node: ast.expr) -> Any:
        self._effort.charge(STEP)
        found = super()._eval(node)
        if isinstance(found, str):
            self._effort.charge(len(found) >> 6)
        return found

    def _read(self, node: ast.expr) -> Any:
        """Follow a path as far as it is written, then its computed indices."""
        if isinstance(node, ast.Name) and node.id in WORDS:
            return WORDS[node.id]
        if path := static_path(node):
            try:
                return value_at(self._values, path)
            except Missing:
                return None
        # What is left are subscripts with a computed index, and what is written behind them.
        if isinstance(node, ast.Attribute):
            return _item(self._eval(node.value), node.attr)
        assert isinstance(node, ast.Subscript)
        return _item(self._eval(node.value), self._eval(node.slice))

    def _listed(self, node: ast.List | ast.Tuple) -> list[Any]:
        return [self._eval(item) for item in node.elts]

    def _compared(self, node: ast.Compare) -> Any:
        """As simpleeval does; each comparison is charged before it is made."""
        right, is_so = self._eval(node.left), True
        for sign, part in zip(node.ops, node.comparators, strict=True):
            left, right = right, self._eval(part)
            self._effort.comparing(sign, left, right)
            if not (is_so := OPERATORS[type(sign)](left, right)):
                break
        return is_so

    def _called(self, node: ast.Call) -> Any:
        assert isinstance(node.func, ast.Name)
        given = [self._eval(part) for part in node.args]
        self._effort.calling(node.func.id, given)
        return FUNCTIONS[node.func.id](*given)

    def _check_disallowed_items(self, item: Any) -> None:
        """Let JSON values through and nothing else.

        In place of simpleeval's own search through everything below every value that is read, for functions and
        modules: no name leads to one here, and it would walk all outputs of a run for each of their names.
        """
        if isinstance(item, float) and not math.isfinite(item):
            raise ExpressionError(f"{item} is no JSON number.")
        _require_bounded(item)
        if item is not None and not isinstance(item, (bool, int, float, str, list, tuple, Mapping)):
            raise ExpressionError(f"A {type(item).__name__} is no JSON value.")


def static_path(node: ast.expr) -> Path:
    """Return the path that a chain of names and constant indices is; empty for anything else."""
    parts: list[str | int] = []
    while True:
        if isinstance(node, ast.Name):
            return (node.id, *reversed(parts))
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
        elif isinstance(node, ast.Subscript) and (part := _constant_index(node.slice)) is not None:
            parts.append(part)
        else:
            return _NO_PATH
        node = node.value


def _constant_index(node: ast.expr) -> str | int | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        number = node.operand.value
        return -number if isinstance(number, int) and not isinstance(number, bool) else None
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int)) and not isinstance(node.value, bool):
        return node.value
    return None


def _item(found: Any, part: Any) -> Any:
    """Return an entry, or null where there is none; an index of the wrong type is a mistake."""
    if isinstance(found, Mapping) and isinstance(part, str):
        return found.get(part)
    if isinstance(found, (list, tuple)) and isinstance(part, int) and not isinstance(part, bool):
        return found[part] if -len(found) <= part < len(found) else None
    if found is None or part is None:
        return None
    kind = "an object" if isinstance(found, Mapping) else "a list" if isinstance(found, (list, tuple)) else "this"
    # Only what is short is shown: to write a long list costs more than all else here.
    shown = repr(part[:60]) if isinstance(part, str) else part if _is_number(part) else _kind(part)
    raise ExpressionError(f"{kind} has no entry {shown}.")


def _require_bounded(number: Any) -> None:
    if isinstance(number, int) and number.bit_length() > MAX_BITS:
        raise ExpressionError("A whole number gets too large.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _numbers(sign: str, work: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def worked(left: Any, right: Any) -> Any:
        if not (_is_number(left) and _is_number(right)):
            raise ExpressionError(f"{sign} takes two numbers, not {_kind(left)} and {_kind(right)}.")
        return work(left, right)

    return worked


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, str) and isinstance(right, str):
        if len(left) + len(right) > MAX_TEXT:
            raise ExpressionError(f"A text gets longer than {MAX_TEXT} characters.")
        return left + right
    if _is_number(left) and _is_number(right):
        return left + right
    raise ExpressionError(f"+ takes two numbers or two texts, not {_kind(left)} and {_kind(right)}.")


def _power(number: Any, exponent: Any) -> Any:
    whole = isinstance(number, int) and isinstance(exponent, int)
    if whole and exponent >= 0 and number.bit_length() * exponent > MAX_BITS and abs(number) > 1:
        raise ExpressionError("A power gets too large.")
    try:
        found = float(number) ** exponent if whole and exponent < 0 else number**exponent
    except OverflowError as error:
        raise ExpressionError("A power gets too large.") from error
    if isinstance(found, complex):
        raise ExpressionError("A root of a negative number is no JSON number.")
    return found


def _ordered(work: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def worked(left: Any, right: Any) -> bool:
        if left is None or right is None:
            return False
        if (_is_number(left) and _is_number(right)) or (isinstance(left, str) and isinstance(right, str)):
            return work(left, right)
        raise ExpressionError(f"{_kind(left)} and {_kind(right)} have no order.")

    return worked


def _contains(container: Any, item: Any) -> bool:
    if container is None:
        return False
    if isinstance(container, str):
        return isinstance(item, str) and item in container
    if isinstance(container, Mapping):
        return isinstance(item, str) and item in container
    if isinstance(container, (list, tuple)):
        return item in container
    raise ExpressionError(f"Nothing is in {_kind(container)}.")


def _sequence(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise ExpressionError(f"{name} takes a list, not {_kind(value)}.")
    return value


def _length(value: Any) -> int:
    if not isinstance(value, (str, list, tuple, Mapping)):
        raise ExpressionError(f"{_kind(value)} has no length.")
    return len(value)


def _extreme(name: str, work: Callable[[Any], Any]) -> Callable[..., Any]:
    def worked(*given: Any) -> Any:
        values = _sequence(given[0], f"{name} with one value") if len(given) == 1 else given
        if not values:
            raise ExpressionError(f"{name} of nothing.")
        if not ((kinds := {*map(type, values)}) <= _NUMBERS or kinds == {str}):
            raise ExpressionError(f"{name} takes numbers, or texts, and not both.")
        return work(values)

    return worked


def _sum(values: Any) -> Any:
    if not {*map(type, _sequence(values, "sum"))} <= _NUMBERS:
        raise ExpressionError("sum takes a list of numbers.")
    found: Any = 0
    for at in range(0, len(values), _AT_ONCE):
        found = sum(values[at : at + _AT_ONCE], found)
        # A number of thousands of digits would make each of the steps that follow as slow as it is long.
        _require_bounded(found)
    return found


def _absolute(value: Any) -> Any:
    if not _is_number(value):
        raise ExpressionError(f"abs takes a number, not {_kind(value)}.")
    return abs(value)


def _round(value: Any, digits: Any = None) -> Any:
    if not _is_number(value):
        raise ExpressionError(f"round takes a number, not {_kind(value)}.")
    if digits is not None and not (isinstance(digits, int) and abs(digits) <= MAX_DIGITS):
        raise ExpressionError(f"round takes -{MAX_DIGITS} to {MAX_DIGITS} digits.")
    return round(value, digits)


def _converted(kind: type[int | float]) -> Callable[[Any], Any]:
    def worked(value: Any) -> Any:
        if not isinstance(value, (int, float, str)) or (isinstance(value, str) and len(value) > 400):
            raise ExpressionError(f"{kind.__name__} takes a number, or a short text that is one, not {_kind(value)}.")
        return kind(value)

    return worked


def _text(value: Any) -> str:
    text = as_text(value)
    if len(text) > MAX_TEXT:
        raise ExpressionError(f"A text gets longer than {MAX_TEXT} characters.")
    return text


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    kinds: tuple[tuple[Any, str], ...] = (
        (bool, "true or false"), ((int, float), "a number"), (str, "a text"), (Mapping, "an object"),
    )  # fmt: skip
    return next((word for kind, word in kinds if isinstance(value, kind)), "a list")


def _is(left: Any, right: Any) -> bool:
    return left is right if left is None or right is None else bool(left == right)


OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: _add,
    ast.Sub: _numbers("-", operator.sub),
    ast.Mult: _numbers("*", operator.mul),
    ast.Div: _numbers("/", operator.truediv),
    ast.FloorDiv: _numbers("//", operator.floordiv),
    ast.Mod: _numbers("%", operator.mod),
    ast.Pow: _numbers("**", _power),
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: _ordered(operator.lt),
    ast.LtE: _ordered(operator.le),
    ast.Gt: _ordered(operator.gt),
    ast.GtE: _ordered(operator.ge),
    ast.In: lambda item, container: _contains(container, item),
    ast.NotIn: lambda item, container: not _contains(container, item),
    ast.Is: _is,
    ast.IsNot: lambda left, right: not _is(left, right),
    ast.Not: operator.not_,
    ast.USub: lambda value: _numbers("-", operator.sub)(0, value),
    ast.UAdd: lambda value: _numbers("+", operator.add)(0, value),
}
"""All there are; no bits, no shifts."""

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "len": _length,
    "min": _extreme("min", min),
    "max": _extreme("max", max),
    "sum": _sum,
    "abs": _absolute,
    "round": _round,
    "int": _converted(int),
    "float": _converted(float),
    "str": _text,
    "any": lambda values: any(_sequence(values, "any")),
    "all": lambda values: all(_sequence(values, "all")),
    "contains": _contains,
}
"""All there are, and each by its name alone."""

SIZES: Mapping[str, tuple[int, int]] = {"min": (1, 100), "max": (1, 100), "round": (1, 2), "contains": (2, 2)}
"""How many values a function takes, where it is not one."""
