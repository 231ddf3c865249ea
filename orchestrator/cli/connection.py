"""The client that every command gets, and how an error of it is told."""

from __future__ import annotations

import functools
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from orchestrator.client import ApiError, Client
from orchestrator.errors import ConfigurationError, OrchestratorError
from orchestrator.local.address import read_address
from orchestrator.local.keys import read_keys

FAILED = 1
TROUBLE = 2
INTERRUPTED = 130
LATEST = "latest"
"""What may stand for the id of the newest run."""


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


def _giving_client(trouble: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                with connect() as client:
                    if kwargs.get("run_id") == LATEST:
                        kwargs["run_id"] = _latest(client)
                    command(client, *args, **kwargs)
            except ApiError as error:
                raise _Trouble(_no_run(error, kwargs.get("run_id")) or _explain(error), trouble) from error
            except (OrchestratorError, TimeoutError) as error:
                raise _Trouble(str(error), trouble) from error
            except KeyboardInterrupt:
                click.echo(f"\n{_goes_on(kwargs.get('run_id'))}", err=True)
                sys.exit(INTERRUPTED)

        return run

    return decorate


def _goes_on(run_id: str | None) -> str:
    """Return what an interrupt has ended, which is this command and nothing of the run."""
    if run_id is None:
        return "Interrupted."
    return (
        f"This command has ended, and nothing else: run {run_id} goes on, and what was asked of it stays asked for. "
        f"`orchestrator cancel {run_id}` cancels it."
    )


class _Trouble(click.ClickException):
    exit_code: int  # type: ignore[misc]

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


with_client = _giving_client(FAILED)
"""Gives the command a client, and turns our errors into one line on standard error and exit status 1."""

with_client_to_compare = _giving_client(TROUBLE)
"""The same with exit status 2, for 1 says that there are differences."""


def _latest(client: Client) -> str:
    for run in client.runs(limit=50):
        if not run.get("parent_run_id"):  # a run that is a task of another one was started by nobody
            return str(run["id"])
    raise ConfigurationError("There is no run yet; `orchestrator run NAME` starts one.")


def _no_run(error: ApiError, run_id: str | None) -> str:
    """Return what is wrong with a run's id that is none, for which the server has no more than "not found"."""
    if error.status != 404 or run_id is None:
        return ""
    try:
        uuid.UUID(run_id)
    except ValueError:
        return f"{run_id!r} is no run's id; `orchestrator runs list` shows them, and {LATEST!r} is the newest run."
    return ""


def _explain(error: ApiError) -> str:
    if not error.problems:
        return str(error)
    lines = (f"  {problem.pointer or '/'}: {problem.message}" for problem in error.problems)
    return "\n".join(["these are the problems:", *lines])
