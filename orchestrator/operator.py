"""The operator port: what a task runs, and what it is given to run with.

A third party subclasses :class:`Operator` in one file and either installs it under the entry-point group
``pipeline_orchestrator.operators`` or drops the file in a folder named by ``OPERATORS_PATH``. Heavy libraries are
imported inside :meth:`Operator.run`: the API imports the class for its schemas only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator.errors import StoreUnavailable

if TYPE_CHECKING:
    from orchestrator.artifacts import ArtifactStore
    from orchestrator.outbound import OutboundClient
    from orchestrator.paths import DataRoots

Json = Any
"""A value that survives ``json.dumps``/``loads``; NaN and infinities are not among them."""


@dataclass(frozen=True, slots=True)
class Input:
    """A parameter that takes a kind of thing another task leaves behind.

    A task that does not set ``parameter`` takes the ``uri`` of the nearest ancestor's output of this ``kind``; with
    no such ancestor, the run's parameter of the same name; with neither and ``required``, the run is refused.
    """

    parameter: str
    kind: str
    required: bool = True


class OperatorFailure(Exception):
    """The attempt failed for a cause the operator knows.

    :param reason: a short machine-readable word (``quality_gate``, ``not_found``, ``bad_data`` …) for people, metrics
        and retry rules.
    :param message: a sentence: what happened, to what, and what to do.
    :param retryable: whether another try could end differently.
    :param retry_after: seconds the other side asked us to wait, if it did.
    """

    def __init__(self, reason: str, message: str, *, retryable: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retryable = retryable
        self.retry_after = retry_after


class SkipTask(Exception):
    """The operator decided that there is nothing to do: the task run ends ``skipped`` with this reason."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Connection:
    """A named connection of the site, resolved at grant time; ``url`` may hold credentials and is never logged."""

    name: str
    url: str = field(repr=False)
    options: Mapping[str, Json] = field(default_factory=dict)


@dataclass(slots=True)
class TaskContext:
    """What one attempt may touch. Built by the runner; tests build it through ``orchestrator.testing``."""

    tenant_id: str
    run_id: str
    task: str
    attempt_id: str
    attempt_number: int
    fence: str
    """The attempt's token; sinks outside of us may refuse a lower attempt by it."""
    workdir: Path
    """Private scratch folder, removed after the attempt."""
    artifacts: ArtifactStore
    http: OutboundClient
    roots: DataRoots
    run_parameters: Mapping[str, Json]
    upstream_outputs: Mapping[str, Mapping[str, Json]]
    """Outputs of every finished ancestor, by task name."""
    generation: int = 1
    """How often the task has begun anew in its run: a rerun is the next generation."""
    pipeline: str = ""
    """Name of the pipeline that the run is of."""
    cpu: float = 1.0
    """Cores reserved; thread pools are to be sized by it."""
    memory_bytes: int = 0
    """Bytes reserved."""
    gpu_devices: tuple[str, ...] = ()
    connections: Mapping[str, Connection] = field(default_factory=dict)
    s3_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Options for obstore's ``S3Store`` from ``MINIO_*`` or ``AWS_*``."""
    s3_buckets: tuple[str, ...] = ()
    """Buckets that tasks may name without a connection; empty: any."""
    registry_url: str | None = None
    scripts_root: Path | None = None
    records: list[Mapping[str, Json]] = field(default_factory=list)
    """What ingest is to write with the outcome (registered models)."""
    has_checkpoint: bool = field(default=False, init=False)
    """Whether this attempt has saved or found one."""

    def log(self, message: str, **fields: Json) -> None:
        """Print one line to the attempt's log: the message, then ``key=value`` pairs."""
        tail = "".join(f" {key}={value}" for key, value in fields.items())
        print(f"{message}{tail}", flush=True)

    def progress(self, fraction: float, message: str = "") -> None:
        """Report how far the attempt is (0 to 1); shown by the API and the demo. The runner overrides this."""

    def checkpoint_save(self, source: bytes | Path) -> None:
        """Keep this state for the next attempt of the task; it replaces what was saved before, in one step.

        It is gone when the task has succeeded. A rerun does not see it: what lies above the task may be new by then.

        For work that is too long to be begun anew when its worker is drained (``on_drain: checkpoint``), dies, or the
        task times out. Save now and then, or on SIGTERM, after which the task has its grace.

        :raises StoreUnavailable: the artifact store does not answer; what was saved before stands.
        """
        self.has_checkpoint = True
        key = f"{self._checkpoints}/{self.generation}"
        if isinstance(source, bytes):
            self.artifacts.put_bytes(key, source)
        else:
            self.artifacts.put_file(key, source)

    def checkpoint_load(self) -> Path | None:
        """Return a file with what an attempt of this task saved last, for reading; ``None``: nothing.

        An attempt of this run, since the task was last begun anew.

        :raises StoreUnavailable: the artifact store does not answer.
        """
        uri = f"artifact://{self._checkpoints}/{self.generation}"
        try:
            if not self.artifacts.exists(uri):
                return None
            self.has_checkpoint = True
            return self.artifacts.local_path(uri, self.workdir / "saved")
        except OSError as error:  # of a shared folder whose server is ill
            raise StoreUnavailable(f"{uri} can't be looked for: {error}.") from error

    def checkpoint_delete(self) -> None:
        """Forget what was saved, in earlier generations too. The runner does it when the task has succeeded.

        :raises StoreUnavailable: the artifact store does not answer.
        """
        if self.has_checkpoint or self.generation > 1:
            self.artifacts.delete(self._checkpoints)
            self.has_checkpoint = False

    @property
    def _checkpoints(self) -> str:
        return f"checkpoints/{self.tenant_id}/{self.run_id}/{self.task}"

    def artifact_key(self, name: str) -> str:
        """Return the key of an output of this attempt: ``<tenant>/<run>/<task>/<attempt>/<name>``."""
        return f"{self.tenant_id}/{self.run_id}/{self.task}/{self.attempt_id}/{name}"


