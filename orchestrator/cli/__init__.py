"""The command line: ``orchestrator apply|run|logs|cancel|rerun|explain …``, through the REST API like any other client.

One file per subject; this one only gathers them.
"""

from __future__ import annotations

import io
import sys

import click

from orchestrator.cli import again, decisions, explain, files, look, pipelines, runs, site, start, stop
from orchestrator.cli.connection import connect as connect


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pipeline-orchestrator", prog_name="orchestrator")
def main() -> None:
    """Run pipelines on Pipeline Orchestrator.

    ORCHESTRATOR_URL and ORCHESTRATOR_API_KEY say where and as whom; without them the one-host system in DATA_DIR
    (.data) is used. Where a RUN is asked for, `latest` is the newest one.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal whose encoding lacks an arrow gets a question mark for it, and no traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


for subject in (files, start, look, explain, stop, again, decisions, pipelines, runs, site):
    for command in subject.COMMANDS:
        main.add_command(command)
