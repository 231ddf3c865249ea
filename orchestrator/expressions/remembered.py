"""A memory of what was read from texts, bounded by their characters: texts are sent by users, refused ones too."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import update_wrapper
from typing import Generic, TypeVar

MOST_CHARACTERS = 1_000_000
"""Of all remembered texts together: what is read from them takes up to a hundred times as many bytes."""
LONGEST = 1000
"""Of one; what is read from a longer one is forgotten at once."""
_EACH = 20
"""Characters that every text counts besides its own."""
_Read = TypeVar("_Read")


class Remembered(Generic[_Read]):
    """A function of a text that remembers what it has returned; what came first is forgotten first."""

    def __init__(self, read: Callable[[str], _Read], most: int | None = None) -> None:
        """Remember what is read.

        :param most: characters of all texts together, where it is not :data:`MOST_CHARACTERS`.
        """
        self._read = read
        self._most = most
        # The first entry of a plain dictionary is sought behind all that were taken out before it.
        self._known: OrderedDict[str, _Read] = OrderedDict()
        self._lock = threading.Lock()
        self.characters = 0
        update_wrapper(self, read)

    def __call__(self, text: str) -> _Read:
        try:
            return self._known[text]
        except KeyError:
            pass
        read = self._read(text)
        if len(text) <= LONGEST:
            self._remember(text, read)
        return read

    def _remember(self, text: str, read: _Read) -> None:
        with self._lock:
            if text in self._known:
                return
            self._known[text] = read
            self.characters += len(text) + _EACH
            while self.characters > (self._most or MOST_CHARACTERS):
                first, _ = self._known.popitem(last=False)
                self.characters -= len(first) + _EACH
