"""Finds what an expression can never work out, whatever its values: a text below a number, a sum of no list.

Every operator and function is tried on values of the kinds that are known, so that what is refused here and what fails
at run time are one list, in the same words.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from orchestrator.documents import did_you_mean
from orchestrator.errors import ExpressionError
from orchestrator.expressions.evaluation import FUNCTIONS, OPERATORS, WORDS, Expression, static_path
from orchestrator.expressions.paths import Path, path_text
from orchestrator.lasting import maker_of

_SAMPLES: Mapping[str, Any] = {
    "number": 1, "integer": 1, "string": "1", "array": [1], "object": {"1": 1}, "boolean": True,
}  # fmt: skip
_NUMERIC = (ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)
_OF_ITEMS = frozenset({"min", "max"})
"""What they return lies in the list they are given, and that is not known."""
_RESULTS = {"len": 1, "sum": 1, "abs": 1, "round": 1, "int": 1, "float": 1, "str": "1", "any": True, "all": True,
            "contains": True}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kind:
    """What is known of the values at a path."""

    type: str = ""
    """A type of JSON Schema; empty: not known."""
    words: tuple[str, ...] = ()
    """The only texts it may be; empty: any."""


@dataclass(frozen=True, slots=True)
class _Value:
    """A value of the right kind, or the very one."""

    value: Any
    is_exact: bool = False


_Known = _Value | None
_value = maker_of(_Value)


def kind_faults(expression: Expression, kind_of: Callable[[Path], Kind]) -> list[str]:
    """Return a sentence for each part of an expression that fails with any values of the kinds that are known."""
    trial = _Trial(kind_of)
    trial.value(expression.tree)
    return list(dict.fromkeys(trial.faults))


class _Trial:
    """One pass over an expression."""

    def __init__(self, kind_of: Callable[[Path], Kind]) -> None:
        self._kind_of = kind_of
        self.faults: list[str] = []

    def value(self, node: ast.AST) -> _Known:
        """Return what is known of a part; faults inside of it are kept."""
        work = self._works.get(type(node))
        return self._chosen(node) if work is None else work(self, node)

    def _exact(self, node: ast.Constant) -> _Value:
        return _value(node.value, True)

    def _turned(self, node: ast.UnaryOp) -> _Known:
        return self._tried(OPERATORS[type(node.op)], node, self.value(node.operand))

    def _listed(self, node: ast.List | ast.Tuple) -> _Value:
        items = [self.value(item) for item in node.elts]
        exact = [item.value for item in items if item is not None and item.is_exact]
        return _value(exact, True) if len(exact) == len(items) else _value(_SAMPLES["array"])

    def _combined(self, node: ast.BinOp) -> _Known:
        worked = self._tried(OPERATORS[type(node.op)], node, self.value(node.left), self.value(node.right))
        return worked or (_value(1) if isinstance(node.op, _NUMERIC) else None)

    def _read(self, node: ast.expr) -> _Known:
        path = static_path(node)
        if not path:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self.value(child)
            return None
        if len(path) == 1 and path[0] in WORDS:
            return _value(WORDS[str(path[0])], True)
        kind = self._kind_of(path).type
        return _value(_SAMPLES[kind]) if kind in _SAMPLES else None

    def _compared(self, node: ast.Compare) -> _Value:
        sides = [node.left, *node.comparators]
        values = [self.value(side) for side in sides]
        for at, sign in enumerate(node.ops):
            self._tried(OPERATORS[type(sign)], node, values[at], values[at + 1])
            if isinstance(sign, (ast.In, ast.NotIn)):
                self._require_words(sides[at], values[at + 1], list)
            elif isinstance(sign, (ast.Eq, ast.NotEq)):
                self._require_words(sides[at], values[at + 1], str)
                self._require_words(sides[at + 1], values[at], str)
        return _value(True)

    def _called(self, node: ast.Call) -> _Known:
        assert isinstance(node.func, ast.Name)
        name = node.func.id
        worked = self._tried(FUNCTIONS[name], node, *(self.value(item) for item in node.args))
        if name in _OF_ITEMS and not (worked is not None and worked.is_exact):
            return None
        return worked or (_value(_RESULTS[name]) if name in _RESULTS else None)

    def _chosen(self, node: ast.AST) -> _Known:
        """Return the kind that all of ``and``, ``or`` and the two sides of ``if`` have, if it is one."""
        if isinstance(node, ast.BoolOp):
            inner: list[ast.expr] = node.values
        else:
            inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        parts = [self.value(child) for child in inner]
        if isinstance(node, ast.IfExp):
            # Its fields are the condition and the two sides, in this order.
            parts = parts[1:]
        types = {None if part is None else type(part.value) for part in parts}
        return None if None in types or len(types) != 1 or parts[0] is None else _sample(parts[0].value)

    def _tried(self, work: Callable[..., Any], node: ast.expr, *values: _Known) -> _Known:
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        is_exact = all(value.is_exact for value in known)
        try:
            found = work(*(value.value for value in known))
        except ExpressionError as error:
            self.faults.append(f"{_text(node)} can never be worked out: {error}")
        except (ArithmeticError, TypeError, ValueError, LookupError) as error:
            if is_exact:
                self.faults.append(f"{_text(node)} can never be worked out: {error}.")
        else:
            return _value(found, True) if is_exact else _sample(found)
        return None

    def _require_words(self, side: ast.expr, other: _Known, kind: type[str | list[Any]]) -> None:
        """Refuse a text that is never there, such as the state ``sucess``."""
        if other is None or not isinstance(other.value, kind) or not other.is_exact or not (path := static_path(side)):
            return
        words: Collection[str] = self._kind_of(path).words
        if not words:
            return
        for word in other.value if isinstance(other.value, list) else [other.value]:
            if isinstance(word, str) and word not in words:
                hint = did_you_mean(word, words)
                self.faults.append(f"{path_text(path)} is never {word!r}; it is one of {', '.join(words)}.{hint}")

    _works: ClassVar[Mapping[type, Callable[[Any, Any], _Known]]] = {
        ast.Constant: _exact,
        ast.Name: _read,
        ast.Attribute: _read,
        ast.Subscript: _read,
        ast.List: _listed,
        ast.Tuple: _listed,
        ast.BinOp: _combined,
        ast.UnaryOp: _turned,
        ast.Compare: _compared,
        ast.Call: _called,
    }
    """By the kind of a part, what looks at it; of all others :meth:`_chosen`."""


def _sample(value: Any) -> _Known:
    """Return a value of the same kind; of null nothing, for it may be anything else."""
    if isinstance(value, bool):
        return _value(True)
    if isinstance(value, (int, float)):
        return _value(1)
    if value is None:
        return None
    return _value("1" if isinstance(value, str) else [1] if isinstance(value, (list, tuple)) else {"1": 1})


def _text(node: ast.expr) -> str:
    text = ast.unparse(node)
    return repr(text if len(text) <= 100 else f"{text[:100]}…")
