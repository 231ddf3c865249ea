"""Keeps what outlived another incarnation of this host: finds its fork server by the door, adopts its attempts.

From then on they are as ours: they show in our heartbeats under their tokens, and orders reach them through the fork
server that started them. Only their outcomes still name the incarnation that ran them.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.errors import UnreadableMessage
from orchestrator.logs import get_logger
from orchestrator.wire.messages import GrantSpec, grant_from_body
from workers import door
from workers.attempt_folder import AttemptFolder, is_safe_id
from workers.fork_client import ForkServerGone, Listener, ServerLink
from workers.identity import HostFolders
from workers.leftovers import attempts_of
from workers.orders import Lines, keep_order, known_order
from workers.process_tree import is_same
from workers.running import Running
from workers.spool import Spool
from workers.verdict import WORKER_LOST

log = get_logger(__name__)


class NotOurs(Exception):
    """This fork server can't be taken over: another worker keeps it, or it says what we do not understand."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a fork server without a worker says to the first that comes through its door."""

    server: int
    """Its pid."""
    kept: tuple[GrantSpec, ...]
    """Living attempts that may be adopted; without their parameters and secrets."""
    ending: frozenset[str]
    """Attempts whose trees it is about to kill."""

    @classmethod
    def read(cls, line: Mapping[str, Any], boot_id: str) -> Greeting:
        """Read the first line.

        :raises NotOurs: says why it is left alone.
        """
        if line.get("is") == "busy":
            raise NotOurs("another worker of this host keeps it")
        if line.get("is") != "hello" or line.get("protocol") != door.PROTOCOL:
            raise NotOurs(f"it speaks protocol {line.get('protocol')!r}, and this worker {door.PROTOCOL}")
        if line.get("boot_id") != boot_id:
            raise NotOurs("it is of another boot of the host")
        try:
            kept = tuple(grant_from_body(text.encode()) for text in line["kept"])
            return cls(int(line["server"]), kept, frozenset(map(str, line["ending"])))
        except (KeyError, TypeError, ValueError, AttributeError, UnreadableMessage) as error:
            raise NotOurs(f"its greeting can't be read: {error}") from error


class KeptServer(ServerLink):
    """The fork server of a dead incarnation, of which we are the keeper.

    :ivar lock: our share of that incarnation's lock: no other worker clears up after it while we report for it.
    :ivar shown_by: number of the first heartbeat that shows what we hold of it.
    """

    def __init__(
        self, incarnation: str, link: socket.socket, lock: int, greeting: Greeting, rest: Lines, listener: Listener
    ) -> None:
        super().__init__(link, greeting.server, listener)
        self.incarnation = incarnation
        self.lock = lock
        self.greeting = greeting
        self.ending = set(greeting.ending)
        self.is_gone = threading.Event()
        self.shown_by = 0
        self._is_known = False
        self._lines = rest

    def listen(self) -> None:
        """Start to hear how its attempts end; call it when they are held."""
        self._thread.start()

    def keep(self) -> None:
        """Answer for its attempts from now on: until then they count as orphans, whoever has come to look.

        :raises ForkServerGone: it has just ended.
        """
        self._send(keep_order())

    def become_known(self) -> None:
        """Tell it, once, that the leader knows its keeper; until then our death would give its attempts no new time.

        :raises ForkServerGone: it has just ended.
        """
        if not self._is_known:
            self._send(known_order())
            self._is_known = True

    def end_the_rest(self) -> None:
        """Have all stopped that is to end there, told again and again: the fork server drops an order that a frozen
        supervisor can't take. One that was told already gets no more time by it.

        :raises ForkServerGone: it has just ended; then its supervisors stop all of them.
        """
        for attempt_id in list(self.ending):
            self.stop(attempt_id, WORKER_LOST, None)

    def forget(self) -> None:
        """Let go of it, and of its incarnation."""
        self.hang_up()
        os.close(self.lock)

    def _mourn(self) -> None:
        log.info("kept_fork_server_ended", pid=self.pid, incarnation=self.incarnation)
        self.is_gone.set()


class Heard(Protocol):
    """The part of ``Beat`` that tells what the leader has read."""

    @property
    def next_seq(self) -> int: ...

    def is_heard(self, seq: int) -> bool: ...


