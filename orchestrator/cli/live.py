"""A run while it goes on: a table that is drawn anew on a terminal, a line per change anywhere else."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.cli.connection import FAILED, INTERRUPTED
from orchestrator.cli.printing import COLOURS, run_line
from orchestrator.client import FINAL_STATES, TASK_FINAL_STATES, Client
from orchestrator.errors import OrchestratorError

REFRESH_SECONDS = 1.0
"""Progress and times change without an event."""
LEAST_PAUSE = 0.2
QUIET_STATES = frozenset({"pending", "ready", "queued"})
"""Not worth a line of their own."""
FIRST_SHOWN = ("failed", "running", "cancelling", "retry_wait", "waiting", "queued", "ready")
"""Which tasks are shown when there are more than lines, in this order."""


def follow_to_the_end(client: Client, run_id: str, *, after: int = 0) -> NoReturn:
    """Show the run until it ends, and leave with status 0 for success, 1 for anything else, 130 for Ctrl-C.

    :param after: id of the last transition that is not to be told again.
    """
    console = Console()
    try:
        run = _draw(client, run_id, console) if console.is_terminal else _tell(client, run_id, after)
    except KeyboardInterrupt:
        click.echo(f"\nRun {run_id} goes on. `orchestrator cancel {run_id}` cancels it.", err=True)
        sys.exit(INTERRUPTED)
    click.echo(f"{run_line(run)} in {_seconds(run):.1f} s")
    sys.exit(0 if run["state"] == "success" else FAILED)


# --- plain lines ---


def _tell(client: Client, run_id: str, after: int) -> dict[str, Any]:
    for event in client.follow_events(run_id, after=after):
        if line := event_line(event):
            click.echo(line)
    return client.get_run(run_id, outputs=False)


def event_line(event: Mapping[str, Any]) -> str:
    """Return a transition as one line; nothing for one that says little."""
    if event["entity"] not in ("run", "task_run") or event["after"] in QUIET_STATES:
        return ""
    at = datetime.fromisoformat(event["at"]).astimezone().strftime("%H:%M:%S")
    because = event["message"] or event["reason"]
    what = event["task"] if event["entity"] == "task_run" else "run"
    return f"{at}  {what}  {event['after']}{f'  {because}' if because else ''}"


# --- a table ---


def _draw(client: Client, run_id: str, console: Console) -> dict[str, Any]:
    changed = threading.Event()
    # A daemon: a read that waits for the server must not keep a command from ending.
    threading.Thread(target=_watch, args=(client, run_id, changed), daemon=True, name="run-events").start()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            asked = time.monotonic()
            run = client.get_run(run_id, outputs=False)
            took = time.monotonic() - asked
            live.update(Group(_title(run), run_table(run, datetime.now(UTC), max(3, console.height - 5))), refresh=True)
            if run["state"] in FINAL_STATES:
                return run
            # A run of ten thousand tasks takes the server a while; it is not asked all the time.
            time.sleep(max(LEAST_PAUSE, 2 * took))
            changed.wait(REFRESH_SECONDS)
            changed.clear()


def _watch(client: Client, run_id: str, changed: threading.Event) -> None:
    try:
        for _ in client.follow_events(run_id):
            changed.set()
    except OrchestratorError:
        return  # the table is also drawn without being told
    finally:
        changed.set()


def _title(run: Mapping[str, Any]) -> Text:
    return Text.assemble((str(run["pipeline_name"]), "bold"), f" {run['id']} ", (run["state"], _colour(run["state"])))


def run_table(run: Mapping[str, Any], now: datetime, most_rows: int) -> Table:
    """Return the tasks of a run as a table of at most so many rows, those that matter most."""
    table = Table("task", "state", "try", "progress", "time", "why", box=None, pad_edge=False)
    tasks = run["tasks"]
    shown = _most_important(tasks, most_rows)
    for task in shown:
        table.add_row(
            Text(task["name"]),
            Text(task["state"], _colour(task["state"])),
            str(task["attempt_number"] or ""),
            _bar(task),
            _time(task, now),
            Text(_why(task), overflow="ellipsis", no_wrap=True),
        )
    if len(shown) < len(tasks):
        names = {task["name"] for task in shown}
        rest = Counter(task["state"] for task in tasks if task["name"] not in names)
        said = ", ".join(f"{count} {state}" for state, count in rest.most_common())
        table.add_row(Text(f"… and {sum(rest.values())} more: {said}", "dim"))
    return table


def _most_important(tasks: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    if len(tasks) <= most:
        return list(tasks)
    rank = {state: place for place, state in enumerate(FIRST_SHOWN)}
    order = sorted(range(len(tasks)), key=lambda place: (rank.get(tasks[place]["state"], len(rank)), place))
    return [tasks[place] for place in sorted(order[: most - 1])]


def _bar(task: Mapping[str, Any]) -> ProgressBar | Text:
    if task["state"] == "running" and task.get("progress") is not None:
        return ProgressBar(total=1.0, completed=float(task["progress"]), width=12)
    if task["state"] not in TASK_FINAL_STATES and (inside := task.get("inside")):
        over = sum(number for state, number in inside.items() if state in TASK_FINAL_STATES)
        return ProgressBar(total=sum(inside.values()), completed=over, width=12)
    return Text("")


def _time(task: Mapping[str, Any], now: datetime) -> Text:
    if not task.get("started_at"):
        return Text("")
    if task["state"] in TASK_FINAL_STATES and not task.get("ended_at"):
        return Text("")
    return Text(f"{_seconds(task, now):.1f} s", justify="right")


def _seconds(entry: Mapping[str, Any], now: datetime | None = None) -> float:
    """Return how long a run or task took, or takes by now; this machine's clock may differ from the server's."""
    if not entry.get("started_at"):
        return 0.0
    ended = datetime.fromisoformat(entry["ended_at"]) if entry.get("ended_at") else now or datetime.now(UTC)
    return max(0.0, (ended - datetime.fromisoformat(entry["started_at"])).total_seconds())


def _why(task: Mapping[str, Any]) -> str:
    if task["state"] == "running" and task.get("progress_message"):
        return str(task["progress_message"])
    return str(task.get("message") or task.get("reason") or "").partition("\n")[0]


def _colour(state: str) -> str:
    return COLOURS.get(state, "")
