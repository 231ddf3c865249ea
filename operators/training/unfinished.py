"""What a training keeps while it goes on, so that the next attempt of the task need not begin anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.errors import StoreUnavailable
from orchestrator.operator import Json, OperatorFailure, TaskContext

_FOLDS = "training.folds"


class Unfinished:
    """The state of one training.

    :param key: digest of what is trained, and on what: what was kept for another key is not gone on from.
    :param every: seconds between two savings.
    """

    def __init__(self, context: TaskContext, key: str, every: float, clock: Callable[[], float] = time.monotonic):
        self.key = key
        self._context = context
        self._every = every
        self._clock = clock
        self._kept_at = clock()

    def is_due(self) -> bool:
        """Say whether it is time to keep what there is."""
        return self._clock() - self._kept_at >= self._every

    def found(self) -> Path | None:
        """Return the file that was kept last, for whatever key.

        :raises OperatorFailure: ``store_unavailable``: to begin anew because of that would waste what was kept.
        """
        try:
            return self._context.checkpoint_load()
        except StoreUnavailable as error:
            raise OperatorFailure("store_unavailable", str(error), retryable=True) from error

    def keep(self, write: Callable[[Path], None], what: str) -> None:
        """Keep what ``write`` writes into a file; that the store does not answer is no reason to stop training.

        :param what: for the log.
        """
        path = self._context.workdir / "unfinished"
        write(path)
        self._say(lambda: self._context.checkpoint_save(path), what)
        path.unlink()

    def folds(self) -> list[Mapping[str, float]]:
        """Return the scores of the folds that are done.

        :raises OperatorFailure: ``store_unavailable``.
        """
        try:
            known = self._context.state_get(_FOLDS, {})
        except StoreUnavailable as error:
            raise OperatorFailure("store_unavailable", str(error), retryable=True) from error
        return list(known["scores"]) if known.get("key") == self.key else []

    def keep_folds(self, scores: list[Mapping[str, float]]) -> None:
        """Keep the scores of the folds that are done."""
        value: Json = {"key": self.key, "scores": [dict(score) for score in scores]}
        self._say(lambda: self._context.state_set(_FOLDS, value), f"{len(scores)} folds")

    def log(self, sentence: str) -> None:
        """Print a line to the attempt's log."""
        self._context.log(sentence)

    def _say(self, save: Callable[[], None], what: str) -> None:
        try:
            save()
            self.log(f"Kept for another attempt: {what}.")
        except StoreUnavailable as error:
            self.log(f"Could not keep {what} for another attempt: {error}")
        self._kept_at = self._clock()
