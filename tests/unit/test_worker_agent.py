"""The agent without Redis, Celery and processes: what it does when devices, the disk or its fork server fail it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from orchestrator.config import load_settings
from orchestrator.records import Heartbeat
from orchestrator.states import AttemptState
from orchestrator.wire.messages import Answer, DesiredState, GrantSpec
from workers.agent import Agent
from workers.attempt_folder import AttemptFolder
from workers.beat import Beat
from workers.fork_client import ForkClient, Listener
from workers.gpus import Gpus
from workers.host import Host
from workers.running import Running

pytestmark = pytest.mark.timeout(20)


class Busy(Gpus):
    """A host whose one device is always in use."""

    def __init__(self) -> None:
        super().__init__(None, None, lambda pid: False)

    def obstacle(self, devices: Any) -> str:
        return "device GPU-1 is used by process 7" if devices else ""


class NoForkServer:
    def close(self) -> None:
        pass


class Worker:
    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = load_settings(
            {"DATA_DIR": str(tmp_path), "REDIS_URL": "redis://127.0.0.1:1", "WORKER_KEY": "k" * 32}
        )
        self.host = Host(settings)
        self.listeners: list[Listener] = []
        monkeypatch.setattr(self.host, "open_fork_server", self._open)
        self.intake: list[bool] = []
        self.agent = Agent(self.host, self.host.me("w@h", 1, ("cpu",)), Busy(), self.intake.append)
        self.listeners[0].ready()

    def _open(self, listener: Listener) -> ForkClient:
        self.listeners.append(listener)
        return cast("ForkClient", NoForkServer())

    def grant(self, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> GrantSpec:
        """Have the next claim granted."""
        spec = GrantSpec("a1", "token", "run", "tenant", "task", 1, "probe", {}, **fields)

        def ask(attempt_id: str, seq: int) -> GrantSpec:
            self.agent._accept(spec)
            return spec

        monkeypatch.setattr(self.agent._claims, "ask", ask)
        return spec

    def close(self) -> None:
        self.agent._client.close()
        self.host._lock.release()


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    made = Worker(tmp_path, monkeypatch)
    yield made
    made.close()


def test_a_device_that_does_not_get_free_is_a_loss_by_that_name(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.agent.GPU_FREE_SECONDS", 0.0)
    worker.grant(monkeypatch, devices=("GPU-1",))
    worker.agent.take("a1", 1)
    spooled = worker.agent._spool.read("a1")
    assert spooled is not None
    assert (spooled.outcome.state, spooled.outcome.reason) == (AttemptState.LOST, "gpu_busy")
    assert spooled.outcome.infrastructure
    assert "used by process 7" in spooled.outcome.message


def test_a_cancel_that_comes_while_it_waits_for_its_device_ends_the_wait(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.agent.GPU_FREE_SECONDS", 3600.0)
    spec = worker.grant(monkeypatch, devices=("GPU-1",))
    waits: list[float] = []

    def cancel(seconds: float) -> bool:
        waits.append(seconds)
        worker.agent._follower.apply(DesiredState(epoch=1, hb_seq=1, cancel=((spec.attempt_id, 5.0),)))
        return False

    monkeypatch.setattr(worker.agent._stopping, "wait", cancel)
    worker.agent.take("a1", 1)
    assert len(waits) == 1
    spooled = worker.agent._spool.read("a1")
    assert spooled is not None
    assert spooled.outcome.state is AttemptState.CANCELLED


def test_an_answer_frees_the_attempt_even_when_the_disk_is_full(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.grant(monkeypatch)
    worker.agent._claims.ask("a1", 1)
    held = worker.agent._running.get("a1")
    assert held is not None
    held.stop = "cancelled"
    worker.agent._trees.start(held, None)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(AttemptFolder, "write", full)
    worker.agent._take_answer(Answer("a1", "token", "committed"))
    assert worker.agent._running.all() == []
    assert not worker.agent._spool.has("a1")


def test_a_worker_that_could_start_nothing_takes_no_hints_until_it_can(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(worker.agent._claims, "ask", lambda attempt_id, seq: asked.append(attempt_id))
    worker.agent._mind_intake()
    assert worker.intake == []
    worker.listeners[0].died()
    assert worker.agent.is_draining, "its heartbeat says so"
    worker.agent.take("a1", 1)
    assert asked == []
    worker.agent._mind_intake()
    worker.agent._mind_intake()
    worker.agent._trees.tend()
    worker.listeners[1].ready()
    worker.agent._mind_intake()
    assert worker.intake == [False, True]
    worker.agent.take("a1", 1)
    assert asked == ["a1"]


def test_a_signal_takes_no_lock_that_the_main_thread_may_hold(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler runs in the main thread, perhaps while that is setting the very event."""

    def deadlock() -> None:
        raise AssertionError("an event's lock is not reentrant")

    monkeypatch.setattr(worker.agent._wake, "set", deadlock)
    worker.agent.leave()
    worker.agent.preempt()
    assert worker.agent.is_draining
    assert worker.agent._patience(0.0) <= 1.0, "the pulse looks soon all the same"


