"""A small REST client: for users' programs, for the command line and for the demo."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from orchestrator.client_transport import ApiError as ApiError  # noqa: PLC0414 - this is where users import it from
from orchestrator.client_transport import Transport

QUIET_LOOKS = 4
"""Looks without anything new after a task's end: the last of its log may still be on its way."""
FINAL_STATES = frozenset({"success", "failed", "cancelled"})
"""States that a run leaves only by a rerun or a mark."""
TASK_FINAL_STATES = FINAL_STATES | {"upstream_failed", "skipped"}

CONTAINERS = frozenset({"map", "repeat"})
"""Kinds of tasks that run nothing themselves, but the task runs inside of them."""


class Client(Transport):
    """The API of one orchestrator, under one API key; see :class:`Transport` for its patience.

    What changes a run (cancel, rerun, mark …) is asked of the scheduler: the answer has a ``command_id``, and
    :meth:`command` says what became of it.
    """

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
        """Check a definition without saving it: ``valid``, ``errors`` (all of them), ``plan`` and ``definition``, which
        is the definition as it would be stored."""
        return self._request("POST", "/api/v1/pipelines/validate", body=definition, repeatable=True)

    def get_pipeline(self, pipeline_id: str) -> dict[str, Any]:
        """Return a pipeline by id."""
        return self._request("GET", f"/api/v1/pipelines/{_part(pipeline_id)}")

    def get_pipeline_by_name(self, name: str) -> dict[str, Any]:
        """Return a pipeline by name."""
        return self._request("GET", f"/api/v1/pipelines/by-name/{_part(name)}")

    def pipelines(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """Yield all pipelines."""
        return self._items("/api/v1/pipelines", filters)

    def versions(self, pipeline_id: str) -> Iterator[dict[str, Any]]:
        """Yield the versions of a pipeline, newest first."""
        return self._items(f"/api/v1/pipelines/{_part(pipeline_id)}/versions", {})

    def pause_pipeline(self, pipeline_id: str, *, reason: str = "") -> dict[str, Any]:
        """Let no run of the pipeline start until it is resumed; new ones are accepted and wait."""
        path = f"/api/v1/pipelines/{_part(pipeline_id)}/pause"
        return self._request("POST", path, body=_said(reason=reason), repeatable=True)

    def resume_pipeline(self, pipeline_id: str, *, reason: str = "") -> dict[str, Any]:
        """Let the runs of the pipeline start again."""
        path = f"/api/v1/pipelines/{_part(pipeline_id)}/resume"
        return self._request("POST", path, body=_said(reason=reason), repeatable=True)

    # --- runs ---

    def start_run(
        self,
        pipeline: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        version: int | None = None,
        priority: int | None = None,
    ) -> dict[str, Any]:
        """Start a run of the pipeline with this name.

        :param idempotency_key: one key makes one run, however often it is sent; one is made when not given, so that
            a repeated request can't start two.
        :param version: of the pipeline; the current one when left out.
        :param priority: the definition's when left out.
        """
        chosen = _said(version=version, priority=priority)
        body = {"pipeline_name": pipeline, "parameters": dict(parameters or {}), **chosen}
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._request("POST", "/api/v1/runs", body=body, headers=headers, repeatable=True)

    def get_run(self, run_id: str, *, outputs: bool = True) -> dict[str, Any]:
        """Return a run with its task runs.

        :param outputs: whether with what these have left. Beyond 1 MiB together it is left out all the same, and
            ``outputs_left_out`` says so: :meth:`outputs` has those of one task.
        """
        return self._request("GET", _run(run_id), query=None if outputs else {"outputs": "false"})

    def runs(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """Yield runs, newest first."""
        return self._items("/api/v1/runs", filters)

    def children(self, run_id: str, **filters: Any) -> Iterator[dict[str, Any]]:
        """Yield the runs that are tasks of this one, and those that are reruns of it."""
        return self._items(_run(run_id, "children"), filters)

    def cancel(
        self, run_id: str, *, mode: str = "graceful", grace_seconds: float | None = None, reason: str = ""
    ) -> dict[str, Any]:
        """Ask for a run to be cancelled; returns the run.

        :param mode: ``graceful`` lets tasks end in their grace and runs the teardown tasks; ``force`` does neither.
        :param grace_seconds: seconds between TERM and KILL; each task's own when left out.
        """
        return self._request("POST", _run(run_id, "cancel"), body=_stop(mode, grace_seconds, reason), repeatable=True)

    def pause(self, run_id: str, *, reason: str = "") -> dict[str, Any]:
        """Let no further task of the run start; what runs goes on."""
        return self._request("POST", _run(run_id, "pause"), body=_said(reason=reason), repeatable=True)

    def resume(self, run_id: str, *, reason: str = "") -> dict[str, Any]:
        """Let the tasks of a paused run start again."""
        return self._request("POST", _run(run_id, "resume"), body=_said(reason=reason), repeatable=True)

    def rerun(
        self,
        run_id: str,
        tasks: str | Sequence[str] = "failed",
        *,
        version: int | str | None = None,
        parameters: Mapping[str, Any] | None = None,
        in_place: bool | None = None,
        seconds: float | None = 30.0,
        pause: float = 0.1,
    ) -> dict[str, Any]:
        """Start a run again that has ended, and return it, without outputs, once it has its new generation.

        A run keeps what it began with: by another version, or with other parameters, it is run again as a new run,
        which is linked to it and takes over the outputs of what need not run again. Then the new run is returned.

        :param tasks: ``failed``, ``all``, or names of tasks; everything downstream of them is run again too.
        :param version: ``latest`` or a number; the run's own when left out.
        :param parameters: put over the run's own; the tasks that read them are run again too.
        :param in_place: ``False`` makes a new run of it whatever else is asked for.
        :param seconds: how long to wait for the new generation; ``None`` does not wait, and returns the run as it was.
        :raises ApiError: the API or the scheduler has refused it.
        :raises TimeoutError: no scheduler has started it again in time; it may still do so.
        """
        body = _again(tasks, version, parameters, in_place)
        as_new = in_place is False or (in_place is None and not body.keys().isdisjoint(("version", "parameters")))
        # One key makes one run, so only then it may be asked twice.
        headers = {"Idempotency-Key": uuid.uuid4().hex} if as_new else {}
        before = self._request("POST", _run(run_id, "rerun"), body=body, headers=headers, repeatable=as_new)
        if seconds is None or before["id"] != run_id:
            return before
        deadline = time.monotonic() + seconds
        while True:
            # Read before the run: where it was refused because another rerun came first, the run shows that one. Of one
            # that is done the generation says nothing: the scheduler may have been faster than the answer to us.
            command = self._known(before.get("command_id"))
            run = self.get_run(run_id, outputs=False)
            if command.get("state") == "done" or run["generation"] > before["generation"]:
                return run
            if command.get("state") == "refused":
                raise ApiError(str(command["result"]), status=409)
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"Run {run_id} has not been started again after {seconds:g} s; it is {run['state']}. "
                    "Does a scheduler run?"
                )
            time.sleep(pause)

    def preview_rerun(
        self,
        run_id: str,
        tasks: str | Sequence[str] = "failed",
        *,
        version: int | str | None = None,
        parameters: Mapping[str, Any] | None = None,
        in_place: bool | None = None,
    ) -> dict[str, Any]:
        """Say what a rerun would run and what it would keep, without starting it."""
        body = _again(tasks, version, parameters, in_place)
        return self._request("POST", _run(run_id, "rerun/preview"), body=body, repeatable=True)

    def explain(self, run_id: str, task: str | None = None) -> dict[str, Any]:
        """Say why a run, or one task of it, is where it is, and what would bring it on."""
        path = _run(run_id, "explain") if task is None else _task(run_id, task, "explain")
        return self._request("GET", path)

    def events(self, run_id: str, **filters: Any) -> Iterator[dict[str, Any]]:
        """Yield the transitions of a run so far, oldest first."""
        return self._items(_run(run_id, "events"), filters)

    def follow_events(self, run_id: str, *, after: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the transitions of a run, as they come, until it has ended.

        :param after: the ``id`` of the last one that is known.
        """
        events = self._stream(_run(run_id, "events"), str(after) if after else "")
        return (content for kind, content in events if kind == "transition")

    def command(self, command_id: int) -> dict[str, Any]:
        """Return what was asked of the scheduler and what it said: ``state`` is open, done or refused."""
        return self._request("GET", f"/api/v1/commands/{command_id}")

    def settled(self, answer: Mapping[str, Any], *, seconds: float = 10.0, pause: float = 0.1) -> dict[str, Any]:
        """Wait until the scheduler has looked at what was asked, and return the command; ``{}``: none was made.

        :param answer: to the request, with its ``command_id``.
        :raises ApiError: the scheduler has refused it; the message says why.
        :raises TimeoutError: no scheduler has looked at it in time; one may still do so.
        """
        command_id = answer.get("command_id")
        if command_id is None:
            return {}
        deadline = time.monotonic() + seconds
        while (command := self.command(command_id))["state"] == "open":
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"No scheduler has looked at command {command_id} after {seconds:g} s; does one run? "
                    "It stays asked for."
                )
            time.sleep(pause)
        if command["state"] == "refused":
            raise ApiError(str(command["result"]), status=409)
        return command

    def _known(self, command_id: int | None) -> dict[str, Any]:
        """Return the command; ``{}`` if the API is too old to name it."""
        return self.command(command_id) if command_id is not None else {}

    def wait(
        self,
        run_id: str,
        *,
        seconds: float | None = None,
        pause: float = 0.25,
        on_change: Callable[[dict[str, Any]], None] | None = None,
        outputs: bool = True,
    ) -> dict[str, Any]:
        """Wait until a run has ended and return it.

        :param on_change: called with the run, without outputs, whenever it looks different from before.
        :param outputs: whether the run that is returned has them, as :meth:`get_run` tells them.
        :raises TimeoutError: it did not end in time.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        seen: dict[str, Any] | None = None
        while True:
            run = self.get_run(run_id, outputs=False)
            if on_change is not None and run != seen:
                on_change(run)
            seen = run
            if run["state"] in FINAL_STATES and outputs:
                run = self.get_run(run_id)  # which by now may have been started again
            if run["state"] in FINAL_STATES:
                return run
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"Run {run_id} has not ended after {seconds:.0f} s; it is {run['state']}.")
            time.sleep(pause)

    # --- tasks of a run ---

    def tasks(self, run_id: str, *, inside: str | None = None, **filters: Any) -> Iterator[dict[str, Any]]:
        """Yield the task runs of a run.

        :param inside: the container whose indices or rounds are wanted; without it the run's own tasks.
        """
        return self._items(_run(run_id, "tasks"), {**_said(parent=inside), **filters})

    def get_task(self, run_id: str, task: str) -> dict[str, Any]:
        """Return one task run of a run."""
        return self._request("GET", _task(run_id, task))

    def attempts(self, run_id: str, task: str, **filters: Any) -> Iterator[dict[str, Any]]:
        """Yield the attempts of a task run, oldest first."""
        return self._items(_task(run_id, task, "attempts"), filters)

    def artifacts(self, run_id: str, **filters: Any) -> Iterator[dict[str, Any]]:
        """Yield what a run, or its ``task``, has left in the artifact store."""
        return self._items(_run(run_id, "artifacts"), filters)

    def outputs(self, run_id: str, task: str) -> Any:
        """Return what a task has left, as those downstream see it: of a mapped task a list by index."""
        return self._request("GET", _task(run_id, task, "outputs"))["outputs"]

    def cancel_task(
        self, run_id: str, task: str, *, mode: str = "graceful", grace_seconds: float | None = None, reason: str = ""
    ) -> dict[str, Any]:
        """Ask for one task of a run to be cancelled; returns the task run."""
        body = _stop(mode, grace_seconds, reason)
        return self._request("POST", _task(run_id, task, "cancel"), body=body, repeatable=True)

    def mark(
        self, run_id: str, task: str, state: str, *, reason: str = "", outputs: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Settle a task run by hand, one that nothing of runs.

        :param state: ``success``, ``failed`` or ``skipped``.
        :param outputs: of a success, for the tasks downstream.
        """
        body = {"state": state, **_said(reason=reason, outputs=None if outputs is None else dict(outputs))}
        return self._request("POST", _task(run_id, task, "mark"), body=body)

    def approve(
        self, run_id: str, task: str, *, input: Mapping[str, Any] | None = None, reason: str = ""
    ) -> dict[str, Any]:
        """Approve a task that waits for a person; ``input`` is what its definition asks for."""
        return self._decide(run_id, task, "approve", input, reason)

    def reject(
        self, run_id: str, task: str, *, input: Mapping[str, Any] | None = None, reason: str = ""
    ) -> dict[str, Any]:
        """Reject a task that waits for a person."""
        return self._decide(run_id, task, "reject", input, reason)

    def _decide(
        self, run_id: str, task: str, verdict: str, given: Mapping[str, Any] | None, reason: str
    ) -> dict[str, Any]:
        body = _said(input=None if given is None else dict(given), reason=reason)
        return self._request("POST", _task(run_id, task, verdict), body=body)

    def waits(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """Yield the tasks of all runs that wait for a person or an outside event, the latter with their tokens."""
        return self._items("/api/v1/waits", filters)

    def send_event(self, token: str, payload: Any = None) -> dict[str, Any]:
        """Report an outside event to the task that waits for it under this token.

        The same again changes nothing: then ``command_id`` is ``None``.
        """
        return self._request("POST", f"/api/v1/events/{_part(token)}", body=_said(payload=payload), repeatable=True)

    def logs(self, run_id: str, task: str, offset: int = 0, *, attempt: int | None = None) -> dict[str, Any]:
        """Return log text from a byte offset: ``text``, ``next_offset``, ``ended``, ``complete``, ``final``.

        :param attempt: number of the attempt; the latest when left out.
        """
        return self._request("GET", _task(run_id, task, "logs"), query={"offset": offset, **_said(attempt=attempt)})

    def log_parts(self, run_id: str, task: str, attempt: int | None = None, pause: float = 0.5) -> Iterator[str]:
        """Yield the log text that there is; where the attempt has ended, what is still on its way too."""
        offset = 0
        while (piece := self.logs(run_id, task, offset, attempt=attempt))["text"] or is_on_its_way(piece):
            yield piece["text"]
            if piece.get("final"):
                return
            if piece["next_offset"] == offset:
                time.sleep(pause)
            offset = piece["next_offset"]

    def follow_logs(self, run_id: str, task: str, *, attempt: int | None = None, pause: float = 0.5) -> Iterator[str]:
        """Yield log text as it comes, until the log is complete."""
        offset = quiet = 0
        while quiet < QUIET_LOOKS:
            piece = self.logs(run_id, task, offset, attempt=attempt)
            if piece["text"]:
                yield piece["text"]
            if piece.get("final"):
                return
            if piece["next_offset"] == offset:
                quiet = quiet + 1 if piece["complete"] else 0
                time.sleep(pause)
            offset = piece["next_offset"]

    # --- the rest ---

    def operators(self) -> Iterator[dict[str, Any]]:
        """Yield the operators with their parameter schemas."""
        return self._items("/api/v1/operators", {})

    def workers(self) -> Iterator[dict[str, Any]]:
        """Yield the workers with capacity and reservations."""
        return self._items("/api/v1/workers", {})

    def model_versions(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the registered versions of a model."""
        return self._items(f"/api/v1/models/{_part(name)}/versions", {})

    def health(self) -> dict[str, Any]:
        """Return the state of every part of the system, in one look: an unhealthy answer is an answer too."""
        return self._answer("/monitoring/health/detailed", "components")


def is_on_its_way(piece: Mapping[str, Any]) -> bool:
    """Say whether more of the log of an attempt that has ended may come."""
    return bool(piece.get("ended")) and not piece["complete"]


def _part(text: str) -> str:
    return quote(text, safe="")


def _run(run_id: str, what: str = "") -> str:
    return f"/api/v1/runs/{_part(run_id)}{'/' if what else ''}{what}"


def _task(run_id: str, task: str, what: str = "") -> str:
    return f"{_run(run_id)}/tasks/{_part(task)}{'/' if what else ''}{what}"


def _said(**fields: Any) -> dict[str, Any]:
    """Return the fields that were given: what is left out keeps the server's default."""
    return {name: value for name, value in fields.items() if value is not None and value != ""}


def _stop(mode: str, grace_seconds: float | None, reason: str) -> dict[str, Any]:
    return _said(mode=None if mode == "graceful" else mode, grace_seconds=grace_seconds, reason=reason)


def _again(
    tasks: str | Sequence[str],
    version: int | str | None,
    parameters: Mapping[str, Any] | None,
    in_place: bool | None,
) -> dict[str, Any]:
    asked = {"from": tasks if isinstance(tasks, str) else list(tasks)}
    return {**asked, **_said(version=version, parameters=dict(parameters or {}) or None, in_place=in_place)}
