"""The commands of one host: ``up``, ``demo``, ``clean``; `make` and ``main.py`` call them."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading
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
@click.option("--quiet", is_flag=True, help="Show no log lines.")
@click.option("--verbose", is_flag=True, help="Show all log lines, as they are in DATA_DIR/logs.")
def up(quiet: bool, verbose: bool) -> None:
    """Start the system and keep it running until Ctrl-C; of the logs, warnings and errors are shown."""
    usual = Terminal.ALL if verbose else Terminal.NONE if quiet else logging.WARNING
    terminal = Terminal(least=_at_the_edges(usual))
    stopping = StopSignals()
    try:
        supervisor, system = _system(terminal, stopping)
        _say_what_starts(terminal, system)
        with system.running():
            _serve(terminal, supervisor, system, stopping, usual)
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

    terminal = Terminal(least=Terminal.NONE)
    stopping = StopSignals()
    succeeded = False
    try:
        folder = repository_folder()
        if folder is None:
            raise ConfigurationError("The demo needs the folder examples/ of a checkout; clone the repository.")
        definitions = example_definitions(folder / "examples")
        supervisor, system = _system(terminal, stopping)
        _say_what_starts(terminal, system)
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
                _serve(terminal, supervisor, system, stopping, logging.WARNING)
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


def _serve(
    terminal: Terminal, supervisor: Supervisor, system: OneHostSystem, stopping: StopSignals, least: int
) -> None:
    """Keep the system running until a stop is asked for, showing log lines from ``least`` on."""
    terminal.least = least
    _say_addresses(terminal, system)
    supervisor.run_until(lambda: stopping() > 0, pause=0.1)
    terminal.least = _at_the_edges(least)


def _at_the_edges(least: int) -> int:
    """Return the level to show at start and stop, when parts that do not find each other warn of it rightly."""
    return least if least == Terminal.ALL else max(least, logging.ERROR)


def _say_what_starts(terminal: Terminal, system: OneHostSystem) -> None:
    settings = system.settings
    stores = [name for name, url in (("PostgreSQL", settings.database_url), ("Redis", settings.redis_url)) if not url]
    terminal.say(f"Starting {', '.join([*stores, 'API', 'scheduler', 'worker'])} and Flower …")


def _say_addresses(terminal: Terminal, system: OneHostSystem) -> None:
    keys = system.settings.data_dir / FILE_NAME
    theirs = [name for name in ("ADMIN_KEY", "FLOWER_PASSWORD") if os.environ.get(name, "").strip()]
    but = f", but for {' and '.join(theirs)}, which you have set" if theirs else ""
    terminal.say(
        f"API      {system.url}/api/v1   with the header Authorization: Bearer ADMIN_KEY\n"
        f"Docs     {system.url}/docs   user: anything, password: ADMIN_KEY\n"
        f"Flower   {system.flower_url}   user: admin, password: FLOWER_PASSWORD\n"
        f"Keys     {keys}{but}\n"
        f"Logs     {system.settings.data_dir / 'logs'}\n"
        "Ctrl-C stops everything; tasks that run go on at the next start."
    )
