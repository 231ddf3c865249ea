"""Grows a forest in steps, keeps it between them, and goes on from what an earlier attempt has kept.

Every tree takes its own seed from the forest's, and a forest that goes on skips those of the trees that it has: so the
result is that of one step, however often it was interrupted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from operators.training.framework import Array, Job, Progress
from operators.training.unfinished import Unfinished
from orchestrator.inputs import fingerprint
from orchestrator.operator import OperatorFailure

STEPS = 10
_KEY = "unfinished"


class Growth:
    """One forest that grows.

    :param parameter: of the estimator: how many trees it has.
    :param preparation: fitted already.
    """

    def __init__(
        self, job: Job, parameter: str, preparation: Any, estimator: Any, unfinished: Unfinished | None
    ) -> None:
        self._job = job
        self._parameter = parameter
        self._preparation = preparation
        self._estimator = estimator
        self._unfinished = unfinished

    @property
    def pipeline(self) -> Any:
        """The preparation and the forest as it is now."""
        from sklearn.pipeline import Pipeline

        return Pipeline([("prepare", self._preparation), ("model", self._estimator)])

    def grow(self, matrix: Array, target: Array | None, progress: Progress) -> None:
        """Fit to the full size."""
        final = self._estimator.get_params()[self._parameter]
        size = self._go_on(final)
        self._estimator.set_params(warm_start=True)
        for step in range(1, STEPS + 1):
            wanted = final * step // STEPS
            if wanted <= size:
                continue
            size = wanted
            self._estimator.set_params(**{self._parameter: size}).fit(matrix, target)
            progress(size / final, f"{size} of {final} trees")
            if self._unfinished is not None and size < final and self._unfinished.is_due():
                self._unfinished.keep(self._write, f"{size} of {final} trees")
        self._estimator.set_params(warm_start=False)

    def _write(self, path: Path) -> None:
        from operators.training.frameworks._sklearn_file import write_model

        assert self._unfinished is not None, "only then something is kept"
        card = {"model_type": self._job.model_type, "algorithm": self._job.algorithm, _KEY: self._unfinished.key}
        write_model(path, self.pipeline, card)

    def _go_on(self, final: int) -> int:
        """Take the forest that was kept for just this job; return how many trees it has."""
        from operators.training.frameworks._sklearn_file import read_model

        path = self._unfinished.found() if self._unfinished is not None else None
        if self._unfinished is None or path is None:
            return 0
        try:
            pipeline, card = read_model(path, digest=fingerprint(path))
        except OperatorFailure as error:
            self._unfinished.log(f"What was kept can't be used ({error}); beginning anew.")
            return 0
        if card.get(_KEY) != self._unfinished.key:
            self._unfinished.log("What was kept is of another training; beginning anew.")
            return 0
        # Threads are those of this attempt; everything else is what the job says, in both.
        self._estimator = pipeline[-1].set_params(**_threads(self._estimator))
        size = len(self._estimator.estimators_)
        self._unfinished.log(f"Going on from {size} of {final} trees.")
        return size


def _threads(estimator: Any) -> dict[str, Any]:
    parameters = estimator.get_params()
    return {name: parameters[name] for name in ("n_jobs",) if name in parameters}
