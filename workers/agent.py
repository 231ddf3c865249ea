"""The host agent: the threads by which a worker talks with the scheduler, beside Celery and on connections of its own.

Three threads, so that none waits for another: the *pulse* (heartbeats, desired state, outcomes), the *mailbox* (grants,
denials, answers) and the *courier* (logs, progress, what ended incarnations left).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from orchestrator.errors import StoreUnavailable
from orchestrator.logs import get_logger
from orchestrator.watchdog import Pulse
from orchestrator.wire.heartbeats import HeartbeatPublisher
from orchestrator.wire.log_stream import LogPublisher
from orchestrator.wire.mailbox import ReplyBox
from orchestrator.wire.messages import Answer, GrantSpec
from orchestrator.wire.progress import Progress, publish_progress
from orchestrator.wire.redis import connect
from orchestrator.wire.stream import Reporter
from workers import leftovers, verdict
from workers.attempt_folder import AttemptFolder, is_safe_id
from workers.beat import Beat, Me
from workers.claim import Claims
from workers.courier import Courier
from workers.desired import Follower
from workers.drain import Drain
from workers.gpus import Gpus
from workers.host import Host
from workers.keeping import Keeper
from workers.outcomes import OutcomeSender
from workers.running import Held, Running
from workers.shipping import Shipper
from workers.spool import Spool
from workers.stall import Stall
from workers.trees import Trees

log = get_logger(__name__)

DESIRED_SECONDS = 1.0
COURIER_SECONDS = 0.5
PING_SECONDS = 5.0
"""Between two calls to Celery's consumer, by which it shows that it is not deaf."""
BEAT_GAP = 0.1
"""Changes that come together go out in one heartbeat; outcomes do not wait for it."""
GPU_FREE_SECONDS = 15.0
"""How long the driver may take to let go of the last task's memory."""
GOODBYE_SECONDS = 10.0
FORK_SERVER_SECONDS = 10.0


