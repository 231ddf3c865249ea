"""The kernel: the rules, the ports, the truth in PostgreSQL and the wire over Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.builder import Pipeline as Pipeline
    from orchestrator.builder import group as group
    from orchestrator.builder import task as task

__version__ = "0.1.0"
_BUILDER = ("Pipeline", "group", "task")


def __getattr__(name: str) -> Any:
    """Bring in what writes definitions only for those who ask for it: every process imports this package."""
    if name in _BUILDER:
        from orchestrator import builder

        return getattr(builder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
