"""``orchestrator cancel``, ``pause`` and ``resume``: what keeps work from going on."""

from __future__ import annotations

from collections.abc import Callable

import click

from orchestrator.cli.connection import with_client
from orchestrator.cli.printing import run_line
from orchestrator.client import Client

reason_option = click.option("--reason", default="", help="Why; it is kept in the audit.")


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("task", required=False)
@click.option("--force", is_flag=True, help="KILL at once, and run no teardown task.")
@click.option(
    "--grace", type=click.FloatRange(0, 86400), metavar="SECONDS", help="Between TERM and KILL; each task's own."
)
@reason_option
@click.option("--wait", is_flag=True, help="Wait until all of it has stopped.")
@with_client
def cancel(
    client: Client, run_id: str, task: str | None, force: bool, grace: float | None, reason: str, wait: bool
) -> None:
    """Cancel a RUN, or one TASK of it. What runs is stopped, nothing new of it starts."""
    if force and grace:
        raise click.UsageError("--force leaves no grace; give one of the two.")
    if wait and task is not None:
        raise click.UsageError("--wait waits for a whole run; leave TASK out.")
    mode = "force" if force else "graceful"
    if task is None:
        answer = client.cancel(run_id, mode=mode, grace_seconds=grace, reason=reason)
    else:
        answer = client.cancel_task(run_id, task, mode=mode, grace_seconds=grace, reason=reason)
    client.settled(answer)
    if wait:
        click.echo(run_line(client.wait(run_id, outputs=False)))
    elif task is None:
        click.echo(client.get_run(run_id, outputs=False)["state"])
    else:
        click.echo(client.get_task(run_id, task)["state"])


def _pausable(command: Callable[..., None]) -> Callable[..., None]:
    run = click.argument("run_id", metavar="[RUN]", required=False)
    pipeline = click.option("--pipeline", "-P", "pipeline", metavar="NAME", help="All runs of this pipeline instead.")
    return run(pipeline(reason_option(command)))


def _one_of(run_id: str | None, pipeline: str | None) -> None:
    if (run_id is None) == (pipeline is None):
        raise click.UsageError("Name a RUN, or a pipeline with --pipeline.")


@click.command()
@_pausable
@with_client
def pause(client: Client, run_id: str | None, pipeline: str | None, reason: str) -> None:
    """Pause a RUN, or a whole pipeline.

    What runs goes on, nothing new of the run starts. A paused pipeline starts no run.
    """
    _one_of(run_id, pipeline)
    if pipeline is not None:
        client.pause_pipeline(client.get_pipeline_by_name(pipeline)["id"], reason=reason)
        click.echo(f"{pipeline}: paused")
    elif run_id is not None:
        client.settled(client.pause(run_id, reason=reason))
        click.echo(client.get_run(run_id, outputs=False)["state"])


@click.command()
@_pausable
@with_client
def resume(client: Client, run_id: str | None, pipeline: str | None, reason: str) -> None:
    """Resume a RUN, or a pipeline, that was paused."""
    _one_of(run_id, pipeline)
    if pipeline is not None:
        client.resume_pipeline(client.get_pipeline_by_name(pipeline)["id"], reason=reason)
        click.echo(f"{pipeline}: resumed")
    elif run_id is not None:
        client.settled(client.resume(run_id, reason=reason))
        click.echo(client.get_run(run_id, outputs=False)["state"])


COMMANDS = (cancel, pause, resume)
