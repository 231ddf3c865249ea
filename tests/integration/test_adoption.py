"""Trees that outlive their worker, on real processes: found by the door, kept by one worker, never run twice."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.config import load_settings
from orchestrator.states import AttemptState
from tests.integration.fork_server_site import ForkSite, is_alive, wait_for
from workers import door, verdict
from workers.attempt_folder import AttemptFolder
from workers.host import orphan_grace
from workers.identity import has_ended, read_boot_id
from workers.keeping import Keeper, KeptServer
from workers.leftovers import settle_ended
from workers.running import Held, Running

pytestmark = pytest.mark.timeout(90)

ADOPT: dict[str, Any] = {"on_worker_loss": "adopt"}


class Leader:
    """What it has read of a worker's heartbeats; everything, unless told otherwise."""

    next_seq = 1
    heard = 1

    def is_heard(self, seq: int) -> bool:
        return self.heard >= seq


class NextWorker:
    """The part of another worker of the host that adopts."""

    def __init__(self, site: ForkSite, incarnation: str = "next-worker") -> None:
        self.running = Running(lambda: None)
        self.leader = Leader()
        self.followed: dict[str, bool] = {}
        self.mourned: list[KeptServer] = []
        self.keeper = Keeper(
            site.folders,
            read_boot_id(),
            incarnation,
            self.running,
            site.spool,
            self.leader,
            follow=self._follow,
            ended=self.running.ended,
            mourn=self.mourned.append,
        )

    def _follow(self, folder: AttemptFolder, has_ended: bool) -> None:
        self.followed[folder.attempt_id] = has_ended

    def takes_over(self) -> bool:
        return self.keeper.look()

    def held(self, attempt_id: str) -> Held:
        held = self.running.get(attempt_id)
        assert held is not None
        return held

    def stop(self, attempt_id: str, why: str = verdict.CANCELLED, grace: float | None = 1.0) -> None:
        server = self.held(attempt_id).server
        assert server is not None
        server.stop(attempt_id, why, grace)

    def wait_for_end(self, attempt_id: str) -> None:
        assert self.held(attempt_id).ended.wait(30)

    def die(self) -> None:
        self.keeper.close()


class Hosts:
    """A host's worker that dies, and those that come after it."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        self.sites: list[ForkSite] = []
        self.workers: list[NextWorker] = []

    def first(self, **fields: Any) -> ForkSite:
        self.sites.append(ForkSite(self._tmp_path, **fields))
        assert self.sites[-1].ready.wait(20)
        return self.sites[-1]

    def next(self) -> NextWorker:
        self.workers.append(NextWorker(self.sites[0]))
        return self.workers[-1]

    def close(self) -> None:
        for worker in self.workers:
            worker.die()
        for site in self.sites:
            for pid in [site.client.process.pid, *site.pids.values()]:
                if is_alive(pid):
                    os.kill(pid, signal.SIGKILL)
            site.client.process.wait(20)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    yield made
    made.close()


def sleeping(site: ForkSite, **fields: Any) -> str:
    attempt = site.start("sleep", **{**ADOPT, **fields})
    site.wait_for_log(attempt, "sleeping")
    return attempt


def socket_of(site: ForkSite) -> Path:
    return site.folders.locks / f"{site.incarnation}{door.SUFFIX}"


def orphaned(site: ForkSite) -> None:
    """Have the site's worker die, and wait until its trees can be found."""
    site.die()
    wait_for(lambda: socket_of(site).exists(), what="door")


def outcome_of(site: ForkSite, attempt_id: str) -> tuple[AttemptState, str]:
    spooled = wait_for(lambda: site.spool.read(attempt_id), 30, "outcome in the spool")
    assert spooled.worker_id == site.incarnation, "it names the incarnation that ran it"
    assert spooled.token == f"token-{attempt_id}"
    return AttemptState(spooled.outcome.state), spooled.outcome.reason


def test_a_tree_that_may_be_adopted_outlives_its_worker_and_obeys_the_next(hosts: Hosts) -> None:
    site = hosts.first()
    attempt, other = sleeping(site), site.start("sleep")
    site.wait_for_log(other, "sleeping")
    supervisor, other_supervisor = (site.folder(one).read("state")["pid"] for one in (attempt, other))
    orphaned(site)
    assert outcome_of(site, other) == (AttemptState.LOST, "worker_lost")
    wait_for(lambda: not Path(f"/proc/{other_supervisor}").exists(), what="end of the other's supervisor")
    worker = hosts.next()
    assert worker.takes_over()
    assert is_alive(supervisor)
    held = worker.held(attempt)
    assert (held.spec.token, held.has_started, held.ran_by) == (f"token-{attempt}", True, site.incarnation)
    assert worker.running.tokens() == {attempt: f"token-{attempt}"}
    assert worker.keeper.keeps(site.incarnation)
    assert worker.followed == {attempt: False, other: True}
    worker.stop(attempt)
    worker.wait_for_end(attempt)
    assert outcome_of(site, attempt) == (AttemptState.CANCELLED, "cancelled")
    assert not is_alive(supervisor)


