"""Runs the operator inside the attempt's own process, and leaves a result file for the supervisor."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError
from orchestrator.operator import Operator, OperatorFailure, SkipTask, TaskContext
from orchestrator.wire.messages import GrantSpec
from workers.attempt_folder import AttemptFolder
from workers.orders import Site
from workers.verdict import MAX_OUTPUT_BYTES, NO_ROOM_FOR_RESULT, OUT_OF_MEMORY, failure

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
    from jsonschema import Draft202012Validator

    from orchestrator.registry import built_in_operators
    from workers import context as _  # noqa: F401 - for its own imports: artifacts, outbound, paths

    for operator in built_in_operators():
        Draft202012Validator(dict(operator.parameters_schema)).is_valid({})


def execute(site: Site, spec: GrantSpec, folder: AttemptFolder, scratch: Path) -> int:
    """Run the attempt and return the exit status: 0 when the operator finished or skipped, ``NO_ROOM_FOR_RESULT`` when
    the disk did not take what became of it, else 1.

    :param scratch: where its temporary files go.
    """
    task = os.getpid()
    os.environ.clear()
    os.environ.update(task_environment(site, spec, folder, scratch))
    os.chdir(folder.work)
    # A line reaches the log when it is printed, not when 8 KiB are full.
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    with ExitStack() as afterwards:
        result = _run(site, spec, folder, afterwards)
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
    return 0 if result["end"] in ("ok", "skip") else 1


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


def _run(site: Site, spec: GrantSpec, folder: AttemptFolder, afterwards: ExitStack) -> dict[str, Any]:
    try:
        return _run_operator(site, spec, folder, afterwards)
    except SkipTask as skip:
        return {"end": "skip", "reason": skip.reason, "message": skip.message}
    except OperatorFailure as error:
        print(f"{error.reason}: {error.message}", file=sys.stderr)
        return failure(error.reason, error.message, retryable=error.retryable, retry_after=error.retry_after)
    except MemoryError:
        traceback.print_exc()
        return failure(OUT_OF_MEMORY, "Python could not get the memory it asked for.", retryable=True)
    except SystemExit as error:
        return failure("exit", f"The operator ended its process with status {error.code!r}.", retryable=True)
    except BaseException as error:  # noqa: BLE001 (whatever an operator raises is its outcome)
        traceback.print_exc()
        return failure("exception", f"{type(error).__name__}: {error}", retryable=True)


def _run_operator(site: Site, spec: GrantSpec, folder: AttemptFolder, afterwards: ExitStack) -> dict[str, Any]:
    from orchestrator.config import load_settings
    from workers.context import build_context

    settings = load_settings(site.settings)
    operator = _find(spec.operator, settings.operators_path)
    parameters = dict(spec.parameters)
    _check(operator.parameters_schema, parameters, "bad_parameters", f"parameters of task {spec.task!r}")
    context = build_context(settings, spec, folder, site.settings)
    try:
        outputs = operator().run(context, parameters)
    except SkipTask:
        afterwards.callback(_forget_checkpoint, context)
        raise
    _check(operator.outputs_schema, dict(outputs), "bad_outputs", f"outputs of operator {spec.operator!r}")
    result = {
        "end": "ok",
        "outputs": _as_json(outputs, "outputs"),
        "records": _as_json(list(context.records), "records"),
    }
    afterwards.callback(_forget_checkpoint, context)
    return result


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


def _check(schema: Mapping[str, Any], value: Mapping[str, Any], reason: str, what: str) -> None:
    from jsonschema import Draft202012Validator

    for error in Draft202012Validator(dict(schema)).iter_errors(value):
        pointer = "".join(f"/{part}" for part in error.absolute_path)
        raise OperatorFailure(reason, f"The {what} break the schema at {pointer or '/'}: {error.message[:500]}")


def _as_json(value: Any, what: str) -> Any:
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise OperatorFailure("bad_outputs", f"The {what} are no JSON: {error}.") from error
    if len(text.encode()) > MAX_OUTPUT_BYTES:
        raise OperatorFailure(
            "bad_outputs",
            f"The {what} have {len(text)} bytes; at most {MAX_OUTPUT_BYTES} are kept. Put the rest in an artifact.",
        )
    return json.loads(text)
