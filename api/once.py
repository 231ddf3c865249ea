"""New runs, made once: with an Idempotency-Key the same request again answers with the run that it made."""

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
from api.run_view import shown_run
from api.services import services
from orchestrator.store import run_requests

_KEY = re.compile(r"[\x21-\x7e]{1,255}")

IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    "description": "One key makes one run: for seven days the same request again answers with the run it made; with "
    "another body 409.",
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
    key = idempotency_key()
    tenant_id, wanted_id = caller().tenant_id, str(uuid.uuid4())
    with services().engine.begin() as connection:
        run_id = wanted_id
        if key is not None:
            run_id = run_requests.claim_idempotency_key(connection, tenant_id, key, _fingerprint(body), wanted_id)
        if run_id == wanted_id:
            insert(connection, run_id)
    services().live.wake()
    response = shown_run(run_id, 201)
    response.headers["Location"] = f"/api/v1/runs/{run_id}"
    if run_id != wanted_id:
        response.headers["Idempotent-Replayed"] = "true"
    return response


def _fingerprint(body: Mapping[str, Any]) -> str:
    """Return a hash of the request; the key's name is in it, for it decides who the run is for."""
    canonical = json.dumps([caller().name, dict(body)], sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
