"""Runs the operator inside the attempt's own process, and leaves a result file for the supervisor."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError
from orchestrator.operator import NotYet, Operator, OperatorFailure, SkipTask, TaskContext
from orchestrator.wire.messages import GrantSpec
from workers.attempt_folder import AttemptFolder
from workers.orders import Site
from workers.outputs import artifact_records, check_keeps, read_outputs, read_records
from workers.verdict import NO_ROOM_FOR_RESULT, OUT_OF_MEMORY, failure, not_yet

FORGET_SECONDS = 10.0
"""How long a task that is done waits for the artifact store to delete its checkpoint."""

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",
    "TOKIO_WORKER_THREADS",
    "LOKY_MAX_CPU_COUNT",
)
"""Libraries size their thread pools by the machine's cores, not by ours; these make them ask us."""


def preload() -> None:
    """Import what every attempt needs, in the fork server, so that no attempt has to.

    Measured: 90 ms less per attempt, for 13 MB more in the fork server and 1 ms more per fork. Built-in operators
    import their heavy libraries when they run; a site's own files and entry points are imported in the task's process
    only, since they may start threads, which nobody must fork from.
    """
    from orchestrator import counted_schema as _checks  # noqa: F401 - outputs are checked with it
    from orchestrator.operator_checks import parameter_faults
    from orchestrator.registry import built_in_operators
    from workers import context as _  # noqa: F401 - for its own imports: artifacts, outbound, paths

    for operator in built_in_operators():
        parameter_faults(operator, {}, "")


def execute(
    site: Site, spec: GrantSpec, folder: AttemptFolder, scratch: Path, begin: Callable[[], None] = lambda: None
) -> int:
    """Run the attempt and return the exit status: 0 when the operator finished or skipped, ``NO_ROOM_FOR_RESULT`` when
    the disk did not take what became of it, else 1.

    :param scratch: where its temporary files go.
    :param begin: called when set-up is over and the operator is about to run.
    """
    task = os.getpid()
    os.environ.clear()
    os.environ.update(task_environment(site, spec, folder, scratch))
    os.chdir(folder.work)
    # A line reaches the log when it is printed, not when 8 KiB are full.
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    with ExitStack() as afterwards:
        result = _Execution(site, spec, folder, afterwards, begin).run()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if os.getpid() != task:  # the operator has forked and returned twice; it is for the first process to say how
            afterwards.pop_all()
            return 1
        try:
            folder.write("result", result)
        except OSError as error:
            afterwards.pop_all()  # it will run again, and goes on from what it has saved
            print(f"The result could not be written to {folder.path}: {error}", file=sys.stderr)
            return NO_ROOM_FOR_RESULT
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is done is done
    return 1 if result["end"] == "failure" else 0


def task_environment(site: Site, spec: GrantSpec, folder: AttemptFolder, scratch: Path) -> dict[str, str]:
    """Return the variables the task sees: no secret of ours among them."""
    threads = str(max(1, math.ceil(spec.resources.cpu / 1000)))
    return {
        **site.environment,
        **dict.fromkeys(_THREAD_VARIABLES, threads),
        "CUDA_VISIBLE_DEVICES": ",".join(spec.devices),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(scratch),
        "ORCHESTRATOR_INCARNATION": site.incarnation,
        "ORCHESTRATOR_ATTEMPT": spec.attempt_id,
        "ORCHESTRATOR_RUN": spec.run_id,
        "ORCHESTRATOR_TASK": spec.task,
        "ORCHESTRATOR_FENCE": spec.token,
        "ORCHESTRATOR_WORKDIR": str(folder.work),
    }


