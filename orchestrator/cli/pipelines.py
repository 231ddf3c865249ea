"""``orchestrator pipelines …``: definitions one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from orchestrator.cli.connection import with_client
from orchestrator.cli.printing import as_json, print_items, print_json
from orchestrator.cli.values import read_object
from orchestrator.client import Client
from orchestrator.definition_text import DEFINITION


@click.group()
def pipelines() -> None:
    """Create, list, show and validate pipeline definitions."""


@pipelines.command("create")
@click.argument("file")
@with_client
def create(client: Client, file: str) -> None:
    """Save the definition in FILE (JSON or YAML, - for standard input); a known name gets a new version."""
    pipeline = client.save_pipeline(read_object(file, DEFINITION))
    click.echo(f"{pipeline['name']} version {pipeline['version']} ({pipeline['id']})")


@pipelines.command("validate")
@click.argument("file")
@with_client
def validate(client: Client, file: str) -> None:
    """Check the definition in FILE and print the plan, or all its problems."""
    verdict = client.validate_pipeline(read_object(file, DEFINITION))
    if not verdict["valid"]:
        raise click.ClickException("\n".join(["the definition has these problems:", *map(_told, verdict["errors"])]))
    print_json(verdict["plan"])


@pipelines.command("list")
@as_json
@with_client
def list_all(client: Client, raw: bool) -> None:
    """List all pipelines."""
    print_items(client.pipelines(), ("name", "version", "owner", "id"), none="No pipeline is saved yet.", raw=raw)


@pipelines.command("show")
@click.argument("name")
@with_client
def show(client: Client, name: str) -> None:
    """Print the newest version of the pipeline NAME as JSON."""
    print_json(client.get_pipeline_by_name(name))


def _told(problem: Mapping[str, Any]) -> str:
    return f"  {problem['pointer'] or '/'}: {problem['message']}"


COMMANDS = (pipelines,)
