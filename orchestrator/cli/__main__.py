"""``python -m orchestrator.cli``: the same as the command ``orchestrator``."""

from __future__ import annotations

from orchestrator.cli import main

main()
