"""Entry point of ``python -m orchestrator.local``."""

from orchestrator.local.command import main

main(prog_name="python -m orchestrator.local")
