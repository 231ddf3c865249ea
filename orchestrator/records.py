"""The frozen records the rules speak of: plans, runs, task runs, attempts, hosts and workers.

Times inside records are seconds on the leader's monotonic clock (a ``float``), never wall-clock times: the store turns
stored times into remaining seconds when it loads and remaining seconds into stored times when it writes (I14).
Resources are integers (milli-cores, bytes, milli-GPUs), so that sums are exact (I13).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.states import AttemptState, RunState, TaskState, WorkerState

GRANT_LIFETIME = 30.0
"""Seconds after which a sealed grant can start nothing any more."""
SETUP_SECONDS = 600.0
"""How long an attempt's process may take until its operator runs; its time limit counts from then on."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What one attempt asks for or one host has left: ``cpu`` milli-cores, ``memory`` bytes, whole ``gpus``."""

    cpu: int = 0
    memory: int = 0
    gpus: int = 0
    gpu_memory: int = 0
    """Bytes asked of each GPU; 0 asks for nothing in particular."""


@dataclass(frozen=True, slots=True)
class RetryRule:
    """What to do after a failure that all its non-empty conditions fit; of several rules the first one that fits."""

    action: str
    """``retry``, ``fail`` or ``skip``."""
    reasons: tuple[str, ...] = ()
    exit_codes: tuple[int, ...] = ()
    exceptions: tuple[str, ...] = ()
    """Names of classes, with or without their module."""
    messages: tuple[str, ...] = ()
    """Texts one of which is in the message, in whatever case."""
    delay: float | None = None
    """Seconds; ``None``: the policy's."""
    memory_factor: float | None = None
    memory: int | None = None
    """Bytes to ask for instead; at most one of this and the factor is set."""
    memory_max: int | None = None
    queue: str = ""
    """Where the next try is to run; empty: by its resources."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and after how long a failed task is tried again (delays in seconds)."""

    retries: int = 3
    delay: float = 60.0
    factor: float = 2.0
    max_delay: float = 600.0
    jitter: float = 0.1
    """Share of the delay that may be added, deterministic per attempt."""
    rules: tuple[RetryRule, ...] = ()
    infrastructure: int | None = None
    """Losses to infrastructure after which it fails as ``poison``; ``None``: the site's number."""


@dataclass(frozen=True, slots=True)
class InputLink:
    """Parameter ``parameter`` takes ``outputs[kind]["uri"]`` of task ``source`` (compiled, DESIGN §5)."""

    parameter: str
    kind: str
    source: str


@dataclass(frozen=True, slots=True)
class RunInput:
    """Parameter ``parameter`` takes a ``kind`` that no ancestor makes: the run's parameter of that name is taken."""

    parameter: str
    kind: str
    required: bool = True
    """Without it the run is refused at its creation."""


@dataclass(frozen=True, slots=True)
class MapPlan:
    """One instance of the body for each item (issue 4)."""

    over: Any
    """A list, a template that gives one, or ``{"range" | "grid" | "random" | "zip": …}``."""
    max_parallel: int | None = None
    max_size: int = 1000
    success: str = "all"
    """``all``, ``any``, ``min_count`` or ``min_ratio``."""
    least: float = 0.0
    """The count or the ratio."""
    fail_fast: bool = False
    key: str = ""
    """A template over ``map``; empty: the index."""


@dataclass(frozen=True, slots=True)
class RepeatPlan:
    """The body again and again until an expression over its outputs is true."""

    until: str
    max: int
    delay: float = 0.0
    """Seconds between two rounds."""
    on_max: str = "fail"
    """``fail`` or ``succeed``."""


@dataclass(frozen=True, slots=True)
class ChildPlan:
    """A run of another pipeline, as a task."""

    pipeline: str
    version: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    wait: bool = True
    inherit: bool = True
    """Whether the run's own parameters stand under those given here."""


@dataclass(frozen=True, slots=True)
class ApprovalPlan:
    """A person decides."""

    message: str = ""
    input: Mapping[str, Any] | None = None
    """JSON schema of what the person has to give."""
    timeout: float | None = None
    on_timeout: str = "fail"
    """``fail``, ``approve`` or ``reject``."""
    on_reject: str = "fail"
    """``fail`` or ``skip``."""


@dataclass(frozen=True, slots=True)
class EventPlan:
    """Something outside of us reports by the task's token."""

    timeout: float | None = None
    on_timeout: str = "fail"
    """``fail`` or ``skip``."""
    payload: Mapping[str, Any] | None = None
    """JSON schema of what is reported."""


