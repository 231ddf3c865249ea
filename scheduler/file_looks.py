"""Looks at files for the keys of the cache, on threads: a share that is slow or hangs holds up nobody but the tasks
that name it, and those not for ever.

A round asks and goes on; what was seen is taken in a later one. What is not seen in time is never taken for unchanged:
the task runs without the cache, and its message says why. A thread that a share holds is left behind, and what it looks
at is looked at no more until it is back; nor is the rest of a data root that holds several.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.cache_files import FoundFiles, Seen, SeenFiles, WantedFiles, not_seen
from orchestrator.errors import ForbiddenPath
from orchestrator.logs import get_logger
from orchestrator.paths import DataRoots

log = get_logger(__name__)

LONGEST_LOOK = 5.0
"""Seconds in which the files of one task are looked at."""
LONGEST_WAIT = 60.0
"""Seconds after which a task waits no longer for its turn."""
MOST_JOBS = 1_000
"""Task runs whose files are looked at, or are next; of the others only the ids are kept."""
_AT_ONCE = 4
_MOST_THREADS = 16
"""When so many are held by files that do not answer, nothing is looked at until one of them is back."""
_MOST_OF_ROOT = 4
"""When so many are held by files of one root, nothing in it is looked at until one of them is back."""
_SCRIPTS = "scripts:"
_SOON = 0.5


@dataclass(slots=True, eq=False)
class _Job:
    """The files of one task run."""

    wanted: WantedFiles
    asked: float
    seen: Seen
    """What was seen since it was asked for, in this look."""
    begun: float | None = None
    answer: FoundFiles | ForbiddenPath | OSError | None = None


@dataclass(slots=True, eq=False)
class _Looker:
    """What one thread is at."""

    job: _Job | None = None
    text: str = ""
    root: str = ""


class _GivenUpError(Exception):
    """Nobody waits for this any more."""


class FileLooks:
    """The files of task runs, by their ids; the port that :class:`orchestrator.store.cache.Files` describes. One thread
    asks.

    :param open_roots: tells where scripts and files are found; called on a thread, for a root may hang too. None: they
        are found nowhere.
    """

    def __init__(
        self, open_roots: Callable[[], DataRoots] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._open_roots = open_roots
        self._clock = clock
        self._lock = threading.Lock()
        self._roots: DataRoots | None = None
        self._jobs: dict[str, _Job] = {}
        self._asked: dict[str, float] = {}
        """When each was first asked for that has no job yet, for there were too many."""
        self._queue: deque[_Job] = deque()
        self._lookers: set[_Looker] = set()
        self._seen: Seen = {}
        self._asked_last = -1.0
        self._answered_last = float("-inf")

    def begin(self) -> None:
        """Begin a look: what an earlier one has seen of a file may have changed since."""
        self._seen = {}

    def of(self, task_run_id: str, wanted: WantedFiles) -> FoundFiles | None:
        """Return what was seen, once; ``None``: not yet, and :meth:`is_waiting` for it.

        :raises ForbiddenPath: one can't be looked at, or was not in time.
        :raises OSError: the script can't be read.
        """
        if self._open_roots is None or wanted.are_none:
            return SeenFiles(None).look(wanted)
        now = self._clock()
        with self._lock:
            job = self._jobs.get(task_run_id)
            if job is not None and job.wanted != wanted:
                self._forget(task_run_id)
                job = None
            if job is None:
                asked = self._asked.setdefault(task_run_id, now)
                if len(self._jobs) >= MOST_JOBS and now - asked <= LONGEST_WAIT:
                    return None
                job = self._jobs[task_run_id] = _Job(wanted, asked, self._seen)
                self._queue.append(job)
                del self._asked[task_run_id]
                self._asked_last = now
            self._give_up(job, now)
            self._put_to_work(now)
            if job.answer is None:
                return None
            self._forget(task_run_id)
        if isinstance(job.answer, Exception):
            raise job.answer
        return job.answer

    def is_waiting(self, task_run_id: str) -> bool:
        """Say whether nothing is to be had by asking for it now."""
        now = self._clock()
        if (job := self._jobs.get(task_run_id)) is None:
            # There is room for many at once before they are asked for again: to ask takes work.
            asked = self._asked.get(task_run_id)
            return asked is not None and len(self._jobs) > MOST_JOBS // 2 and now - asked <= LONGEST_WAIT
        with self._lock:
            self._give_up(job, now)
            self._put_to_work(now)
            return job.answer is None

    @property
    def is_soon_done(self) -> bool:
        """Whether something was asked for just now, so that an answer may be there in no time."""
        return bool(self._jobs) and self._clock() - self._asked_last < _SOON

    def forget(self, task_run_id: str) -> None:
        """Look no more for this task run."""
        with self._lock:
            self._forget(task_run_id)

    def forget_all(self) -> None:
        """Look no more for any."""
        with self._lock:
            for task_run_id in list(self._jobs):
                self._forget(task_run_id)
            self._asked.clear()

    def _forget(self, task_run_id: str) -> None:
        self._asked.pop(task_run_id, None)
        job = self._jobs.pop(task_run_id, None)
        if job is not None and job.answer is None:
            job.answer = ForbiddenPath("Nobody waits for it.")

    def _give_up(self, job: _Job, now: float) -> None:
        """Answer for a job that takes too long."""
        if job.answer is not None:
            return
        if job.begun is not None and now - job.begun > LONGEST_LOOK:
            text = next((one.text for one in self._lookers if one.job is job), "") or "A data root"
            job.answer = not_seen(text, f"could not be looked at by the scheduler within {LONGEST_LOOK:g} seconds")
            log.warning("files_not_seen", what=text)
            return
        is_full = len(self._held(now)) >= _MOST_THREADS
        if job.begun is None and (is_full or now - job.asked > LONGEST_WAIT):
            text = next(filter(None, (*job.wanted.inputs, job.wanted.script, *job.wanted.perhaps)), "A file")
            is_slow = not is_full and now - self._answered_last <= LONGEST_LOOK
            why = "many others are looked at first" if is_slow else "other files do not answer"
            job.answer = not_seen(text, f"could not be looked at in time, for {why}")

    def _held(self, now: float) -> list[_Looker]:
        """Return the threads that something does not let go."""
        return [
            one
            for one in self._lookers
            if one.job is not None and one.job.begun is not None and now - one.job.begun > LONGEST_LOOK
        ]

    def _put_to_work(self, now: float) -> None:
        """Have as many threads at work as there may be, beside those that are held."""
        while self._queue and self._queue[0].answer is not None:
            self._queue.popleft()
        at_work = len(self._lookers) - len(self._held(now))
        wanted = min(len(self._queue), _AT_ONCE - at_work, _MOST_THREADS - len(self._lookers))
        for _ in range(wanted):
            looker = _Looker()
            try:
                threading.Thread(target=self._work, args=(looker,), name="file-looks", daemon=True).start()
            except RuntimeError as error:  # the host has no more threads: it is tried again when somebody asks
                log.warning("file_look_not_started", why=str(error))
                return
            self._lookers.add(looker)

    def _work(self, looker: _Looker) -> None:
        """Look at the files of one task run after the other until none is left."""
        while True:
            with self._lock:
                job = self._next()
                if job is None:
                    self._lookers.discard(looker)
                    return
                job.begun = self._clock()
                looker.job, looker.text, looker.root = job, "", ""
            answer = self._look(looker, job)
            with self._lock:
                looker.job = None
                job.answer = job.answer or answer
                self._answered_last = self._clock()

    def _next(self) -> _Job | None:
        while self._queue:
            if (job := self._queue.popleft()).answer is None:
                return job
        return None

    def _look(self, looker: _Looker, job: _Job) -> FoundFiles | ForbiddenPath | OSError | None:
        roots: DataRoots | None = None

        def before(text: str) -> None:
            root = _SCRIPTS if text == job.wanted.script else roots.root_of(text) if roots is not None else ""
            with self._lock:
                if job.answer is not None:
                    raise _GivenUpError
                held = self._held(self._clock())
                if any(one.text == text for one in held):
                    raise not_seen(text, "does not answer the scheduler")
                if sum(one.root == root for one in held if one.text) >= _MOST_OF_ROOT:
                    raise not_seen(text, "lies where other files do not answer the scheduler")
                looker.text, looker.root = text, root

        try:
            roots = self._opened()
            return SeenFiles(roots, job.seen).look(job.wanted, before)
        except _GivenUpError:
            return None
        except (ForbiddenPath, OSError) as error:
            return error
        except Exception as error:
            log.exception("file_look_failed", text=looker.text)
            return not_seen(looker.text or "A file", f"can't be read by the scheduler ({error!r})")

    def _opened(self) -> DataRoots | None:
        if self._roots is None and self._open_roots is not None:
            self._roots = self._open_roots()
        return self._roots
