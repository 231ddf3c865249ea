"""Supervises one attempt from a process of its own: starts the tree, watches it, ends it, writes its outcome.

Being a subreaper, it inherits every process of the tree that daemonises, so the tree can be counted and killed to the
last one (measured: ``killpg`` left 1 of a double-forking tree, this leaves 0). Forked by the fork server, hence
single-threaded and lean; the operator is imported in its child.
"""

from __future__ import annotations

import os
import resource
import selectors
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from orchestrator.errors import TooLarge, UnreadableMessage
from orchestrator.records import Outcome, Usage
from orchestrator.states import AttemptState
from orchestrator.wire.messages import GrantSpec
from workers import cgroups, lean, verdict
from workers.attempt_folder import AttemptFolder
from workers.limits import TimeLimits
from workers.log_pump import LogPump
from workers.memory_kills import MemoryKills
from workers.orders import Lines, Site
from workers.process_tree import Proc, descendants, proportional_memory, read_proc, send
from workers.spool import Spool

TICK = 0.2
LEFTOVER_GRACE = 0.5
CUT_OFF_GRACE = 2.0
"""Seconds at most that an exclusive task gets when its time is up; they end well before its lease does."""
"""Seconds that what the task left behind may take to end by itself."""
_PSS_COST_FACTOR = 20
"""Reading PSS walks page tables: 100 ms for some 10 GB. It may take a twentieth of our time."""


