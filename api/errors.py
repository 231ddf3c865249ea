"""The one shape of all errors, and which status each kind of error has."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flask import Response, g, jsonify, request
from flask_smorest import Api
from marshmallow import Schema, fields
from sqlalchemy.exc import DataError
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.exceptions import NotFound as NoSuchAddress
from werkzeug.http import HTTP_STATUS_CODES

from api.services import services
from orchestrator.errors import (
    Conflict,
    ForbiddenAddress,
    ForbiddenPath,
    InvalidDefinition,
    NotFound,
    OrchestratorError,
    StaleVersion,
    StoreUnavailable,
    TooLarge,
)
from orchestrator.logs import get_logger

log = get_logger(__name__)

RETRY_SECONDS = 2
_MOST_PROBLEMS = 200
_DRAINED_BYTES = 64 * 2**20
_LONG, _SHORT = 30.0, 2.0
"""Seconds for which a body that nobody wants is read away."""

_AGAIN = (
    "Try again after the seconds in Retry-After. A change may or may not have been made: with the same Idempotency-Key "
    "a run is never started twice."
)

STATUS_OF: Mapping[type[OrchestratorError], int] = {
    InvalidDefinition: 422,
    ForbiddenAddress: 422,
    ForbiddenPath: 422,
    NotFound: 404,
    Conflict: 409,
    StaleVersion: 412,
    TooLarge: 413,
    StoreUnavailable: 503,
}


class ProblemSchema(Schema):
    pointer = fields.String(
        required=True,
        metadata={
            "description": "RFC 6901 pointer to the place; empty for the whole.",
            "example": "/tasks/2/upstream_tasks/0",
        },
    )
    message = fields.String(required=True, metadata={"description": "What is wrong there and how to mend it."})
    part = fields.String(
        data_key="in",
        metadata={
            "description": "Which part of the request the pointer is into, unless it is the body.",
            "example": "query",
        },
    )


class ErrorSchema(Schema):
    """What every answer of 400 and above holds."""

    code = fields.Integer(required=True, metadata={"description": "The HTTP status.", "example": 422})
    status = fields.String(required=True, metadata={"description": "Its name.", "example": "Unprocessable Content"})
    message = fields.String(required=True, metadata={"description": "What happened and what to do, as a sentence."})
    errors = fields.List(
        fields.Nested(ProblemSchema), required=True, metadata={"description": "Every fault found, each with its place."}
    )
    request_id = fields.String(required=True, metadata={"description": "Also in X-Request-Id and in our logs."})


class RestApi(Api):  # type: ignore[misc]
    """flask-smorest's API with our error shape."""

    ERROR_SCHEMA = ErrorSchema
    DEFAULT_ERROR_RESPONSE_NAME = None
    """Each operation lists its errors; a default would hide one that is missing."""

    def _register_error_handlers(self) -> None:
        self._app.register_error_handler(HTTPException, answer_http_error)
        self._app.register_error_handler(OrchestratorError, answer_our_error)
        self._app.register_error_handler(DataError, answer_unstorable)
        self._app.register_error_handler(Exception, answer_fault)


def error_response(
    code: int, message: str, problems: Sequence[Mapping[str, str]] = (), headers: Mapping[str, str] | None = None
) -> Response:
    """Return an error in the one shape."""
    response = jsonify(
        {
            "code": code,
            "status": HTTP_STATUS_CODES.get(code, "Unknown"),
            "message": message,
            "errors": list(problems[:_MOST_PROBLEMS]),
            "request_id": g.get("request_id", ""),
        }
    )
    response.status_code = code
    if code in (429, 503):
        response.headers["Retry-After"] = str(RETRY_SECONDS)
    response.headers.update(dict(headers or {}))
    return response


