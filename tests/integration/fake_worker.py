"""A worker without Celery and without processes: it speaks the wire, and its tasks end as the test says."""

from __future__ import annotations

import base64
import json
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from orchestrator.errors import ForgedMessage, StoreUnavailable
from orchestrator.records import Capacity, Heartbeat, Outcome
from orchestrator.states import AttemptState
from orchestrator.wire.heartbeats import HeartbeatPublisher
from orchestrator.wire.keys import Keys, own_queue
from orchestrator.wire.mailbox import ReplyBox
from orchestrator.wire.messages import Answer, Denial, DesiredState, GrantSpec, SealedGrant
from orchestrator.wire.redis import connect, redis_errors
from orchestrator.wire.seal import Seal
from orchestrator.wire.stream import Reporter

SAY_AGAIN = 1.0

Behaviour = Callable[[GrantSpec], Outcome | None]


def succeed(spec: GrantSpec) -> Outcome:
    """End well, leaving the task's name behind."""
    return Outcome(AttemptState.SUCCEEDED, outputs={"made": {"uri": f"artifact://{spec.task}"}}, exit_code=0)


@dataclass
class _Claim:
    nonce: str
    sent_at: float


@dataclass
class FakeWorker:
    """Start it with ``with``. ``behave`` returning ``None`` means that the task goes on until ``finish``."""

    redis_url: str
    namespace: str
    worker_key: str
    behave: Behaviour = succeed
    queues: tuple[str, ...] = ("cpu",)
    heartbeat: float = 0.2
    repeats: int = 1
    """How often each outcome is sent."""
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    host: str = ""
    granted: list[GrantSpec] = field(default_factory=list)
    denied: list[Denial] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    running: dict[str, GrantSpec] = field(default_factory=dict)
    dead: list[str] = field(default_factory=list)
    """Attempts it confirms to be dead on its host."""
    stopped: list[str] = field(default_factory=list)
    ran_by: dict[str, str] = field(default_factory=dict)
    """The incarnation that ran it, of each attempt it has adopted."""
    obeys: bool = True
    """Whether it stops what it is to stop."""
    desired: DesiredState | None = None
    """What the leader wanted last."""
    reported_at: dict[str, float] = field(default_factory=dict)
    granted_at: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._client = connect(self.redis_url)
        self._keys, seal = Keys(self.namespace), Seal(self.worker_key)
        self._publisher = HeartbeatPublisher(self._client, self._keys, seal)
        self._reporter = Reporter(self._client, self._keys, seal, self.id)
        self._box = ReplyBox(self._client, self._keys, seal, self.id)
        self._claims: dict[str, _Claim] = {}
        self._unanswered: dict[str, tuple[GrantSpec, Outcome]] = {}
        self._ended = threading.Event()
        self._seq = 0
        self._said_at = time.monotonic()
        self._threads = [threading.Thread(target=self._loop, args=(step,)) for step in (self._work, self._reply)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def finish(self, attempt_id: str, outcome: Outcome) -> None:
        """End a task that is still going."""
        spec = self.running[attempt_id]
        self._unanswered[attempt_id] = (spec, outcome)
        self.reported_at[attempt_id] = time.monotonic()
        for _ in range(self.repeats):
            self._reporter.outcome(attempt_id, spec.token, self.ran_by.get(attempt_id, self.id), outcome)

    def _loop(self, step: Callable[[], None]) -> None:
        while not self._ended.is_set():
            try:
                step()
            except StoreUnavailable:
                self._ended.wait(0.05)

    def _work(self) -> None:
        """Heartbeat, obey, ask again, and look for a hint, in turns."""
        self._beat()
        deadline = time.monotonic() + self.heartbeat
        while not self._ended.is_set() and (left := deadline - time.monotonic()) > 0.01:
            names = [self._keys.queue(queue) for queue in (*self.queues, own_queue(self.id))]
            with redis_errors("waiting for a hint"):
                found: Any = self._client.blpop(names, timeout=left)
            if found is not None:
                _, hint, _ = json.loads(base64.b64decode(json.loads(found[1])["body"]))[0:3]
                self._claim(hint["attempt"], hint["seq"])

    def _beat(self) -> None:
        self._seq += 1
        beat = Heartbeat(
            worker_id=self.id,
            host_id=self.host or f"host-{self.id[:8]}",
            boot_id="boot",
            hostname="fake",
            name=f"celery@{self.id[:8]}",
            seq=self._seq,
            queues=self.queues,
            slots=4,
            capacity=Capacity(8000, 2**34),
            running={id_: spec.token for id_, spec in list(self.running.items())},
            started=frozenset(self.running),
            dead=tuple(self.dead),
        )
        self._publisher.publish(beat)
        if time.monotonic() - self._said_at > SAY_AGAIN:
            self._say_again()
        state = self._box.desired()
        if state is None:
            return
        self.desired = state
        self.dead += [attempt_id for attempt_id, _ in state.confirm if attempt_id not in self.dead]
        for attempt_id, _ in state.cancel:
            if self.obeys and attempt_id in self.running and attempt_id not in self.stopped:
                self.stopped.append(attempt_id)
                self.finish(attempt_id, Outcome(AttemptState.CANCELLED))

    def _say_again(self) -> None:
        self._said_at = time.monotonic()
        for attempt_id, claim in list(self._claims.items()):
            claim.sent_at = time.monotonic()
            self._reporter.claim(attempt_id, 1, claim.nonce)
        for attempt_id, (spec, outcome) in list(self._unanswered.items()):
            self._reporter.outcome(attempt_id, spec.token, self.ran_by.get(attempt_id, self.id), outcome)

    def _claim(self, attempt_id: str, seq: int) -> None:
        if attempt_id in self.running:
            return
        claim = self._claims.setdefault(attempt_id, _Claim(str(uuid.uuid4()), 0.0))
        claim.sent_at = time.monotonic()
        self._reporter.claim(attempt_id, seq, claim.nonce)

    def _reply(self) -> None:
        match self._box.take(0.2):
            case SealedGrant() as sealed:
                self._take_grant(sealed)
            case Denial() as denial:
                self._claims.pop(denial.attempt_id, None)
                self.denied.append(denial)
            case Answer() as answer:
                self.answers.append(answer)
                self.running.pop(answer.attempt_id, None)
                self._unanswered.pop(answer.attempt_id, None)

    def _take_grant(self, sealed: SealedGrant) -> None:
        claim = self._claims.get(sealed.attempt_id)
        if claim is None:
            return
        try:
            spec = self._box.open(sealed, age=time.monotonic() - claim.sent_at)
        except ForgedMessage:
            return
        del self._claims[sealed.attempt_id]
        self.granted.append(spec)
        self.granted_at[spec.attempt_id] = time.monotonic()
        self.running[spec.attempt_id] = spec
        if (outcome := self.behave(spec)) is not None:
            self.finish(spec.attempt_id, outcome)