class Keeper:
    """All fork servers that this worker keeps.

    :param incarnation: our own, whose fork server is not another one's.
    :param follow: told of each attempt folder of a kept incarnation, and whether its attempt has ended.
    :param ended: told of each kept attempt whose outcome is in the spool.
    :param mourn: told of each kept fork server that has ended.
    """

    def __init__(
        self,
        folders: HostFolders,
        boot_id: str,
        incarnation: str,
        running: Running,
        spool: Spool,
        heard: Heard,
        *,
        follow: Callable[[AttemptFolder, bool], None],
        ended: Callable[[str], None],
        mourn: Callable[[KeptServer], None],
    ) -> None:
        self._folders = folders
        self._boot_id = boot_id
        self._incarnation = incarnation
        self._running = running
        self._spool = spool
        self._heard = heard
        self._follow = follow
        self._ended = ended
        self._mourn = mourn
        self._kept: dict[str, KeptServer] = {}
        self._left_alone: dict[str, str] = {}

    def look(self, *, may_take: bool = True) -> bool:
        """Take over what has no worker; let go of what has ended and been reported.

        Returns whether something was taken over.
        """
        for incarnation, server in list(self._kept.items()):
            if server.is_gone.is_set() and self._is_settled(server):
                del self._kept[incarnation]
                server.forget()
                continue
            with suppress(ForkServerGone):
                server.end_the_rest()
                if self._heard.is_heard(server.shown_by):
                    server.become_known()
        passed = {self._incarnation, *self._kept}
        found = [one for one in door.doors(self._folders.locks) if may_take and one not in passed]
        taken = [incarnation for incarnation in found if self._try(incarnation)]
        return bool(taken)

    def keeps(self, incarnation: str) -> bool:
        """Say whether we report for this incarnation, whose processes may still live."""
        return incarnation in self._kept

    def knows_dead(self, incarnation: str, attempt_id: str) -> bool:
        """Say whether nothing of this attempt of a kept incarnation lives: it never started, or it has ended.

        Its fork server named all that lived when we came, and starts nothing more.
        """
        server = self._kept.get(incarnation)
        return server is not None and attempt_id not in server.ending and self._running.get(attempt_id) is None

    def close(self) -> None:
        """Let go of all: what still lives is for the next worker."""
        for server in self._kept.values():
            server.forget()
        self._kept.clear()

    def _try(self, incarnation: str) -> bool:
        try:
            server = self._greet(incarnation)
        except NotOurs as why:
            if self._left_alone.get(incarnation) != str(why):
                log.warning("orphans_left_alone", incarnation=incarnation, why=str(why))
                self._left_alone[incarnation] = str(why)
            return False
        except OSError as error:  # it is just ending, or was killed and left its socket
            log.debug("door_not_opened", incarnation=incarnation, why=str(error))
            return False
        try:
            self._hold(server)
        except BaseException:  # no descriptor or thread left, a disk that fails: tried again from the start
            self._let_go(server)
            raise
        self._answer_for(server)
        return True

    def _hold(self, server: KeptServer) -> None:
        """Make what lives behind the door ours. What may fail comes first: a tree that is held must be heard of."""
        living = {spec.attempt_id for spec in server.greeting.kept} | server.ending
        for folder in list(attempts_of(self._folders, server.incarnation)):
            self._follow(folder, folder.attempt_id not in living)
        for spec in server.greeting.kept:
            self._adopt(server, spec)
        self._kept[server.incarnation] = server  # after that, or what is not held yet would count as dead
        server.shown_by = self._heard.next_seq
        server.listen()

    def _let_go(self, server: KeptServer) -> None:
        self._kept.pop(server.incarnation, None)
        for held in self._running.all():
            if held.server is server:
                self._running.release(held.spec.attempt_id, dead=False)
        server.forget()

    def _answer_for(self, server: KeptServer) -> None:
        """Become its keeper, and have stopped what we would not answer for: nobody else will, from now on."""
        with suppress(ForkServerGone):  # we mourn it
            server.keep()
            server.end_the_rest()

    def _greet(self, incarnation: str) -> KeptServer:
        link = door.knock(self._folders.locks, incarnation)
        locks: list[int] = []
        lines = Lines()
        try:
            greeting = self._hear_greeting(link, lines, locks)
            if len(locks) != 1:
                raise NotOurs("it did not share its lock")
            server: KeptServer
            listener = Listener(
                ready=_nothing,
                started=_nothing,
                ended=lambda attempt_id: self._take_end(server, attempt_id),
                refused=_nothing,
                died=lambda: self._mourn(server),
            )
            server = KeptServer(incarnation, link, locks[0], greeting, lines, listener)
        except BaseException:
            for lock in locks:
                os.close(lock)
            link.close()
            raise
        return server

    def _hear_greeting(self, link: socket.socket, lines: Lines, locks: list[int]) -> Greeting:
        while True:
            piece, found, _, _ = socket.recv_fds(link, 65536, 1, socket.MSG_CMSG_CLOEXEC)
            locks += found
            if not piece:
                raise ConnectionResetError("it ended before it had greeted us")
            try:
                first = lines.feed_one(piece)
            except ValueError as error:
                raise NotOurs(f"its greeting is no JSON: {error}") from error
            if first is not None:
                return Greeting.read(first if isinstance(first, dict) else {}, self._boot_id)

    def _adopt(self, server: KeptServer, spec: GrantSpec) -> None:
        """Hold the attempt, if the supervisor that its folder names lives and has its token."""
        if not is_safe_id(spec.attempt_id):
            server.ending.add(spec.attempt_id)
            return
        state = AttemptFolder(self._folders.attempts, spec.attempt_id).read("state")
        pid, started = state.get("pid"), state.get("started")
        if state and (state.get("token") != spec.token or (pid and not is_same(int(pid), int(started or 0)))):
            log.warning("orphan_not_adopted", attempt_id=spec.attempt_id, pid=pid)
            server.ending.add(spec.attempt_id)  # whatever it is, its fork server stops it and tells its end
            return
        log.info("adopted", attempt_id=spec.attempt_id, pid=pid, started_by=server.incarnation)
        self._running.adopt(spec, server, server.incarnation)

    def _take_end(self, server: KeptServer, attempt_id: str) -> None:
        server.ending.discard(attempt_id)
        self._ended(attempt_id)

    def _is_settled(self, server: KeptServer) -> bool:
        mine = any(held.server is server for held in self._running.all())
        return not mine and not any(one.worker_id == server.incarnation for one in self._spool.waiting())


def _nothing(*_: object) -> None:
    """Of what a kept fork server could say, only ends matter."""
