"""Reads request bodies: JSON that is UTF-8, finite, of bounded depth, without doubled keys, and storable."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

import marshmallow
from flask import Request, request
from webargs import core
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, UnsupportedMediaType

from orchestrator.documents import MAX_NESTING
from orchestrator.lasting import uncollected

DEEPEST = 64
_LARGEST_INTEGER = 2**63


class StrictParser(FlaskParser):
    """webargs' parser with our reading of JSON; unknown query parameters are refused like unknown fields."""

    DEFAULT_UNKNOWN_BY_LOCATION: dict[str, str | None] = {  # noqa: RUF012 - webargs declares it without ClassVar
        **FlaskParser.DEFAULT_UNKNOWN_BY_LOCATION,
        "query": marshmallow.RAISE,
    }

    def _raw_load_json(self, req: Request) -> Any:
        return read_json(req)


def read_object() -> tuple[dict[str, Any], bool]:
    """Return the request's body, a JSON object, and whether all of it can be stored: nothing in it lies too deep.

    :raises BadRequest: not JSON, or no object.
    :raises UnsupportedMediaType: another content type.
    """
    body = _loaded(request)
    is_storable = _is_flat([body], MAX_NESTING)
    if not is_storable:
        _require_flat(body)
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.")
    return body, is_storable


def read_json(req: Request) -> Any:
    """Return the body as JSON.

    :raises BadRequest: says what is wrong with it.
    :raises RequestEntityTooLarge: more bytes than ``MAX_BODY_BYTES``.
    :raises UnsupportedMediaType: another content type, or compressed.
    """
    body = _loaded(req)
    _require_flat(body)
    return body


def _loaded(req: Request) -> Any:
    """Return the body as JSON, all of which can be stored, however deep."""
    if not core.is_json(req.mimetype):
        raise UnsupportedMediaType("Send the body as application/json.")
    if req.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedMediaType("Send the body uncompressed.")
    raw = req.get_data(cache=True)
    if req.content_length is None and len(raw) >= (req.max_content_length or math.inf):
        # werkzeug cuts a chunked body off at the limit instead of refusing it.
        raise RequestEntityTooLarge
    if not raw.strip():
        raise BadRequest("The body is empty; send a JSON object.")
    try:
        text = raw.decode()
        with uncollected():
            body = json.loads(
                text,
                parse_constant=_refuse_constant,
                parse_float=_finite,
                parse_int=_bounded,
                object_pairs_hook=_without_doubles,
            )
    except UnicodeDecodeError as error:
        raise BadRequest(f"The body is not UTF-8 (byte {error.start}).") from error
    except RecursionError as error:
        raise BadRequest(f"The body is nested more than {DEEPEST} deep.") from error
    except ValueError as error:
        raise BadRequest(f"The body is not JSON: {error}.") from error
    if _ESCAPED.search(text):
        _require_storable_texts(body)
    return body


def _require_flat(body: Any) -> None:
    if not _is_flat([body], DEEPEST):
        raise BadRequest(f"The body is nested more than {DEEPEST} deep.")


def storable(text: str) -> bool:
    """Say whether PostgreSQL can keep the text: it takes neither NUL nor lone surrogates."""
    return "\x00" not in text and (text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text))


_ESCAPED = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
"""What JSON in UTF-8 has in it where a text can't be stored: neither NUL nor half a character can be there as it is."""


def _is_flat(body: dict[str, Any] | list[Any], left: int) -> bool:
    """Say whether nothing in it lies deeper than so many levels below it; that bounds the recursion too."""
    for item in body.values() if isinstance(body, dict) else body:
        kind = type(item)
        if (kind is dict or kind is list) and (not left or not _is_flat(item, left - 1)):
            return False
    return True


def _require_storable_texts(body: Any) -> None:
    open_values: list[Any] = [body]
    while open_values:
        value = open_values.pop()
        if isinstance(value, str):
            if not storable(value):
                raise BadRequest("The body holds a NUL character or half of a surrogate pair, which can't be stored.")
        elif isinstance(value, dict):
            open_values.extend(value)
            open_values.extend(value.values())
        elif isinstance(value, list):
            open_values.extend(value)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _bounded(text: str) -> int:
    # Longer than 20 characters can't be 64 bits, and converting thousands of digits costs the square of them.
    number = int(text) if len(text) <= 20 else _LARGEST_INTEGER
    if not -_LARGEST_INTEGER <= number < _LARGEST_INTEGER:
        raise ValueError(f"{text[:40]} is no whole number of 64 bits")
    return number


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {double[:80]!r} comes twice in one object")
    return made
