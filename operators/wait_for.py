"""``wait_for``: waits until a file, an object or an HTTP answer is there, and holds no worker's slot meanwhile."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import ClassVar
from urllib.parse import urlsplit

from operators.ingestion.credentials import connection_headers
from operators.ingestion.pagination import value_at
from operators.ingestion.plan import find_connection
from orchestrator import s3_objects
from orchestrator.artifacts import is_artifact
from orchestrator.documents import is_same_json
from orchestrator.errors import ForbiddenAddress, ForbiddenPath, NotFound, StoreUnavailable, TooLarge, Unreachable
from orchestrator.inputs import fingerprint, local_file, require_own
from orchestrator.operator import Connection, Json, NotYet, Operator, OperatorFailure, TaskContext
from orchestrator.outbound import Response
from orchestrator.reach import is_below
from orchestrator.retry import LONGEST_RETRY_AFTER

DEFAULT_INTERVAL = 30.0
_ANSWER_BYTES = 1 << 20
_LARGEST_TOLD = 16 * 1024
_DENIED = "the store denies access, which S3 does to what is not there too, unless the credentials may list the bucket."
_SLOWNESS = 60.0
"""Seconds between two looks, besides the interval, that count as waiting. A clock that jumps is not to end a wait."""


class WaitFor(Operator):
    """Looks once. What is not there is looked for again in ``interval_seconds``: the task is ``waiting`` until then,
    and nothing is charged to its retries."""

    name = "wait_for"
    summary = "Waits for a file, an object in S3, an artifact or an HTTP answer, without holding a worker's slot."
    parameters_schema: ClassVar[Mapping[str, Json]] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "file": {
                "type": "string", "minLength": 1,
                "description": "What has to be there: a path in a data root, s3://bucket/key or artifact://….",
            },
            "http": {
                "type": "object", "additionalProperties": False, "required": ["url"],
                "description": "Or a request, and what has to be answered.",
                "properties": {
                    "url": {
                        "type": "string", "minLength": 1,
                        "description": "http(s)://…; with a connection also a path below its URL.",
                    },
                    "method": {"enum": ["GET", "HEAD", "POST"], "default": "GET", "description": "Of the request."},
                    "headers": {
                        "type": "object", "additionalProperties": {"type": "string"}, "default": {},
                        "description": "Of the request. Secrets belong into a connection.",
                    },
                    "body": {"description": "Of the request, sent as JSON."},
                    "status": {
                        "type": "integer", "minimum": 100, "maximum": 599, "default": 200,
                        "description": "The status that has to be answered.",
                    },
                    "path": {
                        "type": "string", "minLength": 1, "maxLength": 500,
                        "description": "Where to look in the JSON answer: names and positions joined by dots. What is "
                        "there must be neither null nor false, or equal `equals`.",
                    },
                    "equals": {"description": "What has to be found at `path`."},
                },
            },
            "connection": {
                "type": "string", "minLength": 1,
                "description": "Named connection whose credentials are used, for what lies below its URL.",
            },
            "interval_seconds": {
                "type": "number", "minimum": 1, "maximum": 86_400, "default": DEFAULT_INTERVAL,
                "description": "How long until the next look.",
            },
            "timeout_seconds": {
                "type": "number", "exclusiveMinimum": 0,
                "description": "How long to wait before the task fails with wait_timeout. Default: as long as the "
                "task's deadline_seconds allows.",
            },
            "fingerprint": {
                "type": "boolean", "default": False,
                "description": "Whether to read the file, once it is there, and tell its SHA-256.",
            },
        },
    }  # fmt: skip
    outputs_schema: ClassVar[Mapping[str, Json]] = {
        "type": "object",
        "additionalProperties": False,
        "required": ["uri"],
        "properties": {
            "uri": {"type": "string", "description": "What was found: as in `file`, or the URL without its query."},
            "size": {"type": "integer", "description": "Its bytes."},
            "fingerprint": {"type": "string", "description": "sha256:<hex> of the file."},
            "status": {"type": "integer", "description": "Status of the HTTP answer."},
            "value": {"description": "What was found at `path`; left out when it has more than 16 KiB."},
        },
    }

    @classmethod
    def problems(cls, parameters: Mapping[str, Json]) -> list[tuple[str, str]]:
        """Check that there is one thing to wait for."""
        given = [name for name in ("file", "http") if name in parameters]
        if not given:
            return [("", "Say what to wait for: file or http.")]
        if len(given) == 2:
            return [("/http", "Give file or http, not both; two things are two tasks.")]
        return _file_problems(parameters) if given == ["file"] else _http_problems(parameters)

    @classmethod
    def connection_names(cls, parameters: Mapping[str, Json]) -> frozenset[str]:
        """Return the connection, if one is named."""
        name = parameters.get("connection")
        return frozenset({name}) if isinstance(name, str) else frozenset()

    def run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        """Look; what is not there (any more) ends the attempt with :class:`NotYet`."""
        interval = float(parameters.get("interval_seconds", DEFAULT_INTERVAL))
        try:
            found = _look(context, parameters, interval)
        except NotYet as wait:
            _count_wait(context, parameters.get("timeout_seconds"), wait)
            raise
        context.log("Found.", **{name: value for name, value in found.items() if name != "value"})
        return found

    def dry_run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        """Look, and say whether it is there now."""
        try:
            return {"is_there": True, **_look(context, {**parameters, "fingerprint": False}, DEFAULT_INTERVAL)}
        except NotYet as wait:
            return {"is_there": False, "message": wait.message}


def _file_problems(parameters: Mapping[str, Json]) -> list[tuple[str, str]]:
    file = parameters["file"]
    if not isinstance(file, str):
        return []
    if _is_http(file):
        return [("/file", "This is a URL; wait for it by `http`.")]
    if s3_objects.is_s3(file) and not s3_objects.names_object(file):
        return [("/file", "This does not name one object: expected s3://bucket/key.")]
    return []


def _http_problems(parameters: Mapping[str, Json]) -> list[tuple[str, str]]:
    http = parameters["http"]
    if not isinstance(http, Mapping):
        return []
    found: list[tuple[str, str]] = []
    if "path" in http and http.get("method") == "HEAD":
        found.append(("/http/path", "An answer to HEAD has no content to look into; use GET, or leave it out."))
    if "equals" in http and "path" not in http:
        found.append(("/http/path", "`equals` needs `path`: where to look in the answer."))
    if "connection" not in parameters and not _is_http(http.get("url")):
        found.append(("/http/url", "This is no http(s) URL; only with a connection it may be a path."))
    if "fingerprint" in parameters:
        found.append(("/fingerprint", "Only a file has one; leave it out."))
    return found


def _look(context: TaskContext, parameters: Mapping[str, Json], interval: float) -> dict[str, Json]:
    connection = find_connection(context, parameters.get("connection"))
    if "http" in parameters:
        return _look_http(context, parameters["http"], connection, interval)
    uri = parameters["file"]
    size = _size_of(context, uri, connection, interval)
    found: dict[str, Json] = {"uri": uri, "size": size}
    if parameters.get("fingerprint"):
        found["fingerprint"] = _fingerprint_of(context, uri, connection)
    return found


def _size_of(context: TaskContext, uri: str, connection: Connection | None, interval: float) -> int:
    try:
        if is_artifact(uri):
            require_own(context, uri)
            return context.artifacts.stat(uri).bytes
        if s3_objects.is_s3(uri):
            return s3_objects.size_of(context, uri, connection)
        path = context.roots.resolve(uri)
        if path.is_file():
            return path.stat().st_size
    except (NotFound, FileNotFoundError):
        pass
    except ForbiddenPath as error:
        raise OperatorFailure("forbidden_path", str(error)) from error
    except StoreUnavailable as error:
        raise OperatorFailure("store_unavailable", str(error), retryable=True) from error
    except OperatorFailure as error:
        if error.reason == "unauthorised" and s3_objects.may_be_missing(context, uri, connection):
            raise NotYet(interval, f"{uri} is not there yet, or may not be read: {_DENIED}") from error
        if error.reason != "not_found":
            raise
    raise NotYet(interval, f"{uri} is not there yet.")


def _fingerprint_of(context: TaskContext, uri: str, connection: Connection | None) -> str:
    if s3_objects.is_s3(uri) and connection is not None:
        target = context.workdir / "found"
        s3_objects.download(context, uri, target, connection)
        return fingerprint(target)
    return fingerprint(local_file(context, uri))


def _look_http(
    context: TaskContext, http: Mapping[str, Json], connection: Connection | None, interval: float
) -> dict[str, Json]:
    url = _url(http["url"], connection)
    headers = connection_headers(connection) if connection is not None else {}
    try:
        response = context.http.request(
            http.get("method", "GET"), url, headers={**headers, **http.get("headers", {})}, json=http.get("body"),
            max_bytes=_ANSWER_BYTES, idempotent=False,
        )  # fmt: skip
    except ForbiddenAddress as error:
        raise OperatorFailure("forbidden_address", str(error)) from error
    except TooLarge as error:
        raise OperatorFailure("too_large", f"{error} Ask for the part that tells.") from error
    except Unreachable as error:
        raise NotYet(interval, str(error)) from error
    interval = max(interval, min(LONGEST_RETRY_AFTER, response.retry_after or 0.0))
    wanted = http.get("status", 200)
    if response.status != wanted:
        if response.status in (401, 403):
            raise OperatorFailure("unauthorised", f"{response.url} answered {response.status}; check the credentials.")
        raise NotYet(interval, f"{response.url} answered {response.status}, not {wanted} yet.")
    found: dict[str, Json] = {"uri": response.url, "status": response.status, "size": response.size}
    if "path" in http:
        value = _value(response, http, interval)
        if len(str(value)) <= _LARGEST_TOLD:
            found["value"] = value
    return found


def _value(response: Response, http: Mapping[str, Json], interval: float) -> Json:
    try:
        value = value_at(response.json(), http["path"])
    except Unreachable as error:
        raise NotYet(interval, str(error)) from error
    is_met = is_same_json(value, http["equals"]) if "equals" in http else value is not None and value is not False
    if not is_met:
        shown = repr(value)[:200]
        raise NotYet(interval, f"{response.url} holds {shown} at {http['path']!r}, which is not what is waited for.")
    return value


def _is_http(url: Json) -> bool:
    return isinstance(url, str) and url.lower().startswith(("http://", "https://"))


def _url(url: str, connection: Connection | None) -> str:
    """Return the URL to ask; the connection's credentials go to nothing that does not lie below its own."""
    if connection is None:
        return url
    if not _is_http(url):
        parts = urlsplit(connection.url)
        top = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        url = f"{top.rstrip('/')}/{url.lstrip('/')}"
    try:
        is_allowed = is_below(url, connection.url)
    except ForbiddenAddress as error:
        raise OperatorFailure("forbidden_address", str(error)) from error
    if not is_allowed:
        raise OperatorFailure(
            "forbidden_address",
            f"The URL does not lie below that of connection {connection.name!r}, whose credentials go nowhere else.",
        )
    return url


def _count_wait(context: TaskContext, timeout: float | None, wait: NotYet) -> None:
    """Add up how long was waited, from look to look; the looks may be on several hosts.

    :raises OperatorFailure: ``wait_timeout``.
    """
    if timeout is None:
        return
    now = time.time()
    try:
        waited, looked_at, planned = context.state_get("wait_for", [0.0, now, 0.0])
        waited += min(max(0.0, now - looked_at), planned + _SLOWNESS)
        if waited >= timeout:
            raise OperatorFailure("wait_timeout", f"Waited for {waited:.0f} s. {wait.message}")
        wait.retry_in = min(wait.retry_in, max(1.0, timeout - waited))
        context.state_set("wait_for", [waited, now, wait.retry_in])
    except StoreUnavailable as error:
        raise OperatorFailure("store_unavailable", str(error), retryable=True) from error
