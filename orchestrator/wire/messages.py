"""What is said on the wire, as records and as JSON: reports of workers, replies and the grant.

Encoding raises :class:`~orchestrator.errors.TooLarge`; decoding raises
:class:`~orchestrator.errors.UnreadableMessage` for anything that is not exactly of a known shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.errors import UnreadableMessage
from orchestrator.events import ClaimReceived, OutcomeReceived, WorkerLeft
from orchestrator.records import Outcome, Resources, Usage
from orchestrator.states import ATTEMPT_TERMINAL, AttemptState
from orchestrator.wire.strict_json import Fields, decode, encode

MAX_REPORT_BYTES = 2**20
"""Of a claim, an outcome or a heartbeat. An operator's outputs are at most a quarter of it."""
MAX_GRANT_BYTES = 8 * 2**20
"""Of a grant: the outputs of all ancestors are in it."""
MAX_CONTROL_BYTES = 2**20

CLAIM, OUTCOME, GOODBYE, WAKE = "claim", "outcome", "goodbye", "wake"
GRANT, DENIAL, ANSWER, DESIRED = "grant", "denial", "answer", "desired"
HEARTBEAT, LOG = "heartbeat", "log"


@dataclass(frozen=True, slots=True)
class Wake:
    """The API says that it has committed a run or a command. A hint, and not authenticated."""


@dataclass(frozen=True, slots=True)
class Refused:
    """An entry that was dropped: forged or unreadable; ``why`` is a sentence. To be counted, and acknowledged."""

    why: str


Report = ClaimReceived | OutcomeReceived | WorkerLeft | Wake | Refused


@dataclass(frozen=True, slots=True)
class GrantSpec:
    """Everything a worker needs to run one attempt; sealed, since it holds secrets."""

    attempt_id: str
    token: str = field(repr=False)
    run_id: str
    tenant_id: str
    task: str
    number: int
    operator: str
    parameters: Mapping[str, Any]
    """Resolved: inputs are filled in."""
    run_parameters: Mapping[str, Any] = field(default_factory=dict)
    upstream_outputs: Mapping[str, Any] = field(default_factory=dict)
    """By task: an object, or a list of them where the task is a container."""
    connections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    resources: Resources = field(default_factory=Resources)
    devices: tuple[str, ...] = ()
    timeout: float | None = None
    grace: float = 10.0
    exclusive: bool = False
    on_drain: str = "wait"
    on_worker_loss: str = "kill"
    generation: int = 1
    """Of the task run; what an attempt of another one saved is not this one's to go on from."""
    registry_url: str | None = None
    pipeline: str = ""
    progress_timeout: float | None = None
    """Seconds it may neither write a log line nor report progress nor save a checkpoint. Workers of earlier releases
    know it no more than the next one: there neither holds."""
    outputs_schema: Mapping[str, Any] | None = None
    """JSON Schema of the task, which its outputs have to keep besides the operator's own."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A grant to send: the claim's ``nonce`` binds it to that claim."""

    spec: GrantSpec
    nonce: str


@dataclass(frozen=True, slots=True)
class SealedGrant:
    """A grant as received; ``ReplyBox.open`` turns it into a :class:`GrantSpec`."""

    attempt_id: str
    nonce: str
    lifetime: float
    box: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Denial:
    """The claim with this nonce is refused; the worker drops the hint."""

    attempt_id: str
    nonce: str
    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of an outcome: ``committed``, ``fenced`` or ``unknown``."""

    attempt_id: str
    token: str
    verdict: str


@dataclass(frozen=True, slots=True)
class DesiredState:
    """What the leader wants of a worker, and proof that it has read heartbeat ``hb_seq``."""

    epoch: int
    hb_seq: int
    cancel: tuple[tuple[str, float], ...] = ()
    """(attempt id, grace in seconds) of attempts to stop."""
    fence: tuple[str, ...] = ()
    """Attempts that are no longer ours: kill their trees, keep their outcomes to yourself."""
    drain: bool = False
    drain_left: float | None = None
    """Seconds until a drain stops waiting for what runs; ``None``: as long as the worker's own setting allows."""
    gen: int = 0
    """The generation counter; lower than before means that Redis was reset: send open claims and outcomes again."""
    confirm: tuple[tuple[str, str], ...] = ()
    """(attempt id, ended incarnation): say in ``Heartbeat.dead`` once nothing of them lives on this host."""