class Agent:
    """One worker incarnation's link with the scheduler.

    :param set_intake: told whether hints are to be taken from the queues (``False`` while draining).
    :param call_consumer: has the consumer of hints call back, in its own loop.
    """

    def __init__(
        self,
        host: Host,
        me: Me,
        gpus: Gpus,
        set_intake: Callable[[bool], None],
        call_consumer: Callable[[Callable[[], None]], None] = lambda beat: beat(),
    ) -> None:
        self._host = host
        self._gpus = gpus
        self._set_intake = set_intake
        self._call_consumer = call_consumer
        self._client = connect(host.settings.redis_url)
        self._reporter = Reporter(self._client, host.keys, host.seal, me.incarnation)
        self._box = ReplyBox(self._client, host.keys, host.seal, me.incarnation)
        self._publisher = HeartbeatPublisher(self._client, host.keys, host.seal)
        self._wake = threading.Event()
        self._changed = True
        self._running = Running(self._note_change)
        self._beat = Beat(me, host.settings, self._publisher, self._running, gpus)
        self._spool = Spool(host.folders.spool)
        self._claims = Claims(self._reporter, self._box, self._accept)
        self._outcomes = OutcomeSender(self._spool, self._reporter, me.incarnation, self._may_report_for)
        logs = LogPublisher(self._client, host.keys, host.seal, me.incarnation)
        self._shipper = Shipper(logs, self._publish_progress)
        self._trees = Trees(
            host.open_fork_server,
            self._running,
            self._spool,
            host.folders,
            me.incarnation,
            self._on_ended,
            self._note_change,
        )
        self._keeper = Keeper(
            host.folders,
            me.boot_id,
            me.incarnation,
            self._running,
            self._spool,
            self._beat,
            follow=self._follow_kept,
            ended=self._on_ended,
            mourn=self._trees.mourn,
        )
        self._drain = Drain(host.settings.drain_seconds)
        self._follower = Follower(
            self._box,
            self._beat,
            self._running,
            self._trees,
            self._drain,
            is_dead_here=self._is_dead_here,
            send_again=self._send_again,
            note_change=self._note_change,
        )
        self._pulse_beats, self._consumer_beats = Pulse(), Pulse()
        self._is_asking = False
        self._unanswered_at = -float("inf")
        self._stall = Stall(
            self._pulse_beats,
            self._consumer_beats,
            is_asking=lambda: self._is_asking,
            redis_steady=lambda: time.monotonic() - self._unanswered_at,
            may_end=lambda: all(held.spec.on_worker_loss == "adopt" for held in self._running.living()),
        )
        self._is_taking = True
        self._is_away = False
        self._last_desired = 0.0
        self._last_ping = 0.0
        self._stopping = threading.Event()
        self._courier = Courier(
            host,
            self._shipper,
            self._keeper,
            self._running,
            self._outcomes,
            self._spool,
            gpus,
            may_adopt=lambda: not self._drain.is_on,
            wake=self._wake.set,
        )
        loops = {"pulse": self._pulse, "mailbox": self._read_mail, "courier": self._carry}
        self._threads = [
            threading.Thread(target=loop, name=f"agent-{name}", daemon=True) for name, loop in loops.items()
        ]

    @property
    def is_draining(self) -> bool:
        """Whether no new attempt is taken: the worker is about to end, is drained, or could start nothing."""
        return self._drain.is_on or not self._trees.can_start

    def adopt(self) -> None:
        """Take over what outlived another worker of this host: at once, for Redis may be away for longer than such a
        tree waits."""
        self._guard("keeping", self._courier.keep)

    def start(self) -> None:
        """Start the threads; the first heartbeat goes out at once."""
        self._trees.wait_until_able(FORK_SERVER_SECONDS)
        for thread in self._threads:
            thread.start()
        self._stall.start()

    # A slot: hint → claim → grant → tree → end

    def take(self, attempt_id: str, seq: int) -> None:
        """Follow a hint: claim its attempt, run it if it is granted, return when it has ended."""
        if not is_safe_id(attempt_id) or self.is_draining or self._running.get(attempt_id) is not None:
            log.info("hint_dropped", attempt_id=str(attempt_id)[:64], draining=self.is_draining)
            return
        if self._claims.ask(attempt_id, seq) is None:
            return
        held = self._running.get(attempt_id)
        assert held is not None, "a grant is held before the claimant hears of it"
        if self._drain.is_on:  # it was asked for before; somebody else is to run it
            self._trees.refuse(held, verdict.stopped(verdict.PREEMPTED))
        elif obstacle := self._wait_for_devices(held):
            self._trees.refuse(held, verdict.never_started(f"It can't start here: {obstacle}.", "gpu_busy"))
        else:
            self._trees.start(held, self._beat.fresh_until() if held.spec.exclusive else None)
        held.ended.wait()

    def _accept(self, spec: GrantSpec) -> None:
        """Make a granted attempt ours; from here on it shows in every heartbeat, and a successor would find it."""
        self._running.hold(spec)
        folder = AttemptFolder(self._host.folders.attempts, spec.attempt_id)
        try:
            folder.create()
            folder.write(
                "state",
                {
                    "attempt": spec.attempt_id,
                    "token": spec.token,
                    "incarnation": self._beat.me.incarnation,
                    "boot_id": self._beat.me.boot_id,
                    "tenant_id": spec.tenant_id,
                    "run_id": spec.run_id,
                },
            )
            self._shipper.follow(folder)
        except OSError as error:  # the disk is full; the start will fail, and say so when there is room
            log.exception("attempt_folder_failed", attempt_id=spec.attempt_id, error=str(error))

    def _wait_for_devices(self, held: Held) -> str:
        deadline = time.monotonic() + GPU_FREE_SECONDS
        while obstacle := self._gpus.obstacle(held.spec.devices):
            if held.stop:
                return ""
            if time.monotonic() > deadline or self._stopping.wait(0.5):
                break
        return obstacle

    def _on_ended(self, attempt_id: str) -> None:
        self._outcomes.add(attempt_id)
        # Once more: a full disk may have kept its folder from being made when it was granted.
        self._shipper.follow(AttemptFolder(self._host.folders.attempts, attempt_id))
        self._shipper.ended(attempt_id)
        self._running.ended(attempt_id)

    def _note_change(self) -> None:
        self._changed = True
        self._wake.set()

    # The pulse

    def _pulse(self) -> None:
        last_beat, next_beat = 0.0, 0.0
        while not self._stopping.is_set():
            self._wake.clear()
            now = time.monotonic()
            if self._changed:
                next_beat = min(next_beat, last_beat + BEAT_GAP)
            if now >= next_beat:
                self._changed = False
                last_beat = now
                self._ask("heartbeat", self._say_that_we_live)
                next_beat = now + self._host.settings.heartbeat_interval_seconds
            if now >= self._last_desired + DESIRED_SECONDS:
                self._last_desired = now
                self._ask("desired", self._follower.follow)
                self._guard("drain", self._follower.empty)
            self._ask("outcomes", lambda: self._outcomes.send_due(self._may_say_preempted))
            self._guard("trees", self._trees.tend)
            self._guard("intake", self._mind_intake)
            self._pulse_beats.beat()
            self._wake.wait(self._patience(next_beat))

    def _ask(self, doing: str, step: Callable[[], None]) -> None:
        """Do a step of the pulse that asks Redis."""
        self._pulse_beats.beat()
        self._is_asking = True
        self._guard(doing, step)
        self._is_asking = False
        self._pulse_beats.beat()

    def _say_that_we_live(self) -> None:
        self._beat.publish(draining=self.is_draining or self._stall.is_deaf)

    def _may_say_preempted(self) -> bool:
        """Say whether the leader knows that we take nothing; it might plan a preempted attempt onto us again."""
        return not self.is_draining or self._beat.is_draining_known()

    def _mind_intake(self) -> None:
        """Take hints only while their attempts could be started; while leaving, Celery itself takes none."""
        if self._drain.is_leaving:
            self._stall.spare_consumer()
            self._claims.give_up()
            return
        if self._is_taking is self.is_draining:
            self._is_taking = not self.is_draining
            log.info("intake", open=self._is_taking)
            self._set_intake(self._is_taking)
        if time.monotonic() >= self._last_ping + PING_SECONDS:
            self._last_ping = time.monotonic()
            self._call_consumer(self._consumer_beats.beat)

    def _patience(self, next_beat: float) -> float:
        times = [next_beat, self._last_desired + DESIRED_SECONDS, self._outcomes.next_at() or next_beat]
        return max(0.01, min(times) - time.monotonic())

    def _guard(self, doing: str, step: Callable[[], None]) -> None:
        """Do one step; Redis being away is noted once, and open matters are sent again when it is back."""
        try:
            step()
        except StoreUnavailable as error:
            self._unanswered_at = time.monotonic()
            if not self._is_away:
                log.warning("redis_away", doing=doing, error=str(error))
            self._is_away = True
            self._stopping.wait(0.5)
        except Exception:
            log.exception("agent_step_failed", doing=doing)
            self._stopping.wait(0.5)
        else:
            if self._is_away:
                self._is_away = False
                log.info("redis_back", doing=doing)
                self._send_again()

    def _send_again(self) -> None:
        self._claims.resend()
        self._outcomes.hurry()

    def _is_dead_here(self, attempt_id: str, incarnation: str) -> bool:
        """Say whether nothing of the attempt lives on this host, and nothing of it is still to be reported."""
        # Its lock is free only when every process of it has ended, and forgotten only when the rest was killed.
        is_dead = self._host.is_settled(incarnation) or self._keeper.knows_dead(incarnation, attempt_id)
        return is_dead and not self._spool.has(attempt_id)

    # The mailbox

    def _read_mail(self) -> None:
        while not self._stopping.is_set():
            self._guard("mailbox", self._take_letter)

    def _take_letter(self) -> None:
        match self._box.take(1.0):
            case None:
                pass
            case Answer() as answer:
                self._take_answer(answer)
            case reply:
                self._claims.deliver(reply)

    def _take_answer(self, answer: Answer) -> None:
        if not is_safe_id(answer.attempt_id) or not self._outcomes.take_answer(answer):
            return
        # First of all: a full disk must not keep its slot and its devices.
        self._running.release(answer.attempt_id, dead=answer.verdict != "committed")
        self._shipper.answered(answer.attempt_id)
        log.info("outcome_answered", attempt_id=answer.attempt_id, verdict=answer.verdict)
        folder = AttemptFolder(self._host.folders.attempts, answer.attempt_id)
        try:
            if folder.path.exists():
                folder.write(leftovers.ANSWERED, {"verdict": answer.verdict})
        except OSError as error:  # at worst a successor reports it lost, and is answered that it has ended
            log.warning("answer_not_noted", attempt_id=answer.attempt_id, error=str(error))

    def _carry(self) -> None:
        self._guard("abandoned", self._courier.adopt_abandoned)
        while not self._stopping.is_set():
            for doing, step in self._courier.due():
                self._guard(doing, step)
            self._stopping.wait(COURIER_SECONDS)

    def _publish_progress(self, news: Mapping[str, Progress]) -> None:
        publish_progress(self._client, self._host.keys, news)

    def _follow_kept(self, folder: AttemptFolder, has_ended: bool) -> None:
        is_answered = has_ended and not self._spool.has(folder.attempt_id)
        self._shipper.follow(folder, has_ended=has_ended, is_answered=is_answered, is_adopted=True)

    def _may_report_for(self, incarnation: str) -> bool:
        """Say whether outcomes of another incarnation are ours to send: it is dead, and nobody else keeps it."""
        return self._keeper.keeps(incarnation) or self._host.has_ended(incarnation)

    # The end

    def leave(self) -> None:
        """Take no more attempts; what runs is waited for as its task wishes. A second call waits for nothing.

        Both are called from signal handlers, so they take no lock (an event has one too, which the main thread may
        hold) and write no log; the pulse looks within a second.
        """
        self._drain.leave()
        self._last_desired = 0.0
        self._changed = True

    def preempt(self) -> None:
        """Have every tree stopped; what does not finish in its grace is dispatched again, at no cost to retries."""
        self._drain.hurry()
        self._last_desired = 0.0
        self._changed = True

    def stop(self) -> None:
        """Wait for what runs, hand in what is open, say goodbye if nothing is left, and end the threads."""
        if self._stopping.is_set():
            return
        if not self._drain.is_leaving:
            self._drain.leave()
        if self._threads[0].ident is not None:  # or nobody knows of us, and what we adopted is for the next worker
            self._part()
        self._stopping.set()
        self._keeper.close()
        self._trees.close()
        self._client.close()

    def _part(self) -> None:
        for held in self._running.living():
            held.ended.wait()
        deadline = time.monotonic() + GOODBYE_SECONDS
        while self._running.all() and not self._is_away and time.monotonic() < deadline:
            time.sleep(0.05)
        self._stopping.set()
        self._wake.set()
        for thread in self._threads:
            thread.join()
        self._stall.stop()
        self._guard("last logs", self._courier.ship_the_rest)
        if not self._running.all():
            self._guard("goodbye", self._say_goodbye)

    def _say_goodbye(self) -> None:
        self._reporter.goodbye()
        self._publisher.withdraw(self._beat.me.incarnation)
