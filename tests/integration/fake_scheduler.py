"""A scheduler's end of the wire without rows or rules: grants what it is given, answers as it is told."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

import redis

from orchestrator.config import load_settings
from orchestrator.effects import SendHint
from orchestrator.errors import StoreUnavailable
from orchestrator.events import ClaimReceived, OutcomeReceived, WorkerLeft
from orchestrator.records import Heartbeat, Outcome, Resources
from orchestrator.wire.heartbeats import HeartbeatReader
from orchestrator.wire.hints import HintPublisher
from orchestrator.wire.keys import Keys
from orchestrator.wire.log_stream import LogChunk, LogStream
from orchestrator.wire.mailbox import ReplySender
from orchestrator.wire.messages import Answer, Denial, DesiredState, Grant, GrantSpec
from orchestrator.wire.redis import connect
from orchestrator.wire.seal import Seal
from orchestrator.wire.stream import EventStream

NAMESPACE = "test_tasks"
WORKER_KEY = "a-key-for-tests"


class FakeScheduler:
    """Serves in a thread until closed. What it has seen is in plain lists and dictionaries."""

    def __init__(self, redis_url: str) -> None:
        self.client = connect(redis_url)
        keys, seal = Keys(NAMESPACE), Seal(WORKER_KEY)
        self.keys = keys
        self._events = EventStream(self.client, keys, seal, "fake")
        self._logs = LogStream(self.client, keys, seal, "fake")
        self._replies = ReplySender(self.client, keys, seal)
        self._heartbeats = HeartbeatReader(self.client, keys, seal)
        self._hints = HintPublisher(load_settings({"REDIS_URL": redis_url, "REDIS_TASK_QUEUE": NAMESPACE}))
        self.specs: dict[str, GrantSpec] = {}
        self.claims: list[ClaimReceived] = []
        self.outcomes: dict[str, list[OutcomeReceived]] = {}
        self.heartbeats: dict[str, list[Heartbeat]] = {}
        self.left: list[str] = []
        self.chunks: list[LogChunk] = []
        self.verdict: str | None = "committed"
        """What outcomes are answered; ``None``: nothing."""
        self.answers_claims = True
        self.replies_to_heartbeats = True
        self.collects_logs = True
        self.cancel: dict[str, float] = {}
        self.fence: set[str] = set()
        self.drain = False
        self.drain_left: float | None = None
        self.draining_known: dict[str, bool] = {}
        """Attempt → whether its reporter was known to be draining when its outcome came."""
        self.confirm: set[tuple[str, str]] = set()
        self.generation = 1
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="fake-scheduler")
        self._thread.start()

    def attempt(self, do: str, *, hint: bool = True, queue: str = "cpu", **fields: Any) -> str:
        """Make an attempt of the probe operator, and send its hint."""
        attempt_id = uuid.uuid4().hex
        values: dict[str, Any] = {
            "attempt_id": attempt_id,
            "token": uuid.uuid4().hex,
            "run_id": "run-1",
            "tenant_id": "tenant-1",
            "task": "task-1",
            "number": 1,
            "operator": "probe",
            "resources": Resources(cpu=500, memory=2**29),
            **fields,
            "parameters": {"do": do, **fields.get("parameters", {})},
        }
        self.specs[attempt_id] = GrantSpec(**values)
        if hint:
            self.hint(attempt_id, queue=queue)
        return attempt_id

    def hint(self, attempt_id: str, seq: int = 1, queue: str = "cpu") -> None:
        self._hints.publish([SendHint(attempt_id, seq, queue)])

    def log(self, attempt_id: str) -> str:
        """Return the log as collected so far, up to its first gap; chunks that were sent again overlap."""
        log = b""
        for chunk in sorted(self.chunks, key=lambda chunk: chunk.offset):
            if chunk.attempt_id == attempt_id and chunk.offset <= len(log):
                log = log[: chunk.offset] + chunk.content + log[chunk.offset + len(chunk.content) :]
        return log.decode()

    def outcome(self, attempt_id: str) -> Outcome | None:
        """Return what was first reported."""
        reports = self.outcomes.get(attempt_id, [])
        return reports[0].outcome if reports else None

    def latest(self) -> Mapping[str, Heartbeat]:
        return {worker_id: beats[-1] for worker_id, beats in list(self.heartbeats.items())}

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._hints.close()
        self.client.close()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                self._events.ensure_group()
                self._logs.ensure_group()
                while not self._stopping.is_set():
                    self._round()
            except (StoreUnavailable, redis.RedisError):  # flushed in the middle: make the groups again
                time.sleep(0.05)

    def _round(self) -> None:
        entries = self._events.read(200, 0.05)
        for entry in entries:
            match entry.report:
                case ClaimReceived() as claim:
                    self.claims.append(claim)
                    if self.answers_claims:
                        self._answer_claim(claim)
                case OutcomeReceived() as report:
                    beats = self.heartbeats.get(report.reply_to, [])
                    self.draining_known.setdefault(report.attempt_id, bool(beats) and beats[-1].draining)
                    self.outcomes.setdefault(report.attempt_id, []).append(report)
                    if self.verdict is not None:
                        answer = Answer(report.attempt_id, report.token, self.verdict)
                        self._replies.send([(report.reply_to, answer)])
                case WorkerLeft(worker_id):
                    self.left.append(worker_id)
        self._events.ack([entry.id for entry in entries])
        if self.collects_logs:
            self._collect_logs()
        self._read_heartbeats()

    def _collect_logs(self) -> None:
        logs = self._logs.read(100, 0.01)
        chunks = [chunk for _, chunk in logs if isinstance(chunk, LogChunk)]
        self.chunks += chunks
        self._logs.confirm(chunks)
        self._logs.ack([entry_id for entry_id, _ in logs])

    def _answer_claim(self, claim: ClaimReceived) -> None:
        spec = self.specs.get(claim.attempt_id)
        reply = Denial(claim.attempt_id, claim.nonce, "unknown") if spec is None else Grant(spec, claim.nonce)
        self._replies.send([(claim.worker_id, reply)])

    def _read_heartbeats(self) -> None:
        for beat in self._heartbeats.read_changed().heartbeats:
            self.heartbeats.setdefault(beat.worker_id, []).append(beat)
        if not self.replies_to_heartbeats:
            return
        states = [
            (
                beat.worker_id,
                DesiredState(
                    epoch=1,
                    hb_seq=beat.seq,
                    cancel=tuple(self.cancel.items()),
                    fence=tuple(self.fence),
                    drain=self.drain,
                    drain_left=self.drain_left,
                    gen=self.generation,
                    confirm=tuple(self.confirm),
                ),
            )
            for beat in self.latest().values()
        ]
        self._replies.write_desired(states)
