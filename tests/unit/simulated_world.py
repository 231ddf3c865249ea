"""A small world around the kernel: leaders, a lossy wire, hosts and workers that crash, freeze and come back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count

from orchestrator import effects as fx
from orchestrator.events import (
    ClaimReceived,
    Command,
    Event,
    HeartbeatSeen,
    OutcomeReceived,
    ReconcileDue,
    RedisAway,
    RedisBack,
    RunSubmitted,
    Tick,
    WorkerLeft,
)
from orchestrator.kernel import Desired, Kernel, KernelSettings, decide
from orchestrator.records import Capacity, GpuDevice, Heartbeat, Outcome, Plan, RunRecord
from orchestrator.states import RUN_TERMINAL, AttemptState, RunState
from tests.unit.simulated_store import LostLease, ModelStore, StaleRow, Violation

GIB = 2**30
GRANT_LIFE = 30.0

OUTCOMES = (
    Outcome(AttemptState.SUCCEEDED),
    Outcome(AttemptState.SUCCEEDED, "nothing_to_do", skipped=True),
    Outcome(AttemptState.FAILED, "bad_data", retryable=False),
    Outcome(AttemptState.FAILED, "exception"),
    Outcome(AttemptState.FAILED, "oom", infrastructure=True),
    Outcome(AttemptState.FAILED, "runner_died", infrastructure=True),
    Outcome(AttemptState.TIMED_OUT),
    Outcome(AttemptState.PREEMPTED),
    Outcome(AttemptState.LOST, "runner_vanished"),
    Outcome(AttemptState.LOST, "fork_failed", infrastructure=True),
    Outcome(AttemptState.FAILED, "gpu_busy", infrastructure=True),
)


Spooled = tuple[str, str, Outcome]


@dataclass
class Host:
    id: str
    capacity: Capacity
    boot: int = 1
    spool: dict[str, Spooled] = field(default_factory=dict)
    """Attempt → token, incarnation that ran it, outcome; survives workers and boots."""
    dead: dict[str, None] = field(default_factory=dict)
    """Attempts whose trees died with their worker and left no outcome."""


@dataclass
class Worker:
    id: str
    host: Host
    queues: tuple[str, ...]
    slots: int
    mask: tuple[str, ...] = ()
    """GPUs of its host that it may use."""
    frozen: bool = False
    seq: int = 0
    claims: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Attempt → nonce of the open claim and when it was last sent."""
    trees: dict[str, str] = field(default_factory=dict)
    """Attempt → token of the process trees that live."""
    open: dict[str, str] = field(default_factory=dict)
    """Attempt → token of what it shows in heartbeats: its trees, and outcomes not answered yet."""
    cancelled: set[str] = field(default_factory=set)


Start = tuple[Host, tuple[str, ...], int, tuple[str, ...]]
"""What a worker is started with: host, queues, slots, GPU mask."""
Reply = tuple[str, str, str, str, object]
"""kind, worker, attempt, nonce or token, token of a grant or verdict."""


def check_books(kernel: Kernel) -> None:
    """Hold the kernel's sums and devices against its reservations (I13)."""
    ledger = kernel.ledger
    for host in ledger.hosts.values():
        held = [r for r in ledger.reservations.values() if r.host_id == host.id]
        devices = {device: r.attempt_id for r in held for device in r.devices}
        if len(devices) != sum(len(r.devices) for r in held) or devices != host.devices_used:
            raise Violation(f"I13: host {host.id} marks {host.devices_used}, reservations hold {held}")
        sums = sum(r.resources.cpu for r in held), sum(r.resources.memory for r in held)
        if sums != (host.cpu_used, host.memory_used):
            raise Violation(f"I13: host {host.id} counts {host.cpu_used}, {host.memory_used}, reservations {sums}")


