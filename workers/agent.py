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
from orchestrator.wire.heartbeats import HeartbeatPublisher
from orchestrator.wire.log_stream import LogPublisher
from orchestrator.wire.mailbox import ReplyBox
from orchestrator.wire.messages import Answer, DesiredState, GrantSpec
from orchestrator.wire.progress import Progress, publish_progress
from orchestrator.wire.redis import connect
from orchestrator.wire.stream import Reporter
from workers import leftovers, verdict
from workers.attempt_folder import AttemptFolder, is_safe_id
from workers.beat import Beat, Me
from workers.claim import Claims
from workers.gpus import Gpus
from workers.host import Host
from workers.outcomes import OutcomeSender
from workers.running import Held, Running
from workers.shipping import Shipper
from workers.spool import Spool
from workers.trees import Trees

log = get_logger(__name__)

DESIRED_SECONDS = 1.0
COURIER_SECONDS = 0.5
HOUSEKEEPING_SECONDS = 10.0
BEAT_GAP = 0.1
"""Changes that come together go out in one heartbeat; outcomes do not wait for it."""
GPU_FREE_SECONDS = 15.0
"""How long the driver may take to let go of the last task's memory."""
GOODBYE_SECONDS = 10.0
LAST_LOGS_SECONDS = 2.0
"""How long to wait at the end for the last logs to be stored; what is not is sent again by the next incarnation."""
FORK_SERVER_SECONDS = 10.0


