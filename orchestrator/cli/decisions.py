"""``orchestrator waits``, ``approve``, ``reject`` and ``event``: what tasks wait for from outside."""

from __future__ import annotations

from collections.abc import Callable

import click

from orchestrator.cli.connection import with_client
from orchestrator.cli.printing import as_json, print_items
from orchestrator.cli.stop import reason_option
from orchestrator.cli.values import parse_pairs, parse_value
from orchestrator.client import Client

WAIT_COLUMNS = ("run_id", "pipeline_name", "task", "kind", "wait_token", "message")


@click.command()
@click.option("--kind", type=click.Choice(["approval", "event"]), help="Only these.")
@as_json
@with_client
def waits(client: Client, kind: str | None, raw: bool) -> None:
    """List the tasks that wait for a person or an outside event."""
    print_items(client.waits(kind=kind), WAIT_COLUMNS, none="Nothing waits.", raw=raw)


def _decision(command: Callable[..., None]) -> Callable[..., None]:
    run = click.argument("run_id", metavar="RUN")
    task = click.argument("task")
    given = click.option(
        "--input",
        "-i",
        "given",
        multiple=True,
        metavar="KEY=VALUE",
        help="What the approval asks for; VALUE may be JSON.",
    )
    return run(task(given(reason_option(command))))


@click.command()
@_decision
@with_client
def approve(client: Client, run_id: str, task: str, given: tuple[str, ...], reason: str) -> None:
    """Approve a TASK of a RUN that waits for a person."""
    answer = client.approve(run_id, task, input=parse_pairs(given, "--input") or None, reason=reason)
    client.settled(answer)
    click.echo(client.get_task(run_id, task)["state"])


@click.command()
@_decision
@with_client
def reject(client: Client, run_id: str, task: str, given: tuple[str, ...], reason: str) -> None:
    """Reject a TASK of a RUN that waits for a person."""
    answer = client.reject(run_id, task, input=parse_pairs(given, "--input") or None, reason=reason)
    client.settled(answer)
    click.echo(client.get_task(run_id, task)["state"])


@click.command()
@click.argument("token")
@click.option("--payload", metavar="JSON", help="What happened; a text that is no JSON is taken as a text.")
@with_client
def event(client: Client, token: str, payload: str | None) -> None:
    """Report an outside event by its TOKEN.

    `orchestrator waits` shows the tokens.
    """
    answer = client.send_event(token, None if payload is None else parse_value(payload))
    client.settled(answer)
    click.echo("reported" if answer["command_id"] is not None else "was reported before; nothing changes")


COMMANDS = (waits, approve, reject, event)
