"""The one guard around what is worked out of people's values: a fault that nobody foresaw becomes one that can be told.

Only there are exceptions caught that widely. Elsewhere in the rules one shows that the memory is broken, and has to end
the round.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeVar

from orchestrator.errors import (
    ExpressionError,
    LostLeadership,
    OrchestratorError,
    StaleMemory,
    StoreUnavailable,
    SweepError,
    TemplateError,
)

T = TypeVar("T")

INTERNAL_ERROR = "internal_error"
"""Reason of what has failed by a fault of ours."""
LONGEST_TRACE = 8_000
FORESEEN = (ExpressionError, TemplateError, SweepError)
"""What values may end in, told in a sentence of ours."""
_NOT_OF_VALUES = (StaleMemory, LostLeadership, StoreUnavailable, AssertionError, MemoryError)
"""A memory that is broken, an invariant that does not hold, an exhausted machine."""
_SHOWN = 300


class Unforeseen(OrchestratorError):
    """Values met a fault of ours; says what happened.

    :ivar trace: where, for the log.
    """

    def __init__(self, error: Exception) -> None:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        told = told if len(told) <= _SHOWN else f"{told[:_SHOWN]}…"
        super().__init__(f"A fault of the orchestrator: {told}. The scheduler's log says where ({INTERNAL_ERROR}).")
        self.trace = "".join(traceback.format_exception(error))[-LONGEST_TRACE:]


def guarded(work: Callable[[], T]) -> T:
    """Return what the work comes to.

    :raises ExpressionError, TemplateError, SweepError: as the work itself.
    :raises Unforeseen: in place of what else the values have brought about.
    """
    try:
        return work()
    except FORESEEN:
        raise
    except _NOT_OF_VALUES:
        raise
    except Exception as error:
        raise Unforeseen(error) from error
