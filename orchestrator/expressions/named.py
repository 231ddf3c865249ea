"""Which tasks an expression names, seen from its text alone where that is plain enough.

To read an expression takes twenty times as long, and a leader that takes in a pipeline of 10,000 conditions needs no
more of them than this.
"""

from __future__ import annotations

import re

from orchestrator.errors import ExpressionError
from orchestrator.expressions.paths import Path, parse_path

_TASK = re.compile(
    r"""(?<![\w.])tasks(?:\.[A-Za-z_]\w*|\[\s*(?:-?[0-9]{1,9}|'[^'\\]*'|"[^"\\]*")\s*\])+(?!\w)""",
    re.VERBOSE | re.ASCII,
)
_MARK = "\0"
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_UNCLEAR = re.compile(r"tasks|outputs|repeat|\.\s*\0|\w\0|\0\s*\.|[#\\]|'''|\"\"\"", re.ASCII)
"""What is not seen at once: another way to write a path, what is only a part of one, comments, other quotes."""


def plainly_named(text: str) -> list[Path] | None:
    """Return the paths into tasks of a text that is an expression and names no loop and no round; ``None`` where that
    can't be seen at once."""
    if _MARK in text or not text.isascii():
        # Python takes many a character for a letter of a name.
        return None
    rest = _TASK.sub(_MARK, text)
    if _UNCLEAR.search(rest) or any(_MARK in quoted for quoted in _QUOTED.findall(rest)):
        return None
    try:
        paths = [parse_path(path) for path in _TASK.findall(text)]
    except ExpressionError:
        # It has more parts than a path may have in a template.
        return None
    return paths if all(path[2:3] in (("state",), ("outputs",)) for path in paths) else None