def test_what_lives_behind_a_door_is_neither_killed_nor_reported_by_others(hosts: Hosts) -> None:
    site = hosts.first()
    attempt = sleeping(site)
    orphaned(site)
    assert list(settle_ended(site.folders, site.spool)) == []
    assert is_alive(site.folder(attempt).read("state")["pid"])
    assert not site.spool.has(attempt)
    assert not has_ended(site.folders, site.incarnation)


def test_the_keeper_holds_the_incarnation_until_all_of_it_is_reported(hosts: Hosts) -> None:
    site = hosts.first()
    attempt = sleeping(site)
    orphaned(site)
    worker = hosts.next()
    assert worker.takes_over()
    worker.stop(attempt)
    worker.wait_for_end(attempt)
    wait_for(lambda: worker.mourned, what="end of the fork server")
    worker.keeper.look()
    assert worker.keeper.keeps(site.incarnation)
    assert not has_ended(site.folders, site.incarnation), "another worker would report it as lost"
    site.spool.answer(attempt, "committed")
    worker.running.release(attempt, dead=False)
    worker.keeper.look()
    assert not worker.keeper.keeps(site.incarnation)
    assert has_ended(site.folders, site.incarnation)
    assert not socket_of(site).exists()


def test_the_death_of_the_keeper_leaves_the_tree_to_the_one_after(hosts: Hosts) -> None:
    site = hosts.first()
    attempt = sleeping(site)
    orphaned(site)
    second = hosts.next()
    assert second.takes_over()
    second.die()
    third = hosts.next()
    wait_for(third.takes_over, what="second adoption")
    third.stop(attempt)
    third.wait_for_end(attempt)
    assert outcome_of(site, attempt) == (AttemptState.CANCELLED, "cancelled")


def test_of_two_workers_the_first_keeps_it(hosts: Hosts) -> None:
    site = hosts.first()
    attempt = sleeping(site)
    orphaned(site)
    second, third = hosts.next(), hosts.next()
    assert second.takes_over()
    assert not third.takes_over()
    assert third.running.get(attempt) is None
    assert not third.keeper.keeps(site.incarnation)
    assert is_alive(site.folder(attempt).read("state")["pid"])


def test_what_ended_while_nobody_was_there_is_found_in_the_spool(hosts: Hosts) -> None:
    site = hosts.first()
    attempt = site.start("sleep", **ADOPT, parameters={"seconds": 1})
    orphaned(site)
    assert outcome_of(site, attempt) == (AttemptState.SUCCEEDED, "")
    wait_for(lambda: has_ended(site.folders, site.incarnation), what="end of the fork server")
    assert not socket_of(site).exists()
    assert not hosts.next().takes_over()


def test_what_ended_beside_one_that_lives_is_known_to_be_dead(hosts: Hosts) -> None:
    site = hosts.first()
    longer = sleeping(site)
    attempt = site.start("sleep", **ADOPT, parameters={"seconds": 1})
    orphaned(site)
    assert outcome_of(site, attempt) == (AttemptState.SUCCEEDED, "")
    # Its outcome is in the spool before its supervisor has ended.
    wait_for(lambda: not psutil.pid_exists(site.pids[attempt]), what="end of its supervisor")
    worker = hosts.next()
    assert not worker.keeper.knows_dead(site.incarnation, attempt)
    wait_for(worker.takes_over)
    assert worker.keeper.knows_dead(site.incarnation, attempt)
    assert worker.keeper.knows_dead(site.incarnation, "granted-and-never-started")
    assert not worker.keeper.knows_dead(site.incarnation, longer)
    assert not worker.keeper.knows_dead("another-incarnation", attempt)