VERDICTS = frozenset({"committed", "fenced", "unknown"})


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome's fields as JSON values."""
    return {**asdict(outcome), "state": outcome.state.value, "records": [dict(record) for record in outcome.records]}


def outcome_from_json(fields: Fields) -> Outcome:
    """Read an outcome; only terminal states of an attempt that was granted are accepted."""
    state = fields.text("state")
    if state not in ATTEMPT_TERMINAL - {AttemptState.EXPIRED}:
        raise UnreadableMessage(f"{state!r} is no state that an outcome can report.")
    usage = fields.inner("usage")
    return Outcome(
        state=AttemptState(state),
        reason=fields.text("reason", ""),
        message=fields.text("message", ""),
        skipped=fields.flag("skipped", False),
        retryable=fields.flag("retryable", True),
        retry_after=fields.number_or_none("retry_after"),
        infrastructure=fields.flag("infrastructure", False),
        exit_code=fields.integer_or_none("exit_code"),
        exception=fields.text("exception", ""),
        again=fields.flag("again", False),
        outputs=fields.mapping("outputs"),
        records=fields.mappings("records"),
        usage=Usage(
            peak_memory=usage.integer("peak_memory", 0),
            cpu_seconds=usage.number("cpu_seconds", 0.0),
            wall_seconds=usage.number("wall_seconds", 0.0),
            gpu_memory=usage.integer("gpu_memory", 0),
            setup_seconds=usage.number("setup_seconds", 0.0),
        ),
        local_to=fields.text_or_none("local_to"),
    )


def claim_body(attempt_id: str, seq: int, nonce: str) -> bytes:
    return encode({"attempt": attempt_id, "seq": seq, "nonce": nonce}, MAX_REPORT_BYTES, "claim")


def outcome_body(attempt_id: str, token: str, ran_on: str, outcome: Outcome) -> bytes:
    """Return an outcome report. ``ran_on`` is the incarnation that ran the attempt; another may report it."""
    values = {"attempt": attempt_id, "token": token, "worker": ran_on, **outcome_to_json(outcome)}
    return encode(values, MAX_REPORT_BYTES, "outcome")


def outcome_report(body: bytes) -> tuple[str, str, str, Outcome]:
    """Read (attempt id, token, incarnation that ran it, outcome); also what a worker's spool file holds."""
    fields = decode(body, MAX_REPORT_BYTES, "outcome")
    return fields.text("attempt"), fields.text("token"), fields.text("worker"), outcome_from_json(fields)


def read_report(kind: str, incarnation: str, body: bytes) -> ClaimReceived | OutcomeReceived | WorkerLeft:
    """Read an authenticated report of a worker."""
    if kind == CLAIM:
        fields = decode(body, MAX_REPORT_BYTES, "claim")
        return ClaimReceived(incarnation, fields.text("attempt"), fields.integer("seq"), fields.text("nonce"))
    if kind == OUTCOME:
        attempt_id, token, ran_on, outcome = outcome_report(body)
        return OutcomeReceived(ran_on, attempt_id, token, outcome, reply_to=incarnation)
    if kind == GOODBYE:
        return WorkerLeft(incarnation)
    raise UnreadableMessage(f"{kind[:40]!r} is no kind of report.")


