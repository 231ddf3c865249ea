"""Says as an operator failure what the kernel's ports and polars say as their own errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.errors import (
    ForbiddenAddress,
    ForbiddenPath,
    NotFound,
    OrchestratorError,
    StoreUnavailable,
    TooLarge,
    Unreachable,
)
from orchestrator.operator import OperatorFailure

_REASONS: tuple[tuple[type[OrchestratorError], str, bool], ...] = (
    (ForbiddenPath, "forbidden_path", False),
    (ForbiddenAddress, "forbidden_address", False),
    (NotFound, "not_found", False),
    (TooLarge, "too_large", False),
    (Unreachable, "unreachable", True),
    (StoreUnavailable, "store_unavailable", True),
)


@contextmanager
def explained(subject: str) -> Iterator[None]:
    """Turn known errors inside the block into :class:`OperatorFailure`, naming ``subject`` where polars does not."""
    try:
        yield
    except OrchestratorError as error:
        for kind, reason, retryable in _REASONS:
            if isinstance(error, kind):
                raise OperatorFailure(reason, str(error), retryable=retryable) from error
        raise
    except OSError as error:
        if isinstance(error, (FileNotFoundError, IsADirectoryError, PermissionError)):
            raise OperatorFailure("not_found", f"{subject} can't be opened: {error.strerror or error}.") from error
        raise OperatorFailure("store_unavailable", f"{subject}: {error}.", retryable=True) from error
    except Exception as error:
        if type(error).__module__.startswith("polars."):
            raise OperatorFailure("bad_data", f"{subject} can't be read: {_first_line(error)}") from error
        raise


def _first_line(error: Exception) -> str:
    """polars adds hints about its own parameters, which the user of a pipeline can't set."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:400]
