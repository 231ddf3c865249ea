"""New runs and reruns, once: with an Idempotency-Key the same request again answers with the run, and does no more."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from flask import Response, request
from sqlalchemy import Connection
from werkzeug.exceptions import UnprocessableEntity

from api.access import caller
from api.run_view import asked_run, shown_run
from api.services import services
from orchestrator.store import run_requests
from orchestrator.store.pages import Row

_KEY = re.compile(r"[\x21-\x7e]{1,255}")

IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    "description": "One key makes one run: for seven days the same request again answers with the run it made; with "
    "another body 409. Of a rerun in place: with the run, which is not run once more, and a `command_id` that is null.",
}


def idempotency_key() -> str | None:
    """Return the key of this request, if it has one.

    :raises UnprocessableEntity: it is none that could be kept.
    """
    key = request.headers.get("Idempotency-Key")
    if key is not None and not _KEY.fullmatch(key):
        raise UnprocessableEntity("Idempotency-Key must be 1 to 255 visible ASCII characters, such as a UUID.")
    return key


def made_once(body: Mapping[str, Any], insert: Callable[[Connection, str], None]) -> Response:
    """Make a run and return the answer that shows it, or the one that this key has made before.

    :param body: what must be the same for it to be the same request.
    :param insert: inserts the run with this id, in the transaction that keeps the key.
    """
    key, wanted_id = idempotency_key(), str(uuid.uuid4())
    with services().engine.begin() as connection:
        known_id = _known(connection, key, body, wanted_id)
        if known_id is None:
            insert(connection, wanted_id)
    services().live.wake()
    run_id = known_id or wanted_id
    response = shown_run(run_id, 201)
    response.headers["Location"] = f"/api/v1/runs/{run_id}"
    return _marked(response, known_id)


def asked_once(run_id: str, body: Mapping[str, Any], ask: Callable[[Connection], Row]) -> Response:
    """Ask something of the leader about this run, unless this key has done so before; return the answer that shows it.

    :param body: what must be the same for it to be the same request.
    :param ask: returns the command, in the transaction that keeps the key.
    """
    key, command = idempotency_key(), dict[str, Any]()
    with services().engine.begin() as connection:
        known_id = _known(connection, key, body, run_id)
        if known_id is None:
            command = ask(connection)
    services().live.wake()
    return _marked(asked_run(run_id, command), known_id)


def _known(connection: Connection, key: str | None, body: Mapping[str, Any], run_id: str) -> str | None:
    """Return the run of the earlier request with this key; ``None``: there is none, and it is this run's from now."""
    if key is None:
        return None
    return run_requests.claim_idempotency_key(connection, caller().tenant_id, key, _fingerprint(body), run_id)


def _marked(response: Response, known_id: str | None) -> Response:
    if known_id is not None:
        response.headers["Idempotent-Replayed"] = "true"
    return response


def _fingerprint(body: Mapping[str, Any]) -> str:
    """Return a hash of the request; the key's name is in it, for it decides who the run is for."""
    canonical = json.dumps([caller().name, dict(body)], sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
