"""JSON text with the line of every value, so that a problem's pointer can be told as a place in a file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from orchestrator.documents import escaped
from orchestrator.errors import UnreadableText

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


def read_json(text: str) -> tuple[Any, Mapping[str, int]]:
    """Return the value in a JSON text, and by JSON pointer the line where each value in it is.

    :raises UnreadableText: it is no JSON, or an object has a field twice.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise UnreadableText(f"This is no JSON: {error.msg}.", error.lineno) from error
    except RecursionError as error:
        raise UnreadableText("This is nested too deep; flatten it.", 1) from error
    except ValueError as error:  # a whole number of more than 4,300 digits, which Python does not read
        raise UnreadableText("This holds a whole number that is too large; write it as a text.", 0) from error
    return value, _Places(text).lines


def _no_constant(word: str) -> NoReturn:
    raise UnreadableText(f"{word} is no JSON; leave it out or write a finite number.", 0)


class _Places:
    """Walks the tokens of a text that is known to be JSON."""

    def __init__(self, text: str) -> None:
        self.lines: dict[str, int] = {}
        self._tokens = _TOKEN.finditer(text)
        self._text = text
        self._line, self._counted = 1, 0
        self._word = ""
        self._next()
        self._value("")

    def _next(self) -> None:
        found = next(self._tokens, None)
        self._word = found.group() if found else ""
        if found:
            self._line += self._text.count("\n", self._counted, found.start())
            self._counted = found.start()

    def _value(self, pointer: str) -> None:
        self.lines.setdefault(pointer, self._line)
        if self._word == "{":
            self._object(pointer)
        elif self._word == "[":
            self._list(pointer)
        self._next()

    def _object(self, pointer: str) -> None:
        self._next()
        while self._word != "}":
            here = f"{pointer}/{escaped(json.loads(self._word))}"
            if here in self.lines:
                raise UnreadableText(f"The field {self._word} is here twice.", self._line)
            self.lines[here] = self._line
            self._next()
            self._next()  # over the colon
            self._value(here)
            if self._word == ",":
                self._next()

    def _list(self, pointer: str) -> None:
        self._next()
        position = 0
        while self._word != "]":
            self._value(f"{pointer}/{position}")
            position += 1
            if self._word == ",":
                self._next()
