"""Reads JSON of any size: an array of records or one record per line, as blocks of lines that polars can parse."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from orchestrator.operator import OperatorFailure

BLOCK_BYTES = 8 << 20
MAX_RECORD_BYTES = 16 << 20
_READ = 1 << 20
_SPACE = " \t\r\n"


def json_blocks(path: Path, subject: str) -> Iterator[bytes]:
    """Yield blocks of complete lines, one JSON object each.

    A file whose first character is ``[`` is an array, anything else has one object per line. A record that is no
    object becomes ``{"value": record}``.

    :param subject: what messages call the file.
    :raises OperatorFailure: reason ``bad_data``, naming the line or the record.
    """
    with path.open("rb") as source:
        head = source.read(3)
        source.seek(3 if head == codecs.BOM_UTF8 else 0)
        start = source.tell()
        first = b""
        while (byte := source.read(1)) and byte in b" \t\r\n":
            pass
        first = byte
        source.seek(start)
        if first == b"[":
            yield from as_blocks(array_records(source, subject))
        elif first:
            yield from _line_blocks(source, subject)


def as_blocks(records: Iterable[Any]) -> Iterator[bytes]:
    """Join records to blocks of lines of about :data:`BLOCK_BYTES`."""
    lines: list[bytes] = []
    size = 0
    for record in records:
        line = record_line(record)
        lines.append(line)
        size += len(line)
        if size >= BLOCK_BYTES:
            yield b"".join(lines)
            lines, size = [], 0
    if lines:
        yield b"".join(lines)


def record_line(record: Any) -> bytes:
    """Return one record as a line: an object as it is, anything else under the name ``value``."""
    value = record if isinstance(record, dict) else {"value": record}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def array_records(source: IO[bytes], subject: str) -> Iterator[Any]:
    """Yield the elements of a JSON array, holding one of them and one read at a time."""
    window = _Window(source, subject)
    window.skip("[")
    if window.peek() == "]":
        window.skip("]")
    else:
        while True:
            yield window.element()
            if window.peek() == "]":
                window.skip("]")
                break
            window.skip(",")
    if window.peek():
        raise window.fault("there is something after the array")


class _Window:
    """The part of a JSON text between what has been consumed and what has been read."""

    def __init__(self, source: IO[bytes], subject: str) -> None:
        self._source = source
        self._subject = subject
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._parse = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode
        self._text = ""
        self._at = 0
        self._ended = False
        self._records = 0

    def fault(self, what: str) -> OperatorFailure:
        return OperatorFailure("bad_data", f"{self._subject} is no JSON array: after {self._records} records {what}.")

    def peek(self) -> str:
        """Return the next character that is no space, or ``""`` at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(_READ):
                return ""

    def skip(self, expected: str) -> None:
        found = self.peek()
        if found != expected:
            raise self.fault(f"{expected!r} was expected, not {found or 'the end of the file'!r}")
        self._at += 1

    def element(self) -> Any:
        """Parse the next element; one that ends where the window ends may go on, so more is read first."""
        self.peek()
        step = _READ
        while True:
            problem = "the file ends within a record"
            try:
                value, end = self._parse(self._text, self._at)
            except RecursionError:
                raise self.fault("a record is nested too deeply") from None
            except ValueError as error:
                problem = f"a record can't be parsed ({error})"
            else:
                if end < len(self._text) or self._ended:
                    self._at = end
                    self._records += 1
                    return value
            if len(self._text) - self._at > MAX_RECORD_BYTES:
                raise self.fault(f"{problem}, within {MAX_RECORD_BYTES:,} characters")
            if not self._more(step) and self._ended:
                raise self.fault(problem)
            step *= 2  # doubling keeps the repeated parsing of one long record linear

    def _more(self, amount: int) -> bool:
        if self._ended:
            return False
        chunk = self._source.read(amount)
        self._ended = not chunk
        try:
            text = self._decode.decode(chunk, final=self._ended)
        except UnicodeDecodeError as error:
            raise self.fault("the text is not UTF-8") from error
        self._text = self._text[self._at :] + text
        self._at = 0
        return True


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _line_blocks(source: IO[bytes], subject: str) -> Iterator[bytes]:
    rest = b""
    while chunk := source.read(BLOCK_BYTES):
        block, newline, tail = (rest + chunk).rpartition(b"\n")
        if not newline:
            rest = tail
            if len(rest) > MAX_RECORD_BYTES:
                raise OperatorFailure("bad_data", f"{subject} has a line of more than {MAX_RECORD_BYTES:,} bytes.")
            continue
        rest = tail
        if block.strip():
            yield block + b"\n"
    if rest.strip():
        yield rest + b"\n"


def first_bad_line(block: bytes) -> tuple[int, str] | None:
    """Return the first line of a block that is no JSON object, counted from 1, and why."""
    parse = json.JSONDecoder(parse_constant=_refuse_constant)
    for number, line in enumerate(block.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = parse.decode(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            return number, str(error)
        if not isinstance(value, dict):
            return number, f"it is {type(value).__name__}, not an object"
    return None
