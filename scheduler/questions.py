"""Answers what the rules ask of the rows in the middle of a round: runs that are tasks, and the cache.

The answers are events of the same round and are committed with it.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection

from orchestrator.compile import Site
from orchestrator.effects import Effect, LookUp, StartChild
from orchestrator.events import CacheAnswered, ChildRefused, RunSubmitted
from orchestrator.kernel import Kernel
from orchestrator.paths import DataRoots
from orchestrator.store.cache import MOST_AT_ONCE, Question, look_up
from orchestrator.store.children import start_child
from orchestrator.store.plans import PlanCache

MOST_LOOKS = 10
"""Times that the cache is looked into for one round: behind each hit there may be a task that asks next."""

Answer = RunSubmitted | ChildRefused | CacheAnswered


class Questions:
    """What is asked and not answered yet.

    A run that is a task is made in the round that asks for it, or that round is not committed. What is asked of the
    cache may wait for the next one: a leader that is rebuilt from rows asks again.
    """

    def __init__(self, plans: PlanCache, site: Site, roots: DataRoots | None) -> None:
        self._plans = plans
        self._site = site
        self._roots = roots
        self._kernel: Kernel | None = None
        self._looks: dict[str, LookUp] = {}
        self._looked = 0

    @property
    def are_open(self) -> bool:
        return bool(self._looks)

    def begin(self, kernel: Kernel) -> None:
        """Begin a round: the cache may be looked into again. What another memory has asked is forgotten."""
        self._looked = 0
        if kernel is not self._kernel:
            self._kernel = kernel
            self._looks.clear()

    def answer(self, connection: Connection, kernel: Kernel, effects: Iterable[Effect], now: float) -> list[Answer]:
        """Return the answers to the questions among the effects, and to those left from the last round."""
        found: list[Answer] = []
        for effect in effects:
            if isinstance(effect, LookUp):
                self._looks[effect.task_run_id] = effect
            elif isinstance(effect, StartChild):
                run = kernel.runs.get(effect.run_id)
                inherited = {} if run is None else run.parameters
                submitted = start_child(connection, self._plans, effect, inherited, self._site, now)
                if submitted is not None:
                    found.append(submitted)
        if self._looks and self._looked < MOST_LOOKS:
            self._looked += 1
            found += self._look(connection, kernel)
        return found

    def _look(self, connection: Connection, kernel: Kernel) -> list[CacheAnswered]:
        questions = []
        for id_ in list(self._looks)[:MOST_AT_ONCE]:
            asked = self._looks.pop(id_)
            run = kernel.runs.get(asked.run_id)
            if run is not None:
                questions.append(Question(id_, run.tenant_id, run.pipeline_id, run.shape.plan))
        return look_up(connection, self._plans, questions, self._roots) if questions else []