def test_a_fork_server_of_another_protocol_is_left_alone(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    site = hosts.first()
    attempt = sleeping(site)
    orphaned(site)
    worker = hosts.next()
    monkeypatch.setattr(door, "PROTOCOL", 2)
    assert not worker.takes_over()
    assert worker.running.all() == []
    monkeypatch.undo()
    assert wait_for(worker.takes_over), "it still waits for one that understands it"
    assert is_alive(site.folder(attempt).read("state")["pid"])


def test_the_door_is_private_tells_no_secret_and_needs_no_short_path(hosts: Hosts, tmp_path: Path) -> None:
    site = hosts.first(data_dir=tmp_path / ("deep" * 20) / ("deeper" * 20))
    assert len(str(socket_of(site))) > 108
    sleeping(site, connections={"warehouse": {"url": "postgresql://secret"}}, parameters={"key": "a-secret"})
    orphaned(site)
    assert stat.S_IMODE(socket_of(site).stat().st_mode) == 0o600
    visitor = door.knock(site.folders.locks, site.incarnation)
    said = b""
    while not said.endswith(b"\n"):
        said += visitor.recv(65536)
    visitor.close()
    assert json.loads(said)["protocol"] == door.PROTOCOL
    assert b"secret" not in said


def test_the_death_of_a_kept_fork_server_ends_the_tree_and_says_so(hosts: Hosts) -> None:
    site = hosts.first()
    attempt = sleeping(site, grace=1.0)
    orphaned(site)
    worker = hosts.next()
    assert worker.takes_over()
    os.kill(site.client.process.pid, signal.SIGKILL)
    assert outcome_of(site, attempt) == (AttemptState.LOST, "fork_server_lost")
    wait_for(lambda: worker.mourned, what="news of its death")
    assert wait_for(lambda: not is_alive(site.folder(attempt).read("state")["pid"]))
    assert worker.keeper.keeps(site.incarnation), "its outcome is still to be reported"


def test_a_tree_that_nobody_adopts_ends_itself_after_a_time(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    site = hosts.first(orphan_seconds=1.0)
    attempt = sleeping(site, grace=1.0)
    orphaned(site)
    assert outcome_of(site, attempt) == (AttemptState.LOST, "worker_lost")
    wait_for(lambda: has_ended(site.folders, site.incarnation))


def test_a_tree_that_nobody_adopts_gets_no_more_grace_than_there_is_until_it_may_run_elsewhere(hosts: Hosts) -> None:
    site = hosts.first(orphan_seconds=1.0, orphan_grace=1.0)
    attempt = site.start("escape", **ADOPT, grace=600.0, parameters={"notes": str(site.tmp_path / "notes")})
    wait_for(lambda: (site.tmp_path / "notes").exists(), what="a tree that ignores TERM")
    orphaned(site)
    assert outcome_of(site, attempt) == (AttemptState.LOST, "worker_lost")


def test_the_host_stops_an_orphan_before_the_leader_may_start_it_elsewhere(tmp_path: Path) -> None:
    for variables in ({}, {"HEARTBEAT_INTERVAL_SECONDS": "0.5", "WORKER_LEASE_SECONDS": "3", "ADOPT_SECONDS": "4"}):
        settings = load_settings({"DATA_DIR": str(tmp_path), **variables})
        given_up = settings.worker_lease - settings.heartbeat_interval_seconds
        assert 0 < orphan_grace(settings) < given_up, "counted from ADOPT_SECONDS after the worker's death"


def test_visitors_that_leave_again_do_not_prolong_the_life_of_an_orphan(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = hosts.first(orphan_seconds=3.0)
    attempt = sleeping(site, grace=0.5)
    orphaned(site)
    worker = hosts.next()
    monkeypatch.setattr(door, "PROTOCOL", 2)
    looks = count()

    def has_ended_while_visited() -> bool:
        assert not worker.takes_over()
        next(looks)
        return site.spool.has(attempt)

    wait_for(has_ended_while_visited, 30, "end of a tree whose visitors do not keep it")
    assert next(looks) > 3
    assert outcome_of(site, attempt) == (AttemptState.LOST, "worker_lost")


def test_a_visitor_that_stays_without_keeping_it_does_not_either(hosts: Hosts) -> None:
    site = hosts.first(orphan_seconds=2.0)
    attempt = sleeping(site, grace=0.5)
    orphaned(site)
    with door.knock(site.folders.locks, site.incarnation) as visitor:
        assert visitor.recv(65536)
        assert outcome_of(site, attempt) == (AttemptState.LOST, "worker_lost")


def test_keepers_of_whom_the_leader_never_heard_do_not_prolong_it_by_dying(hosts: Hosts) -> None:
    """A worker that crashes whenever it has adopted: nobody but the tree itself knows of its keepers."""
    site = hosts.first(orphan_seconds=4.0)
    attempt = sleeping(site, grace=0.5)
    orphaned(site)
    deaths = count()

    def has_ended_between_keepers() -> bool:
        worker = NextWorker(site)
        worker.leader.heard = 0
        if worker.takes_over():
            worker.takes_over()
            next(deaths)
        worker.die()
        return site.spool.has(attempt)

    wait_for(has_ended_between_keepers, 30, "end of a tree whose keepers die at once")
    assert next(deaths) > 1
    assert outcome_of(site, attempt) == (AttemptState.LOST, "worker_lost")


def test_a_living_keeper_stops_the_clock_and_one_that_the_leader_knows_sets_it_anew(hosts: Hosts) -> None:
    site = hosts.first(orphan_seconds=4.0)
    attempt = sleeping(site)
    orphaned(site)
    orphan_since = time.monotonic()
    worker = hosts.next()
    assert worker.takes_over()
    worker.keeper.look()  # and says that the leader knows it
    wait_for(lambda: time.monotonic() > orphan_since + 5.0, what="the time an orphan has")
    assert not site.spool.has(attempt)
    worker.die()
    third = hosts.next()
    wait_for(third.takes_over, what="second adoption")
    third.stop(attempt)
    third.wait_for_end(attempt)
    assert outcome_of(site, attempt) == (AttemptState.CANCELLED, "cancelled")


def test_an_adoption_that_fails_half_way_is_begun_again(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    site = hosts.first()
    attempt = sleeping(site)
    orphaned(site)
    worker = hosts.next()

    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    def fails(step: Callable[[], object]) -> bool:
        try:
            step()
        except OSError as error:
            return error.errno == errno.EMFILE
        return False  # the fork server has not seen yet that its last visitor has gone

    for broken, name in ((worker.keeper, "_follow"), (KeptServer, "listen")):
        with monkeypatch.context() as patch:
            patch.setattr(broken, name, fail)
            wait_for(lambda: fails(worker.takes_over), what=f"an adoption without {name}")
        assert worker.running.all() == []
        assert not worker.keeper.keeps(site.incarnation)
    wait_for(worker.takes_over, what="an adoption")
    worker.stop(attempt)
    worker.wait_for_end(attempt)
    assert outcome_of(site, attempt) == (AttemptState.CANCELLED, "cancelled")


def test_a_tree_that_the_keeper_can_not_answer_for_is_stopped(hosts: Hosts) -> None:
    site = hosts.first()
    attempt, other = sleeping(site, grace=0.5), sleeping(site)
    folder = site.folder(attempt)
    folder.write("state", {**folder.read("state"), "token": "another"})
    orphaned(site)
    worker = hosts.next()
    assert worker.takes_over()
    assert worker.running.get(attempt) is None
    assert outcome_of(site, attempt) == (AttemptState.LOST, "worker_lost")
    assert not site.spool.has(other)
    wait_for(lambda: worker.keeper.knows_dead(site.incarnation, attempt), what="news of its end")


def test_the_stop_of_a_tree_that_the_keeper_can_not_answer_for_is_repeated_until_it_is_heard(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fork server drops an order that a frozen supervisor can't take, and trusts that it comes again."""
    site = hosts.first()
    attempt = sleeping(site, grace=0.5)
    folder = site.folder(attempt)
    folder.write("state", {**folder.read("state"), "token": "another"})
    orphaned(site)
    worker = hosts.next()
    lost: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(KeptServer, "stop", lambda server, attempt_id, why, grace: lost.append(attempt_id))
        assert worker.takes_over()
    assert lost == [attempt]

    def has_ended() -> bool:
        worker.keeper.look()
        return worker.keeper.knows_dead(site.incarnation, attempt)

    wait_for(has_ended, what="news of its end")
    assert outcome_of(site, attempt) == (AttemptState.LOST, "worker_lost")


def test_a_door_that_was_left_half_made_is_made_anew(tmp_path: Path) -> None:
    for _ in range(2):  # the second finds the path of the first, to which nobody listens
        door.Door(tmp_path, "incarnation").open().close()
    assert door.doors(tmp_path) == ["incarnation"]


def test_a_worker_does_not_knock_at_a_door_of_its_own(hosts: Hosts) -> None:
    site = hosts.first()
    sleeping(site)
    orphaned(site)
    worker = NextWorker(site, incarnation=site.incarnation)
    assert not worker.takes_over()


@pytest.mark.parametrize(
    ("fields", "state", "reason"),
    [
        ({"timeout": 4.0, "grace": 0.5}, AttemptState.TIMED_OUT, "timeout"),
        ({"exclusive": True}, AttemptState.LOST, "cut_off"),
    ],
)
def test_an_orphan_keeps_its_own_limits(hosts: Hosts, fields: dict[str, Any], state: AttemptState, reason: str) -> None:
    site = hosts.first()
    attempt = sleeping(site, fresh_until=time.monotonic() + 4.0, **fields)
    orphaned(site)
    assert outcome_of(site, attempt) == (state, reason)


def test_a_kept_exclusive_tree_lives_on_while_the_keeper_refreshes_it(hosts: Hosts) -> None:
    site, began = hosts.first(), time.monotonic()
    attempt = sleeping(site, exclusive=True, fresh_until=time.monotonic() + 4.0)
    orphaned(site)
    worker = hosts.next()
    assert worker.takes_over()
    server = worker.held(attempt).server
    assert server is not None
    server.refresh(time.monotonic() + 600.0)
    wait_for(lambda: time.monotonic() > began + 5.0, what="the time at which it would have stopped itself")
    worker.stop(attempt, verdict.PREEMPTED, 1.0)
    assert outcome_of(site, attempt) == (AttemptState.PREEMPTED, "preempted")
