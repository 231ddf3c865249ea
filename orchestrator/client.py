"""A small REST client: for users' programs, for the command line and for the demo."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self
from urllib.parse import quote

import requests

from orchestrator.errors import OrchestratorError, Problem

QUIET_LOOKS = 4
"""Looks without anything new after a task's end: the last of its log may still be on its way."""
FINAL_STATES = frozenset({"success", "failed", "cancelled"})
"""States that a run leaves only by a rerun."""
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


class Client:
    """The API of one orchestrator, under one API key.

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

    # --- pipelines ---

    def create_pipeline(self, definition: Mapping[str, Any]) -> dict[str, Any]:
        """Save a pipeline definition; an identical one gives the version that exists."""
        return self._request("POST", "/api/v1/pipelines", body=definition)

    def save_pipeline(self, definition: Mapping[str, Any]) -> dict[str, Any]:
        """Create the pipeline, or save a new version of the one that has this name."""
        try:
            return self.create_pipeline(definition)
        except ApiError as error:
            if error.status != 409:
                raise
        known = self.get_pipeline_by_name(str(definition["name"]))
        return self._request("PUT", f"/api/v1/pipelines/{known['id']}", body=definition, repeatable=True)

    def validate_pipeline(self, definition: Mapping[str, Any]) -> dict[str, Any]:
        """Check a definition without saving it: ``valid``, ``errors`` (all of them) and ``plan``."""
        return self._request("POST", "/api/v1/pipelines/validate", body=definition, repeatable=True)

    def get_pipeline(self, pipeline_id: str) -> dict[str, Any]:
        """Return a pipeline by id."""
        return self._request("GET", f"/api/v1/pipelines/{quote(pipeline_id, safe='')}")

    def get_pipeline_by_name(self, name: str) -> dict[str, Any]:
        """Return a pipeline by name."""
        return self._request("GET", f"/api/v1/pipelines/by-name/{quote(name, safe='')}")

    def pipelines(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """Yield all pipelines."""
        return self._items("/api/v1/pipelines", filters)

    # --- runs ---

    def start_run(
        self, pipeline: str, parameters: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """Start a run of the pipeline with this name.

        :param idempotency_key: one key makes one run, however often it is sent; one is made when not given, so that
            a repeated request can't start two.
        """
        body = {"pipeline_name": pipeline, "parameters": dict(parameters or {})}
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._request("POST", "/api/v1/runs", body=body, headers=headers, repeatable=True)

    def get_run(self, run_id: str) -> dict[str, Any]:
        """Return a run with its task runs."""
        return self._request("GET", f"/api/v1/runs/{quote(run_id, safe='')}")

    def runs(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """Yield runs, newest first."""
        return self._items("/api/v1/runs", filters)

    def cancel(self, run_id: str) -> dict[str, Any]:
        """Ask for a run to be cancelled; returns the run."""
        return self._request("POST", f"/api/v1/runs/{quote(run_id, safe='')}/cancel", repeatable=True)

    def rerun(
        self, run_id: str, tasks: str | Sequence[str] = "failed", *, seconds: float | None = 30.0, pause: float = 0.1
    ) -> dict[str, Any]:
        """Start a run again that has ended, and return it once it has its new generation.

        :param tasks: ``failed``, ``all``, or names of tasks; everything downstream of them is run again too.
        :param seconds: how long to wait for the new generation; ``None`` does not wait, and returns the run as it was.
        :raises ApiError: the scheduler has refused it.
        :raises TimeoutError: no scheduler has started it again in time; it may still do so.
        """
        body = {"from": tasks if isinstance(tasks, str) else list(tasks)}
        before = self._request("POST", f"/api/v1/runs/{quote(run_id, safe='')}/rerun", body=body)
        if seconds is None:
            return before
        deadline = time.monotonic() + seconds
        while True:
            # Read before the run: where it was refused because another rerun came first, the run shows that one.
            refusal = self._refusal(before.get("command_id"))
            if (run := self.get_run(run_id))["generation"] > before["generation"]:
                return run
            if refusal:
                raise ApiError(refusal, status=409)
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"Run {run_id} has not been started again after {seconds:g} s; it is {run['state']}. "
                    "Does a scheduler run?"
                )
            time.sleep(pause)

    def command(self, command_id: int) -> dict[str, Any]:
        """Return what became of a cancel, rerun or drain: ``state`` is ``open``, ``done`` or ``refused``."""
        return self._request("GET", f"/api/v1/commands/{command_id}")

    def _refusal(self, command_id: int | None) -> str:
        """Return why the command was refused; empty if it was not, or if the API is too old to name it."""
        command = self.command(command_id) if command_id is not None else {}
        return str(command["result"]) if command.get("state") == "refused" else ""

    def tasks(self, run_id: str) -> list[dict[str, Any]]:
        """Return the task runs of a run."""
        return list(self._items(f"/api/v1/runs/{quote(run_id, safe='')}/tasks", {}))

    def logs(self, run_id: str, task: str, offset: int = 0) -> dict[str, Any]:
        """Return log text from a byte offset: ``text``, ``next_offset``, ``complete``."""
        path = f"/api/v1/runs/{quote(run_id, safe='')}/tasks/{quote(task, safe='')}/logs"
        return self._request("GET", path, query={"offset": offset})

    def follow_logs(self, run_id: str, task: str, *, pause: float = 0.5) -> Iterator[str]:
        """Yield log text as it comes, until the log is complete."""
        offset = quiet = 0
        while quiet < QUIET_LOOKS:
            piece = self.logs(run_id, task, offset)
            if piece["text"]:
                yield piece["text"]
            if piece["next_offset"] == offset:
                quiet = quiet + 1 if piece["complete"] else 0
                time.sleep(pause)
            offset = piece["next_offset"]

    def wait(
        self,
        run_id: str,
        *,
        seconds: float | None = None,
        pause: float = 0.25,
        on_change: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Wait until a run has ended and return it.

        :param on_change: called with the run whenever it looks different from before.
        :raises TimeoutError: it did not end in time.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        seen: dict[str, Any] | None = None
        while True:
            run = self.get_run(run_id)
            if on_change is not None and run != seen:
                on_change(run)
            seen = run
            if run["state"] in FINAL_STATES:
                return run
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"Run {run_id} has not ended after {seconds:.0f} s; it is {run['state']}.")
            time.sleep(pause)

    # --- the rest ---

    def operators(self) -> Iterator[dict[str, Any]]:
        """Yield the operators with their parameter schemas."""
        return self._items("/api/v1/operators", {})

    def workers(self) -> Iterator[dict[str, Any]]:
        """Yield the workers with capacity and reservations."""
        return self._items("/api/v1/workers", {})

    def model_versions(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the registered versions of a model."""
        return self._items(f"/api/v1/models/{quote(name, safe='')}/versions", {})

    def health(self) -> dict[str, Any]:
        """Return the state of every part of the system, in one look: an unhealthy answer is an answer too."""
        response = self._send("GET", "/monitoring/health/detailed", None, None, {})
        document = _json(response)
        if "components" not in document:
            raise _error(response)
        return document

    # --- transport ---

    def _items(self, path: str, filters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        query = {name: value for name, value in filters.items() if value is not None}
        while True:
            page = self._request("GET", path, query=query)
            yield from page["items"]
            if not page.get("next_cursor"):
                return
            query["cursor"] = page["next_cursor"]

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

    def _send(
        self, method: str, path: str, body: Any, query: Mapping[str, Any] | None, headers: Mapping[str, str]
    ) -> requests.Response:
        try:
            return self._session.request(
                method, f"{self._url}{path}", json=body, params=query, headers=headers, timeout=self._timeout
            )
        except requests.RequestException as error:
            raise ApiError(
                f"The API at {self._url} does not answer ({type(error).__name__}); is it running? `make up` starts it."
            ) from error


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
        raise ApiError(
            f"{response.url} answered {response.status_code} with something that is not our API's JSON; "
            "check the address.",
            status=response.status_code,
        )
    return document


def _error(response: requests.Response) -> ApiError:
    try:
        document = _json(response)
    except ApiError as error:
        return error
    problems = tuple(
        Problem(str(problem.get("pointer", "")), str(problem.get("message", "")))
        for problem in document.get("errors") or ()
    )
    message = str(document.get("message") or response.reason)
    details = "; ".join(f"{problem.pointer or '/'}: {problem.message}" for problem in problems)
    return ApiError(f"{message} {details}".strip(), status=response.status_code, problems=problems)
