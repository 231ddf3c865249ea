"""Forks one supervisor per attempt: lean, single-threaded, started by ``exec`` as ``python -m workers.fork_server``.

Never fork from a threaded process (a lock held by another thread stays locked in the child for ever), nor from one
that has used polars (3 of 3 such children hung). So the worker, which is full of threads, starts this process and
orders forks over a socket pair. The pair is also the lifeline: when the worker dies, its end closes, and every tree is
killed and reported ``lost``. When this process dies, the supervisors see the same on their own sockets.

Trees with ``on_worker_loss: adopt`` live on: this process opens a door (see ``door``), and the next worker of the host
that comes through it and says that it keeps them gives the orders from then on. When that one dies too, the door is
open again. What has no keeper for too long is stopped, and dead before the leader may start it elsewhere: so the death
of a keeper of whom the leader never heard gives no new time, nor does a visitor that leaves again.
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from orchestrator.records import Outcome
from orchestrator.states import AttemptState
from orchestrator.wire.messages import GrantSpec, grant_from_body
from workers import cgroups, lean, verdict
from workers.door import PROTOCOL, Door
from workers.execute import preload
from workers.orders import Lines, Site, kept_grant, send_line, stop_order
from workers.process_tree import descendants, send
from workers.spool import Spool
from workers.supervise import Supervisor

ORPHAN_TICK = 0.05
QUIET_LOOKS = 3
LONGEST_WAIT = 5.0


@dataclass(slots=True)
class Supervised:
    """One attempt and its supervisor."""

    spec: GrantSpec
    pid: int
    control: socket.socket

    @property
    def may_be_adopted(self) -> bool:
        """Whether its tree outlives the worker."""
        return self.spec.on_worker_loss == "adopt"


class ForkServer:
    """The loop of the fork server.

    :param worker: our end of the socket pair.
    :param lock: descriptor of the incarnation's lock file, which every process of ours keeps open (see ``identity``).
    """

    def __init__(self, worker: socket.socket, lock: int) -> None:
        self._worker = worker
        self._lock = lock
        self._lines = Lines()
        self._site: Site | None = None
        self._supervised: dict[int, Supervised] = {}
        self._broken: list[Supervised] = []
        """Attempts whose supervisor died; reported once no orphan of theirs lives."""
        self._quiet_looks = 0
        self._worker_lives = True
        """Somebody is at the other end of the pair or of the door: the worker that started us, or a later one."""
        self._is_kept = True
        """Who is there answers for the trees; a visitor that has just been greeted does not."""
        self._is_known = True
        """The leader knows who is there, and will count from that one's death."""
        self._door: Door | None = None
        """Made when the worker dies; from then on nothing new is started."""
        self._orphaned_at = 0.0
        """Since when the leader may count the trees' last worker as silent."""
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Serve until the worker is gone and nothing of its attempts lives."""
        lean.become_subreaper()
        wake_in, wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_out, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)  # a service manager signals all of us; only the worker decides
        self._selector.register(wake_in, selectors.EVENT_READ, lambda: os.read(wake_in, 4096))
        self._selector.register(self._worker, selectors.EVENT_READ, self._hear)
        preload()
        gc.collect()
        gc.freeze()  # or the first collection in a fork would copy every page
        self._tell({"is": "ready"})
        while (self._worker_lives and self._door is None) or self._supervised or self._broken:
            for key, _ in self._selector.select(ORPHAN_TICK if self._broken else LONGEST_WAIT):
                key.data()
            self._reap()
            with suppress(OSError):  # /proc can't be read for want of descriptors: looked at again
                self._settle_broken()
            self._mind_orphans()
        if self._door is not None:
            self._door.close()

    def _hear(self) -> None:
        try:
            piece = self._worker.recv(1 << 20)
        except OSError:  # it died with something of ours unread (ECONNRESET)
            piece = b""
        if not piece:
            self._lose_worker()
            return
        for order in self._lines.feed(piece):
            self._follow(order)

    def _follow(self, order: dict[str, Any]) -> None:
        match order["do"]:
            case "configure" if self._door is None:
                self._site = Site.from_line(order)
            case "start" if self._door is None:
                self._start(order)
            case "stop" | "fresh":
                for one in self._supervised.values():
                    if _concerns(order, one.spec):
                        self._pass_on(one, order)
            case "keep":
                self._is_kept = True
            case "known":
                self._is_known = True

    def _start(self, order: dict[str, Any]) -> None:
        assert self._site is not None, "the worker configures us before it starts anything"
        spec = grant_from_body(order["grant"].encode())
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:  # no descriptors left
            self._refuse(spec, error)
            return
        try:
            pid = os.fork()
        except OSError as error:  # no processes or no memory left; the other attempts are not to pay for it
            ours.close()
            theirs.close()
            self._refuse(spec, error)
            return
        if pid == 0:
            _become_supervisor(self._site, spec, theirs, self._lock, order["fresh_until"])
        theirs.close()
        ours.setblocking(False)
        self._supervised[pid] = Supervised(spec, pid, ours)
        self._tell({"is": "started", "attempt": spec.attempt_id, "pid": pid})

    def _refuse(self, spec: GrantSpec, error: OSError) -> None:
        print(f"Attempt {spec.attempt_id} could not be started: {error}.", file=sys.stderr, flush=True)
        self._tell({"is": "refused", "attempt": spec.attempt_id, "why": str(error)})

    def _pass_on(self, one: Supervised, order: dict[str, Any]) -> None:
        with suppress(OSError):  # it is ending, or frozen with a full buffer: orders are repeated while they stand
            send_line(one.control, order)

    def _lose_worker(self) -> None:
        """Kill every tree that nobody may adopt: the worker (or the keeper) is dead, or has ended, which it does only
        when nothing runs."""
        if self._is_known:
            self._orphaned_at = time.monotonic()
        self._worker_lives = self._is_kept = self._is_known = False
        self._selector.unregister(self._worker)
        self._worker.close()
        self._lines = Lines()
        doomed = [one for one in self._supervised.values() if not one.may_be_adopted]
        for one in doomed:
            self._pass_on(one, stop_order(one.spec.attempt_id, verdict.WORKER_LOST, min(one.spec.grace, 2.0)))
        if self._site is not None and self._door is None and len(doomed) < len(self._supervised):
            self._door = Door(Path(self._site.doors), self._site.incarnation)
        self._mind_orphans()

    def _mind_orphans(self) -> None:
        """Keep the door open while trees wait behind it; stop those that have waited too long."""
        if self._door is None or self._is_kept or self._site is None:
            return
        if not self._door.is_open:
            with suppress(OSError):  # the disk is full: tried again
                self._selector.register(self._door.open(), selectors.EVENT_READ, self._answer_door)
        if time.monotonic() - self._orphaned_at > self._site.orphan_seconds:
            for one in self._supervised.values():
                grace = min(one.spec.grace, self._site.orphan_grace)
                self._pass_on(one, stop_order(one.spec.attempt_id, verdict.WORKER_LOST, grace))

    def _answer_door(self) -> None:
        """Greet a worker, which holds our incarnation's lock with us from now on; it keeps us when it says so.

        One that does not is not hung up on: it might have said so just now. It merely stops no clock.
        """
        assert self._door is not None, "it is the door that rang"
        if (visitor := self._door.accept()) is None:
            return
        try:
            if self._worker_lives:
                send_line(visitor, {"is": "busy"})
                visitor.close()
                return
            socket.send_fds(visitor, [b" "], [self._lock])
            send_line(visitor, self._greeting())
        except OSError:  # it has died meanwhile, or is frozen
            visitor.close()
            return
        visitor.settimeout(None)
        self._worker, self._worker_lives = visitor, True
        self._selector.register(visitor, selectors.EVENT_READ, self._hear)

    def _greeting(self) -> dict[str, Any]:
        assert self._site is not None, "something was started"
        known = [*self._supervised.values(), *self._broken]
        return {
            "is": "hello",
            "protocol": PROTOCOL,
            "boot_id": self._site.boot_id,
            "server": os.getpid(),
            "kept": [kept_grant(one.spec) for one in known if one.may_be_adopted],
            "ending": [one.spec.attempt_id for one in known if not one.may_be_adopted],
        }

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            one = self._supervised.pop(pid, None)
            if one is None:
                continue  # an orphan of a supervisor that died
            one.control.close()
            if status == 0:
                self._tell({"is": "ended", "attempt": one.spec.attempt_id})
            else:
                self._broken.append(one)

    def _settle_broken(self) -> None:
        """Kill what dead supervisors left behind, then report their attempts.

        A living supervisor inherits its own orphans, so whoever is our child and no supervisor is such a leftover.
        """
        if not self._broken:
            return
        groups = [cgroups.find_group(one.spec.attempt_id) for one in self._broken]
        for group in groups:
            group.kill()
        spared: set[int] = set()
        leftovers = []
        for process in descendants(os.getpid()):  # parents come before their children
            if process.pid in self._supervised or process.parent in spared:
                spared.add(process.pid)
            elif process.is_alive:
                leftovers.append(process)
        if send(leftovers, signal.SIGKILL) or any(group.has_members() for group in groups):
            self._quiet_looks = 0
            return
        # A chain of forks may slip through one look; where there are no groups, several must agree.
        self._quiet_looks += 1
        if self._quiet_looks < QUIET_LOOKS:
            return
        self._broken = [one for one in self._broken if not self._report_broken(one)]

    def _report_broken(self, one: Supervised) -> bool:
        """Spool the loss; returns whether that was possible (a full disk may have killed the supervisor)."""
        assert self._site is not None
        cgroups.find_group(one.spec.attempt_id).remove()
        outcome = Outcome(
            AttemptState.LOST,
            "supervisor_lost",
            "The process that supervised it died (killed, or out of memory); its tree was killed.",
            infrastructure=True,
        )
        try:
            Spool(self._site.spool_folder).write(one.spec.attempt_id, one.spec.token, self._site.incarnation, outcome)
        except OSError:
            return False
        self._tell({"is": "ended", "attempt": one.spec.attempt_id})
        return True

    def _tell(self, document: dict[str, Any]) -> None:
        if self._worker_lives:
            with suppress(OSError):  # it just died; its end of the pair will say so
                send_line(self._worker, document)


def _concerns(order: dict[str, Any], spec: GrantSpec) -> bool:
    return spec.exclusive if order["do"] == "fresh" else spec.attempt_id == order["attempt"]


def _become_supervisor(
    site: Site, spec: GrantSpec, control: socket.socket, lock: int, fresh_until: float | None
) -> NoReturn:
    code = 1
    try:
        os.setsid()
        lean.close_all_but({control.fileno(), lock})
        control.setblocking(False)
        lean.become_subreaper()
        Supervisor(site, spec, control, fresh_until).run()
        code = 0
    except BaseException:  # noqa: BLE001 (a fork must never return into its parent's loop)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Serve on the socket whose descriptor is the first argument; the second is that of the lock file."""
    worker = socket.socket(fileno=int(sys.argv[1]))
    lock = int(sys.argv[2])
    os.set_inheritable(worker.fileno(), False)
    os.set_inheritable(lock, False)
    started = time.monotonic()
    try:
        ForkServer(worker, lock).run()
    except BaseException:
        print(f"The fork server failed after {time.monotonic() - started:.0f} s.", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