class Supervisor:
    """The life of one attempt."""

    def __init__(self, site: Site, spec: GrantSpec, control: socket.socket, fresh_until: float | None) -> None:
        self._site = site
        self._spec = spec
        self._control = control
        self._lines = Lines()
        self._folder = AttemptFolder(site.attempts_folder, spec.attempt_id)
        self._fresh_until = fresh_until if spec.exclusive else None
        self._selector = selectors.DefaultSelector()
        self._stop = ""
        self._had_ended = False
        self._kill_at: float | None = None
        self._status: int | None = None
        self._is_childless = False
        self._peak = 0
        self._next_look = 0.0
        self._next_pss = 0.0
        self._told = 0, 0.0
        self._signs: tuple[object, ...] = ()
        self._group = cgroups.Group((), None)

    def run(self) -> None:
        """Start the task, and return when nothing of it lives and its outcome is on disk."""
        try:
            self._prepare()
            if self._is_abandoned():
                return
            if self._fresh_until is not None and time.monotonic() >= self._fresh_until:
                # We were frozen since the grant: another host may have it by now.
                self._never_start("Its worker was cut off before it started, and it must not run in two places.")
                return
            self._child = self._start_child()
        except OSError as error:  # no process, descriptor or disk block left: nothing of the task has run
            self._never_start(f"This host could not start it: {error}.")
            return
        while not self._is_over():
            for key, _ in self._selector.select(self._patience()):
                key.data()
            self._reap()
            self._watch(time.monotonic())
        self._finish()

    # Start

    def _never_start(self, why: str) -> None:
        self._selector.close()  # writing the outcome needs a descriptor
        self._group.remove()
        self._folder.remove_work()
        self._spool_it(verdict.never_started(why))

    def _prepare(self) -> None:
        me = read_proc(os.getpid())
        assert me is not None
        spec = self._spec
        self._folder.create()
        self._scratch = self._folder.make_scratch()
        self._folder.write(
            "state",
            {
                "attempt": spec.attempt_id,
                "token": spec.token,
                "incarnation": self._site.incarnation,
                "boot_id": self._site.boot_id,
                "pid": me.pid,
                "started": me.started,
                "tenant_id": spec.tenant_id,
                "run_id": spec.run_id,
            },
        )
        if self._site.use_cgroups:
            self._group = cgroups.open_group(spec.attempt_id, spec.resources.memory, self._site.max_processes)
        self._kills = MemoryKills(self._group)
        wake_in, wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_out, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(wake_in, selectors.EVENT_READ, lambda: os.read(wake_in, 4096))
        self._selector.register(self._control, selectors.EVENT_READ, self._obey)

    def _is_abandoned(self) -> bool:
        """Say whether the fork server died before anything started: the worker then reports it as never started, and
        a start that comes late would be a second one."""
        try:
            return self._control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _start_child(self) -> int:
        """Fork the task's first process; the fork comes last, so whatever fails, nothing of the task has run."""
        reading, writing = os.pipe()
        self._pump = LogPump(reading, self._folder.log)
        self._selector.register(reading, selectors.EVENT_READ, self._move_output)
        hearing, saying = os.pipe()
        self._selector.register(hearing, selectors.EVENT_READ, lambda: self._take_beginning(hearing))
        spec, now, parent = self._spec, time.monotonic(), os.getpid()
        self._limits = TimeLimits(now, self._site.setup_seconds, spec.timeout, spec.progress_timeout)
        child = os.fork()
        if child == 0:
            self._become_task(parent, writing, saying)
        os.close(writing)
        os.close(saying)
        self._tell_usage(0, 0.0)
        return child

    def _become_task(self, parent: int, output: int, saying: int) -> NoReturn:
        """Turn this fork into the task's first process, and run the operator in it."""
        code = 1
        try:
            lean.die_with_parent(parent)
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((nothing, 0), (output, 1), (output, 2)):
                os.dup2(source, target)
            signal.set_wakeup_fd(-1)
            for caught in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
                signal.signal(caught, signal.SIG_DFL)
            self._group.enter()
            lean.close_all_but({0, 1, 2, saying})
            lean.forbid_new_privileges()
            lean.offer_to_the_oom_killer()
            os.umask(0o077)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            lean.leave_processes_to_others()
            from workers.execute import execute

            code = execute(self._site, self._spec, self._folder, self._scratch, _beginning(saying))
        finally:
            os._exit(code)

    # Watch

    def _patience(self) -> float:
        return 0.02 if self._status is not None or self._stop else TICK

    def _move_output(self) -> None:
        before = self._pump.moved
        if self._pump.pump():
            self._selector.unregister(self._pump.source)
        if self._pump.moved > before:
            self._limits.hear(time.monotonic())

    def _take_beginning(self, hearing: int) -> None:
        """Count the task's time from now on; or its first process has died before that."""
        self._selector.unregister(hearing)
        if os.read(hearing, 1):
            self._limits.begin(time.monotonic())
            self._tell_usage(*self._told)
        os.close(hearing)

    def _tell_usage(self, memory: int, cpu_seconds: float) -> None:
        """Leave for the worker what people are shown."""
        self._told = memory, cpu_seconds
        phase = "setup" if self._limits.begun is None else "running"
        with suppress(OSError):  # the disk is full; the task's fate must not hang on what is only looked at
            self._folder.write("usage", {"memory": memory, "cpu_seconds": round(cpu_seconds, 2), "phase": phase})

    def _obey(self) -> None:
        try:
            piece = self._control.recv(65536)
        except BlockingIOError:
            return
        except OSError:  # it died with something of ours unread
            piece = b""
        if not piece:  # the fork server is dead, and the worker with it or about to restart it
            self._selector.unregister(self._control)
            if self._spec.on_worker_loss == "adopt":  # nobody can reach us any more, but nobody is in a hurry either
                self.stop(verdict.FORK_SERVER_LOST, self._spec.grace)
            else:
                self.stop(verdict.WORKER_LOST, min(self._spec.grace, 2.0))
            return
        for order in self._lines.feed(piece):
            self._follow(order)

    def _follow(self, order: dict[str, Any]) -> None:
        if order["do"] == "stop":
            grace = order["grace"]
            self.stop(order["why"], self._spec.grace if grace is None else float(grace))
        elif order["do"] == "fresh" and self._fresh_until is not None:
            self._fresh_until = float(order["until"])

    def stop(self, why: str, grace: float) -> None:
        """Send TERM to the tree now and KILL after ``grace`` seconds; the first reason stands, KILL may come sooner.

        Without a grace it is KILL alone: a task that is quick might answer TERM as if it had been given time.
        """
        kill_at = time.monotonic() + grace
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)
        if self._stop or self._status is not None:
            return
        self._stop = why
        self._had_ended = self._result() is not None
        if grace <= 0:
            self._pump.note(f"Stopping: {why}; KILL now.")
            self._kill_all()
            return
        self._pump.note(f"Stopping: {why}; TERM now, KILL in {grace:.0f} s.")
        send(descendants(os.getpid()), signal.SIGTERM)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                # Exact, where a walk through /proc is outrun by a chain of forks: whoever descends from us, its topmost
                # living ancestor below us is our child.
                self._is_childless = True
                return
            if pid == 0:
                return
            if pid == self._child:
                self._status = status
            elif self._kill_at is None:
                self._kills.saw_end(status, time.monotonic())

    def _watch(self, now: float) -> None:
        spec = self._spec
        if not self._stop and self._status is None:
            if self._signs_are_new():
                self._limits.hear(now)
            if passed := self._limits.passed(now):
                self.stop(passed, spec.grace)
            elif self._fresh_until is not None and now >= self._fresh_until:
                # The grace was kept free before the lease ends; after a freeze it may be over already.
                self.stop(verdict.CUT_OFF, max(0.0, min(spec.grace, CUT_OFF_GRACE) - (now - self._fresh_until)))
            elif now >= self._next_look:
                self._look(now)
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_all()

    def _signs_are_new(self) -> bool:
        """Say whether the task has reported progress or saved a checkpoint since we last asked."""
        if self._spec.progress_timeout is None:
            return False
        signs = self._folder.signs()
        is_new, self._signs = signs != self._signs, signs
        return is_new

    def _look(self, now: float) -> None:
        """Measure the tree, and stop it above its ceilings."""
        tree = [process for process in descendants(os.getpid()) if process.is_alive]
        ceiling = self._spec.resources.memory
        memory = sum(process.rss for process in tree)
        if now >= self._next_pss or (ceiling and memory > ceiling):
            memory = proportional_memory(tree)
            took = time.monotonic() - now
            self._next_pss = now + max(1.0, took * _PSS_COST_FACTOR)
            self._peak = max(self._peak, memory)
            self._tell_usage(memory, self._cpu_seconds(tree))
        self._kills.look(tree, self._child, now)
        self._next_look = now + TICK
        if ceiling and memory > ceiling:
            self._pump.note(f"Out of memory: the tree holds {memory} bytes, it asked for {ceiling}.")
            self.stop(verdict.OUT_OF_MEMORY, 0.0)
        elif self._kills.has_struck():
            self.stop(verdict.OUT_OF_MEMORY, 0.0)
        elif len(tree) > self._site.max_processes or self._group.refused_forks():
            self._pump.note(f"Too many processes: {len(tree)} live, {self._site.max_processes} are allowed.")
            self.stop(verdict.TOO_MANY_PROCESSES, 0.0)

    @staticmethod
    def _cpu_seconds(tree: list[Proc]) -> float:
        reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
        return sum(process.cpu_seconds for process in tree) + reaped.ru_utime + reaped.ru_stime

    # End

    def _kill_all(self) -> None:
        """Kill whatever lives; called until nothing does. Stopped first, so that nobody forks away meanwhile."""
        self._group.kill()
        known: set[int] = set()
        for _ in range(10):
            tree = [process for process in descendants(os.getpid()) if process.is_alive]
            fresh = [process for process in tree if process.pid not in known]
            if not fresh:
                break
            send(fresh, signal.SIGSTOP)
            known |= {process.pid for process in fresh}
        send(descendants(os.getpid()), signal.SIGKILL)

    def _is_over(self) -> bool:
        if self._status is None or self._is_childless:
            return self._is_childless
        if self._kill_at is None:
            send(descendants(os.getpid()), signal.SIGTERM)
            self._kill_at = time.monotonic() + LEFTOVER_GRACE
        return False

    def _finish(self) -> None:
        assert self._status is not None
        out_of_memory = self._kills.judge(self._child, self._status, time.monotonic())
        self._pump.close()
        outcome = verdict.judge(
            verdict.Ending(
                stop=self._stop,
                status=self._status,
                result=self._result(),
                out_of_memory=out_of_memory,
                usage=self._usage(),
                local_to=self._site.local_to,
                had_ended=self._had_ended,
                folder=str(self._folder.path),
            )
        )
        self._group.remove()
        self._folder.remove_work()
        self._spool_it(outcome)

    def _result(self) -> bytes | None:
        try:
            with open(self._folder.result, "rb") as file:
                return file.read(verdict.MAX_RESULT_BYTES + 1)
        except OSError:
            return None

    def _usage(self) -> Usage:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        gpu_memory = self._folder.read("gpu").get("memory", 0)
        now = time.monotonic()
        return Usage(
            peak_memory=max(self._peak, used.ru_maxrss * 1024),
            cpu_seconds=round(used.ru_utime + used.ru_stime, 3),
            wall_seconds=round(now - self._limits.started, 3),
            gpu_memory=gpu_memory if isinstance(gpu_memory, int) else 0,
            setup_seconds=round(self._limits.setup_seconds(now), 3),
        )

    def _spool_it(self, outcome: Outcome) -> None:
        """Write the outcome, however long the disk is full: until then the attempt is ours and nobody is told."""
        spool, spec = Spool(self._site.spool_folder), self._spec
        while True:
            try:
                spool.write(spec.attempt_id, spec.token, self._site.incarnation, outcome)
                return
            except (TooLarge, UnreadableMessage) as error:
                outcome = Outcome(AttemptState.FAILED, "bad_result", str(error), retryable=False, usage=outcome.usage)
            except OSError:
                time.sleep(1.0)


def _beginning(saying: int) -> Callable[[], None]:
    """Return how the task's first process says, once, that set-up is over."""

    def begin() -> None:
        os.write(saying, b"1")
        os.close(saying)

    return begin