@dataclass(slots=True)
class _Execution:
    """One operator's run, and what becomes of it."""

    site: Site
    spec: GrantSpec
    folder: AttemptFolder
    afterwards: ExitStack
    begin: Callable[[], None]
    context: TaskContext | None = None
    process: int = field(default_factory=os.getpid)

    def run(self) -> dict[str, Any]:
        """Return the result document."""
        try:
            return self._run_operator()
        except SkipTask as skip:
            return {"end": "skip", "reason": skip.reason, "message": skip.message}
        except NotYet as wait:
            print(f"Not yet, to be looked at again in {wait.retry_in:g} s: {wait.message}")
            return not_yet(wait.retry_in, wait.message)
        except BaseException as error:  # noqa: BLE001 (whatever an operator raises is its outcome)
            left = [] if self.context is None else artifact_records(self.context.records)
            exception = f"{type(error).__module__}.{type(error).__qualname__}"
            return {**_failure_of(error), "exception": exception, "records": left}

    def _run_operator(self) -> dict[str, Any]:
        from orchestrator.config import load_settings
        from workers.context import build_context

        spec = self.spec
        settings = load_settings(self.site.settings)
        operator = _find(spec.operator, settings.operators_path)
        parameters = dict(spec.parameters)
        _check_parameters(operator, parameters, spec.task)
        context = self.context = build_context(settings, spec, self.folder, self.site.settings)
        self.begin()
        try:
            outputs = operator().run(context, parameters)
            check_keeps(operator.outputs_schema, dict(outputs), f"outputs of operator {spec.operator!r}")
            if spec.outputs_schema is not None:
                check_keeps(spec.outputs_schema, dict(outputs), f"outputs of task {spec.task!r}")
            result = {"end": "ok", "outputs": read_outputs(outputs), "records": read_records(context.records)}
        except SkipTask:
            self.afterwards.callback(_forget_checkpoint, context)
            raise
        except BaseException:
            if os.getpid() == self.process:  # not one that the operator has forked
                _keep_checkpoint(context)
            raise
        self.afterwards.callback(_forget_checkpoint, context)
        return result


def _failure_of(error: BaseException) -> dict[str, Any]:
    from workers.context import Terminated

    match error:
        case OperatorFailure():
            print(f"{error.reason}: {error.message}", file=sys.stderr)
            return failure(
                error.reason,
                error.message,
                retryable=error.retryable,
                retry_after=error.retry_after,
                exit_code=error.exit_code,
            )
        case SystemExit():
            return failure("exit", f"The operator ended its process with status {error.code!r}.", retryable=True)
        case Terminated():
            return failure("signal", "Its process was told to end by SIGTERM, not by us.", retryable=True)
    traceback.print_exception(error)
    if isinstance(error, MemoryError):
        return failure(OUT_OF_MEMORY, "Python could not get the memory it asked for.", retryable=True)
    return failure("exception", f"{type(error).__name__}: {error}", retryable=True)


def _check_parameters(operator: type[Operator], parameters: Mapping[str, Any], task: str) -> None:
    """Check them again: what templates and inputs have put in was not known when the pipeline was saved.

    :raises OperatorFailure: ``bad_parameters``.
    """
    from orchestrator import counted_schema as _checks  # noqa: F401 - outputs are checked with it
    from orchestrator.operator_checks import parameter_faults

    if faults := parameter_faults(operator, parameters, "", filled=True):
        told = " ".join(f"{fault.pointer or '/'}: {fault.message}" for fault in faults[:5])
        raise OperatorFailure("bad_parameters", f"The parameters of task {task!r} are refused at {told}")


def _keep_checkpoint(context: TaskContext) -> None:
    """Save the checkpoint folder for the next attempt; how this one ended does not hang on it."""
    try:
        context.checkpoint_keep()
    except (OrchestratorError, OSError) as error:
        print(f"The checkpoint could not be saved: {error}", file=sys.stderr)


def _forget_checkpoint(context: TaskContext) -> None:
    """A task that is done goes on from nothing; that the store does not answer is no reason to do it again.

    What is left there is read by nobody, for a rerun is another generation, and deleted when that has succeeded.
    """
    why = ["it did not answer in time."]

    def delete() -> None:
        try:
            context.checkpoint_delete()
            why.clear()
        except (OrchestratorError, OSError) as error:
            why[:] = [str(error)]

    # In a thread, which ends with the process: a store that hangs in the kernel or in a library obeys no signal.
    deleting = threading.Thread(target=delete, name="forget-checkpoint", daemon=True)
    try:
        deleting.start()
        deleting.join(FORGET_SECONDS)
    except RuntimeError as error:  # the task has as many threads as it may
        why[:] = [str(error)]
    if why:
        print(f"What was saved for another attempt is left in the artifact store: {why[0]}", file=sys.stderr)


def _find(name: str, folders: Any) -> type[Operator]:
    from orchestrator.registry import built_in_operators, load_operators

    for operator in built_in_operators():
        if operator.name == name:
            return operator
    try:
        operators = load_operators(folders)
    except OrchestratorError as error:
        raise OperatorFailure("broken_operators", str(error), retryable=True) from error
    if name not in operators:
        raise OperatorFailure(
            "unknown_operator",
            f"This worker has no operator {name!r}; it has {', '.join(operators)}. Install it, or set OPERATORS_PATH.",
            retryable=True,
        )
    return operators[name]
