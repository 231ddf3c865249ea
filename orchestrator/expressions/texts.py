"""Texts of values, as they stand inside a longer text: none is made longer than it is wanted, or twice while a round
lasts, and all that is read for them is counted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

LOOKED_UP, AGAIN, ENTRY = 100, 15, 5
"""What it costs to follow a path, to put in once more what it has led to, and to copy an entry of a list or an object:
in characters, a hundred of which take some two microseconds."""
_SEEN = 2
"""What it costs to look at an entry."""
_LOOKED_AT_FIRST = 2**20
"""Characters up to which it is first seen whether a text would be longer. More is hardly kept of anything, and so its
text is simply made."""
_MOST_KNOWN, _MOST_REMEMBERED, _MOST_BEGUN = 10_000, 16 * 2**20, 1_000
"""Texts, their characters, and beginnings of texts that are remembered."""
_PLAIN = frozenset({int, float, bool, type(None)})
_LASTING = frozenset({list, dict})
"""Of these the texts are remembered. A mapping of ours is made anew each time that it is looked up, and holds on to the
task that it tells of."""


def as_text(value: Any) -> str:
    """Return a value as it stands inside a longer text: a text itself, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_entries)


class Texts:
    """Texts of values, and how many characters were read for them, whatever came of it.

    They are remembered as long as it lives, by the value and not by what it is equal to: no value may change meanwhile.
    """

    __slots__ = ("_begun", "_known", "_remembered", "read")

    def __init__(self) -> None:
        self.read = 0
        self._known: dict[int, tuple[Any, str]] = {}
        self._begun: dict[int, tuple[Any, str]] = {}
        """Of longer texts that were asked for last how they begin."""
        self._remembered = 0

    def of(self, value: Any, most: int) -> str | None:
        """Return the text of a value; ``None``: it has more than ``most`` characters."""
        text = self._known_of(value)
        if text is None:
            if most <= _LOOKED_AT_FIRST and self._is_longer(value, most):
                return None
            text = self._made(value)
        return text if len(text) <= most else None

    def start_of(self, value: Any, length: int) -> str:
        """Return the first characters of the text of a value."""
        text = self._known_of(value)
        if text is not None:
            return text[:length]
        begun = self._begun.get(id(value), (None, ""))[1]
        if len(begun) >= length:
            return begun[:length]
        if not self._is_longer(value, length):
            return self._made(value)[:length]
        found: list[str] = []
        left = length
        for piece in _ENCODER.iterencode(value):
            self.read += AGAIN + len(piece)
            found.append(piece[:left])
            left -= len(piece)
            if left <= 0:
                break
        begun = "".join(found)
        if type(value) not in _LASTING:
            return begun
        if len(self._begun) >= _MOST_BEGUN:
            self._begun.clear()
        self._begun[id(value)] = value, begun
        return begun

    def _known_of(self, value: Any) -> str | None:
        """Return the text of what needs none to be made, or hardly any, or has had one."""
        if isinstance(value, str):
            return value
        if type(value) in _PLAIN:
            text = as_text(value)
            self.read += len(text)
            return text
        known = self._known.get(id(value))
        return None if known is None else known[1]

    def _made(self, value: Any) -> str:
        # So much is charged for one that can't be made, being nested too deep.
        self.read += _LOOKED_AT_FIRST
        text = as_text(value)
        self.read += len(text) - _LOOKED_AT_FIRST
        if type(value) not in _LASTING:
            return text
        if len(self._known) >= _MOST_KNOWN or self._remembered + len(text) > _MOST_REMEMBERED:
            self._known.clear()
            self._remembered = 0
        self._known[id(value)] = value, text
        self._remembered += len(text)
        return text

    def _is_longer(self, value: Any, most: int) -> bool:
        """Say whether its text has more characters than these for sure: the least that it can have are counted."""
        least, unseen = 1, [value]
        while unseen and least <= most:
            found = unseen.pop()
            kind = type(found)
            # A character of each entry is counted with what it is in.
            if kind in _PLAIN:
                continue
            if kind is str:
                least += len(found) + 1
            elif isinstance(found, (list, tuple)):
                least += max(1, 3 * len(found) - 1)
                if least <= most:
                    self.read += _SEEN * len(found)
                    unseen += found
            elif isinstance(found, Mapping):
                least += max(1, 7 * len(found) - 1)
                if least <= most:
                    self.read += 2 * _SEEN * len(found)
                    least += sum(len(name) for name in found if isinstance(name, str))
                    unseen += found.values()
        return least > most


def _entries(value: Any) -> Any:
    """Let a mapping of ours through, which works its entries out as they are read."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


_ENCODER = json.JSONEncoder(ensure_ascii=False, default=_entries)
