"""``custom_script``: runs a Python or bash script in a process of its own, with a file in and a file out."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from operators.scripts import checkpoint
from operators.scripts.process import (
    SCRIPT_TYPES,
    check_syntax,
    command,
    environment,
    memory_kills,
    run_process,
    signal_name,
    variable_name,
)
from operators.scripts.results import (
    KINDS,
    MAX_OUTPUT_BYTES,
    complete_kinds,
    read_message,
    read_outputs,
    require_kinds,
    store_files,
)
from orchestrator.errors import ForbiddenPath
from orchestrator.inputs import local_file, outputs_of_kind
from orchestrator.operator import Json, Operator, OperatorFailure, SkipTask, TaskContext

_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
"""Of the script itself, or of what a shell ran for it."""
_OUT_OF_MEMORY = "The kernel killed the script for want of memory; raise memory_gb, or give the worker more."
_FETCH = r"^([A-Za-z0-9][A-Za-z0-9._-]*\.)?(dataset|model|report)$"


class CustomScript(Operator):
    """Runs a script in the attempt's work folder.

    In: ``ORCHESTRATOR_INPUT_FILE`` names a JSON file with ``run_id``, ``task``, ``attempt_number``, ``arguments``,
    ``run_parameters``, ``upstream`` (outputs by task) and ``files`` (local path by URI, for what ``fetch`` names).
    Plain values are also in ``ORCHESTRATOR_PARAM_<NAME>``, fetched files in ``ORCHESTRATOR_FILE_<TASK>_<KIND>``.

    Out: a JSON object in ``ORCHESTRATOR_OUTPUT_FILE``, and files in ``ORCHESTRATOR_OUTPUT_DIR``, which are stored.

    Between attempts: what it leaves in ``ORCHESTRATOR_CHECKPOINT_DIR`` is there again when the task is tried again;
    a rerun begins anew. It is saved when the script ends without success (on SIGTERM it has the grace to write it), and
    whenever the script makes a file ``.save`` in it, which is removed when it is saved.

    Exit codes: 0 success, 64 failed and not to be tried again, 75 to be tried again later, 99 skip; with these three
    the output file may hold ``{"reason": "a_word", "message": "A sentence."}``. Any other code is a retryable failure.
    """

    name = "custom_script"
    summary = "Runs a Python or bash script; parameters come as environment and JSON file, outputs go to a JSON file."
    parameters_schema: ClassVar[Mapping[str, Json]] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "script_type": {"enum": list(SCRIPT_TYPES), "default": "python", "description": "What runs it."},
            "script_content": {"type": "string", "maxLength": 500_000, "description": "The script itself."},
            "script_path": {
                "type": "string", "minLength": 1, "description": "Or a file under the scripts root of the site.",
            },
            "arguments": {
                "type": "object", "default": {},
                "description": "Values for the script. They reach it as data and are never put into its text.",
            },
            "fetch": {
                "type": "array", "uniqueItems": True, "maxItems": 100, "default": [],
                "items": {"type": "string", "pattern": _FETCH},
                "description": "What to bring to this host: dataset, model or report of every ancestor, or of one "
                "(ingest-data.dataset).",
            },
            "produces": {
                "type": "array", "uniqueItems": True, "items": {"enum": list(KINDS)}, "default": [],
                "description": "Kinds that the script's outputs will hold, for tasks downstream that need one.",
            },
        },
    }  # fmt: skip
    outputs_schema: ClassVar[Mapping[str, Json]] = {
        "type": "object",
        "description": "What the script wrote, and the files it left.",
        "properties": {
            **{kind: {"type": "object", "description": f"The {kind} for tasks downstream."} for kind in KINDS},
            "artifacts": {
                "type": "object",
                "description": "The files it left, by their path in the output folder.",
                "additionalProperties": {
                    "type": "object",
                    "required": ["uri", "bytes", "fingerprint"],
                    "properties": {
                        "uri": {"type": "string", "description": "artifact://… of the file."},
                        "bytes": {"type": "integer", "description": "Its size."},
                        "fingerprint": {"type": "string", "description": "sha256:<hex> of it."},
                    },
                },
            },
        },
    }

    verbatim: ClassVar[frozenset[str]] = frozenset({"script_content"})

    @classmethod
    def problems(cls, parameters: Mapping[str, Json]) -> list[tuple[str, str]]:
        """Check that there is one script."""
        given = [name for name in ("script_content", "script_path") if name in parameters]
        if len(given) == 2:
            return [("/script_path", "Give script_content or script_path, not both.")]
        return [] if given else [("/script_content", "There is no script; give script_content or script_path.")]

    @classmethod
    def produces(cls, parameters: Mapping[str, Json]) -> frozenset[str]:
        """Return what the definition promises in ``produces``."""
        promised = parameters.get("produces")
        return frozenset(kind for kind in KINDS if isinstance(promised, list) and kind in promised)

    def run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        """Run the script to its end and collect what it left."""
        script_type = parameters.get("script_type", "python")
        script = _script(context, parameters, script_type)
        output_file, output_folder = context.workdir / "output.json", context.workdir / "output"
        output_folder.mkdir(exist_ok=True)
        fetched = _fetch(context, parameters.get("fetch", []))
        input_file = _write_input(context, parameters, fetched)
        saved = checkpoint.open_folder(context)
        files = {
            "INPUT_FILE": input_file, "OUTPUT_FILE": output_file, "OUTPUT_DIR": output_folder, "CHECKPOINT_DIR": saved,
        }  # fmt: skip
        variables = {name: str(path) for name, path in files.items()}
        variables |= {f"FILE_{variable_name(source)}": str(path) for source, (_, path) in fetched.items()}
        values = {**context.run_parameters, **parameters.get("arguments", {})}
        kills = memory_kills()
        with checkpoint.outliving_term():
            code = run_process(
                command(script_type, script),
                environment(context, values, variables),
                context.workdir,
                lambda: checkpoint.save_if_asked(context, saved),
            )
            if code != 0:
                checkpoint.keep(context)
        if code in _KILLED and memory_kills() > kills:
            # The kernel chose the script, not the process that waits for it, whose end the worker judges.
            raise OperatorFailure("oom", _OUT_OF_MEMORY, retryable=True, exit_code=code)
        _judge(code, output_file)
        return _collect(context, parameters, output_file, output_folder)

    def dry_run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        """Find the script and parse it, without running it."""
        script_type = parameters.get("script_type", "python")
        check_syntax(script_type, _script(context, parameters, script_type))
        return {"script_type": script_type}


def _script(context: TaskContext, parameters: Mapping[str, Json], script_type: str) -> Path:
    """Return the file to run; inline text gets a folder of its own, so that it imports nothing from the work folder."""
    if "script_path" in parameters:
        try:
            path = context.roots.script(parameters["script_path"])
        except ForbiddenPath as error:
            raise OperatorFailure("forbidden_path", str(error)) from error
        if not path.is_file():
            raise OperatorFailure("not_found", f"The scripts root holds no file {parameters['script_path']!r}.")
        return path
    folder = context.workdir / "script"
    folder.mkdir(exist_ok=True)
    path = folder / ("script.py" if script_type == "python" else "script.sh")
    try:
        path.write_text(parameters["script_content"], encoding="utf-8", newline="")
    except UnicodeEncodeError as error:
        raise OperatorFailure("bad_script", "The script holds characters that are no Unicode text.") from error
    return path


def _fetch(context: TaskContext, wanted: list[str]) -> dict[str, tuple[str, Path]]:
    """Bring the wanted outputs of ancestors here: ``task.kind`` → (URI, path).

    :raises OperatorFailure: ``not_found``: no ancestor has it.
    """
    found: dict[str, tuple[str, Path]] = {}
    for entry in wanted:
        task, _, kind = entry.rpartition(".")
        sources = {
            f"{name}.{kind}": output["uri"]
            for name, output in outputs_of_kind(context, kind)
            if task in ("", name, name.partition("[")[0]) and "uri" in output
        }
        if not sources:
            raise OperatorFailure("not_found", f"fetch names {entry!r}, but no task upstream left such an output.")
        for source, uri in sources.items():
            found[source] = (uri, local_file(context, uri))
    return found


def _write_input(context: TaskContext, parameters: Mapping[str, Json], fetched: Mapping[str, tuple[str, Path]]) -> Path:
    path = context.workdir / "input.json"
    content = {
        "run_id": context.run_id,
        "task": context.task,
        "attempt_number": context.attempt_number,
        "arguments": parameters.get("arguments", {}),
        "run_parameters": dict(context.run_parameters),
        "upstream": dict(context.upstream_outputs),
        "files": {uri: str(place) for uri, place in fetched.values()},
    }
    path.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    return path


def _judge(code: int, output_file: Path) -> None:
    """Return for success only.

    :raises SkipTask: exit code 99.
    :raises OperatorFailure: every other code, or death by a signal.
    """
    if code == 0:
        return
    if code < 0:
        name = signal_name(-code)
        hint = " It may have used more memory than the task has." if name == "SIGKILL" else ""
        sentence = f"The script was killed by {name} ({-code}).{hint}"
        raise OperatorFailure("killed", sentence, retryable=True, exit_code=code)
    reason, message = read_message(output_file) if code in {64, 75, 99} else ("", "")
    if code == 99:
        raise SkipTask(reason or "script", message or "The script ended with exit code 99 (skip).")
    if code == 64:
        told = message or "The script ended with exit code 64 (do not retry)."
        raise OperatorFailure(reason or "exit_code", told, exit_code=code)
    if code == 75:
        told = message or "The script ended with exit code 75 (try again later)."
        raise OperatorFailure(reason or "exit_code", told, retryable=True, exit_code=code)
    # A shell says 128 + n of a child that was killed by signal n.
    shell = f" (128 + {signal_name(code - 128)})" if 128 < code < 160 else ""
    sentence = f"The script ended with exit code {code}{shell}; see its log."
    raise OperatorFailure("exit_code", sentence, retryable=True, exit_code=code)


def _collect(
    context: TaskContext, parameters: Mapping[str, Json], output_file: Path, output_folder: Path
) -> Mapping[str, Json]:
    outputs = read_outputs(output_file)
    if "artifacts" in outputs:
        raise OperatorFailure("bad_outputs", "The output 'artifacts' is ours: it lists the files the script leaves.")
    files = store_files(context, output_folder)
    outputs = complete_kinds(context, outputs, files, output_folder)
    require_kinds(outputs, CustomScript.produces(parameters))
    if files:
        outputs["artifacts"] = {
            name: {"uri": file.uri, "bytes": file.bytes, "fingerprint": file.fingerprint}
            for name, file in files.items()
        }
    if len(json.dumps(outputs)) > MAX_OUTPUT_BYTES:
        message = "Outputs and the list of files are too large together; leave fewer files."
        raise OperatorFailure("outputs_too_large", message)
    return outputs
