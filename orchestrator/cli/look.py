"""``orchestrator tasks``, ``attempts``, ``outputs``, ``artifacts`` and ``logs``: what became of the tasks of a run."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import click

from orchestrator.cli.connection import with_client
from orchestrator.cli.printing import TASK_COLUMNS, as_json, print_items, print_json
from orchestrator.client import CONTAINERS, FINAL_STATES, QUIET_LOOKS, TASK_FINAL_STATES, Client, is_on_its_way

PAUSE = 0.5
WITHOUT_OUTPUTS = {"outputs": "false"}
ATTEMPT_COLUMNS = ("number", "state", "worker", "exit_code", "reason", "message")
ARTIFACT_COLUMNS = ("uri", "size", "made by", "expires_at", "deleted_by")


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("task", required=False)
@click.option("--state", help="Only those in this state; several separated by commas.")
@as_json
@with_client
def tasks(client: Client, run_id: str, task: str | None, state: str | None, raw: bool) -> None:
    """List the tasks of a RUN, or what is inside of a TASK of it.

    Inside of a mapped task are its indices, inside of a repeated one its rounds.
    """
    shown = client.tasks(run_id, inside=task, state=state, **({} if raw else WITHOUT_OUTPUTS))
    print_items(shown, TASK_COLUMNS, none="There is no such task.", raw=raw)


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("task")
@as_json
@with_client
def attempts(client: Client, run_id: str, task: str, raw: bool) -> None:
    """List the attempts of a TASK of a RUN."""
    print_items(client.attempts(run_id, task), ATTEMPT_COLUMNS, none="It has not been tried yet.", raw=raw)


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("task", required=False)
@as_json
@with_client
def artifacts(client: Client, run_id: str, task: str | None, raw: bool) -> None:
    """List what a RUN, or one TASK of it, has left in the artifact store."""
    found = client.artifacts(run_id, task=task)
    none = "Nothing of it is in the artifact store."
    print_items(found if raw else map(_with_producer, found), ARTIFACT_COLUMNS, none=none, raw=raw)


def _with_producer(artifact: Mapping[str, Any]) -> dict[str, Any]:
    producer = artifact["producer"]
    return {**artifact, "made by": producer and f"{producer['task']} of run {producer['run_id']}"}


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("task")
@with_client
def outputs(client: Client, run_id: str, task: str) -> None:
    """Print the outputs of a TASK of a RUN as JSON. Those of a mapped task are a list by index."""
    print_json(client.outputs(run_id, task))


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("task", required=False)
@click.option("--follow", "-f", is_flag=True, help="Go on until it has ended.")
@click.option("--attempt", type=click.IntRange(1), help="Of a TASK: which one; the latest when left out.")
@with_client
def logs(client: Client, run_id: str, task: str | None, follow: bool, attempt: int | None) -> None:
    """Print the log of a RUN, or of one TASK of it. In that of a run each line comes after its task's name."""
    if task is None and attempt is not None:
        raise click.UsageError("--attempt is one of a TASK; name it.")
    if task is None:
        for line in RunLog(client, run_id).lines(follow=follow):
            click.echo(line)
    else:
        print_log(client, run_id, task, attempt=attempt, follow=follow)


def print_log(client: Client, run_id: str, task: str, *, follow: bool, attempt: int | None = None) -> None:
    """Print the log of one attempt as far as there is any; with ``follow``, or once it has ended, the whole of it."""
    parts = client.follow_logs(run_id, task, attempt=attempt) if follow else client.log_parts(run_id, task, attempt)
    for text in parts:
        click.echo(text, nl=False)


class RunLog:
    """The logs of all tasks and attempts of a run, those inside of its containers too, read in turn."""

    def __init__(self, client: Client, run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        self._offsets: dict[tuple[str, int], int] = defaultdict(int)
        self._rests: dict[tuple[str, int], str] = defaultdict(str)
        """What was read of a line that is not whole yet."""
        self._quiet: dict[tuple[str, int], int] = defaultdict(int)
        self._on_their_way: set[tuple[str, int]] = set()
        """The attempts that have ended and whose log has not come whole."""
        self._over: dict[str, list[tuple[str, int]]] = {}
        """The attempts inside of containers that are over: there will be no more."""

    def lines(self, *, follow: bool) -> Iterator[str]:
        """Yield the lines that are there; with ``follow`` those to come too, until the run has ended."""
        while True:
            began = time.monotonic()
            run = self._client.get_run(self._run_id, outputs=False)
            attempts = list(self._attempts(run["tasks"]))
            for attempt in attempts:
                if self._quiet[attempt] < QUIET_LOOKS:
                    yield from self._new_lines(attempt)
            quiet = all(self._quiet[attempt] >= QUIET_LOOKS for attempt in attempts)
            if (run["state"] in FINAL_STATES and quiet) if follow else not self._on_their_way:
                break
            # The indices of a wide map are many pages, which are not asked for all the time.
            time.sleep(max(PAUSE, time.monotonic() - began))
        for (task, _), rest in self._rests.items():
            if rest:
                yield f"{task} | {rest}"

    def _attempts(self, tasks: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, int]]:
        for task in tasks:
            name = task["name"]
            if task.get("kind") not in CONTAINERS:
                yield from ((name, number) for number in range(1, int(task["attempt_number"] or 0) + 1))
            elif name in self._over:
                yield from self._over[name]
            else:
                inside = list(self._client.tasks(self._run_id, inside=name, limit=200, **WITHOUT_OUTPUTS))
                found = list(self._attempts(inside))
                if all(self._is_over(one) for one in inside) and task["state"] in TASK_FINAL_STATES:
                    self._over[name] = found
                yield from found

    def _is_over(self, task: Mapping[str, Any]) -> bool:
        """Say whether there will be no more attempts: a map may be decided while some of its indices run on."""
        return task["name"] in self._over if task.get("kind") in CONTAINERS else task["state"] in TASK_FINAL_STATES

    def _new_lines(self, attempt: tuple[str, int]) -> Iterator[str]:
        task, number = attempt
        while True:
            piece = self._client.logs(self._run_id, task, self._offsets[attempt], attempt=number)
            *whole, rest = (self._rests[attempt] + piece["text"]).split("\n")
            self._rests[attempt] = rest
            yield from (f"{task} | {line}" for line in whole)
            if piece.get("final"):
                self._on_their_way.discard(attempt)
                self._quiet[attempt] = QUIET_LOOKS
                return
            if piece["next_offset"] == self._offsets[attempt]:
                (self._on_their_way.add if is_on_its_way(piece) else self._on_their_way.discard)(attempt)
                self._quiet[attempt] = self._quiet[attempt] + 1 if piece["complete"] else 0
                return
            self._quiet[attempt] = 0
            self._offsets[attempt] = piece["next_offset"]


COMMANDS = (tasks, attempts, outputs, artifacts, logs)