class Agent:
    """One worker incarnation's link with the scheduler.

    :param set_intake: told whether hints are to be taken from the queues (``False`` while draining).
    """

    def __init__(self, host: Host, me: Me, gpus: Gpus, set_intake: Callable[[bool], None]) -> None:
        self._host = host
        self._gpus = gpus
        self._set_intake = set_intake
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
        self._outcomes = OutcomeSender(self._spool, self._reporter, me.incarnation, host.has_ended)
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
        self._leaving = False
        self._drained = False
        self._preempting = False
        self._is_taking = True
        self._generation = 0
        self._is_away = False
        self._last_desired = 0.0
        self._last_housekeeping = 0.0
        self._stopping = threading.Event()
        loops = {"pulse": self._pulse, "mailbox": self._read_mail, "courier": self._carry}
        self._threads = [
            threading.Thread(target=loop, name=f"agent-{name}", daemon=True) for name, loop in loops.items()
        ]

    @property
    def is_draining(self) -> bool:
        """Whether no new attempt is taken: the worker is about to end, is drained, or could start nothing."""
        return self._leaving or self._drained or not self._trees.can_start

    def start(self) -> None:
        """Start the threads; the first heartbeat goes out at once."""
        self._trees.wait_until_able(FORK_SERVER_SECONDS)
        for thread in self._threads:
            thread.start()

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
        if obstacle := self._wait_for_devices(held):
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
                self._guard("heartbeat", lambda: self._beat.publish(draining=self.is_draining))
                next_beat = now + self._host.settings.heartbeat_interval_seconds
            if now >= self._last_desired + DESIRED_SECONDS:
                self._last_desired = now
                self._guard("desired", self._follow_desired)
                if self._preempting:
                    self._preempt_all()
            self._guard("outcomes", self._outcomes.send_due)
            self._guard("trees", self._trees.tend)
            self._mind_intake()
            self._wake.wait(self._patience(next_beat))

    def _mind_intake(self) -> None:
        """Take hints only while their attempts could be started; while leaving, Celery itself takes none."""
        if self._leaving:
            self._claims.give_up()
        elif self._is_taking is self.is_draining:
            self._is_taking = not self.is_draining
            log.info("intake", open=self._is_taking)
            self._set_intake(self._is_taking)

    def _patience(self, next_beat: float) -> float:
        times = [next_beat, self._last_desired + DESIRED_SECONDS, self._outcomes.next_at() or next_beat]
        return max(0.01, min(times) - time.monotonic())

    def _guard(self, doing: str, step: Callable[[], None]) -> None:
        """Do one step; Redis being away is noted once, and open matters are sent again when it is back."""
        try:
            step()
        except StoreUnavailable as error:
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

    def _follow_desired(self) -> None:
        desired = self._box.desired()
        if desired is None or desired.epoch < self._beat.epoch:
            return
        self._beat.epoch = desired.epoch
        self._beat.heard(desired.hb_seq)
        if desired.gen < self._generation:
            log.warning("redis_was_reset", generation=desired.gen)
            self._send_again()
        self._generation = desired.gen
        self._apply(desired)

    def _preempt_all(self) -> None:
        for held in self._running.living():
            self._trees.stop(held.spec.attempt_id, verdict.PREEMPTED, None)

    def _apply(self, desired: DesiredState) -> None:
        for attempt_id in desired.fence:
            self._trees.stop(attempt_id, verdict.FENCED, 0.0)
        for attempt_id, grace in desired.cancel:
            self._trees.stop(attempt_id, verdict.CANCELLED, grace)
        for attempt_id, incarnation in desired.confirm:
            # Its lock is free only when every process of it has ended, and forgotten only when the rest was killed.
            if self._host.is_settled(incarnation) and not self._spool.has(attempt_id):
                self._running.confirm_dead(attempt_id)
        if any(held.spec.exclusive for held in self._running.living()):
            self._trees.refresh(self._beat.fresh_until())
        if desired.drain != self._drained:
            log.info("drain" if desired.drain else "undrain")
            self._drained = desired.drain
            self._note_change()

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

    # The courier

    def _carry(self) -> None:
        self._guard("abandoned", self._adopt_abandoned)
        while not self._stopping.is_set():
            self._guard("shipping", self._ship)
            self._guard("gpu_usage", self._note_gpu_usage)
            if time.monotonic() >= self._last_housekeeping + HOUSEKEEPING_SECONDS:
                self._guard("housekeeping", self._keep_house)
                self._last_housekeeping = time.monotonic()
            self._stopping.wait(COURIER_SECONDS)

    def _ship(self) -> None:
        self._shipper.ship()

    def _publish_progress(self, news: Mapping[str, Progress]) -> None:
        publish_progress(self._client, self._host.keys, news)

    def _adopt_abandoned(self) -> None:
        for folder in leftovers.abandoned(self._host.folders):
            self._shipper.follow(folder, has_ended=True, is_answered=not self._spool.has(folder.attempt_id))

    def _keep_house(self) -> None:
        for folder in leftovers.settle_ended(self._host.folders, self._spool):
            answered = bool(folder.read(leftovers.ANSWERED))
            self._shipper.follow(folder, has_ended=True, is_answered=answered)
        self._outcomes.look()
        self._spool.forget_old()
        self._wake.set()

    def _note_gpu_usage(self) -> None:
        for held in self._running.living():
            if held.spec.devices:
                self._note_peak(held)

    def _note_peak(self, held: Held) -> None:
        folder = AttemptFolder(self._host.folders.attempts, held.spec.attempt_id)
        used, known = self._gpus.used_memory(held.spec.devices), int(folder.read("gpu").get("memory", 0))
        if used > known and folder.path.exists():
            folder.write("gpu", {"memory": used})

    # The end

    def leave(self) -> None:
        """Take no more attempts; those that run go on. A second call preempts them.

        Both are called from signal handlers, so they take no lock that the main thread may hold, and write no log.
        """
        self._preempting = self._leaving
        self._leaving = True
        self._note_change()

    def preempt(self) -> None:
        """Have every tree stopped; what does not finish in its grace is dispatched again, at no cost to retries."""
        self._leaving = self._preempting = True
        self._last_desired = 0.0
        self._note_change()

    def stop(self) -> None:
        """Wait for what runs, hand in what is open, say goodbye if nothing is left, and end the threads."""
        if self._stopping.is_set():
            return
        self._leaving = True
        for held in self._running.living():
            held.ended.wait()
        deadline = time.monotonic() + GOODBYE_SECONDS
        while self._running.all() and not self._is_away and time.monotonic() < deadline:
            time.sleep(0.05)
        self._stopping.set()
        self._wake.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        self._guard("last logs", self._ship_the_rest)
        if not self._running.all():
            self._guard("goodbye", self._say_goodbye)
        self._trees.close()
        self._client.close()

    def _ship_the_rest(self) -> None:
        now = time.monotonic()
        while self._shipper.ship() and time.monotonic() < now + GOODBYE_SECONDS:
            time.sleep(0.01)
        now = time.monotonic()
        while self._shipper.has_unconfirmed() and time.monotonic() < now + LAST_LOGS_SECONDS:
            time.sleep(0.05)
            self._shipper.ship()

    def _say_goodbye(self) -> None:
        self._reporter.goodbye()
        self._publisher.withdraw(self._beat.me.incarnation)
