"""The command line: ``orchestrator pipelines|runs|workers|operators …``, through the REST API like any other client."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import click
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.client import ApiError, Client
from orchestrator.errors import ConfigurationError, OrchestratorError
from orchestrator.local.address import read_address
from orchestrator.local.keys import read_keys

FAILED = 1


def connect() -> Client:
    """Return a client of the API that the environment names, else of the one-host system in ``DATA_DIR``.

    :raises ConfigurationError: there is no key to be had.
    """
    data_dir = Path(os.environ.get("DATA_DIR") or ".data")
    url = os.environ.get("ORCHESTRATOR_URL") or read_address(data_dir)
    key = os.environ.get("ORCHESTRATOR_API_KEY") or os.environ.get("ADMIN_KEY") or read_keys(data_dir).get("ADMIN_KEY")
    if not key:
        raise ConfigurationError(
            "No API key: set ORCHESTRATOR_API_KEY (and ORCHESTRATOR_URL), or run this where `make up` was run."
        )
    return Client(url, key)


def with_client(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command a client, and turn our errors into one line on standard error and exit status 1."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with connect() as client:
                command(client, *args, **kwargs)
        except ApiError as error:
            raise click.ClickException(_explain(error)) from error
        except (OrchestratorError, TimeoutError) as error:
            raise click.ClickException(str(error)) from error

    return run


as_json = click.option("--json", "raw", is_flag=True, help="Print JSON instead of a table.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pipeline-orchestrator", prog_name="orchestrator")
def main() -> None:
    """Run pipelines on Pipeline Orchestrator.

    ORCHESTRATOR_URL and ORCHESTRATOR_API_KEY say where and as whom; without them the one-host system in DATA_DIR
    (.data) is used.
    """


# --- pipelines ---


@main.group()
def pipelines() -> None:
    """Create, list, show and validate pipeline definitions."""


@pipelines.command("create")
@click.argument("file", type=click.File("rb"))
@with_client
def pipelines_create(client: Client, file: IO[bytes]) -> None:
    """Save the definition in FILE (JSON or YAML, - for standard input); a known name gets a new version."""
    pipeline = client.save_pipeline(read_definition(file))
    click.echo(f"{pipeline['name']} version {pipeline['version']} ({pipeline['id']})")


@pipelines.command("validate")
@click.argument("file", type=click.File("rb"))
@with_client
def pipelines_validate(client: Client, file: IO[bytes]) -> None:
    """Check the definition in FILE and print the plan, or all its problems."""
    verdict = client.validate_pipeline(read_definition(file))
    if not verdict["valid"]:
        raise click.ClickException(_list_problems((error["pointer"], error["message"]) for error in verdict["errors"]))
    _print_json(verdict["plan"])


@pipelines.command("list")
@as_json
@with_client
def pipelines_list(client: Client, raw: bool) -> None:
    """List all pipelines."""
    _print_items(client.pipelines(), ("name", "version", "owner", "id"), raw)


@pipelines.command("show")
@click.argument("name")
@with_client
def pipelines_show(client: Client, name: str) -> None:
    """Print the newest version of the pipeline NAME as JSON."""
    _print_json(client.get_pipeline_by_name(name))


# --- runs ---


@main.group()
def runs() -> None:
    """Start, list, show, cancel and rerun runs, and read their logs."""


@runs.command("start")
@click.argument("name")
@click.option("--param", "-p", "params", multiple=True, metavar="KEY=VALUE", help="A run parameter; VALUE may be JSON.")
@click.option("--key", "idempotency_key", help="Idempotency key: one key starts one run.")
@click.option("--wait", is_flag=True, help="Wait for the end; exit status 1 unless the run succeeds.")
@with_client
def runs_start(client: Client, name: str, params: tuple[str, ...], idempotency_key: str | None, wait: bool) -> None:
    """Start a run of the pipeline NAME and print its id."""
    run = client.start_run(name, parse_parameters(params), idempotency_key=idempotency_key)
    click.echo(run["id"])
    if wait:
        _wait(client, run["id"])


def _wait(client: Client, run_id: str) -> None:
    """Wait for the run's end and exit with what it came to."""
    run = client.wait(run_id)
    _print_run(run)
    sys.exit(0 if run["state"] == "success" else FAILED)


