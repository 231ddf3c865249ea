"""Orders to a fork server that may be missing, die, or find the host full: nothing hangs and nothing is eaten."""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from orchestrator.records import Resources
from orchestrator.states import AttemptState
from orchestrator.wire.messages import GrantSpec, grant_body
from workers import lean, verdict
from workers.attempt_folder import AttemptFolder
from workers.fork_client import ForkClient, ForkServerGone, Listener
from workers.fork_server import ForkServer
from workers.identity import HostFolders
from workers.orders import Lines, Site, start_order
from workers.running import Held, Running
from workers.spool import Spool
from workers.supervise import Supervisor
from workers.trees import LONGEST_PAUSE, STEADY_SECONDS, Trees

pytestmark = pytest.mark.timeout(30)


def grant(attempt_id: str = "a1") -> GrantSpec:
    return GrantSpec(attempt_id, "token", "run", "tenant", "task", 1, "probe", {}, resources=Resources(cpu=1000))


class Client:
    """Stands for a fork server and notes its orders."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.orders: list[tuple[str, str]] = []
        self.is_gone = False

    def start(self, attempt_id: str, grant: bytes, fresh_until: float | None) -> None:
        if self.is_gone:
            raise ForkServerGone("gone")
        self.orders.append(("start", attempt_id))

    def stop(self, attempt_id: str, why: str, grace: float | None) -> None:
        self.orders.append((why, attempt_id))

    def refresh(self, until: float) -> None:
        self.orders.append(("fresh", str(until)))


class Host:
    """A worker's trees on fake fork servers and a clock that stands still."""

    def __init__(self, tmp_path: Path) -> None:
        self.now = 0.0
        self.clients: list[Client] = []
        self.opened_at: list[float] = []
        self.can_open = True
        self.folders = HostFolders(tmp_path)
        self.folders.attempts.mkdir()
        self.spool = Spool(self.folders.spool)
        self.running = Running(lambda: None)
        self.trees = Trees(
            self.open, self.running, self.spool, self.folders, "me", self.running.ended, lambda: None, lambda: self.now
        )

    def open(self, listener: Listener) -> ForkClient:
        self.opened_at.append(self.now)
        if not self.can_open:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        self.clients.append(Client(listener))
        return cast("ForkClient", self.clients[-1])

    def is_able(self) -> bool:
        return self.trees.can_start

    def hold(self, attempt_id: str = "a1") -> Held:
        return self.running.hold(grant(attempt_id))

    def ending(self, attempt_id: str = "a1") -> tuple[AttemptState, str, bool]:
        spooled = self.spool.read(attempt_id)
        assert spooled is not None
        return spooled.outcome.state, spooled.outcome.reason, spooled.outcome.infrastructure

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1.0
            self.trees.tend()


NEVER_STARTED = (AttemptState.LOST, "fork_failed", True)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_nothing_can_be_started_before_the_fork_server_is_ready(host: Host) -> None:
    assert not host.is_able()
    host.clients[0].listener.ready()
    assert host.is_able()


def test_a_dead_fork_server_is_replaced_at_once(host: Host) -> None:
    host.clients[0].listener.ready()
    host.now = STEADY_SECONDS
    host.clients[0].listener.died()
    assert not host.is_able()
    host.trees.tend()
    host.clients[1].listener.ready()
    assert host.is_able()
    assert host.opened_at == [0.0, STEADY_SECONDS]


def test_a_fork_server_that_can_not_be_started_is_tried_again_later_and_later(host: Host) -> None:
    host.clients[0].listener.ready()
    host.can_open = False
    host.clients[0].listener.died()
    host.pass_time(300)
    assert not host.is_able()
    tries = host.opened_at[1:]
    gaps = [later - earlier for earlier, later in pairwise(tries)]
    assert gaps == sorted(gaps)
    assert gaps[-1] == LONGEST_PAUSE
    host.can_open = True
    host.pass_time(int(LONGEST_PAUSE))
    host.clients[-1].listener.ready()
    assert host.is_able()


def test_a_fork_server_that_keeps_dying_is_not_started_in_a_hot_loop(host: Host) -> None:
    for _ in range(300):
        if len(host.clients) == len(host.opened_at) and not host.clients[-1].is_gone:
            host.clients[-1].is_gone = True
            host.clients[-1].listener.died()
        host.pass_time(1)
    assert len(host.opened_at) < 20


def test_without_a_fork_server_a_granted_attempt_ends_uncharged(host: Host) -> None:
    host.clients[0].listener.died()
    held = host.hold()
    host.trees.start(held, None)
    assert held.ended.is_set()
    assert host.ending() == NEVER_STARTED


def test_an_order_to_a_fork_server_that_just_died_ends_uncharged(host: Host) -> None:
    host.clients[0].is_gone = True
    held = host.hold()
    host.trees.start(held, None)
    assert host.ending() == NEVER_STARTED


def test_an_attempt_that_could_not_be_forked_ends_uncharged(host: Host) -> None:
    held = host.hold()
    host.trees.start(held, None)
    host.clients[0].listener.refused("a1", "Resource temporarily unavailable")
    assert held.ended.is_set()
    assert host.ending() == NEVER_STARTED


def test_an_attempt_whose_fork_server_died_before_it_had_a_supervisor_ends_uncharged(host: Host) -> None:
    held = host.hold()
    host.trees.start(held, None)
    host.clients[0].listener.died()
    host.pass_time(10)
    assert host.ending() == NEVER_STARTED


