"""The operator port: what a task runs, and what it is given to run with.

A third party subclasses :class:`Operator` in one file and either installs it under the entry-point group
``pipeline_orchestrator.operators`` or drops the file in a folder named by ``OPERATORS_PATH``. Heavy libraries are
imported inside :meth:`Operator.run`: the API imports the class for its schemas only.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator.artifacts.port import task_segment, uri_of
from orchestrator.artifacts.recorded import record_artifact
from orchestrator.checkpoints import Checkpoints, look, pack, unpack

if TYPE_CHECKING:
    from orchestrator.artifacts import ArtifactStore
    from orchestrator.outbound import OutboundClient
    from orchestrator.paths import DataRoots

Json = Any
"""A value that survives ``json.dumps``/``loads``; NaN and infinities are not among them."""

_CHUNK = 1 << 20


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
    :param exit_code: of the program that the operator ran, for people and retry rules.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        retryable: bool = False,
        retry_after: float | None = None,
        exit_code: int | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retryable = retryable
        self.retry_after = retry_after
        self.exit_code = exit_code


class NotYet(Exception):
    """What the operator waits for is not there: the attempt ends, and the next one looks again.

    Meanwhile the task holds no worker's slot, and nothing is charged to its retries.

    :param retry_in: seconds until then.
    :param message: a sentence: what is not there yet.
    """

    def __init__(self, retry_in: float, message: str = "") -> None:
        super().__init__(message or "What it waits for is not there yet.")
        self.retry_in = max(0.0, float(retry_in))
        self.message = message or "What it waits for is not there yet."


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
    upstream_outputs: Mapping[str, Json]
    """Outputs of every finished ancestor, by task name: an object; of a mapped task a list of them by index, null where
    one did not succeed. See ``orchestrator.inputs.outputs_of_kind``."""
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
    _checkpoints: Checkpoints | None = field(default=None, init=False, repr=False)
    _saved_look: object = field(default=None, init=False, repr=False)
    """How the checkpoint folder looked when it was saved or brought back last; ``None`` before it is asked for."""

    def log(self, message: str, **fields: Json) -> None:
        """Print one line to the attempt's log: the message, then ``key=value`` pairs."""
        tail = "".join(f" {key}={value}" for key, value in fields.items())
        print(f"{message}{tail}", flush=True)

    def progress(self, fraction: float, message: str = "") -> None:
        """Report how far the attempt is (0 to 1); shown by the API and the demo. The runner overrides this."""

    def checkpoint_save(self, source: bytes | Path | None = None) -> None:
        """Keep this state for the next attempt of the task; it replaces what was saved before, in one step.

        It is gone when the task has succeeded. A rerun does not see it: what lies above the task may be new by then.

        For work that is too long to be begun anew when its worker is drained (``on_drain: checkpoint``), dies, or the
        task times out. Save now and then, or on SIGTERM, after which the task has its grace.

        :param source: bytes, a file, or nothing for what is in :meth:`checkpoint_folder`.
        :raises StoreUnavailable: the artifact store does not answer; what was saved before stands.
        """
        if source is None:
            folder = self.workdir / "checkpoint"
            source, looked = self.workdir / "checkpoint.tar", look(folder)
            pack(folder, source)
            self.checkpoints.save(source)
            source.unlink()
            self._saved_look = looked
        else:
            self.checkpoints.save(source)
        self.note_checkpoint()

    def checkpoint_load(self) -> Path | None:
        """Return a file with what an attempt of this task saved last, for reading; ``None``: nothing.

        An attempt of this run, since the task was last begun anew.

        :raises StoreUnavailable: the artifact store does not answer.
        """
        return self.checkpoints.load(self.workdir / "saved")

    def checkpoint_folder(self) -> Path:
        """Return a folder that is there again in the next attempt, with what an earlier one left in it.

        It is saved when ``checkpoint_save()`` is called, and when the attempt ends without success: after a failure,
        and on SIGTERM, which ends an operator that has asked for the folder by an exception.

        :raises StoreUnavailable: the artifact store does not answer.
        """
        folder = self.workdir / "checkpoint"
        if self._saved_look is not None and folder.exists():
            return folder
        saved = self.checkpoint_load()
        folder.mkdir(exist_ok=True)
        if saved is not None:
            try:
                unpack(saved, folder)
            except (tarfile.TarError, OSError) as error:
                self.log(f"The checkpoint can't be read ({error}); starting without it.")
                shutil.rmtree(folder)
                folder.mkdir()
        self._saved_look = look(folder)
        return folder

    def checkpoint_keep(self) -> None:
        """Save the checkpoint folder, if it was asked for and has changed since it was saved last.

        :raises StoreUnavailable: the artifact store does not answer; what was saved before stands.
        """
        folder = self.workdir / "checkpoint"
        if self._saved_look is not None and look(folder) != self._saved_look:
            self.checkpoint_save()

    def checkpoint_delete(self) -> None:
        """Forget what was saved, in earlier generations too. The runner does it when the task has succeeded.

        :raises StoreUnavailable: the artifact store does not answer.
        """
        self.checkpoints.forget()

    def note_checkpoint(self) -> None:
        """Say that a checkpoint was saved: a sign of life. The runner overrides this."""

    def state_get(self, key: str, default: Json = None) -> Json:
        """Return a value that an attempt of this task has set; it lives as long as a checkpoint does.

        :raises StoreUnavailable: the artifact store does not answer.
        """
        return self.checkpoints.state().get(key, default)

    def state_set(self, key: str, value: Json) -> None:
        """Keep a small value for the next attempts of the task; ``None`` removes it.

        :raises OperatorFailure: ``state_too_large``: it is no JSON, or all values together have more than 64 KiB of it.
        :raises StoreUnavailable: the artifact store does not answer; what was set before stands.
        """
        values = {name: known for name, known in {**self.checkpoints.state(), key: value}.items() if known is not None}
        try:
            self.checkpoints.set_state(values)
        except (TypeError, ValueError) as error:
            raise OperatorFailure("state_too_large", f"The value {key!r} can't be kept: {error}.") from error
        self.note_checkpoint()

    @property
    def checkpoints(self) -> Checkpoints:
        """What the attempts of this task run have saved."""
        if self._checkpoints is None:
            self._checkpoints = Checkpoints(
                self.artifacts, self.tenant_id, self.run_id, self.task, self.generation, self.attempt_number
            )
        return self._checkpoints

    def save_artifact(
        self, source: bytes | Path, *, kind: str = "", name: str = "", retention_days: float | None = None
    ) -> dict[str, Json]:
        """Keep data that is too large for the outputs; return ``{"uri", "digest", "size"}``, which goes into them.

        It is named by its content, so saving it twice is saving it once. A task downstream reads it by
        ``orchestrator.inputs.local_file(context, uri)``.

        :param kind: what it is (``dataset``, ``model``, ``report`` …) and ``name``: what people call it; both are only
            noted.
        :param retention_days: when it may be removed; ``None``: when nothing needs it any more, by the site's rules.
        :raises StoreUnavailable: the artifact store does not answer.
        """
        copy = self.workdir / f".artifact-{time.monotonic_ns()}"
        try:
            digest = _copy(source, copy)
            key = f"{self.tenant_id}/sha256/{digest}"
            # Written even where it is there: by its date whoever removes old objects sees that it was saved again.
            size = self.artifacts.put_file(key, copy, consume=True).bytes
        finally:
            copy.unlink(missing_ok=True)
        found: dict[str, Json] = {"uri": uri_of(key), "digest": f"sha256:{digest}", "size": size}
        told: dict[str, Any] = {"content": kind, "name": name}
        if retention_days is not None:
            told["retention_seconds"] = retention_days * 86_400.0
        record_artifact(self.records, **found, **{field: value for field, value in told.items() if value != ""})
        return found

    def artifact_key(self, name: str) -> str:
        """Return the key of an output of this attempt: ``<tenant>/<run>/<task>/<attempt>/<name>``."""
        return f"{self.tenant_id}/{self.run_id}/{task_segment(self.task)}/{self.attempt_id}/{name}"


def _copy(source: bytes | Path, target: Path) -> str:
    """Copy into a file that nobody else writes; return the SHA-256 of just that content."""
    digest = hashlib.sha256()
    with target.open("xb") as sink:
        if isinstance(source, bytes):
            digest.update(source)
            sink.write(source)
        else:
            with source.open("rb") as content:
                while chunk := content.read(_CHUNK):
                    digest.update(chunk)
                    sink.write(chunk)
    return digest.hexdigest()


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
    verbatim: ClassVar[frozenset[str]] = frozenset()
    """Parameters in which ``{{`` means nothing: scripts, which no value is ever put into."""
    version: ClassVar[str] = ""
    """Part of the key under which results are cached: another version computes anew. Empty: the digest of its code
    (``orchestrator.registry.operator_version``)."""

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
        :raises NotYet: what it waits for is not there; it is to look again later.

        Any other exception fails the attempt with reason ``exception`` and is retried.
        """

    def dry_run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        """Check that :meth:`run` could start (sources reachable, columns there) without writing anything.

        Returns a JSON object that says what would be done; raises as :meth:`run` does.
        """
        return {}