@runs.command("list")
@click.option("--pipeline", "pipeline_name", help="Only runs of this pipeline.")
@click.option("--state", help="Only runs in this state.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="At most so many.")
@as_json
@with_client
def runs_list(client: Client, pipeline_name: str | None, state: str | None, limit: int, raw: bool) -> None:
    """List runs, newest first."""
    found = client.runs(pipeline_name=pipeline_name, state=state)
    chosen = [run for run, _ in zip(found, range(limit), strict=False)]
    _print_items(chosen, ("id", "pipeline_name", "state", "reason", "created_at", "ended_at"), raw)


@runs.command("show")
@click.argument("run_id")
@as_json
@with_client
def runs_show(client: Client, run_id: str, raw: bool) -> None:
    """Show a run and its tasks."""
    run = client.get_run(run_id)
    if raw:
        _print_json(run)
    else:
        _print_run(run)


@runs.command("cancel")
@click.argument("run_id")
@with_client
def runs_cancel(client: Client, run_id: str) -> None:
    """Cancel a run: its tasks are stopped, nothing new starts."""
    click.echo(client.cancel(run_id)["state"])


@runs.command("rerun")
@click.argument("run_id")
@click.argument("tasks", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Run all tasks again, not only what failed.")
@click.option("--wait", is_flag=True, help="Wait for the end; exit status 1 unless the run succeeds.")
@with_client
def runs_rerun(client: Client, run_id: str, tasks: tuple[str, ...], everything: bool, wait: bool) -> None:
    """Start a run again that has ended: from what failed, or from TASKS; all below them is run again too."""
    if everything and tasks:
        raise click.UsageError("Name tasks or say --all, not both.")
    run = client.rerun(run_id, "all" if everything else tasks or "failed")
    click.echo(f"{run['state']} as generation {run['generation']}")
    if wait:
        _wait(client, run_id)


@runs.command("logs")
@click.argument("run_id")
@click.argument("task")
@click.option("--follow", "-f", is_flag=True, help="Go on until the task has ended.")
@with_client
def runs_logs(client: Client, run_id: str, task: str, follow: bool) -> None:
    """Print the log of a TASK of a run."""
    if follow:
        for text in client.follow_logs(run_id, task):
            click.echo(text, nl=False)
        return
    offset = 0
    while (piece := client.logs(run_id, task, offset))["text"]:
        click.echo(piece["text"], nl=False)
        offset = piece["next_offset"]


# --- the site ---


@main.command("workers")
@as_json
@with_client
def workers(client: Client, raw: bool) -> None:
    """List the workers."""
    _print_items(client.workers(), ("id", "host_id", "state", "queues", "slots"), raw)


@main.command("operators")
@as_json
@with_client
def operators(client: Client, raw: bool) -> None:
    """List the operators that tasks may use."""
    _print_items(client.operators(), ("name", "summary"), raw)


# --- reading and printing ---


def read_definition(file: IO[bytes]) -> Mapping[str, Any]:
    """Return the object in a JSON or YAML file.

    :raises ConfigurationError: it holds none.
    """
    name = getattr(file, "name", "standard input")
    try:
        text = file.read().decode("utf-8")
        try:
            document = json.loads(text)  # first, for YAML 1.1 takes 1e-3 for text
        except json.JSONDecodeError:
            document = yaml.safe_load(text)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{name} is neither JSON nor YAML: {error}.") from error
    if not isinstance(document, dict):
        raise ConfigurationError(f"{name} holds no object; a pipeline definition is an object with name and tasks.")
    return document


def parse_parameters(pairs: Iterable[str]) -> dict[str, Any]:
    """Return run parameters from ``key=value``; a value that is JSON is taken as such, any other as text.

    :raises click.BadParameter: a pair has no ``=``.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE.", param_hint="--param")
        try:
            found[key] = json.loads(text)
        except json.JSONDecodeError:
            found[key] = text
    return found


def _explain(error: ApiError) -> str:
    if not error.problems:
        return str(error)
    return _list_problems((problem.pointer, problem.message) for problem in error.problems)


def _list_problems(problems: Iterable[tuple[str, str]]) -> str:
    lines = (f"  {pointer or '/'}: {message}" for pointer, message in problems)
    return "\n".join(["the definition has these problems:", *lines])


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def _print_items(items: Iterable[Mapping[str, Any]], columns: tuple[str, ...], raw: bool) -> None:
    if raw:
        _print_json(list(items))
        return
    table = Table(*columns, box=None, pad_edge=False)
    for item in items:
        table.add_row(*(Text(_cell(item.get(column))) for column in columns))
    Console().print(table)


def _print_run(run: Mapping[str, Any]) -> None:
    because = f" ({run['message'] or run['reason']})" if run.get("message") or run.get("reason") else ""
    click.echo(f"{run['pipeline_name']} version {run['version']}: {run['state']}{because}")
    _print_items(run["tasks"], ("name", "operator", "state", "reason", "attempt_number", "message"), raw=False)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    main()
