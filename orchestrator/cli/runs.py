"""``orchestrator runs …``: the runs of a site, and the long names of ``run``, ``cancel``, ``rerun`` and ``logs``."""

from __future__ import annotations

import click

from orchestrator.cli.connection import with_client
from orchestrator.cli.look import print_log
from orchestrator.cli.printing import RUN_COLUMNS, as_json, print_items, print_json, print_run
from orchestrator.cli.start import wait_for_end
from orchestrator.cli.values import given_parameters, params_options
from orchestrator.client import Client


@click.group()
def runs() -> None:
    """Start, list, show, cancel and rerun runs, and read their logs."""


@runs.command("start")
@click.argument("name")
@params_options
@click.option("--key", "idempotency_key", help="Idempotency key: one key starts one run.")
@click.option(
    "--wait",
    is_flag=True,
    help="Wait for the end, and tell it on standard error; exit status 1 unless it is a success.",
)
@with_client
def start(
    client: Client,
    name: str,
    params: tuple[str, ...],
    params_file: str | None,
    idempotency_key: str | None,
    wait: bool,
) -> None:
    """Start a run of the pipeline NAME and print its id."""
    run = client.start_run(name, given_parameters(params, params_file), idempotency_key=idempotency_key)
    click.echo(run["id"])
    if wait:
        wait_for_end(client, run["id"])


@runs.command("list")
@click.option("--pipeline", "pipeline_name", help="Only runs of this pipeline.")
@click.option("--state", help="Only runs in this state.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="At most so many.")
@as_json
@with_client
def list_all(client: Client, pipeline_name: str | None, state: str | None, limit: int, raw: bool) -> None:
    """List runs, newest first."""
    found = client.runs(pipeline_name=pipeline_name, state=state)
    shown = (run for run, _ in zip(found, range(limit), strict=False))
    print_items(shown, RUN_COLUMNS, none="There is no such run.", raw=raw)


@runs.command("show")
@click.argument("run_id")
@as_json
@with_client
def show(client: Client, run_id: str, raw: bool) -> None:
    """Show a run and its tasks."""
    run = client.get_run(run_id, outputs=raw)
    if raw:
        print_json(run)
    else:
        print_run(run)


@runs.command("cancel")
@click.argument("run_id")
@with_client
def cancel(client: Client, run_id: str) -> None:
    """Cancel a run: its tasks are stopped, nothing new starts."""
    click.echo(client.cancel(run_id)["state"])


@runs.command("rerun")
@click.argument("run_id")
@click.argument("tasks", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Run all tasks again, not only what failed.")
@click.option(
    "--wait",
    is_flag=True,
    help="Wait for the end, and tell it on standard error; exit status 1 unless it is a success.",
)
@with_client
def rerun(client: Client, run_id: str, tasks: tuple[str, ...], everything: bool, wait: bool) -> None:
    """Start a run again that has ended: from what failed, or from TASKS; all below them is run again too."""
    if everything and tasks:
        raise click.UsageError("Name tasks or say --all, not both.")
    run = client.rerun(run_id, "all" if everything else tasks or "failed")
    click.echo(f"{run['state']} as generation {run['generation']}")
    if wait:
        wait_for_end(client, run_id)


@runs.command("logs")
@click.argument("run_id")
@click.argument("task")
@click.option("--follow", "-f", is_flag=True, help="Go on until the task has ended.")
@with_client
def logs(client: Client, run_id: str, task: str, follow: bool) -> None:
    """Print the log of a TASK of a run."""
    print_log(client, run_id, task, follow=follow)


COMMANDS = (runs,)
