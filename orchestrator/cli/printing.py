"""How answers of the API are printed: as JSON, or as tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

as_json = click.option("--json", "raw", is_flag=True, help="Print JSON instead of a table.")
RUN_COLUMNS = ("id", "pipeline_name", "state", "created_at", "reason")
TASK_COLUMNS = ("name", "operator", "state", "attempt_number", "reason", "message")
HEADINGS = {
    "pipeline_name": "pipeline", "attempt_number": "try", "created_at": "created", "run_id": "run",
    "wait_token": "token", "expires_at": "expires", "deleted_by": "deleted by", "exit_code": "exit",
}  # fmt: skip
COLOURS = {
    "success": "green", "failed": "red", "upstream_failed": "red", "cancelled": "yellow", "cancelling": "yellow",
    "running": "cyan", "retry_wait": "magenta", "waiting": "magenta", "skipped": "dim", "pending": "dim",
}  # fmt: skip
SENTENCES = frozenset({"message", "summary"})
FAILED_SHOWN = 10
_WIDE = 10_000
"""Columns of what is no terminal: a program that reads the lines must find nothing cut."""


def print_json(document: Any) -> None:
    """Print a JSON value, indented; escaped where the terminal's encoding can't say it, so that it stays what it is."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(document, indent=2)
    click.echo(text)


def print_items(items: Iterable[Mapping[str, Any]], columns: tuple[str, ...], *, none: str, raw: bool = False) -> None:
    """Print these columns of the items as a table, or all of them as JSON.

    Sentences are broken where the terminal is narrow, words and ids never are: they are there to be copied.

    :param none: what is said on standard error in place of a table without rows.
    """
    if raw:
        print_json(list(items))
        return
    rows = [[_cell(column, item.get(column)) for column in columns] for item in items]
    if not rows:
        click.echo(none, err=True)
        return
    table = Table(box=None, pad_edge=False)
    for place, column in enumerate(columns):
        heading = HEADINGS.get(column, column)
        if column in SENTENCES:
            table.add_column(heading, overflow="fold")
        else:
            width = max([len(heading), *(row[place].cell_len for row in rows)])
            table.add_column(heading, no_wrap=True, min_width=width)
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    with console.capture() as printed:
        console.print(table, crop=False)
    for line in printed.get().splitlines():
        click.echo(line.rstrip())


def run_line(run: Mapping[str, Any]) -> str:
    """Return a run as one line: pipeline, version, state and why."""
    because = run.get("message") or run.get("reason") or ""
    told = f" ({because})" if because not in ("", run["state"]) else ""
    return f"{run['pipeline_name']} version {run['version']}: {run['state']}{told}"


def failure_lines(run: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each task that has failed, the first ones, and one that says where to read on."""
    failed = [task for task in run.get("tasks", ()) if task["state"] == "failed"]
    for task in failed[:FAILED_SHOWN]:
        yield f"  {task['name']}: {task['message'] or task['reason']}"
    if len(failed) > FAILED_SHOWN:
        yield f"  … and {len(failed) - FAILED_SHOWN} more"
    if tried := [task["name"] for task in failed if task["attempt_number"]]:
        yield f"`orchestrator logs {run['id']} {tried[0]}` shows what it printed."


def print_run(run: Mapping[str, Any]) -> None:
    """Print a run and its tasks."""
    click.echo(run_line(run))
    print_items(run["tasks"], TASK_COLUMNS, none="It has no tasks.")


def _cell(column: str, value: Any) -> Text:
    if value is None:
        return Text("")
    if column == "state":
        return Text(str(value), COLOURS.get(value, ""))
    if column.endswith("_at"):
        return Text(datetime.fromisoformat(value).astimezone().strftime("%Y-%m-%d %H:%M:%S"))
    return Text(", ".join(map(str, value)) if isinstance(value, list) else str(value))
