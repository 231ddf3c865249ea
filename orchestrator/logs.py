"""Logs of our own processes: records with an action and the ids in scope, as JSON lines or for a console, no secrets.

``log = get_logger(__name__)``, then ``log.info("run_admitted", run_id=…)``: the first word is the action. Ids that hold
for a while are bound with :func:`ids_in_scope`.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, TextIO

import structlog

HIDDEN = "***"
_SECRET_KEYS = re.compile(
    r"password|passwd|secret|token|api_?key|access_?key|worker_?key|admin_?key|private_?key|authorization|credential"
    r"|cookie|nonce",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?P<user>[^\s:/?#@]*):[^\s/?#]+@", re.IGNORECASE)
_BEARER = re.compile(r"(?P<word>Bearer\s+)[^\s\"',]+", re.IGNORECASE)
_DEEPEST = 6


def configure_logs(
    level: str = "INFO", *, process: str, json_lines: bool | None = None, to: TextIO | None = None
) -> None:
    """Send the logs of this process, and of the libraries in it, to one place in one form.

    :param level: DEBUG, INFO, WARNING or ERROR.
    :param process: ``api``, ``scheduler``, ``worker`` …; stands in every record.
    :param json_lines: one JSON object per line, else for people. Default: people on a terminal, else JSON.
    :param to: default: standard error.
    """
    stream = to or sys.stderr
    as_json = not stream.isatty() if json_lines is None else json_lines
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        _Named(process),
    ]
    rendering: list[structlog.typing.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if as_json:
        # The traceback becomes text before the redaction, which then sees it too.
        rendering += [structlog.processors.format_exc_info, redact, structlog.processors.EventRenamer("action")]
        rendering.append(structlog.processors.JSONRenderer(ensure_ascii=False))
    else:
        console = structlog.dev.ConsoleRenderer(colors=stream.isatty())
        rendering += [structlog.processors.format_exc_info, redact, console]
    output = logging.StreamHandler(stream)
    output.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=rendering))
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return a logger; works before :func:`configure_logs`, too."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


@contextmanager
def ids_in_scope(**ids: object) -> Iterator[None]:
    """Have every record inside the block carry these ids (``run_id``, ``attempt_id``, ``epoch`` …)."""
    with structlog.contextvars.bound_contextvars(**ids):
        yield


def redact(_logger: Any, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Hide values under names that mean a secret, and the passwords in URLs and bearer tokens in any text."""
    for name, value in list(record.items()):
        record[name] = _hidden(name, value, 0)
    return record


def redact_text(text: str) -> str:
    """Hide the passwords of URLs and bearer tokens in a text."""
    return _BEARER.sub(rf"\g<word>{HIDDEN}", _URL_PASSWORD.sub(rf"\g<scheme>\g<user>:{HIDDEN}@", text))


def _hidden(name: str, value: object, depth: int) -> object:
    if isinstance(name, str) and _SECRET_KEYS.search(name) and value not in (None, "", True, False):
        return HIDDEN
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str) or depth >= _DEEPEST:
        return redact_text(str(value))
    if isinstance(value, Mapping):
        return {key: _hidden(key, item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_hidden("", item, depth + 1) for item in value]
    return redact_text(str(value))


class _Named:
    """Adds the process's name to every record."""

    def __init__(self, process: str) -> None:
        self._process = process

    def __call__(self, _logger: Any, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        record["process"] = self._process
        return record
