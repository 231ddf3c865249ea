"""``orchestrator workers`` and ``operators``: what the site has."""

from __future__ import annotations

import click

from orchestrator.cli.connection import with_client
from orchestrator.cli.printing import as_json, print_items
from orchestrator.client import Client


@click.command()
@as_json
@with_client
def workers(client: Client, raw: bool) -> None:
    """List the workers."""
    print_items(
        client.workers(), ("id", "host_id", "state", "queues", "slots"), none="No worker has registered.", raw=raw
    )


@click.command()
@as_json
@with_client
def operators(client: Client, raw: bool) -> None:
    """List the operators that tasks may use."""
    print_items(client.operators(), ("name", "summary"), none="There is no operator.", raw=raw)


COMMANDS = (workers, operators)
