"""``orchestrator explain``: why a run, or one task of it, is where it is, and what would bring it on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import click

from orchestrator.cli.connection import with_client
from orchestrator.cli.printing import as_json, print_json
from orchestrator.client import Client


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("task", required=False)
@as_json
@with_client
def explain(client: Client, run_id: str, task: str | None, raw: bool) -> None:
    """Say why a RUN, or one TASK of it, does not go on.

    Each thing that holds it up is told with what it needs, and what would bring it on. Of what has ended it is told
    what ended it.
    """
    answer = client.explain(run_id, task)
    if raw:
        print_json(answer)
    else:
        click.echo("\n".join(explanation_lines(task or "run", answer)))


def explanation_lines(what: str, answer: Mapping[str, Any]) -> Iterator[str]:
    """Yield an explanation of a run with the tasks that wait or are to blame, or of a task."""
    message = answer.get("message")
    yield f"{what}: {answer['state']}{_in_brackets(answer.get('reason')) if message else ''}"
    if message:
        yield f"  {message}"
    for blocker in answer["blockers"]:
        yield from blocker_lines(blocker)
    if decided := answer.get("decided"):
        because = "" if message else _because(decided)
        yield f"  since {_moment(decided['at'])}, by {decided['actor']} ({decided['cause']}){because}"
    if cache := answer.get("cache"):
        yield f"  cache: {cache['message']}"
    tasks = answer.get("tasks", ())
    for task in tasks:
        yield from explanation_lines(task["name"], task)
    if more := answer.get("more"):
        yield f"… and {more} more tasks like these; ask for one by its name."
    if not (answer["blockers"] or answer.get("decided") or tasks or message):
        yield "  Nothing holds it up."


def blocker_lines(blocker: Mapping[str, Any]) -> Iterator[str]:
    """Yield what holds something up: what and since when, what it needs, and what would bring it on."""
    since = f" (since {_moment(blocker['since'])})" if blocker["since"] else ""
    yield f"  {blocker['kind']}: {blocker['message']}{since}"
    if blocker["needs"]:
        yield f"      needs {blocker['needs']}"
    if blocker["unblock"]:
        yield f"      → {blocker['unblock']}"


def _in_brackets(reason: str | None) -> str:
    return f" ({reason})" if reason else ""


def _because(decided: Mapping[str, Any]) -> str:
    because = decided["message"] or decided["reason"]
    return f": {because}" if because else ""


def _moment(at: str) -> str:
    return datetime.fromisoformat(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


COMMANDS = (explain,)
