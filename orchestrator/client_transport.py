"""How the client speaks HTTP: one key, patience with a server that is away, and the server's sentence as the error."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import requests

from orchestrator.errors import OrchestratorError, Problem

TRY_AGAIN_STATUSES = frozenset({429, 502, 503, 504})


class ApiError(OrchestratorError):
    """The API refused a request, or could not be reached; ``str(error)`` is the server's sentence.

    :ivar status: the HTTP status; 0 when no answer came.
    :ivar problems: what is wrong where in the document that was sent.
    """

    def __init__(self, message: str, *, status: int = 0, problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.problems = problems


class Transport:
    """Sends requests to one API under one key, and reads its answers, lists and streams of events.

    Requests that may be repeated without harm are repeated while the server is away or asks for patience.

    :param url: where the API listens, such as ``http://127.0.0.1:8001``.
    :param patience: seconds during which such a request is repeated.
    """

    def __init__(self, url: str, api_key: str, *, timeout: float = 30.0, patience: float = 15.0) -> None:
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._patience = patience
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy or ~/.netrc must not come between the key and this server
        self._session.headers.update({"Authorization": f"Bearer {api_key}", "Accept": "application/json"})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the server."""
        self._session.close()

    def _items(self, path: str, filters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        query = {name: value for name, value in filters.items() if value is not None}
        while True:
            page = self._request("GET", path, query=query)
            if not isinstance(page.get("items"), list):
                raise _foreign(f"{self._url}{path}", 200)
            yield from page["items"]
            if not page.get("next_cursor"):
                return
            query["cursor"] = page["next_cursor"]

    def _answer(self, path: str, field: str) -> dict[str, Any]:
        """Return what one look at ``path`` gives, whatever its status, as long as it has this field."""
        response = self._send("GET", path, None, None, {})
        document = _json(response)
        if field not in document:
            raise _error(response)
        return document

    def _request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = False,
    ) -> dict[str, Any]:
        deadline = time.monotonic() + (self._patience if repeatable or method == "GET" else 0.0)
        pause = 0.2
        while True:
            try:
                response = self._send(method, path, body, query, headers or {})
                failure = None if response.ok else _error(response)
                wait = _retry_after(response) if failure else 0.0
            except ApiError as error:
                failure, wait = error, 0.0
            if failure is None:
                return _json(response)
            transient = failure.status == 0 or failure.status in TRY_AGAIN_STATUSES
            wait = max(wait, pause)
            if not transient or time.monotonic() + wait > deadline:
                raise failure
            time.sleep(wait)
            pause = min(2.0, pause * 2)

    def _stream(self, path: str, last: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield a stream of server-sent events as ``(kind, content)``, its ``end`` included; a cut stream is resumed.

        :param last: id of the event after which to begin.
        """
        pause = 0.2
        deadline = time.monotonic() + self._patience
        while True:
            failure: Exception | None = None
            try:
                with self._opened(path, last) as response:
                    for mark, kind, content in read_events(response.iter_lines()):
                        last, pause = mark or last, 0.2
                        deadline = time.monotonic() + self._patience
                        yield kind, content
                        if kind == "end":
                            return
            except ApiError as error:
                if error.status and error.status not in TRY_AGAIN_STATUSES:
                    raise
                failure = error
            except requests.RequestException as error:
                failure = self._no_answer(error)
            if failure is not None and time.monotonic() + pause > deadline:
                raise failure
            time.sleep(pause)
            pause = min(2.0, pause * 2)

    def _opened(self, path: str, last: str) -> requests.Response:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
        address = f"{self._url}{path}"
        try:
            response = self._session.get(address, headers=headers, timeout=self._timeout, stream=True)
        except requests.RequestException as error:
            raise self._no_answer(error) from error
        if not response.ok:
            with response:
                raise _error(response)
        return response

    def _send(
        self, method: str, path: str, body: Any, query: Mapping[str, Any] | None, headers: Mapping[str, str]
    ) -> requests.Response:
        try:
            return self._session.request(
                method, f"{self._url}{path}", json=body, params=query, headers=headers, timeout=self._timeout
            )
        except requests.RequestException as error:
            raise self._no_answer(error) from error

    def _no_answer(self, error: requests.RequestException) -> ApiError:
        return ApiError(
            f"The API at {self._url} does not answer ({type(error).__name__}); is it running? `make up` starts it."
        )


def read_events(lines: Iterable[bytes]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the events of a server-sent stream as ``(id, kind, content)``; comments are dropped."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.decode("utf-8", "replace").partition(":")
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            yield fields.get("id", ""), fields.get("event", "message"), json.loads(fields["data"])
            fields = {}
        else:
            fields = {}


def _retry_after(response: requests.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("Retry-After", "0")))
    except ValueError:  # a proxy may give a date
        return 0.0


def _json(response: requests.Response) -> dict[str, Any]:
    if not response.content:
        return {}
    try:
        document = response.json()
    except requests.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise _foreign(response.url, response.status_code)
    return document


def _foreign(address: str, status: int) -> ApiError:
    message = f"{address} answered {status} with something that is not our API's JSON; check the address."
    return ApiError(message, status=status)


def _error(response: requests.Response) -> ApiError:
    try:
        document = _json(response)
    except ApiError as error:
        return error
    errors = document.get("errors")
    problems = tuple(
        Problem(str(problem.get("pointer", "")), str(problem.get("message", "")))
        for problem in (errors if isinstance(errors, list) else ())
        if isinstance(problem, dict)
    )
    message = str(document.get("message") or response.reason)
    details = "; ".join(f"{problem.pointer or '/'}: {problem.message}" for problem in problems)
    return ApiError(f"{message} {details}".strip(), status=response.status_code, problems=problems)