def answer_http_error(error: HTTPException) -> Any:
    """Answer what Flask, werkzeug, webargs and our own views raise as HTTP errors."""
    if error.code is None or error.code < 400:
        return error.get_response()
    if isinstance(error, RequestEntityTooLarge):
        _drain(_LONG)
        limit = services().settings.max_body_bytes
        return error_response(413, f"The body has more than {limit} bytes (MAX_BODY_BYTES); split it or shorten it.")
    if error.code == 401:
        # Who may not even ask gets less of a thread's time.
        _drain(_SHORT)
    found: Mapping[str, Any] = getattr(error, "data", None) or {}
    problems = list(_problems(found.get("messages") or {}))
    message = "The request does not fit its schema." if problems else _sentence(error)
    # Of werkzeug's own headers (Allow, WWW-Authenticate …) all but those of the HTML body are kept.
    headers = {name: value for name, value in error.get_headers() if name.lower() != "content-type"}
    return error_response(error.code, message, problems, headers)


def answer_our_error(error: OrchestratorError) -> Response:
    """Answer an error of ours with the status of its kind; an unexpected kind is a fault."""
    code = next((status for kind, status in STATUS_OF.items() if isinstance(error, kind)), None)
    if code is None:
        return answer_fault(error)
    if isinstance(error, InvalidDefinition):
        count = len(error.problems)
        problems = [{"pointer": problem.pointer, "message": problem.message} for problem in error.problems]
        return error_response(code, f"{count} problem{'s' if count != 1 else ''} found.", problems)
    if code == 503:
        # The driver's words may hold addresses and names of ours: they go to the log only.
        log.warning("store_unavailable", error=str(error), request_id=g.get("request_id"))
        return error_response(code, f"{_why(error)} {_AGAIN}")
    return error_response(code, str(error))


def _why(error: OrchestratorError) -> str:
    known = error.explanation if isinstance(error, StoreUnavailable) else ""
    return known or "A store the API needs does not answer."


def answer_unstorable(error: DataError) -> Response:
    """Answer a value that passed its schema and that PostgreSQL does not take; the log says which."""
    log.warning("unstorable_value", error=str(error.orig), request_id=g.get("request_id"), path=request.path)
    return error_response(422, "A value of the request is outside what can be stored.")


def answer_fault(error: Exception) -> Response:
    """Answer a fault of ours: the client gets an id to quote, the log gets the rest."""
    log.error("request_failed", exc_info=error, request_id=g.get("request_id"), path=request.path)
    return error_response(500, "A fault of ours; it is logged under this request_id.")


def _problems(messages: Any) -> Iterator[dict[str, str]]:
    """Turn marshmallow's tree of messages, one branch per part of the request, into pointers."""
    if not isinstance(messages, Mapping):
        return
    for part, tree in messages.items():
        for pointer, message in _leaves("", tree):
            yield {"pointer": pointer, "message": message} | ({} if part == "json" else {"in": str(part)})


def _leaves(pointer: str, tree: Any) -> Iterator[tuple[str, str]]:
    if isinstance(tree, Mapping):
        for key, branch in tree.items():
            token = "" if key == "_schema" else "/" + str(key).replace("~", "~0").replace("/", "~1")
            yield from _leaves(pointer + token, branch)
    elif isinstance(tree, (list, tuple)):
        for message in tree:
            yield from _leaves(pointer, message)
    else:
        yield pointer, str(tree)


def _sentence(error: HTTPException) -> str:
    if isinstance(error, NoSuchAddress) and error.description == NoSuchAddress.description:
        # Werkzeug's own words are for people who type addresses into a browser.
        return f"There is nothing at {request.path[:200]}: no such address, or an id in it that can be none."
    return error.description or HTTP_STATUS_CODES.get(error.code or 500, "Error")


def _drain(seconds: float) -> None:
    """Read away what is still being sent, for so long: a client that is cut off while sending never sees the answer,
    and the server closes a connection on which more than a little was left unread, which the next request then meets.
    """
    stream, link = request.environ.get("wsgi.input"), request.environ.get("gunicorn.socket")
    left = min(_DRAINED_BYTES if request.content_length is None else request.content_length, _DRAINED_BYTES)
    until = time.monotonic() + seconds
    patience = link.gettimeout() if link is not None else None
    try:
        while stream is not None and left > 0 and (rest := until - time.monotonic()) > 0:
            if link is not None:
                link.settimeout(rest)
            chunk = stream.read(min(left, 65536))
            if not chunk:
                return
            left -= len(chunk)
    except OSError as error:
        log.info("body_cut_off", error=str(error))
    finally:
        if link is not None:
            link.settimeout(patience)
