"""How grave a line is that a process logged, whoever's format it has, and how our records look to people."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

_FORMATS = (
    re.compile(r"\[[^\]]+\] \[\d+\] \[(?P<level>[A-Z]+)\] "),  # gunicorn
    re.compile(r"\[(?P<level>[DIWEC]) \d{6} "),  # Flower
    re.compile(r"[\d-]+ [\d:.]+ \S+ \[\d+\] (?P<level>LOG|WARNING|ERROR|FATAL|PANIC):  "),  # PostgreSQL
    re.compile(r"\d+:[A-Z] \d+ \w+ \d{4} [\d:.]+ (?P<level>[.*#-]) "),  # Redis, Valkey
    re.compile(r"[\d-]+ [\d:]+ \[(?P<level>[a-z]+) *\] "),  # our own records before logs are set up
)
_WORDS = {
    logging.DEBUG: ("D", ".", "-"),
    # A statement that fails is a matter of its client, who logs what matters of it.
    logging.INFO: ("I", "*", "LOG", "POSTGRES ERROR"),
    logging.WARNING: ("W", "#"),
    logging.ERROR: ("E", "FATAL"),
    logging.CRITICAL: ("C", "PANIC"),
}
_LEVELS = logging.getLevelNamesMapping() | {word: level for level, words in _WORDS.items() for word in words}
_TRACEBACK = "Traceback (most recent call last):"
_LEFT_OUT = frozenset({"level", "logger", "at", "process", "action", "exception"})


def level_of(line: str) -> int | None:
    """Return the level of a line by the `logging` module's numbers; None if it has none, as the rest of a text."""
    if line.startswith(_TRACEBACK):
        return logging.ERROR
    if (record := _record(line)) is not None:
        return _number(str(record.get("level")))
    match = next((match for form in _FORMATS if (match := form.match(line))), None)
    if match is None:
        return None
    is_postgres = line[match.end("level") :].startswith(":  ")
    word = match["level"]
    return _number("POSTGRES ERROR" if is_postgres and word == "ERROR" else word)


def for_people(line: str) -> str:
    """Return a record of ours as words, anything else as it is."""
    record = _record(line)
    if record is None:
        return line
    words = [str(record.get("level", "")).upper(), str(record.get("action", ""))]
    words += [f"{name}={' '.join(str(value).split())}" for name, value in record.items() if name not in _LEFT_OUT]
    if trace := str(record.get("exception") or "").strip():
        words.append(f"{trace.splitlines()[-1]} (all of it is in the log)")
    return " ".join(words)


def _record(line: str) -> Mapping[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        document = json.loads(line)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _number(word: str) -> int | None:
    return _LEVELS.get(word.upper())
