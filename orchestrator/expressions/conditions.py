"""Reads an expression and refuses, before anything is worked out, all that is not plain arithmetic on JSON values."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from orchestrator.documents import did_you_mean
from orchestrator.errors import ExpressionError
from orchestrator.expressions.evaluation import FUNCTIONS, MAX_BITS, OPERATORS, SIZES, WORDS, Expression, static_path
from orchestrator.expressions.paths import Path
from orchestrator.expressions.remembered import Remembered

MAX_LENGTH = 500
MAX_NODES = 200
MAX_DEPTH = 40
"""Of brackets, operators and paths inside each other."""

_REFUSED = {
    ast.Lambda: "a function of its own",
    ast.ListComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.JoinedStr: "a formatted text",
    ast.Slice: "a slice",
    ast.Dict: "an object",
    ast.Set: "a set",
    ast.NamedExpr: "an assignment",
    ast.Starred: "a *",
}
_OPERATORS = (ast.unaryop, ast.operator, ast.cmpop)
_LEAVES = frozenset({*OPERATORS, ast.Name, ast.Constant})
"""What holds no other part."""
_STEPS = (ast.Name, ast.Attribute, ast.Subscript)
_SIGNS = frozenset({ast.Load, ast.And, ast.Or})
"""What says only that a part is read, or how those beside it go together."""


@Remembered
def compile_expression(text: str) -> Expression:
    """Read an expression.

    Names, ``a.b``, ``a['b']``, ``a[0]``; ``+ - * / // % **``; comparisons, ``in``, ``is``; ``and``, ``or``, ``not``;
    ``x if y else z``; lists; texts and numbers; ``true``, ``false``, ``null``; ``len min max sum abs round int float
    str any all contains``.

    :raises ExpressionError: it can't be read, is too long, or asks for something else.
    """
    tree = _parsed(text)
    paths: list[Path] = []
    functions: set[ast.AST] = set()
    for node, path in _walked(tree):
        _require_harmless(node)
        if path:
            _require_plain_steps(node, path)
            if node not in functions:
                paths.append(path)
        elif type(node) is ast.Call:
            functions.add(node.func)
    return Expression(text, frozenset(path for path in paths if len(path) > 1 or path[0] not in WORDS), tree)


@Remembered
def states_named(text: str) -> frozenset[str]:
    """Return the tasks whose state an expression asks for: such a condition handles what became of them.

    Nothing where the expression is empty or can't be read.
    """
    if not text:
        return frozenset()
    try:
        paths = compile_expression(text).references
    except ExpressionError:
        return frozenset()
    return frozenset(str(path[1]) for path in paths if len(path) == 3 and path[0] == "tasks" and path[2] == "state")


def _parsed(text: str) -> ast.expr:
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"The expression has {len(text)} characters; at most {MAX_LENGTH} are allowed.")
    if not text.strip():
        raise ExpressionError("The expression is empty.")
    if "\\" in text:
        raise ExpressionError("A backslash has no meaning in an expression; write a text in the other quotes.")
    if "{{" in text:
        raise ExpressionError("This is an expression by itself; write params.x and not {{ params.x }}.")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError(_unread(text, error)) from error


def _unread(text: str, error: Exception) -> str:
    hints = {"&&": "and", "||": "or", "!": "not"}
    for sign, word in hints.items():
        if sign in text.replace("!=", ""):
            return f"The expression can't be read; {sign} is written {word!r}."
    if isinstance(error, SyntaxError) and error.msg:
        if not error.offset:
            last = text.rsplit(maxsplit=1)[-1][-20:]
            return f"The expression can't be read: something is missing at its end, after {last!r}."
        at = f" at character {error.offset}"
        return f"The expression can't be read{at}: {error.msg.rstrip('.')}.{_hint(text.strip(), error.offset)}"
    return "The expression can't be read: it is nested too deep, or holds what is no character."


def _hint(text: str, offset: int) -> str:
    """Return what is probably meant by what can't be read at this character."""
    if (word := re.match(r"[A-Za-z]+", text[offset - 1 :])) and text[: offset - 1].rstrip().endswith("."):
        # ``import``, ``class``: of the language itself, and after a dot the only words that can't be read.
        return f" Write ['{word[0]}'] for .{word[0]}, which means something else here."
    return " Equality is ==." if re.search(r"(?<![=!<>])=(?!=)", text) else ""