def test_a_drain_that_was_read_counts_from_then_though_it_is_read_again(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[object, ...]] = []

    def command(*word: object) -> bool:
        said.append(word)
        return False

    monkeypatch.setattr(worker.agent._drain, "command", command)
    worker.agent._follower.apply(DesiredState(epoch=3, hb_seq=17, drain=True, drain_left=10.0))
    assert said == [(True, 10.0, (3, 17))]


class Words:
    """Stands for the key in which a worker finds what is wanted of it."""

    def __init__(self, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
        self._agent = worker.agent
        self.resent = 0
        self.stopped: list[str] = []
        monkeypatch.setattr(self._agent._follower, "_send_again", self._send_again)
        monkeypatch.setattr(self._agent._trees, "stop", lambda attempt_id, why, grace: self.stopped.append(attempt_id))

    def _send_again(self) -> None:
        self.resent += 1

    def say(self, monkeypatch: pytest.MonkeyPatch, word: DesiredState | None) -> None:
        """Have the worker read this."""
        monkeypatch.setattr(self._agent._box, "desired", lambda: word)
        self._agent._follower.follow()


PREEMPT_ALL: dict[str, Any] = {"drain": True, "drain_left": 0.0, "cancel": (("a1", 0.0),), "gen": 1}


def test_an_old_word_of_the_leader_that_is_written_once_more_does_nothing(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reaches Redis has kept a drain of this morning."""
    words = Words(worker, monkeypatch)
    words.say(monkeypatch, DesiredState(epoch=3, hb_seq=20, gen=100))
    for _ in range(2):
        words.say(monkeypatch, DesiredState(epoch=3, hb_seq=19, **PREEMPT_ALL))
        assert not worker.agent.is_draining
        assert (words.stopped, words.resent) == ([], 0)
    words.say(monkeypatch, DesiredState(epoch=3, hb_seq=20, gen=100))
    assert words.resent == 0, "Redis was not reset"


def test_what_is_wanted_may_change_between_two_heartbeats(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    words = Words(worker, monkeypatch)
    words.say(monkeypatch, DesiredState(epoch=3, hb_seq=20))
    words.say(monkeypatch, DesiredState(epoch=3, hb_seq=20, drain=True, cancel=(("a1", 0.0),)))
    assert worker.agent.is_draining
    assert words.stopped == ["a1"]


def test_a_new_leader_may_have_read_an_older_heartbeat_and_an_old_one_a_newer(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = Words(worker, monkeypatch)
    words.say(monkeypatch, DesiredState(epoch=3, hb_seq=20))
    words.say(monkeypatch, DesiredState(epoch=4, hb_seq=12, drain=True))
    assert worker.agent.is_draining
    words.say(monkeypatch, DesiredState(epoch=3, hb_seq=21))
    assert worker.agent.is_draining, "the word of one that leads no more"
    words.say(monkeypatch, DesiredState(epoch=4, hb_seq=11))
    assert worker.agent.is_draining
    words.say(monkeypatch, DesiredState(epoch=4, hb_seq=13))
    assert not worker.agent.is_draining


def test_a_flush_of_redis_makes_no_worker_deaf(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    words = Words(worker, monkeypatch)
    words.say(monkeypatch, DesiredState(epoch=3, hb_seq=20, gen=100))
    words.say(monkeypatch, None)
    words.say(monkeypatch, DesiredState(epoch=3, hb_seq=20, gen=1, drain=True))
    assert worker.agent.is_draining
    assert words.resent == 1


def test_a_worker_that_leaves_lets_go_of_its_claims(worker: Worker) -> None:
    worker.agent.leave()
    worker.agent._mind_intake()
    assert worker.agent._claims.ask("a1", 1) is None
    assert worker.intake == [], "Celery itself takes no more"


def test_what_a_beat_remembers_is_bounded_while_nobody_hears_it(worker: Worker) -> None:
    class Sink:
        def publish(self, heartbeat: Heartbeat) -> None:
            pass

    now = [0.0]
    settings = worker.host.settings
    beat = Beat(worker.agent._beat.me, settings, Sink(), Running(lambda: None), Busy(), clock=lambda: now[0])
    for _ in range(2000):
        beat.publish(draining=False)
        now[0] += 1.0
    assert len(beat._sent_at) <= settings.worker_lease
    beat.heard(2000)
    assert beat.fresh_until() == 1999.0 + beat.unheard_limit


def test_a_log_whose_folder_met_a_full_disk_is_shipped_all_the_same(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    worker.grant(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(AttemptFolder, "write", full)
        worker.agent._claims.ask("a1", 1)
    assert worker.agent._shipper._cargo == {}
    folder = AttemptFolder(worker.host.folders.attempts, "a1")
    folder.write("state", {"tenant_id": "tenant", "run_id": "run"})  # by its supervisor, when there is room again
    worker.agent._on_ended("a1")
    assert worker.agent._shipper._cargo["a1"].has_ended
    worker.agent._shipper._cargo.clear()
    worker.agent._courier.keep_house()
    assert list(worker.agent._shipper._cargo) == ["a1"]


def test_an_attempt_that_is_granted_to_a_draining_worker_is_handed_back(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = worker.grant(monkeypatch)
    ask = worker.agent._claims.ask

    def drained_meanwhile(attempt_id: str, seq: int) -> GrantSpec | None:
        worker.agent._follower.apply(DesiredState(epoch=1, hb_seq=1, drain=True, drain_left=3600.0))
        return ask(attempt_id, seq)

    monkeypatch.setattr(worker.agent._claims, "ask", drained_meanwhile)
    worker.agent.take(spec.attempt_id, 1)
    spooled = worker.agent._spool.read(spec.attempt_id)
    assert spooled is not None
    assert spooled.outcome.state is AttemptState.PREEMPTED
    assert not worker.agent._may_say_preempted(), "no heartbeat has said yet that it drains"


def test_a_worker_that_never_got_to_talk_leaves_what_it_adopted_to_the_next(worker: Worker) -> None:
    class Other:
        def stop(self, attempt_id: str, why: str, grace: float | None) -> None:
            raise AssertionError("it is not ours to stop")

        def refresh(self, until: float) -> None:
            raise AssertionError("it is not ours to keep")

    spec = GrantSpec("a1", "token", "run", "tenant", "task", 1, "probe", {}, on_worker_loss="adopt")
    worker.agent._running.adopt(spec, Other(), "another")
    worker.agent.stop()
    assert not worker.agent._spool.has("a1")
