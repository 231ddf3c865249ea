"""Keeps what outlived another incarnation of this host: finds its fork server by the door, adopts its attempts.

From then on they are as ours: they show in our heartbeats under their tokens, and orders reach them through the fork
server that started them. Only their outcomes still name the incarnation that ran them.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import UnreadableMessage
from orchestrator.logs import get_logger
from orchestrator.wire.messages import GrantSpec, grant_from_body
from workers import door
from workers.attempt_folder import AttemptFolder, is_safe_id
from workers.fork_client import Listener, ServerLink
from workers.identity import HostFolders
from workers.leftovers import attempts_of
from workers.orders import Lines
from workers.process_tree import is_same
from workers.running import Running
from workers.spool import Spool

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
        self._lines = rest

    def listen(self) -> None:
        """Start to hear how its attempts end; call it when they are held."""
        self._thread.start()

    def forget(self) -> None:
        """Let go of it, and of its incarnation."""
        self.hang_up()
        os.close(self.lock)

    def _mourn(self) -> None:
        log.info("kept_fork_server_ended", pid=self.pid, incarnation=self.incarnation)
        self.is_gone.set()


class Keeper:
    """All fork servers that this worker keeps.

    :param follow: told of each attempt folder of a kept incarnation, and whether its attempt has ended.
    :param ended: told of each kept attempt whose outcome is in the spool.
    :param mourn: told of each kept fork server that has ended.
    """

    def __init__(
        self,
        folders: HostFolders,
        boot_id: str,
        running: Running,
        spool: Spool,
        *,
        follow: Callable[[AttemptFolder, bool], None],
        ended: Callable[[str], None],
        mourn: Callable[[KeptServer], None],
    ) -> None:
        self._folders = folders
        self._boot_id = boot_id
        self._running = running
        self._spool = spool
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
        found = [one for one in door.doors(self._folders.locks) if may_take and one not in self._kept]
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
        for spec in server.greeting.kept:
            self._adopt(server, spec)
        self._kept[incarnation] = server  # after that, or what is not held yet would count as dead
        living = {spec.attempt_id for spec in server.greeting.kept} | server.ending
        for folder in attempts_of(self._folders, incarnation):
            self._follow(folder, folder.attempt_id not in living)
        server.listen()
        return True

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
            return
        state = AttemptFolder(self._folders.attempts, spec.attempt_id).read("state")
        pid, started = state.get("pid"), state.get("started")
        if state and (state.get("token") != spec.token or (pid and not is_same(int(pid), int(started or 0)))):
            log.warning("orphan_not_adopted", attempt_id=spec.attempt_id, pid=pid)
            server.ending.add(spec.attempt_id)  # whatever it is, its fork server will tell its end
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
