"""Answers what the rules ask of the rows in the middle of a round: runs that are tasks, and the cache.

The answers are events of the same round and are committed with it. So much is answered in one round and no more, for a
transaction must not be long; what is left over is answered in the next, and a leader that is rebuilt from rows asks
again. What hangs on files is answered once they were looked at, which is never done in a round.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from sqlalchemy import Connection

from orchestrator.compile import Site
from orchestrator.effects import CreateTasks, Effect, LookUp, StartChild
from orchestrator.events import CacheAnswered, ChildRefused, RunSubmitted
from orchestrator.kernel import Kernel
from orchestrator.states import TaskState
from orchestrator.store.cache import MOST_AT_ONCE, Question, look_up
from orchestrator.store.children import Asked, start_children
from orchestrator.store.plans import PlanCache
from scheduler.file_looks import FileLooks

MOST_LOOKS = 10
"""Times that the cache is looked into for one round: behind each hit there may be a task that asks next."""
MOST_TURNS = 10
"""Times that runs are made in one round: behind each that ends at once there may be a task that asks for the next."""
MOST_CHILDREN = 100
"""Runs that are made for tasks in one round. To make and start 1,000 one by one took 28 s, in which nothing was heard
of any worker."""

Answer = RunSubmitted | ChildRefused | CacheAnswered


@dataclass(slots=True)
class Room:
    """What may still be made in this round."""

    turns: int = MOST_TURNS
    children: int = MOST_CHILDREN
    tasks: int = 0
    """Task runs; what containers were expanded into counts as well."""
    put_off: Collection[str] = ()
    """Ids of runs that are not to be made now."""

    @property
    def is_left(self) -> bool:
        return self.turns > 0 and self.children > 0 and self.tasks > 0


class Questions:
    """What is asked and not answered yet.

    :param files: looks at the files that keys of the cache hang on.
    """

    def __init__(self, plans: PlanCache, site: Site, files: FileLooks) -> None:
        self._plans = plans
        self._site = site
        self._files = files
        self._kernel: Kernel | None = None
        self._looks: dict[str, LookUp] = {}
        self._looked = 0
        self._children: dict[str, StartChild] = {}
        """By the ids of the runs that are to be made."""
        self._room = Room()
        self.making: tuple[str, ...] = ()
        """The ids of the runs that were made in this round, or were about to be."""

    @property
    def are_open(self) -> bool:
        """Whether something can be answered now."""
        return self.are_children_open or any(not self._files.is_waiting(id_) for id_ in self._looks)

    @property
    def are_children_open(self) -> bool:
        """Whether runs are to be made now."""
        return any(id_ not in self._room.put_off for id_ in self._children)

    def begin(self, kernel: Kernel, room: Room) -> None:
        """Begin a round: so much may be made in it, and the cache may be looked into again. What another memory has
        asked is forgotten."""
        self._looked, self._room, self.making = 0, room, ()
        if kernel is not self._kernel:
            self._kernel = kernel
            self._looks.clear()
            self._files.forget_all()
            self._children.clear()

    def make_none(self) -> None:
        """Leave all runs that are to be made for the next round."""
        self._room.turns = 0

    def answer(self, connection: Connection, kernel: Kernel, effects: Iterable[Effect], now: float) -> list[Answer]:
        """Return answers to questions among the effects, and to those left from before, as far as there is room."""
        for effect in effects:
            if isinstance(effect, LookUp):
                self._looks[effect.task_run_id] = effect
                # It may have asked before, and its files may have changed since.
                self._files.forget(effect.task_run_id)
            elif isinstance(effect, StartChild):
                self._children[effect.child_run_id] = effect
            elif isinstance(effect, CreateTasks):
                self._room.tasks -= len(effect.tasks)
        found: list[Answer] = []
        if self._room.is_left and self.are_children_open:
            found += self._start(connection, kernel, now)
        if self._looks and self._looked < MOST_LOOKS:
            self._looked += 1
            found += self._look(connection, kernel)
        return found

    def _start(self, connection: Connection, kernel: Kernel, now: float) -> Iterator[Answer]:
        room, asked = self._room, list[Asked]()
        room.turns -= 1
        for id_ in [id_ for id_ in self._children if id_ not in room.put_off][: room.children]:
            effect = self._children[id_]
            node = kernel.tasks.get(effect.task_run_id)
            if node is not None and node.state is TaskState.RUNNING and node.child_run_id == id_:
                asked.append(Asked(effect, node.run.parameters))
                continue
            # It was cancelled before its run was made, so there is none to be waited for.
            del self._children[id_]
            yield ChildRefused(effect.task_run_id, "It is not wanted any more.")
        self.making += tuple(one.effect.child_run_id for one in asked)
        answers = start_children(connection, self._plans, asked, self._site, now, most_tasks=room.tasks)
        room.children -= len(answers)
        for id_, answer in answers.items():
            del self._children[id_]
            if isinstance(answer, RunSubmitted):
                room.tasks -= len(answer.tasks)
            if answer is not None:
                yield answer

    def _look(self, connection: Connection, kernel: Kernel) -> list[CacheAnswered]:
        questions = []
        for id_ in list(islice((id_ for id_ in self._looks if not self._files.is_waiting(id_)), MOST_AT_ONCE)):
            run = kernel.runs.get(self._looks[id_].run_id)
            if run is None:
                del self._looks[id_]
                self._files.forget(id_)
            else:
                questions.append(Question(id_, run.tenant_id, run.pipeline_id, run.shape.plan))
        self._files.begin()
        answers = look_up(connection, self._plans, questions, self._files) if questions else []
        for answer in answers:
            del self._looks[answer.task_run_id]
            self._files.forget(answer.task_run_id)
        if any(one.task_run_id in self._looks and not self._files.is_waiting(one.task_run_id) for one in questions):
            # It took long to work keys out: the others wait for the next round, and workers are heard before it.
            self._looked = MOST_LOOKS
        return answers
