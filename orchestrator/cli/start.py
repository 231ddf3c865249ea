"""``orchestrator run``: starts a run, and shows it while it goes on."""

from __future__ import annotations

import sys

import click

from orchestrator.cli.connection import FAILED, INTERRUPTED, with_client
from orchestrator.cli.live import follow_to_the_end
from orchestrator.cli.printing import failure_lines, run_line
from orchestrator.cli.values import given_parameters, params_options
from orchestrator.client import Client


@click.command()
@click.argument("name")
@params_options
@click.option(
    "--wait",
    is_flag=True,
    help="Wait for the end, and tell it on standard error; exit status 1 unless it is a success.",
)
@click.option("--follow", "-f", is_flag=True, help="Show the run until it ends; exit status as with --wait.")
@click.option("--version", type=click.IntRange(1), help="A version of the pipeline; the current one when left out.")
@click.option("--priority", type=click.IntRange(-1000, 1000), help="Higher goes first; the definition's when left out.")
@click.option("--idempotency-key", help="One key starts one run, however often it is sent.")
@with_client
def run(
    client: Client,
    *,
    name: str,
    params: tuple[str, ...],
    params_file: str | None,
    wait: bool,
    follow: bool,
    version: int | None,
    priority: int | None,
    idempotency_key: str | None,
) -> None:
    """Start a run of the pipeline NAME and print its id, which unless --follow is all of standard output.

    Ctrl-C while it is waited for or shown leaves the run going on (exit status 130).
    """
    parameters = given_parameters(params, params_file)
    made = client.start_run(name, parameters, idempotency_key=idempotency_key, version=version, priority=priority)
    click.echo(made["id"])
    if follow:
        follow_to_the_end(client, made["id"])
    if wait:
        wait_for_end(client, made["id"])


def wait_for_end(client: Client, run_id: str) -> None:
    """Wait for the run's end, tell it on standard error, which `R=$(…)` does not take up, and leave with its status."""
    try:
        ended = client.wait(run_id, outputs=False)
    except KeyboardInterrupt:
        click.echo(f"\nRun {run_id} goes on. `orchestrator cancel {run_id}` cancels it.", err=True)
        sys.exit(INTERRUPTED)
    for line in (run_line(ended), *failure_lines(ended)):
        click.echo(line, err=True)
    sys.exit(0 if ended["state"] == "success" else FAILED)


COMMANDS = (run,)