class Operator(ABC):
    """One kind of work. Stateless: one instance may run any number of attempts, each in its own process."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One sentence for ``GET /api/v1/operators``."""
    parameters_schema: ClassVar[Mapping[str, Json]]
    """JSON Schema 2020-12 of ``parameters``; ``additionalProperties`` is false. Inputs are optional in it."""
    outputs_schema: ClassVar[Mapping[str, Json]]
    """JSON Schema 2020-12 of what :meth:`run` returns (≤ 256 KiB as JSON)."""
    inputs: ClassVar[Sequence[Input]] = ()

    @classmethod
    def problems(cls, parameters: Mapping[str, Json]) -> list[tuple[str, str]]:
        """Return what JSON Schema can't say: ``(pointer inside parameters, sentence)`` pairs; never raises."""
        return []

    @classmethod
    def produces(cls, parameters: Mapping[str, Json]) -> frozenset[str]:
        """Return the kinds (``dataset``, ``model`` …) that outputs will hold under these parameters.

        ``outputs[kind]["uri"]`` is then what a downstream :class:`Input` of that kind receives.
        """
        return frozenset()

    @classmethod
    def connection_names(cls, parameters: Mapping[str, Json]) -> frozenset[str]:
        """Return the named connections an attempt with these parameters needs."""
        return frozenset()

    @classmethod
    def active_inputs(cls, parameters: Mapping[str, Json]) -> Sequence[Input]:
        """Return the inputs that count under these parameters; all of :attr:`inputs` unless overridden."""
        return cls.inputs

    @abstractmethod
    def run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        """Do the work and return the outputs.

        :param parameters: validated, inputs filled in.
        :raises OperatorFailure: the attempt failed for a known cause.
        :raises SkipTask: there is nothing to do.

        Any other exception fails the attempt with reason ``exception`` and is retried.
        """

    def dry_run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        """Check that :meth:`run` could start (sources reachable, columns there) without writing anything.

        Returns a JSON object that says what would be done; raises as :meth:`run` does.
        """
        return {}
