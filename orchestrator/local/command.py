"""The commands of one host: ``up``, ``demo``, ``clean``; `make` and ``main.py`` call them."""

from __future__ import annotations

import shutil
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

import click

from orchestrator.config import load_settings
from orchestrator.errors import ConfigurationError, OrchestratorError
from orchestrator.local.folder_lock import folder_lock
from orchestrator.local.keys import FILE_NAME
from orchestrator.local.postgres import EmbeddedPostgres
from orchestrator.local.supervisor import Supervisor
from orchestrator.local.system import MARK, OneHostSystem, StopRequested, one_host_settings, repository_folder
from orchestrator.local.terminal import Terminal

INTERRUPTED = 130


class StopSignals:
    """Counts the requests to stop: the first stops in order, the second kills what is left."""

    def __init__(self) -> None:
        self._count = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup is to be obeyed
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._count += 1

    def __call__(self) -> int:
        """Return how often a stop was asked for."""
        return self._count


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Run the whole of Pipeline Orchestrator on this host."""


@main.command()
@click.option("--quiet", is_flag=True, help="Leave the logs to the files in DATA_DIR/logs.")
def up(quiet: bool) -> None:
    """Start the system and keep it running until Ctrl-C."""
    terminal = Terminal(quiet=quiet)
    stopping = StopSignals()
    try:
        supervisor, system = _system(terminal, stopping)
        with system.running():
            _say_addresses(terminal, system)
            supervisor.run_until(lambda: stopping() > 0, pause=0.1)
            terminal.say("Stopping; Ctrl-C again kills what is left.")
    except StopRequested:
        terminal.say("Stopped while starting.")
    except OrchestratorError as error:
        raise click.ClickException(str(error)) from error
    terminal.say("Stopped.")


@main.command()
@click.option("--once", is_flag=True, help="Stop after the runs: exit status 0 if all succeeded, else 1.")
def demo(once: bool) -> None:
    """Start the system, train models through it, show them, and keep serving."""
    from orchestrator.local.demo import Demo, example_definitions

    terminal = Terminal(quiet=True)
    stopping = StopSignals()
    succeeded = False
    try:
        folder = repository_folder()
        if folder is None:
            raise ConfigurationError("The demo needs the folder examples/ of a checkout; clone the repository.")
        definitions = example_definitions(folder / "examples")
        supervisor, system = _system(terminal, stopping)
        terminal.say("Starting PostgreSQL, Redis, API, scheduler, worker and Flower …")
        with system.running():
            terminal.say(f"All processes work, {system.seconds_up():.1f} s after the first was started.")
            with system.client() as client:
                show = Demo(client, definitions, stopping=lambda: stopping() > 0)
                thread = threading.Thread(target=show.run, name="demo", daemon=True)
                thread.start()
                supervisor.run_until(lambda: stopping() > 0 or not thread.is_alive(), pause=0.05)
                thread.join(5.0)
                succeeded = show.succeeded
            terminal.say(f"That was {system.seconds_up():.1f} s after the first process was started.")
            if not once and not stopping():
                _say_addresses(terminal, system)
                supervisor.run_until(lambda: stopping() > 0, pause=0.1)
            terminal.say("Stopping; Ctrl-C again kills what is left.")
    except StopRequested:
        terminal.say("Stopped while starting.")
    except OrchestratorError as error:
        raise click.ClickException(str(error)) from error
    terminal.say("Stopped.")
    sys.exit(0 if succeeded else 1)


@main.command()
def clean() -> None:
    """Remove the data folder; refused while a system runs on it."""
    try:
        data_dir = load_settings().data_dir.absolute()
        if not data_dir.exists():
            click.echo(f"Nothing to remove: {data_dir} does not exist.")
            return
        if not (data_dir / MARK).exists():
            raise ConfigurationError(f"{data_dir} was not made by this command; remove it yourself if it may go.")
        with folder_lock(data_dir):
            elsewhere = EmbeddedPostgres(data_dir / "postgres").home()
            if elsewhere != data_dir / "postgres":
                shutil.rmtree(elsewhere, ignore_errors=True)
            shutil.rmtree(data_dir)
    except OSError as error:
        raise click.ClickException(f"{error.filename} can't be removed: {error.strerror}.") from error
    except OrchestratorError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"Removed {data_dir}.")


def _system(terminal: Terminal, stopping: StopSignals) -> tuple[Supervisor, OneHostSystem]:
    settings = one_host_settings()
    supervisor = Supervisor(settings.data_dir, emit=terminal.log_line, announce=terminal.say)
    return supervisor, OneHostSystem(settings, supervisor, stopping)


def _say_addresses(terminal: Terminal, system: OneHostSystem) -> None:
    keys = Path(system.settings.data_dir) / FILE_NAME
    terminal.say(
        f"API      {system.url}/api/v1   (docs {system.url}/docs)\n"
        f"Flower   {system.flower_url}   (user admin)\n"
        f"Keys     {keys}: ADMIN_KEY for the API, FLOWER_PASSWORD for Flower\n"
        f"Logs     {system.settings.data_dir / 'logs'}\n"
        "Ctrl-C stops everything."
    )