@dataclass(frozen=True, slots=True)
class ConcurrencyLimit:
    """At most ``limit`` runs (or attempts) at once whose ``key`` has the same value."""

    key: str
    """A template; a value of null is not limited."""
    limit: int
    on_limit: str = "queue"
    """``queue``, ``cancel_new``, ``cancel_running`` or ``fail``."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most ``units`` dispatches in ``per`` seconds among tasks of one key."""

    key: str
    units: int
    per: float


@dataclass(frozen=True, slots=True)
class CachePlan:
    """Outputs of an equal earlier task run are taken instead of running."""

    mode: str = "read_write"
    """``read_write``, ``read`` or ``write``."""
    key: tuple[str, ...] = ()
    """Templates; empty: everything that goes into the attempt."""
    ttl: float | None = None
    scope: str = "pipeline"
    """``pipeline`` or ``tenant``."""
    single_flight: bool = True


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """One task of a compiled version; everything the scheduler needs to know without loading an operator."""

    name: str
    operator: str
    upstream: tuple[str, ...] = ()
    trigger_rule: str = "all_success"
    queue: str = "cpu"
    resources: Resources = field(default_factory=Resources)
    labels: tuple[tuple[str, str], ...] = ()
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: float | None = None
    """Seconds an attempt may run; ``None``: for ever."""
    grace: float = 10.0
    """Seconds between TERM and KILL."""
    exclusive: bool = False
    on_drain: str = "wait"
    """What a draining worker does with it: ``wait`` until it ends, ``checkpoint`` (TERM, grace) or ``kill``."""
    on_worker_loss: str = "kill"
    """``kill``: it dies with its worker. ``adopt``: it goes on, and the host's next incarnation reports for it."""
    critical: bool = True
    links: tuple[InputLink, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    verbatim: tuple[str, ...] = ()
    """Of these, those in which ``{{`` means nothing: scripts, and all of a plan that is older than templates."""
    connections: tuple[str, ...] = ()
    run_inputs: tuple[RunInput, ...] = ()
    when: str = ""
    """An expression that is tested after the rule is met."""
    map: MapPlan | None = None
    repeat: RepeatPlan | None = None
    body: Plan | None = None
    """Of a container (``map`` or ``repeat``): what each index or round runs."""
    is_group: bool = False
    """Whether the body was written as ``tasks``; else it is the task itself, once."""
    child: ChildPlan | None = None
    approval: ApprovalPlan | None = None
    event: EventPlan | None = None
    teardown: bool = False
    setups: tuple[str, ...] = ()
    """Of a teardown: it runs if one of these has started; empty: always."""
    memory_auto: bool = False
    """``memory_gb: "auto"``: the request is learned from earlier runs."""
    max_queued: float | None = None
    """Seconds it may be ready or queued before each of its dispatches is claimed."""
    progress_timeout: float | None = None
    """Seconds an attempt may be silent."""
    deadline: float | None = None
    """Seconds from when it was first ready, over all attempts."""
    outputs_schema: Mapping[str, Any] | None = None
    cache: CachePlan | None = None
    concurrency: tuple[ConcurrencyLimit, ...] = ()
    rate_limit: RateLimit | None = None
    operator_version: str = ""
    """``orchestrator.registry.operator_version`` when it was compiled: part of the cache's key. Only with ``cache``:
    what earlier releases do not know they can't read."""

    @property
    def templated(self) -> Mapping[str, Any]:
        """The parameters whose texts may hold templates."""
        if not self.verbatim:
            return self.parameters
        return {name: value for name, value in self.parameters.items() if name not in self.verbatim}

    @property
    def is_container(self) -> bool:
        """Whether it runs nothing itself, but the tasks of its body."""
        return self.body is not None

    @property
    def has_attempts(self) -> bool:
        """Whether a worker executes it."""
        return self.body is None and self.child is None and self.approval is None and self.event is None

    @property
    def is_adoptable(self) -> bool:
        """Whether it outlives its worker, for the host's next one to adopt; what is exclusive stops itself instead."""
        return self.on_worker_loss == "adopt" and not self.exclusive


@dataclass(frozen=True, slots=True)
class Plan:
    """A compiled version, or the body of a container: its tasks in a topological order."""

    tasks: tuple[PlannedTask, ...]
    deadline: float | None = None
    """Seconds from the start of the run."""
    max_active_runs: int | None = None
    concurrency: tuple[ConcurrencyLimit, ...] = ()
    reads: tuple[str, ...] = ()
    """Parameters of the run that templates name and the definition has no default for: a run has to bring them."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    id: str
    tenant_id: str
    state: RunState
    reason: str = ""
    generation: int = 1
    priority: int = 0
    order: int = 0
    """Rises with creation; earlier runs go first at equal priority."""
    pipeline_id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The definition's under the run's own."""
    parent_task_run_id: str | None = None
    """The task that this run is, in another run."""
    depth: int = 0
    """How many runs it is inside of."""
    paused_with_parent: bool = False
    """While it is paused: it is so because the run around it is, and goes on with that one."""
    deadline_at: float | None = None
    pipeline: str = ""
    """Its pipeline's name."""
    learned: Mapping[str, int] = field(default_factory=dict)
    """Bytes that earlier runs of the pipeline have taught to ask for, by the planned name of a task with
    ``memory_gb: "auto"`` (``train``; ``folds.train`` for one of a group). Its own task runs have theirs already."""
    message: str = ""

    @property
    def is_inside(self) -> bool:
        """Whether it is there as a task of another run. Started again by itself it is not: nobody waits for it then."""
        return self.parent_task_run_id is not None and self.generation == 1


@dataclass(frozen=True, slots=True)
class TaskRunRecord:
    id: str
    run_id: str
    name: str
    state: TaskState = TaskState.PENDING
    reason: str = ""
    message: str = ""
    generation: int = 1
    attempts: int = 0
    """Attempts made so far; the number of the latest."""
    failures: int = 0
    """Tries charged to the user's retry budget."""
    losses: int = 0
    """Tries lost to infrastructure, counted apart (I12)."""
    attempt_id: str | None = None
    """The attempt that is not yet terminal, if any."""
    retry_at: float | None = None
    local_to: str | None = None
    """Host that alone can read the outputs, when the artifact store is not shared."""
    parent_id: str | None = None
    """The container whose index or round it belongs to."""
    map_index: int | None = None
    map_key: str = ""
    item: Any = None
    outputs: Mapping[str, Any] | None = None
    """Only of tasks whose outputs the rules ask for."""
    memory: int | None = None
    """Bytes its next attempt asks for, where that is not what the definition says."""
    queue: str = ""
    """Where its next attempt is to run, where that is not what the definition says."""
    child_run_id: str | None = None
    wait_token: str | None = None
    """What an outside event is reported by."""
    cache_key: str = ""
    deadline_at: float | None = None
    ready_at: float | None = None
    """Since when it has waited for its next attempt to be claimed."""
    resumed: bool = False
    """Of a container that waits to run again: whether it goes on with what it has expanded into before."""
    awaits_turn: bool = False
    """Of those that come first in an index: whether that has no place under ``max_parallel`` yet."""
    superseded: bool = False
    """Whether its container was expanded anew without it: it stays as it ended, and counts no more."""
    begun: bool = False
    """Whether it has been let begin in its generation: its row says since when it was ready, or running."""


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """The n-th try of a task run. ``id``, ``token`` and ``nonce`` are random; no two attempts share a token."""

    id: str
    run_id: str
    task_run_id: str
    number: int
    queue: str
    """The queue of the task; the hint may go to ``w.<incarnation>`` instead."""
    resources: Resources
    host_id: str
    worker_id: str
    """Planned worker while dispatched, granted worker afterwards."""
    token: str
    """The fence, made at dispatch and given out only in the grant."""
    state: AttemptState = AttemptState.DISPATCHED
    devices: tuple[str, ...] = ()
    seq: int = 1
    """Times the hint was sent."""
    nonce: str = ""
    """Of the claim that was granted."""
    direct: bool = False
    """Whether the hint goes to the worker's own queue."""
    hinted_at: float = 0.0
    granted_at: float | None = None
    deadline: float | None = None
    """When the scheduler itself gives the attempt up: set-up + timeout + grace + 30 s after the grant."""
    cancel: bool = False
    """A cancel is wanted; carried in every heartbeat reply until the attempt is terminal."""
    cancel_grace: float | None = None
    """Seconds between TERM and KILL that the cancel asks for; ``None``: the task's own."""
    regranted_at: float | None = None
    """When the same grant was last sent again; only in memory."""
    keeper_id: str = ""
    """The later incarnation on its host that adopted it and answers for it; empty while ``worker_id`` does itself.
    Its outcome still names ``worker_id``, which ran it."""
    orphaned_at: float | None = None
    """Since when nobody answers for an attempt that waits to be adopted."""
    missed_by: int = 0
    """Heartbeats of its incarnation taken after the grant that did not show it."""

    @property
    def owner_id(self) -> str:
        """The incarnation that answers for it, or, of an orphan, the one that did last."""
        return self.keeper_id or self.worker_id


@dataclass(frozen=True, slots=True)
class EndedAttempt:
    """What the rows know of a terminal attempt: enough to answer an outcome that is sent again."""

    id: str
    state: AttemptState
    token: str
    worker_id: str
    reason: str = ""
    keeper_id: str = ""


@dataclass(frozen=True, slots=True)
class GpuDevice:
    uuid: str
    model: str = ""
    memory: int = 0
    """Bytes."""
    busy_with: str = ""
    """Why it is not offered (a foreign process, fallen off the bus); empty when free for us."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a host offers: min(measured, set). ``cpu`` milli-cores, ``memory`` bytes."""

    cpu: int
    memory: int
    gpus: tuple[GpuDevice, ...] = ()


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a worker incarnation says every few seconds; the whole of what is known of it, so a flush loses nothing."""

    worker_id: str
    host_id: str
    boot_id: str
    hostname: str
    name: str
    """Celery's node name, as Flower shows it."""
    seq: int
    queues: tuple[str, ...]
    slots: int
    capacity: Capacity
    labels: Mapping[str, str] = field(default_factory=dict)
    running: Mapping[str, str] = field(default_factory=dict)
    """attempt id → token of every attempt whose tree may still live here, or whose outcome is not answered yet: an
    attempt that vanishes from here without an answer was forgotten, and is lost."""
    started: frozenset[str] = frozenset()
    """Of ``running``, those whose runner has really started."""
    dead: tuple[str, ...] = ()
    """Attempts of *other* incarnations on this host that are confirmed dead and left no outcome to send: those that
    the leader asked about (``Desired.confirm``), and what the worker itself found when it started."""
    draining: bool = False
    store_scope: str = "shared"
    """``shared`` or ``local:<host_id>``: who can read the outputs this worker writes."""
    version: str = ""
    environment: str = ""
    """Digest of its Python and the packages there; empty: it does not say."""


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    id: str
    host_id: str
    boot_id: str
    state: WorkerState
    queues: frozenset[str]
    slots: int
    labels: Mapping[str, str]
    store_scope: str
    seen_at: float
    """When its latest *new* heartbeat was read, on the leader's monotonic clock."""
    seq: int
    hostname: str = ""
    name: str = ""
    version: str = ""
    draining: bool = False
    """A drain is wanted by command; the worker may also drain by itself, then only its state says so."""
    drain_until: float | None = None
    """When a commanded drain stops waiting and preempts what still runs; ``None``: by the worker's own setting."""
    devices: frozenset[str] | None = None
    """UUIDs of the GPUs it may use: its own mask, which may differ from its neighbours'. ``None``: this leader has not
    heard them yet, so that it plans no GPU there."""
    cpu: int = 0
    """Milli-cores that it says its host has, by ceilings of its own; 0 while ``devices`` is ``None``."""
    memory: int = 0
    """Bytes, as ``cpu``."""


@dataclass(frozen=True, slots=True)
class HostRecord:
    """A machine that workers run on; its capacity is shared by all of them."""

    id: str
    boot_id: str
    capacity: Capacity


@dataclass(frozen=True, slots=True)
class Reservation:
    """Cpu, memory, devices and one slot held for one attempt on one host, until released."""

    attempt_id: str
    host_id: str
    worker_id: str
    resources: Resources
    devices: tuple[str, ...] = ()
    zombie: bool = False
    """The attempt is terminal for us but its tree may still live there; holds no slot of a live worker."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What an attempt used, measured on the whole tree."""

    peak_memory: int = 0
    """Bytes, PSS where the kernel tells it, else RSS."""
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    """From the start of its first process to the end of its last, with its set-up."""
    gpu_memory: int = 0
    setup_seconds: float = 0.0
    """Until the operator ran: process, imports, checks."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended, as the worker reports it."""

    state: AttemptState
    """succeeded, failed, timed_out, cancelled, preempted or lost."""
    reason: str = ""
    message: str = ""
    skipped: bool = False
    """The operator decided to skip: the attempt succeeded, the task run ends ``skipped``."""
    retryable: bool = True
    retry_after: float | None = None
    infrastructure: bool = False
    """The cause is ours or the host's, not the task's: not charged to the user's retries (I12)."""
    exit_code: int | None = None
    exception: str = ""
    """Class of the exception that ended it, with its module."""
    again: bool = False
    """Not yet (reason ``not_yet``): to be looked at again after ``retry_after`` seconds, charged to nobody."""
    outputs: Mapping[str, Any] = field(default_factory=dict)
    records: tuple[Mapping[str, Any], ...] = ()
    usage: Usage = field(default_factory=Usage)
    local_to: str | None = None
