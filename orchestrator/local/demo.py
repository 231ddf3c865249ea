"""The demo: submits the examples over REST, like any user, and shows what becomes of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.client import FINAL_STATES, Client
from orchestrator.errors import ConfigurationError, OrchestratorError
from orchestrator.local.demo_view import final_table, live_view, metrics_text, result_text

RUN_SECONDS = 600.0
PAUSE = 0.2
LOG_LINES = 20


def example_definitions(folder: Path) -> list[Mapping[str, Any]]:
    """Return the pipeline definitions in the folder, by file name.

    :raises ConfigurationError: there are none, or one is not JSON.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ConfigurationError(f"{folder} holds no pipeline (*.json); check out the repository again.")
    try:
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]
    except ValueError as error:
        raise ConfigurationError(f"A file in {folder} is not JSON: {error}.") from error


class Demo:
    """One showing of the examples.

    :param stopping: when it becomes true, the showing ends where it is.
    :ivar succeeded: whether every run ended in success.
    """

    def __init__(
        self,
        client: Client,
        definitions: Sequence[Mapping[str, Any]],
        *,
        stopping: Callable[[], bool],
        console: Console | None = None,
    ) -> None:
        self._client = client
        self._definitions = definitions
        self._stopping = stopping
        self._console = console or _wide_enough(Console())
        self.succeeded = False

    def run(self) -> None:
        """Submit all examples, follow their runs to the end and print what came of them."""
        try:
            began = time.monotonic()
            names = [str(self._client.save_pipeline(definition)["name"]) for definition in self._definitions]
            run_ids = [self._client.start_run(name)["id"] for name in names]
            runs = self._follow(run_ids)
            if not self._stopping():
                self._conclude(runs, time.monotonic() - began)
        except OrchestratorError as error:
            if not self._stopping():  # otherwise the API is leaving, as it was told to
                self._console.print(Text(str(error), "red"))

    def _follow(self, run_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Show the runs until all have ended; a terminal is drawn anew, anything else gets one line per change."""
        shown = _Changes(self._console)
        runs: list[dict[str, Any]] = []
        with Live(console=self._console, refresh_per_second=8, transient=True) as live:
            for runs in self._snapshots(run_ids):
                if self._console.is_terminal:
                    live.update(live_view(runs))
                else:
                    shown.print(runs)
        return runs

    def _snapshots(self, run_ids: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        deadline = time.monotonic() + RUN_SECONDS
        while not self._stopping():
            runs = [self._client.get_run(run_id) for run_id in run_ids]
            yield runs
            if all(run["state"] in FINAL_STATES for run in runs):
                return
            if time.monotonic() > deadline:
                raise OrchestratorError(f"The runs have not ended after {RUN_SECONDS:.0f} s; see the logs.")
            time.sleep(PAUSE)

    def _conclude(self, runs: Sequence[Mapping[str, Any]], seconds: float) -> None:
        self.succeeded = bool(runs) and all(run["state"] == "success" for run in runs)
        self._console.print(final_table(runs))
        models = [(run, task) for run in runs for task in run["tasks"] if "registration" in (task.get("outputs") or {})]
        if models:
            self._console.print(self._models_table(models))
        for run in runs:
            if run["state"] != "success":
                self._explain(run)
        failed = sum(run["state"] != "success" for run in runs)
        verdict = "All runs succeeded" if self.succeeded else f"{failed} of {len(runs)} runs did not succeed"
        self._console.print(Text(f"{verdict}; the last ended {seconds:.1f} s after they were submitted.", "bold"))

    def _models_table(self, models: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Table:
        table = Table(title="Registered models", title_justify="left")
        for column in ("Model", "Version", "Stage", "Metrics", "Digest"):
            table.add_column(column, overflow="fold")
        for _, task in models:
            registration = task["outputs"]["registration"]
            versions = self._client.model_versions(registration["name"])
            known = next((v for v in versions if str(v["version"]) == str(registration["version"])), registration)
            row = (known["name"], known["version"], known.get("stage"), metrics_text(known.get("metrics") or {}))
            table.add_row(*(Text(str(cell or "")) for cell in row), Text(str(known.get("digest", ""))[:19]))
        return table

    def _explain(self, run: Mapping[str, Any]) -> None:
        """Print why a run did not succeed, with the end of the log of each task that failed."""
        for task in run["tasks"]:
            if task["state"] == "failed":
                self._console.print(Text(f"{run['pipeline_name']} / {task['name']}: {result_text(task)}", "red"))
                lines = self._client.logs(run["id"], task["name"])["text"].splitlines()
                self._console.print(Text("\n".join(lines[-LOG_LINES:]), "dim"))


def _wide_enough(console: Console) -> Console:
    """Return a console whose tables are not squeezed into 80 columns where nobody's window is that narrow."""
    return console if console.is_terminal else Console(width=140)


class _Changes:
    """Prints one line for every change of a task's state."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._states: dict[tuple[str, str], str] = {}

    def print(self, runs: Sequence[Mapping[str, Any]]) -> None:
        for run in runs:
            for task in run["tasks"]:
                key = (run["id"], task["name"])
                if self._states.get(key) != task["state"]:
                    self._states[key] = task["state"]
                    line = f"{run['pipeline_name']} / {task['name']}: {task['state']}"
                    self._console.print(Text(line), soft_wrap=True)
