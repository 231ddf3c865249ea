"""Logs of a task's attempt, read from the artifact store in chunks: as text, as JSON, or followed as it grows."""

from __future__ import annotations

import bisect
import codecs
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from flask import Response, jsonify, request
from flask.views import MethodView
from marshmallow import Schema, fields, validate
from sqlalchemy import Engine

from api.access import caller
from api.resource import Resource, needs
from api.services import services
from api.sse import EVENT_SCHEMA, MEDIA_TYPE, Pace, event, wants_stream
from orchestrator.artifacts import ArtifactStore, uri_of
from orchestrator.errors import NotFound, StoreUnavailable
from orchestrator.states import ATTEMPT_TERMINAL, AttemptState
from orchestrator.store import run_queries
from orchestrator.store.api_keys import Role

blueprint = Resource("logs", __name__, url_prefix="/api/v1/runs", description="What tasks printed.")

_MOST_BYTES = 2**20
_CHUNK_LIMIT = 16 * 2**20
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
    complete = fields.Boolean(
        required=True,
        metadata={"description": "The attempt has ended and nothing follows this part, as far as has arrived."},
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
        log = (
            None
            if attempt is None
            else AttemptLog(services().artifacts, f"logs/{caller().tenant_id}/{run_id}/{attempt['id']}")
        )
        if query["follow"] or wants_stream():
            if log is None or attempt is None:
                raise NotFound(f"Task {task!r} of run {run_id} has not been tried yet, so it has no log to follow.")
            offset = _resume_at(query["offset"])
            return services().streams.respond(
                follow(log, services().engine, caller().tenant_id, str(attempt["id"]), offset)
            )
        found = b"" if log is None else log.read(query["offset"], query["limit"])
        return _part(query["offset"], found, attempt, complete=_has_settled(attempt) and len(found) < query["limit"])


@dataclass(frozen=True, slots=True)
class AttemptLog:
    """The chunks of one attempt's log: objects named by the offset of their first byte."""

    artifacts: ArtifactStore
    prefix: str

    def read(self, offset: int, limit: int) -> bytes:
        """Return at most ``limit`` bytes from ``offset`` on; fewer where the log ends or a chunk is missing."""
        keys = list(self.artifacts.list(self.prefix))
        starts = [int(key.rpartition("/")[2]) for key in keys]
        found = bytearray()
        place = max(0, bisect.bisect_right(starts, offset) - 1)
        for start, key in zip(starts[place:], keys[place:], strict=True):
            here = offset + len(found)
            if start > here or len(found) >= limit:
                break
            chunk = self.artifacts.get_bytes(uri_of(key), _CHUNK_LIMIT)
            # Chunks may overlap when a worker sent one again after a lost answer.
            found += chunk[here - start :]
        return bytes(found[:limit])


def follow(log: AttemptLog, engine: Engine, tenant_id: str, attempt_id: str, offset: int) -> Iterator[str]:
    """Yield the log as events until the attempt has ended and no more of it arrives."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pace, quiet, ended = Pace(), 0, False
    while not pace.over():
        try:
            found = log.read(offset, _MOST_BYTES)
            if not ended:
                with engine.connect() as connection:
                    state = run_queries.attempt_state(connection, tenant_id, attempt_id)
                ended = AttemptState(state) in ATTEMPT_TERMINAL
        except StoreUnavailable:
            found = b""
        if found:
            quiet, here, offset = 0, offset, offset + len(found)
            pace.spoke()
            yield event("log", {"offset": here, "next_offset": offset, "text": decoder.decode(found)}, id=offset)
            continue
        quiet += ended
        if quiet >= _QUIET_LOOKS:
            yield event("end", {"next_offset": offset}, id=offset)
            return
        yield from pace.rest()


def _has_settled(attempt: Mapping[str, Any] | None) -> bool:
    """Say whether the attempt ended long enough ago for its last chunks to have come through Redis."""
    if attempt is None or AttemptState(attempt["state"]) not in ATTEMPT_TERMINAL or attempt["ended_at"] is None:
        return False
    ended: datetime = attempt["ended_at"]
    return datetime.now(UTC) - ended >= _SETTLING


def _part(offset: int, found: bytes, attempt: Mapping[str, Any] | None, *, complete: bool) -> Response:
    if not complete:
        found = _whole_characters(found)
    following = offset + len(found)
    if request.accept_mimetypes.best_match(["text/plain", "application/json"], "text/plain") == "application/json":
        response = jsonify(
            LogSchema().dump(
                {
                    "text": found.decode("utf-8", "replace"),
                    "attempt": None if attempt is None else attempt["number"],
                    "offset": offset,
                    "next_offset": following,
                    "complete": complete,
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