def test_an_attempt_that_died_with_its_fork_server_is_a_loss(host: Host) -> None:
    held = host.hold()
    host.trees.start(held, None)
    folder = AttemptFolder(host.folders.attempts, "a1")
    folder.create()
    folder.write("state", {"pid": 2**22 + 1, "started": 1})
    host.clients[0].listener.died()
    host.pass_time(10)
    assert host.ending() == (AttemptState.LOST, "fork_server_lost", True)


@pytest.mark.parametrize(
    ("why", "state"),
    [
        (verdict.CANCELLED, AttemptState.CANCELLED),
        (verdict.FENCED, AttemptState.CANCELLED),
        (verdict.PREEMPTED, AttemptState.PREEMPTED),
    ],
)
def test_an_attempt_that_is_stopped_before_it_starts_never_starts(host: Host, why: str, state: AttemptState) -> None:
    held = host.hold()
    host.trees.stop("a1", why, 5.0)
    host.trees.start(held, None)
    assert host.clients[0].orders == []
    assert held.ended.is_set()
    assert host.ending()[0] is state


def test_a_stop_after_the_start_is_passed_on(host: Host) -> None:
    held = host.hold()
    host.trees.start(held, None)
    host.trees.stop("a1", verdict.CANCELLED, 5.0)
    assert host.clients[0].orders == [("start", "a1"), (verdict.CANCELLED, "a1")]
    assert not held.ended.is_set()


def test_an_end_that_the_full_disk_did_not_take_is_reported_later(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.clients[0].listener.died()
    held = host.hold()

    def full(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Spool, "write", full)
        host.trees.start(held, None)
        host.pass_time(3)
        assert not held.ended.is_set()
    host.pass_time(1)
    assert held.ended.is_set()
    assert host.ending() == NEVER_STARTED


# The fork server itself


def site(tmp_path: Path) -> Site:
    return Site("me", "boot", str(tmp_path / "attempts"), str(tmp_path / "spool"), None, {}, {}, use_cgroups=False)


def no_processes() -> int:
    raise BlockingIOError(11, "Resource temporarily unavailable")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_failed_fork_is_told_and_the_fork_server_goes_on(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, theirs = pair
    server = ForkServer(theirs, 0)
    server._follow(site(tmp_path).to_line())
    monkeypatch.setattr(os, "fork", no_processes)
    for attempt_id in ("a1", "a2"):
        server._follow(start_order(attempt_id, grant_body(grant(attempt_id)), None))
    told: list[dict[str, Any]] = list(Lines().feed(worker.recv(65536)))
    assert [(line["is"], line["attempt"]) for line in told] == [("refused", "a1"), ("refused", "a2")]
    assert "Resource temporarily unavailable" in told[0]["why"]
    server._selector.close()


def test_a_worker_that_died_with_words_unread_is_a_dead_worker(pair: tuple[socket.socket, socket.socket]) -> None:
    worker, theirs = pair
    server = ForkServer(theirs, 0)
    server._selector.register(theirs, 1)
    theirs.sendall(b"unread")
    worker.close()
    server._hear()
    assert not server._worker_lives
    server._selector.close()


def test_a_supervisor_that_can_not_fork_reports_that_nothing_started(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fork", no_processes)
    former = signal.getsignal(signal.SIGCHLD)
    supervisor = Supervisor(site(tmp_path), grant(), pair[1], None)
    try:
        supervisor.run()
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, former)
    supervisor._pump._file.close()  # in its own process its end closes it
    spooled = Spool(tmp_path / "spool").read("a1")
    assert spooled is not None
    assert (spooled.outcome.state, spooled.outcome.reason) == (AttemptState.LOST, "fork_failed")
    assert spooled.outcome.infrastructure


def test_a_supervisor_whose_fork_server_has_died_already_starts_nothing(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker reports such an attempt as never started; a start that comes late would be a second one."""
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("nothing may be forked"))
    former = signal.getsignal(signal.SIGCHLD)
    pair[0].close()
    try:
        Supervisor(site(tmp_path), grant(), pair[1], None).run()
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, former)
    assert not Spool(tmp_path / "spool").has("a1")


def test_a_stop_of_an_adopted_attempt_goes_to_the_fork_server_that_started_it(host: Host) -> None:
    other = Client(host.clients[0].listener)
    host.running.adopt(grant(), other, "another")
    host.trees.stop("a1", verdict.CANCELLED, 5.0)
    host.trees.refresh(7.0)
    assert (other.orders, host.clients[0].orders) == ([(verdict.CANCELLED, "a1"), ("fresh", "7.0")], [])


def test_an_adopted_attempt_whose_fork_server_died_is_lost_in_the_name_of_who_ran_it(host: Host) -> None:
    other = Client(host.clients[0].listener)
    host.running.adopt(grant(), other, "another")
    folder = AttemptFolder(host.folders.attempts, "a1")
    folder.create()
    folder.write("state", {"pid": 2**22 + 1, "started": 1})
    host.trees.mourn(other)
    host.pass_time(10)
    assert host.ending() == (AttemptState.LOST, "fork_server_lost", True)
    spooled = host.spool.read("a1")
    assert spooled is not None
    assert spooled.worker_id == "another"


@pytest.mark.parametrize(("limit", "left"), [(1000, 750), (60_000, 59_744), (resource.RLIM_INFINITY,) * 2])
def test_tasks_leave_some_processes_of_their_account_to_the_worker(limit: int, left: int) -> None:
    assert lean.task_processes(limit) == left
