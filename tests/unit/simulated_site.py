"""The hosts and workers of the simulation, and the lossy wire to them: they crash, freeze, leave and come back."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from itertools import count

from orchestrator.events import ClaimReceived, Event, OutcomeReceived, WorkerLeft
from orchestrator.kernel import Desired
from orchestrator.nonces import claim_of, nth, sending_of
from orchestrator.records import Capacity, GpuDevice, Heartbeat, Outcome, PlannedTask
from orchestrator.states import AttemptState

GIB = 2**30
GRANT_LIFE = 30.0
LEASE = 30.0
PREEMPTED = Outcome(AttemptState.PREEMPTED)
POISONED = Outcome(AttemptState.FAILED, "runner_died", infrastructure=True)

OUTCOMES = (
    Outcome(AttemptState.SUCCEEDED, outputs={"items": [1, 2, 3], "ok": True}),
    Outcome(AttemptState.SUCCEEDED, "nothing_to_do", skipped=True),
    Outcome(AttemptState.FAILED, "bad_data", retryable=False),
    Outcome(AttemptState.FAILED, "exception"),
    Outcome(AttemptState.FAILED, "oom", infrastructure=True),
    POISONED,
    Outcome(AttemptState.TIMED_OUT),
    PREEMPTED,
    Outcome(AttemptState.LOST, "runner_vanished"),
    Outcome(AttemptState.LOST, "fork_failed", infrastructure=True),
    Outcome(AttemptState.FAILED, "gpu_busy", infrastructure=True),
    Outcome(AttemptState.SUCCEEDED, outputs={"items": [], "ok": False}),
    Outcome(AttemptState.FAILED, "not_yet", retry_after=10.0, again=True),
)


@dataclass(frozen=True)
class Tree:
    """The processes of one attempt."""

    token: str
    ran_by: str
    """The incarnation that was granted it."""
    task: PlannedTask


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
    orphans: dict[str, Tree] = field(default_factory=dict)
    """Trees that outlived their worker."""


@dataclass
class Worker:
    id: str
    host: Host
    queues: tuple[str, ...]
    slots: int
    mask: tuple[str, ...] = ()
    """GPUs of its host that it may use."""
    frozen: bool = False
    leaving: bool = False
    """It was told to end (TERM)."""
    drained: bool = False
    """The leader wants it to take nothing more."""
    seq: int = 0
    claims: dict[str, tuple[str, list[float]]] = field(default_factory=dict)
    """Attempt → the open claim and when it was sent, each time."""
    trees: dict[str, Tree] = field(default_factory=dict)
    """The process trees that live here and that it answers for."""
    open: dict[str, str] = field(default_factory=dict)
    """Attempt → token of what it shows in heartbeats: its trees, and outcomes not answered yet."""
    cancelled: set[str] = field(default_factory=set)
    spoke_at: float = -1e9
    """When it spoke last; while Redis is down nobody can, so that this is no silence of its own."""
    well_from: float = 0.0
    """Since when it has never been silent for long."""

    def speaks(self, now: float) -> bool:
        """Say whether it has spoken often enough, for long enough, that nobody may give it up."""
        return not self.frozen and now - self.spoke_at <= LEASE / 2 and now - self.well_from > LEASE


Start = tuple[Host, tuple[str, ...], int, tuple[str, ...]]
"""What a worker is started with: host, queues, slots, GPU mask."""
Reply = tuple[str, str, str, str, Tree | str]
"""kind, worker, attempt, nonce or token, the tree of a grant or the verdict of an answer."""

GPUS = [GpuDevice(f"gpu-{n}", memory=16 * GIB) for n in range(3)]
STARTS: tuple[tuple[str, tuple[str, ...], int, tuple[str, ...]], ...] = (
    ("a", ("cpu",), 2, ()),
    ("a", ("cpu", "gpu"), 1, ("gpu-0",)),
    ("a", ("gpu",), 1, ("gpu-1",)),
    ("b", ("cpu",), 1, ()),
    ("b", ("cpu", "gpu"), 1, ("gpu-2",)),
)


class Site:
    """Two hosts, five workers and what lies on the wire."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ids = count(1)
        self.hints: list[tuple[str, str, int]] = []
        self.stream: list[Event] = []
        self.redis_down_from: float | None = None
        """Since when Redis answers nobody."""
        self.replies: list[Reply] = []
        self.beats: dict[str, Heartbeat] = {}
        self.beat_at: dict[str, float] = {}
        """When each was written; the key in Redis lives for a while only."""
        self.desired: dict[str, Desired] = {}
        self.hosts = {
            "a": Host("a", Capacity(4000, 8 * GIB, tuple(GPUS[:2]))),
            "b": Host("b", Capacity(2000, 4 * GIB, (GPUS[2],))),
        }
        self.workers: dict[str, Worker] = {}
        self.gone: list[Start] = []
        self.had: set[tuple[str, str]] = set()
        """Every worker and attempt whose tree it has really had."""
        self.reported: deque[OutcomeReceived] = deque(maxlen=40)
        """Reports that were sent, some of them long ago."""
        self.preempted_by: dict[str, str] = {}
        """Attempt → worker that has preempted it because it was told to end."""
        for host, queues, slots, mask in STARTS:
            self.start_worker(self.hosts[host], queues, slots, mask)

    def new_id(self, kind: str = "id") -> str:
        return f"{kind}{next(self.ids)}"

    # Lives of workers

    def start_worker(self, host: Host, queues: tuple[str, ...], slots: int, mask: tuple[str, ...]) -> None:
        worker = Worker(self.new_id("w"), host, queues, slots, mask)
        self.workers[worker.id] = worker
        self.adopt(worker)
        self.beat(worker)

    def adopt(self, worker: Worker) -> None:
        """Take over what outlived its worker on this host."""
        for attempt_id, tree in worker.host.orphans.items():
            self.hold(worker, attempt_id, tree)
        worker.host.orphans.clear()

    def hold(self, worker: Worker, attempt_id: str, tree: Tree) -> None:
        worker.trees[attempt_id], worker.open[attempt_id] = tree, tree.token
        self.had.add((worker.id, attempt_id))

    def crash(self, worker: Worker, *, polite: bool = False) -> None:
        """The worker's processes die, and its trees with them unless they are to be adopted; a polite one leaves
        nothing behind, and says so."""
        del self.workers[worker.id]
        self.gone.append((worker.host, worker.queues, worker.slots, worker.mask))
        for attempt_id, tree in worker.trees.items():
            if tree.task.is_adoptable and not polite:
                worker.host.orphans[attempt_id] = tree
            else:
                worker.host.dead[attempt_id] = None
        if polite:
            self.beats.pop(worker.id, None)
            self.send(WorkerLeft(worker.id))

    def restart(self) -> None:
        if self.gone:
            self.start_worker(*self.gone.pop(0))

    def reboot(self, host: Host) -> None:
        """The machine restarts: every worker on it dies, and the new boot has no trees of before."""
        for worker in [w for w in self.workers.values() if w.host is host]:
            self.crash(worker)
        host.boot += 1
        host.dead.clear()
        host.orphans.clear()
        while any(gone[0] is host for gone in self.gone):
            at = next(at for at, gone in enumerate(self.gone) if gone[0] is host)
            self.start_worker(*self.gone.pop(at))

    # Heartbeats

    def beat(self, worker: Worker, *, also: tuple[str, str] | None = None) -> None:
        """Say what is so (and ``also`` an attempt that is not its own), then do what the leader wants."""
        if worker.frozen or worker.id not in self.workers or self.redis_down_from is not None:
            return
        if self.now - worker.spoke_at > LEASE / 2:
            worker.well_from = self.now
        worker.spoke_at = self.now
        worker.seq += 1
        self.beat_at[worker.id] = self.now
        self.beats[worker.id] = self._heartbeat(worker, dict([also] if also else []))
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
            if incarnation not in self.workers and not self._lives(worker.host, attempt_id):
                worker.host.dead[attempt_id] = None
        self._drain(worker, wanted)

    def _heartbeat(self, worker: Worker, also: dict[str, str]) -> Heartbeat:
        host = worker.host
        return Heartbeat(
            worker.id,
            host.id,
            f"{host.id}-boot-{host.boot}",
            host.id,
            worker.id,
            worker.seq,
            worker.queues,
            worker.slots,
            replace(host.capacity, gpus=tuple(gpu for gpu in host.capacity.gpus if gpu.uuid in worker.mask)),
            running=also | worker.open,
            dead=tuple(host.dead),
            draining=worker.leaving,
        )

    def _lives(self, host: Host, attempt_id: str) -> bool:
        """Say whether the attempt's tree lives on this host, or an outcome of it is still to be sent."""
        if attempt_id in host.spool or attempt_id in host.orphans:
            return True
        return any(attempt_id in worker.trees for worker in self.workers.values() if worker.host is host)

    def leave(self, worker: Worker, *, says_so_first: bool) -> None:
        """Tell the worker to end; what it preempts may be reported before its heartbeat says why."""
        worker.leaving = True
        if says_so_first:
            self.beat(worker)
        elif not worker.frozen:
            self._drain(worker, self.desired.get(worker.id, Desired()))

    def _drain(self, worker: Worker, wanted: Desired) -> None:
        """Leave as each task wants it: at once, or when the deadline has passed; end when nothing is left."""
        worker.drained = wanted.drain
        if not (worker.leaving or worker.drained):
            return
        is_late = wanted.drain_until is not None and wanted.drain_until <= self.now
        for attempt_id, tree in list(worker.trees.items()):
            if is_late or tree.task.on_drain != "wait":
                self.finish(worker, attempt_id, PREEMPTED)
                if worker.leaving:
                    self.preempted_by[attempt_id] = worker.id
        if worker.leaving and not (worker.open or worker.claims):
            self.crash(worker, polite=True)

    # The path of an attempt

    def take_hint(self, worker: Worker, *, keep: bool) -> None:
        """Take the oldest hint of its queues and claim the attempt; ``keep``: the message is doubled."""
        is_full = len(worker.claims) + len(worker.trees) >= worker.slots
        if worker.frozen or worker.leaving or worker.drained or is_full or self.redis_down_from is not None:
            return
        mine = {*worker.queues, f"w.{worker.id}"}
        for at, (queue, attempt_id, seq) in enumerate(self.hints):
            if queue not in mine:
                continue
            if not keep:
                del self.hints[at]
            if attempt_id not in worker.claims and attempt_id not in worker.open:
                nonce = self.new_id("n")
                worker.claims[attempt_id] = (nonce, [self.now])
                self.send(ClaimReceived(worker.id, attempt_id, seq, nth(nonce, 1)))
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
        if claim is None or claim[0] != claim_of(key):
            return
        if kind == "grant" and self.now - claim[1][sending_of(key) - 1] > GRANT_LIFE:
            return
        del worker.claims[attempt_id]
        if isinstance(what, Tree) and attempt_id not in worker.cancelled:
            self.hold(worker, attempt_id, what)

    def finish(self, worker: Worker, attempt_id: str, outcome: Outcome) -> None:
        """A tree ends: its outcome is spooled, then sent."""
        self._spool(worker.host, attempt_id, worker.trees.pop(attempt_id), outcome)
        self._report(worker, attempt_id)

    def finish_orphan(self, host: Host, attempt_id: str, outcome: Outcome) -> None:
        """A tree ends that nobody has adopted: its outcome waits in the spool for the next incarnation."""
        self._spool(host, attempt_id, host.orphans.pop(attempt_id), outcome)

    @staticmethod
    def _spool(host: Host, attempt_id: str, tree: Tree, outcome: Outcome) -> None:
        # A task named ``poison`` kills its runner each time.
        host.spool[attempt_id] = (tree.token, tree.ran_by, POISONED if tree.task.name == "poison" else outcome)

    def _report(self, worker: Worker, attempt_id: str) -> None:
        token, ran_by, outcome = worker.host.spool[attempt_id]
        self.reported.append(OutcomeReceived(ran_by, attempt_id, token, outcome, worker.id))
        self.send(self.reported[-1])

    def send(self, report: Event) -> None:
        """Put a report on the stream, if Redis takes it."""
        if self.redis_down_from is None:
            self.stream.append(report)

    def resend(self, worker: Worker) -> None:
        """Repeat open claims with the same nonce until they are answered, and outcomes nobody has answered."""
        if worker.frozen:
            return
        for attempt_id, (nonce, sent_at) in list(worker.claims.items()):
            sent_at.append(self.now)
            self.send(ClaimReceived(worker.id, attempt_id, 1, nth(nonce, len(sent_at))))
        for attempt_id in worker.host.spool:
            self._report(worker, attempt_id)
