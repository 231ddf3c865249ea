"""Logs of a task's attempt: as text, as JSON, or followed as it grows."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from flask import Response, jsonify, request
from flask.views import MethodView
from marshmallow import Schema, fields, validate
from sqlalchemy import Engine

from api.access import caller
from api.attempt_log import AttemptLog, LogPart
from api.resource import Resource, needs
from api.services import services
from api.sse import EVENT_SCHEMA, MEDIA_TYPE, Pace, event, wants_stream
from orchestrator.errors import NotFound, StoreUnavailable
from orchestrator.states import ATTEMPT_TERMINAL, AttemptState
from orchestrator.store import run_queries
from orchestrator.store.api_keys import Role

blueprint = Resource("logs", __name__, url_prefix="/api/v1/runs", description="What tasks printed.")

_MOST_BYTES = 2**20
_SETTLING = timedelta(seconds=2)
_QUIET_LOOKS = 6
"""Looks without anything new after the attempt's end: its last chunks may still be on their way through Redis."""


class LogQuery(Schema):
    attempt = fields.Integer(
        load_default=None,
        validate=validate.Range(1, 2**31 - 1),
        metadata={"description": "Number of the attempt; the latest when left out."},
    )
    offset = fields.Integer(
        load_default=0, validate=validate.Range(0, 2**53), metadata={"description": "Byte to begin at."}
    )
    limit = fields.Integer(
        load_default=_MOST_BYTES,
        validate=validate.Range(1, _MOST_BYTES),
        metadata={"description": "Most bytes to return."},
    )
    follow = fields.Boolean(
        load_default=False,
        metadata={
            "description": "Answer with server-sent events until the attempt has ended, as does `Accept: "
            "text/event-stream`."
        },
    )


class LogSchema(Schema):
    """Part of a log, for clients that ask for JSON."""

    text = fields.String(required=True)
    attempt = fields.Integer(required=True, allow_none=True)
    offset = fields.Integer(required=True)
    next_offset = fields.Integer(required=True)
    ended = fields.Boolean(
        required=True,
        metadata={"description": "The attempt has ended. Without `complete`, the rest of its log may be on its way."},
    )
    complete = fields.Boolean(
        required=True,
        metadata={
            "description": "The attempt has ended and nothing follows this part, as far as has arrived. A line of ours "
            "stands in place of what was lost on its way."
        },
    )
    final = fields.Boolean(
        required=True,
        metadata={"description": "As `complete`, and so long after the end that nothing more of it can arrive."},
    )


NEXT_OFFSET = {"X-Next-Offset": {"description": "Offset of the part that follows.", "schema": {"type": "integer"}}}


@blueprint.route("/<uuid:run_id>/tasks/<string:task>/logs")
class Logs(MethodView):
    @needs(Role.VIEWER)
    @blueprint.query(LogQuery)
    @blueprint.also(
        200, {"type": "string"}, content_type="text/plain", description="Part of the log.", headers=NEXT_OFFSET
    )
    @blueprint.also(
        200,
        LogSchema,
        content_type="application/json",
        description="The same for `Accept: application/json`.",
        headers=NEXT_OFFSET,
    )
    @blueprint.also(
        200,
        EVENT_SCHEMA,
        content_type=MEDIA_TYPE,
        description="Events `log` with "
        "`{offset, next_offset, text}`, then `end`; `Last-Event-ID` goes on at that offset.",
    )
    def get(self, query: Mapping[str, Any], run_id: UUID, task: str) -> Response:
        """Read what a task printed."""
        with services().engine.connect() as connection:
            attempt = run_queries.find_attempt(connection, caller().tenant_id, str(run_id), task, query["attempt"])
        following = query["follow"] or wants_stream()
        if attempt is None:
            if following:
                raise NotFound(f"Task {task!r} of run {run_id} has not been tried yet, so it has no log to follow.")
            return _shown(query["offset"], LogPart(b"", query["offset"], more=False), None)
        prefix = f"logs/{caller().tenant_id}/{run_id}/{attempt['id']}"
        log = AttemptLog(services().artifacts, prefix, services().log_gaps)
        settled = _ended_for(attempt).total_seconds() >= services().log_gaps.patience
        if following:
            offset = _resume_at(query["offset"])
            return services().streams.respond(
                follow(log, services().engine, caller().tenant_id, str(attempt["id"]), offset, settled=settled)
            )
        part = log.read(query["offset"], query["limit"], settled=settled)
        return _shown(query["offset"], part, attempt, settled=settled)


def follow(
    log: AttemptLog, engine: Engine, tenant_id: str, attempt_id: str, offset: int, *, settled: bool
) -> Iterator[str]:
    """Yield the log as events until the attempt has ended and no more of it arrives."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pace, quiet, ended = Pace(), 0, settled
    while not pace.over():
        try:
            part = log.read(offset, _MOST_BYTES, settled=settled)
            if not ended:
                with engine.connect() as connection:
                    state = run_queries.attempt_state(connection, tenant_id, attempt_id)
                ended = AttemptState(state) in ATTEMPT_TERMINAL
        except StoreUnavailable:
            part = LogPart(b"", offset, more=True)
        if part.content:
            quiet, here, offset = 0, offset, part.next_offset
            pace.spoke()
            yield event("log", {"offset": here, "next_offset": offset, "text": decoder.decode(part.content)}, id=offset)
            continue
        quiet += ended and not part.more
        if quiet >= _QUIET_LOOKS:
            yield event("end", {"next_offset": offset}, id=offset)
            return
        yield from pace.rest()


def _ended_for(attempt: Mapping[str, Any] | None) -> timedelta:
    """Return how long ago the attempt ended, by the clock that said when; less than nothing while it runs."""
    if attempt is None or AttemptState(attempt["state"]) not in ATTEMPT_TERMINAL or attempt["ended_for"] is None:
        return timedelta(days=-1)
    ago: timedelta = attempt["ended_for"]
    return ago


def _shown(offset: int, part: LogPart, attempt: Mapping[str, Any] | None, *, settled: bool = False) -> Response:
    complete = not part.more and _ended_for(attempt) >= _SETTLING
    found = part.content if complete else _whole_characters(part.content)
    following = part.next_offset - (len(part.content) - len(found))
    if request.accept_mimetypes.best_match(["text/plain", "application/json"], "text/plain") == "application/json":
        response = jsonify(
            LogSchema().dump(
                {
                    "text": found.decode("utf-8", "replace"),
                    "attempt": None if attempt is None else attempt["number"],
                    "offset": offset,
                    "next_offset": following,
                    "ended": _ended_for(attempt) >= timedelta(0),
                    "complete": complete,
                    "final": complete and settled,
                }
            )
        )
    else:
        response = Response(found, mimetype="text/plain")
    response.headers["X-Next-Offset"] = str(following)
    return response


def _whole_characters(found: bytes) -> bytes:
    """Leave a character that is cut at the end to the next part."""
    for back in range(1, min(4, len(found)) + 1):
        byte = found[-back]
        if byte & 0xC0 == 0x80:
            continue
        needed = 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4 if byte >> 3 == 0b11110 else 1
        return found[:-back] if needed > back and len(found) > back else found
    return found


def _resume_at(offset: int) -> int:
    last = request.headers.get("Last-Event-ID", "")
    return int(last) if last.isascii() and last.isdigit() and len(last) < 17 else offset