class World:
    """Everything outside of the kernel, driven by the state machine's rules."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ids = count(1)
        self.store = ModelStore()
        self.hints: list[tuple[str, str, int]] = []
        self.stream: list[Event] = []
        self.replies: list[Reply] = []
        self.beats: dict[str, Heartbeat] = {}
        self.desired: dict[str, Desired] = {}
        self.commands: list[Command] = []
        self.was_reset = False
        self.redis_away = False
        gpus = [GpuDevice(f"gpu-{n}", memory=16 * GIB) for n in range(3)]
        self.hosts = {
            "a": Host("a", Capacity(4000, 8 * GIB, tuple(gpus[:2]))),
            "b": Host("b", Capacity(2000, 4 * GIB, (gpus[2],))),
        }
        self.workers: dict[str, Worker] = {}
        starts: tuple[tuple[str, tuple[str, ...], int, tuple[str, ...]], ...] = (
            ("a", ("cpu",), 2, ()),
            ("a", ("cpu", "gpu"), 1, ("gpu-0",)),
            ("a", ("gpu",), 1, ("gpu-1",)),
            ("b", ("cpu",), 1, ()),
            ("b", ("cpu", "gpu"), 1, ("gpu-2",)),
        )
        for host, queues, slots, mask in starts:
            self.start_worker(self.hosts[host], queues, slots, mask)
        self.gone: list[Start] = []
        self.old_leader: tuple[Kernel, int] | None = None
        self.kernel, self.epoch = self._lead()

    def new_id(self, kind: str = "id") -> str:
        return f"{kind}{next(self.ids)}"

    # Leaders

    def _lead(self) -> tuple[Kernel, int]:
        self.store.epoch += 1
        return self._rebuild(), self.store.epoch

    def _rebuild(self) -> Kernel:
        settings = KernelSettings(new_id=self.new_id, max_runs=4, redispatch=20.0, lease=30.0)
        kernel = Kernel(settings, self.now)
        kernel.load(self.store.snapshot(), self.now)
        self.pending: list[Event] = [RedisAway(), ReconcileDue()] if self.redis_away else [ReconcileDue()]
        return kernel

    def change_leader(self, *, lose_tail: bool, keep_old: bool) -> None:
        """Another scheduler takes over; the old one may live on without knowing."""
        if keep_old:
            self.old_leader = (self.kernel, self.epoch)
        if lose_tail:
            self.store.lose_tail()
        self.kernel, self.epoch = self._lead()

    def step(self, taken: list[Event], *, reconcile: bool = False) -> None:
        """One transaction of the leader: what it gathered, then a tick; messages go out after the commit."""
        self._transact(self.kernel, self.epoch, self._gather(taken, reconcile))

    def _gather(self, taken: list[Event], reconcile: bool) -> Iterator[Event]:
        yield from self.pending
        self.pending = []
        if self.was_reset and not self.redis_away:
            self.was_reset = False
            yield RedisBack(reset=True)
        if self.redis_away:
            self.stream[:0] = taken
        else:
            for beat in list(self.beats.values()):
                yield HeartbeatSeen(beat)
            yield from taken
        while self.commands:
            command = self.commands.pop(0)
            run = self.store.runs.get(command.run_id or "")
            if run is not None and run.state is RunState.QUEUED and not self.kernel.knows_run(run.id):
                yield self._submission(run, hold=True)
            yield command
        for run in self.store.queued_runs():
            if self.kernel.run_slots_free() > 0:
                yield self._submission(run)
        if reconcile:
            yield ReconcileDue()
        yield Tick()

    def _submission(self, run: RunRecord, *, hold: bool = False) -> RunSubmitted:
        rows = tuple(self.store.task_runs[i] for i in self.store.tasks_of[run.id])
        return RunSubmitted(run, rows, self.store.plans[run.id], hold)

    def _transact(self, kernel: Kernel, epoch: int, events: Iterator[Event]) -> None:
        effects: list[fx.Effect] = []
        seen: list[Event] = []
        for event in events:
            seen.append(self._with_row(kernel, event))
            effects += decide(kernel, seen[-1], self.now)
        try:
            self.store.commit(epoch, effects, seen, self.now)
        except StaleRow as error:
            if kernel is self.kernel and self.store.checks_epoch:
                raise Violation(f"the leader's memory differs from the rows: {error}") from error
            if kernel is self.kernel:
                self.kernel = self._rebuild()
            return
        check_books(kernel)
        if self.redis_away:
            return
        self._send(kernel, effects)
        for worker_id in self.beats:
            self.desired[worker_id] = kernel.desired(worker_id)

    def _with_row(self, kernel: Kernel, event: Event) -> Event:
        """Read the attempt's row beforehand where the kernel does not hold it, as the scheduler does."""
        if isinstance(event, OutcomeReceived) and not kernel.holds_attempt(event.attempt_id):
            return replace(event, ended=self.store.ended(event.attempt_id))
        return event

    def old_leader_acts(self) -> None:
        """The replaced leader thaws and goes on from its stale memory; its transaction must not be written."""
        if self.old_leader is None:
            return
        kernel, epoch = self.old_leader
        self.old_leader = None
        events: list[Event] = [*self.stream, Tick()]
        for run in self.store.queued_runs():
            events.insert(0, self._submission(run))
        before = len(self.store.tail), self.store.epoch
        try:
            self._transact(kernel, epoch, iter(events))
        except LostLease:
            return
        if epoch != self.store.epoch and self.store.checks_epoch:
            raise Violation(f"I9: a replaced leader has written {before}")

    def _send(self, kernel: Kernel, effects: list[fx.Effect]) -> None:
        for effect in effects:
            match effect:
                case fx.SendHint():
                    self.hints.append((effect.queue, effect.attempt_id, effect.seq))
                case fx.SendGrant(attempt=attempt, nonce=nonce) if kernel.is_granted(attempt):
                    self.store.note_grant(attempt, nonce)
                    worker = self.workers.get(attempt.worker_id)
                    if worker is not None and not set(attempt.devices) <= set(worker.mask):
                        raise Violation(f"I13: {attempt.id} is granted {attempt.devices} at {worker.id}, {worker.mask}")
                    self.replies.append(("grant", attempt.worker_id, attempt.id, nonce, attempt.token))
                case fx.SendDenial():
                    self.replies.append(("denial", effect.worker_id, effect.attempt_id, effect.nonce, ""))
                case fx.SendAnswer():
                    self.replies.append(("answer", effect.worker_id, effect.attempt_id, effect.token, effect.verdict))

    # People

    def submit(self, plan: Plan, priority: int) -> None:
        number = len(self.store.runs) + 1
        self.store.insert_run(RunRecord(f"r{number}", "tenant", RunState.QUEUED, priority=priority, order=number), plan)

    def command(
        self, kind: str, *, run_id: str | None = None, task: str | None = None, worker_id: str | None = None
    ) -> None:
        self.commands.append(Command(next(self.ids), kind, "person", run_id, task, worker_id))

    # Workers

    def start_worker(self, host: Host, queues: tuple[str, ...], slots: int, mask: tuple[str, ...]) -> None:
        worker = Worker(self.new_id("w"), host, queues, slots, mask)
        self.workers[worker.id] = worker
        self.beat(worker)

    def beat(self, worker: Worker) -> None:
        """Say what is so, then do what the leader wants."""
        if worker.frozen:
            return
        worker.seq += 1
        host = worker.host
        self.beats[worker.id] = Heartbeat(
            worker.id,
            host.id,
            f"{host.id}-boot-{host.boot}",
            host.id,
            worker.id,
            worker.seq,
            worker.queues,
            worker.slots,
            replace(host.capacity, gpus=tuple(gpu for gpu in host.capacity.gpus if gpu.uuid in worker.mask)),
            running=dict(worker.open),
            dead=tuple(host.dead),
        )
        wanted = self.desired.get(worker.id, Desired())
        for attempt_id in wanted.fence:
            if worker.trees.pop(attempt_id, None) is not None:
                worker.open.pop(attempt_id, None)
        for attempt_id, _ in wanted.cancel:
            if attempt_id in worker.trees:
                self.finish(worker, attempt_id, Outcome(AttemptState.CANCELLED, "cancelled"))
            worker.claims.pop(attempt_id, None)
            worker.cancelled.add(attempt_id)
        for attempt_id, incarnation in wanted.confirm:
            if incarnation not in self.workers and attempt_id not in host.spool:
                host.dead[attempt_id] = None

    def take_hint(self, worker: Worker, *, keep: bool) -> None:
        """Take the oldest hint of its queues and claim the attempt; ``keep``: the message is doubled."""
        if worker.frozen or len(worker.claims) + len(worker.trees) >= worker.slots:
            return
        mine = {*worker.queues, f"w.{worker.id}"}
        for at, (queue, attempt_id, seq) in enumerate(self.hints):
            if queue not in mine:
                continue
            if not keep:
                del self.hints[at]
            if attempt_id not in worker.claims and attempt_id not in worker.open:
                nonce = self.new_id("n")
                worker.claims[attempt_id] = (nonce, self.now)
                self.stream.append(ClaimReceived(worker.id, attempt_id, seq, nonce))
            return

    def deliver(self, reply: Reply) -> None:
        """Bring one reply to its worker, if that still lives."""
        kind, worker_id, attempt_id, key, what = reply
        worker = self.workers.get(worker_id)
        if worker is None or worker.frozen:
            return
        if kind == "answer":
            spooled = worker.host.spool.get(attempt_id)
            if spooled is not None and spooled[0] == key:
                del worker.host.spool[attempt_id]
            for other in self.workers.values():
                if other.open.get(attempt_id) == key and attempt_id not in other.trees:
                    del other.open[attempt_id]
            return
        claim = worker.claims.get(attempt_id)
        if claim is None or claim[0] != key:
            return
        if kind == "grant" and self.now - claim[1] > GRANT_LIFE:
            return
        del worker.claims[attempt_id]
        if kind == "grant" and attempt_id not in worker.cancelled:
            worker.trees[attempt_id] = worker.open[attempt_id] = str(what)

    def finish(self, worker: Worker, attempt_id: str, outcome: Outcome) -> None:
        """A tree ends: its outcome is spooled, then sent. A task named ``poison`` kills its runner each time."""
        row = self.store.attempts.get(attempt_id)
        if row is not None and self.store.task_runs[row.task_run_id].name == "poison":
            outcome = Outcome(AttemptState.FAILED, "runner_died", infrastructure=True)
        token = worker.trees.pop(attempt_id)
        worker.host.spool[attempt_id] = (token, worker.id, outcome)
        self._report(worker, attempt_id)

    def _report(self, worker: Worker, attempt_id: str) -> None:
        token, ran_by, outcome = worker.host.spool[attempt_id]
        self.stream.append(OutcomeReceived(ran_by, attempt_id, token, outcome, worker.id))

    def resend(self, worker: Worker) -> None:
        """Repeat open claims with the same nonce until they are answered, and outcomes nobody has answered."""
        if worker.frozen:
            return
        for attempt_id, (nonce, _) in list(worker.claims.items()):
            worker.claims[attempt_id] = (nonce, self.now)
            self.stream.append(ClaimReceived(worker.id, attempt_id, 1, nonce))
        for attempt_id in worker.host.spool:
            self._report(worker, attempt_id)

    def crash(self, worker: Worker, *, polite: bool = False) -> None:
        """The worker's processes die, its trees with them; a polite one says so."""
        del self.workers[worker.id]
        self.gone.append((worker.host, worker.queues, worker.slots, worker.mask))
        for attempt_id in worker.trees:
            worker.host.dead[attempt_id] = None
        if polite:
            self.beats.pop(worker.id, None)
            self.stream.append(WorkerLeft(worker.id))

    def restart(self) -> None:
        if self.gone:
            self.start_worker(*self.gone.pop(0))

    def reboot(self, host: Host) -> None:
        """The machine restarts: every worker on it dies, and the new boot has no trees of before."""
        for worker in [w for w in self.workers.values() if w.host is host]:
            self.crash(worker)
        host.boot += 1
        host.dead.clear()
        while any(gone[0] is host for gone in self.gone):
            at = next(at for at, gone in enumerate(self.gone) if gone[0] is host)
            self.start_worker(*self.gone.pop(at))

    # Redis

    def switch_redis(self) -> None:
        """The leader's link to Redis is cut, or comes back; what it sends meanwhile is lost."""
        self.redis_away = not self.redis_away
        self.pending.append(RedisAway() if self.redis_away else RedisBack())

    def flush(self) -> None:
        self.hints.clear()
        self.stream.clear()
        self.replies.clear()
        self.beats.clear()
        self.desired.clear()
        self.was_reset = True

    # Getting on

    def everyone_works(self) -> None:
        """Nothing fails for a moment: hints, claims, grants and answers all arrive."""
        for worker in list(self.workers.values()):
            while len(worker.claims) + len(worker.trees) < worker.slots:
                before = len(self.hints)
                self.take_hint(worker, keep=False)
                if len(self.hints) == before:
                    break
        taken, self.stream = self.stream, []
        self.step(taken)
        replies, self.replies = self.replies, []
        for reply in replies:
            self.deliver(reply)

    def heal(self, rounds: int = 150) -> None:
        """Let nothing fail any more, and see every run end and every reservation go."""
        self._repair_everything()
        for turn in range(rounds):
            for worker in list(self.workers.values()):
                self.beat(worker)
                self.resend(worker)
                for attempt_id in list(worker.trees):
                    # Most succeed; the others end in every way there is: retries and budgets are seen to the end.
                    number = int(attempt_id.removeprefix("id"))
                    self.finish(worker, attempt_id, OUTCOMES[number // 3 % len(OUTCOMES) if number % 3 == 0 else 0])
            self.everyone_works()
            self.now += 5.0
            if turn % 6 == 5:
                self.step([], reconcile=True)
            if not self.store.reservations and all(run.state in RUN_TERMINAL for run in self.store.runs.values()):
                break
        self.store.check_finished()

    def _repair_everything(self) -> None:
        for worker in self.workers.values():
            worker.frozen = False
        while self.gone:
            self.restart()
        if self.redis_away:
            self.switch_redis()
        self.step([])
        for run in self.store.runs.values():
            if run.state is RunState.PAUSED:
                self.command("resume", run_id=run.id)
        for worker_row in self.store.workers.values():
            if worker_row.draining:
                self.command("undrain", worker_id=worker_row.id)
