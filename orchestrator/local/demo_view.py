"""How the demo looks: runs and their tasks as tables, while they run and at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

MARKS = {"success": "✓", "failed": "✗", "upstream_failed": "✗", "cancelled": "✗", "skipped": "–", "running": "▶"}
STYLES = {"success": "green", "failed": "red", "upstream_failed": "red", "running": "cyan", "cancelled": "yellow"}
MIB = 2**20
TELLING = ("accuracy", "roc_auc", "f1", "r2", "rmse", "mae", "silhouette")
"""Metrics that people look for first; what else there is follows in its own order."""


def live_view(runs: Iterable[Mapping[str, Any]]) -> Group:
    """Return the running state of all runs, one line per task."""
    tables = []
    for run in runs:
        table = Table(box=None, pad_edge=False, title=_title(run), title_justify="left")
        for column in ("", "Task", "State", "Progress", "", "Time"):
            table.add_column(column, min_width={"Task": 18, "State": 10}.get(column, 0))
        for task in run["tasks"]:
            style = STYLES.get(task["state"], "dim")
            done = 1.0 if task["state"] == "success" else float(task.get("progress") or 0.0)
            table.add_row(
                Text(MARKS.get(task["state"], "·"), style),
                Text(task["name"]),
                Text(task["state"], style),
                ProgressBar(total=1.0, completed=done, width=20),
                Text(task.get("progress_message") or task.get("message") or "", "dim"),
                Text(seconds_text(elapsed(task))),
            )
        tables.append(table)
    return Group(*tables)


def final_table(runs: Iterable[Mapping[str, Any]]) -> Table:
    """Return what became of every task: state, time, peak memory, result."""
    table = Table(title="Tasks", title_justify="left")
    for column in ("Pipeline", "Task", "State", "Time", "Peak memory", "Result"):
        table.add_column(column, justify="right" if column in {"Time", "Peak memory"} else "left", overflow="fold")
    for run in runs:
        for position, task in enumerate(run["tasks"]):
            peak = (task.get("usage") or {}).get("peak_memory_bytes")
            table.add_row(
                Text(run["pipeline_name"] if position == 0 else ""),
                Text(task["name"]),
                Text(task["state"], STYLES.get(task["state"], "")),
                Text(seconds_text(elapsed(task))),
                Text(f"{peak / MIB:.0f} MiB" if peak else ""),
                Text(result_text(task)),
            )
        table.add_section()
    return table


def result_text(task: Mapping[str, Any]) -> str:
    """Say in a few words what a task left behind, or why it left nothing."""
    if task["state"] != "success":
        return str(task.get("message") or task.get("reason") or "")
    outputs = task.get("outputs") or {}
    parts = []
    if registration := outputs.get("registration"):
        stage = f", stage {registration['stage']}" if registration.get("stage") else ""
        parts.append(f"registered {registration['name']} version {registration['version']}{stage}")
    elif model := outputs.get("model"):
        parts.append(f"{model.get('algorithm', 'model')}: {metrics_text(model.get('metrics') or {})}")
    report = outputs.get("report") or {}
    if (error_rate := report.get("error_rate")) is not None:
        parts.append(f"{report.get('rows', 0):,} rows, error rate {error_rate:.2%}")
    elif (dataset := outputs.get("dataset")) and not parts:
        parts.append(f"{dataset['rows']:,} rows, {len(dataset.get('columns') or ())} columns")
    if not parts:
        told = {name: value for name, value in {**report, **outputs}.items() if name not in ("uri", "fingerprint")}
        parts = [f"{name} {_value(value)}" for name, value in told.items() if isinstance(value, (int, float, str))]
    return "; ".join(parts[:4])


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """Return the most telling metrics, rounded."""
    ordered = {name: metrics[name] for name in TELLING if name in metrics} | dict(metrics)
    numbers = [(name, value) for name, value in ordered.items() if isinstance(value, (int, float))]
    return ", ".join(f"{name} {_value(value)}" for name, value in numbers[:3])


def elapsed(task: Mapping[str, Any]) -> float | None:
    """Return how long a task has run or ran, in seconds."""
    if not task.get("started_at"):
        return None
    end = datetime.fromisoformat(task["ended_at"]) if task.get("ended_at") else datetime.now(UTC)
    return max(0.0, (end - datetime.fromisoformat(task["started_at"])).total_seconds())


def seconds_text(seconds: float | None) -> str:
    """Return a duration as people read it."""
    return "" if seconds is None else f"{seconds:.1f} s"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _title(run: Mapping[str, Any]) -> Text:
    return Text.assemble((run["pipeline_name"], "bold"), "  ", (run["state"], STYLES.get(run["state"], "dim")))
