"""``orchestrator rerun`` and ``mark``: what was settled is settled anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from orchestrator.cli.connection import with_client
from orchestrator.cli.live import follow_to_the_end
from orchestrator.cli.printing import print_json
from orchestrator.cli.start import wait_for_end
from orchestrator.cli.stop import reason_option
from orchestrator.cli.values import given_parameters, params_options, read_object
from orchestrator.client import Client

STATES = ("success", "failed", "skipped")


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--from", "tasks", multiple=True, metavar="TASK", help="From this task; may be repeated.")
@click.option("--all", "everything", is_flag=True, help="Everything; without --from or --all: from what failed.")
@click.option("--latest", is_flag=True, help="By the pipeline's current version instead of the run's own.")
@params_options
@click.option("--new", is_flag=True, help="As a new run, linked to this one, which stays as it is.")
@click.option("--preview", is_flag=True, help="Say what would run and what would be kept, but start nothing.")
@click.option("--json", "raw", is_flag=True, help="Of a preview: as JSON.")
@click.option(
    "--wait",
    is_flag=True,
    help="Wait for the end, and tell it on standard error; exit status 1 unless it is a success.",
)
@click.option("--follow", "-f", is_flag=True, help="Show the run until it ends; exit status as with --wait.")
@with_client
def rerun(
    client: Client,
    *,
    run_id: str,
    tasks: tuple[str, ...],
    everything: bool,
    latest: bool,
    params: tuple[str, ...],
    params_file: str | None,
    new: bool,
    preview: bool,
    raw: bool,
    wait: bool,
    follow: bool,
) -> None:
    """Run a RUN again that has ended. All tasks downstream of those that are run again are run again too.

    In place it is the next generation of the same run. By another version or with other parameters it is a new run,
    whose id is printed: a run keeps what it began with.
    """
    if everything and tasks:
        raise click.UsageError("Name tasks with --from or say --all, not both.")
    if raw and not preview:
        raise click.UsageError("--json prints a preview; give --preview too.")
    chosen = "all" if everything else list(tasks) or "failed"
    version = "latest" if latest else None
    parameters = given_parameters(params, params_file) or None
    in_place = False if new else None
    if preview:
        plan = client.preview_rerun(run_id, chosen, version=version, parameters=parameters, in_place=in_place)
        if raw:
            print_json(plan)
        else:
            click.echo("\n".join(preview_lines(plan)))
        return
    last = next((event["id"] for event in client.events(run_id, sort="-id", limit=1)), 0) if follow else 0
    run = client.rerun(run_id, chosen, version=version, parameters=parameters, in_place=in_place)
    if run["id"] != run_id:
        click.echo(run["id"])
        last = 0
    else:
        click.echo(f"{run['state']} as generation {run['generation']}")
    if follow:
        follow_to_the_end(client, run["id"], after=last)
    if wait:
        wait_for_end(client, run["id"])


def preview_lines(preview: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a rerun would do, a line for each task."""
    yield "In place, as the next generation:" if preview["in_place"] else "As a new run:"
    for again in preview["run"]:
        yield f"  run    {again['task']}  {again['message']}"
    for name in preview["reused"]:
        yield f"  reuse  {name}"
    for name in preview["kept"]:
        yield f"  leave  {name}  It has not succeeded, and nothing that was chosen leads to it."


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("task")
@click.argument("state", type=click.Choice(STATES))
@click.option(
    "--outputs", "outputs_file", metavar="FILE", help="Of a success: a JSON or YAML file (- for standard input)."
)
@reason_option
@with_client
def mark(client: Client, run_id: str, task: str, state: str, outputs_file: str | None, reason: str) -> None:
    """Settle a TASK of a RUN by hand. What it had settled downstream is decided anew."""
    outputs = read_object(outputs_file, 'outputs are an object, as in {"rows": 10}') if outputs_file else None
    client.settled(client.mark(run_id, task, state, reason=reason, outputs=outputs))
    click.echo(client.get_task(run_id, task)["state"])


COMMANDS = (rerun, mark)