def _walked(tree: ast.expr) -> Iterator[tuple[ast.AST, Path]]:
    """Yield every part, each before what it holds, and a path as one; stop where there are too many or they are nested
    too deep."""
    open_: list[tuple[ast.AST, int]] = [(tree, 1)]
    count = 0
    while open_:
        node, depth = open_.pop()
        path = static_path(node) if isinstance(node, _STEPS) else ()
        count += len(path) or 1
        depth += max(0, len(path) - 1)
        if count > MAX_NODES:
            raise ExpressionError(f"The expression has more than {MAX_NODES} parts; split it over several tasks.")
        if depth > MAX_DEPTH:
            raise ExpressionError(f"The expression is nested more than {MAX_DEPTH} deep; make it flatter.")
        yield node, path
        if not path and type(node) not in _LEAVES:
            depth += 1
            for name in node._fields:
                value = getattr(node, name)
                if type(value) is list:
                    open_ += [(part, depth) for part in value]
                elif isinstance(value, ast.AST) and type(value) not in _SIGNS:
                    open_.append((value, depth))


def _require_known_call(node: ast.Call) -> None:
    if not isinstance(node.func, ast.Name):
        raise ExpressionError(f"There are no methods here, only {', '.join(FUNCTIONS)}.")
    name = node.func.id
    if name not in FUNCTIONS:
        hint = did_you_mean(name, FUNCTIONS)
        raise ExpressionError(f"There is no function {name!r}; there are {', '.join(FUNCTIONS)}.{hint}")
    least, most = SIZES.get(name, (1, 1))
    if not least <= len(node.args) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise ExpressionError(f"{name} takes {wanted} value{'' if wanted == '1' else 's'}, not {len(node.args)}.")


def _require_plain_steps(node: ast.AST, path: Path) -> None:
    """Look into a path that was yielded as one part."""
    for part in path:
        if isinstance(part, int):
            _require_json(part)
        elif part.startswith("__"):
            break
    else:
        return
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        _require_path(node)
        node = node.value


def _require_path(node: ast.Attribute | ast.Subscript) -> None:
    if isinstance(node, ast.Attribute) and node.attr.startswith("__"):
        raise ExpressionError(f"There is no {node.attr!r}; a field whose name begins so is written ['{node.attr}'].")
    if not isinstance(node.value, (ast.Name, ast.Attribute, ast.Subscript)):
        raise ExpressionError("Only what has a name can be followed by . or [ ].")


def _require_json(value: object) -> None:
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise ExpressionError(f"{value!r:.60} is no JSON value.")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ExpressionError("A whole number in the expression is too large.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ExpressionError("A number in the expression is too large.")


_CHECKS: Mapping[type, Callable[[Any], None] | None] = {
    **dict.fromkeys(OPERATORS),
    **dict.fromkeys((ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Name, ast.List, ast.Tuple)),
    ast.Call: _require_known_call,
    ast.Attribute: _require_path,
    ast.Subscript: _require_path,
    ast.Constant: lambda node: _require_json(node.value),
}
"""Every kind of part there may be, and what is asked of it."""


def _require_harmless(node: ast.AST) -> None:
    kind = type(node)
    if kind not in _CHECKS:
        raise ExpressionError(_refusal(node))
    if (check := _CHECKS[kind]) is not None:
        check(node)


def _refusal(node: ast.AST) -> str:
    if isinstance(node, _OPERATORS):
        return "There are no operations on bits and no matrices here."
    if isinstance(node, ast.keyword):
        return "Functions take no named values here."
    return f"An expression can't hold {_REFUSED.get(type(node), f'a {type(node).__name__}')}."