def grant_body(spec: GrantSpec) -> bytes:
    values = {
        "attempt": spec.attempt_id,
        "token": spec.token,
        "run_id": spec.run_id,
        "tenant_id": spec.tenant_id,
        "task": spec.task,
        "number": spec.number,
        "operator": spec.operator,
        "parameters": spec.parameters,
        "run_parameters": spec.run_parameters,
        "upstream_outputs": spec.upstream_outputs,
        "connections": spec.connections,
        "resources": asdict(spec.resources),
        "devices": list(spec.devices),
        "timeout": spec.timeout,
        "grace": spec.grace,
        "exclusive": spec.exclusive,
        "on_drain": spec.on_drain,
        "on_worker_loss": spec.on_worker_loss,
        "generation": spec.generation,
        "registry_url": spec.registry_url,
        "pipeline": spec.pipeline,
        "progress_timeout": spec.progress_timeout,
        "outputs_schema": spec.outputs_schema,
    }
    return encode(values, MAX_GRANT_BYTES, f"grant of task {spec.task!r}")


def grant_from_body(body: bytes) -> GrantSpec:
    fields = decode(body, MAX_GRANT_BYTES, "grant")
    resources = fields.inner("resources")
    return GrantSpec(
        attempt_id=fields.text("attempt"),
        token=fields.text("token"),
        run_id=fields.text("run_id"),
        tenant_id=fields.text("tenant_id"),
        task=fields.text("task"),
        number=fields.integer("number"),
        operator=fields.text("operator"),
        parameters=fields.mapping("parameters"),
        run_parameters=fields.mapping("run_parameters"),
        upstream_outputs=fields.mapping("upstream_outputs"),
        connections=fields.mapping("connections"),
        resources=Resources(
            cpu=resources.integer("cpu", 0),
            memory=resources.integer("memory", 0),
            gpus=resources.integer("gpus", 0),
            gpu_memory=resources.integer("gpu_memory", 0),
        ),
        devices=fields.texts("devices"),
        timeout=fields.number_or_none("timeout"),
        grace=fields.number("grace", 10.0),
        exclusive=fields.flag("exclusive", False),
        on_drain=fields.text("on_drain", "wait"),
        on_worker_loss=fields.text("on_worker_loss", "kill"),
        generation=fields.integer("generation", 1),
        registry_url=fields.text_or_none("registry_url"),
        pipeline=fields.text("pipeline", ""),
        progress_timeout=fields.number_or_none("progress_timeout"),
        outputs_schema=fields.mapping_or_none("outputs_schema"),
    )


def control_body(message: Denial | Answer | DesiredState) -> tuple[str, bytes]:
    """Return the message's kind and its JSON."""
    values: dict[str, Any]
    match message:
        case Denial():
            kind = DENIAL
            values = {"attempt": message.attempt_id, "nonce": message.nonce, "reason": message.reason}
        case Answer():
            kind = ANSWER
            values = {"attempt": message.attempt_id, "token": message.token, "verdict": message.verdict}
        case DesiredState():
            kind = DESIRED
            values = asdict(message)
    return kind, encode(values, MAX_CONTROL_BYTES, kind)


def read_control(kind: str, body: bytes) -> Denial | Answer | DesiredState:
    """Read an authenticated control message."""
    if kind not in (DENIAL, ANSWER, DESIRED):
        raise UnreadableMessage(f"{kind[:40]!r} is no kind of control message.")
    fields = decode(body, MAX_CONTROL_BYTES, kind)
    if kind == DENIAL:
        return Denial(fields.text("attempt"), fields.text("nonce"), fields.text("reason"))
    if kind == ANSWER:
        verdict = fields.text("verdict")
        if verdict not in VERDICTS:
            raise UnreadableMessage(f"{verdict[:40]!r} is no answer to an outcome.")
        return Answer(fields.text("attempt"), fields.text("token"), verdict)
    return DesiredState(
        epoch=fields.integer("epoch"),
        hb_seq=fields.integer("hb_seq"),
        cancel=fields.pairs("cancel"),
        fence=fields.texts("fence"),
        drain=fields.flag("drain", False),
        drain_left=fields.number_or_none("drain_left"),
        gen=fields.integer("gen", 0),
        confirm=fields.text_pairs("confirm"),
    )
