"""The one error tree: what happened, to what, and what to do about it.

Every error that may reach a person derives from :class:`OrchestratorError`; its message is a sentence. Drivers'
errors are translated at the adapter with ``raise … from error``, so ``__cause__`` keeps the original.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class OrchestratorError(Exception):
    """Something the orchestrator can explain; ``str(error)`` is a sentence for the user."""


class ConfigurationError(OrchestratorError):
    """A setting is missing or wrong; the message names it and says how to mend it."""


class UnreadableText(OrchestratorError):
    """A text is neither JSON nor YAML, or holds what JSON can't say.

    :ivar line: where, counted from 1; 0 when it is not known.
    """

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault in a document: an RFC 6901 ``pointer`` into it and a sentence."""

    pointer: str
    message: str


class InvalidDefinition(OrchestratorError):
    """A pipeline definition or run request breaks a rule; carries *all* problems found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{p.pointer or '/'}: {p.message}" for p in self.problems))


class ExpressionError(OrchestratorError):
    """An expression can't be read, asks for more than it may, or can't be worked out with these values."""


class TemplateError(OrchestratorError):
    """A ``{{ … }}`` can't be read, or what it names is not there.

    :ivar pointer: where the text stands in what was resolved (RFC 6901).
    """

    def __init__(self, message: str, pointer: str = "") -> None:
        super().__init__(message)
        self.pointer = pointer


class SweepError(OrchestratorError):
    """What a map goes over gives no list of items, or too long a one.

    :ivar pointer: where the fault is, inside ``over``.
    :ivar too_many: whether it is only too long.
    """

    def __init__(self, message: str, pointer: str = "", *, too_many: bool = False) -> None:
        super().__init__(message)
        self.pointer = pointer
        self.too_many = too_many


class TooMuchWork(OrchestratorError):
    """Checking a value by a schema takes more steps than are spent on one."""


class NotFound(OrchestratorError):
    """No such object for this tenant (also said of another tenant's objects)."""


class Conflict(OrchestratorError):
    """The request contradicts the present state (name taken, active runs, other digest, key reused)."""


class StaleVersion(OrchestratorError):
    """``If-Match`` names an older revision than the current one."""


class StoreUnavailable(OrchestratorError):
    """PostgreSQL or Redis does not answer, or can't do it now; try again.

    :ivar explanation: why, as a sentence for a client: without the driver's words, which may hold names of ours. Empty
        when no more is known than that there was no answer.
    :ivar speaks_of_server: it would have refused anything: what was asked of it had no part in that.
    """

    def __init__(self, message: str, *, explanation: str = "", speaks_of_server: bool = False) -> None:
        super().__init__(message)
        self.explanation = explanation
        self.speaks_of_server = speaks_of_server


class LostLeadership(OrchestratorError):
    """This scheduler no longer holds the lease at its epoch; nothing of the transaction was written."""


class StaleMemory(OrchestratorError):
    """A row is not in the state that the scheduler's memory says; nothing was written, the memory is rebuilt."""


class ArtifactMissing(OrchestratorError):
    """An object of the artifact store was removed; the message names its producer and the rule."""


class ForgedMessage(OrchestratorError):
    """A message on the wire does not carry a valid seal; it is dropped and counted."""


class UnreadableMessage(OrchestratorError):
    """A message on the wire is authentic but not of a shape we know (too large, no JSON, unknown kind); dropped."""


class ForbiddenAddress(OrchestratorError):
    """A user-given URL resolves to an address the site does not allow."""


class ForbiddenPath(OrchestratorError):
    """A user-given path leaves the data roots (or scripts root) of the site."""


class TooLarge(OrchestratorError):
    """An object or an answer has more bytes than the caller allowed."""


class Unreachable(OrchestratorError):
    """A service outside of us did not answer, or not as HTTP; another try may succeed."""
