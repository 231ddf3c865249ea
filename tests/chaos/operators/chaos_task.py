"""The task of the fault suite: notes in a ledger what really ran, and misbehaves in the way its parameters say."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn
from urllib.parse import unquote

from orchestrator.operator import Json, Operator, OperatorFailure, SkipTask, TaskContext

LONGEST_LIFE = 180.0
"""Seconds after which a forked process ends by itself, should everything else fail to end it."""
LINE = "a line of the log that says nothing in particular and is exactly one hundred bytes long, I think it is\n"


def _number(text: str, default: float = 0) -> dict[str, Any]:
    return {"type": "number", "minimum": 0, "default": default, "description": text}


def _count(text: str, default: int = 0) -> dict[str, Any]:
    return {"type": "integer", "minimum": 0, "default": default, "description": text}


def _flag(text: str) -> dict[str, Any]:
    return {"type": "boolean", "default": False, "description": text}


class ChaosTask(Operator):
    """Writes ``start``, ``beat``, ``term`` and ``end`` lines, one JSON object each, to a file of a data root."""

    name = "chaos_task"
    summary = "Notes in a ledger what really ran, and misbehaves as told."
    parameters_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "additionalProperties": False,
        "required": ["path"],
        "properties": {
            "path": {"type": "string", "description": "Ledger to append to, in a data root."},
            "seconds": _number("How long it takes.", 0.1),
            "tick_seconds": _number("It ends on the next beat of the machine's clock of this length, as others do."),
            "beat_seconds": _number("Every so often a line says that it (and all it forked) still lives; 0: never."),
            "fail_times": _count("Its first attempts, so many, fail and may be tried again."),
            "skip": _flag("It decides that there is nothing to do."),
            "outputs_bytes": _count("Size of a padding in its outputs."),
            "log_bytes": _count("How much it prints."),
            "ignore_term": _flag("It notes TERM and goes on; what it forked does too."),
            "checkpoint": _flag("After TERM it saves for `checkpoint_seconds`, then ends of it."),
            "checkpoint_seconds": _number("How long saving takes.", 0.2),
            "double_fork": _flag("A daemon of its own session outlives it, if nobody ends that."),
            "fork_bomb": _count("So many processes that it forks and leaves behind."),
            "kill": {
                "enum": ["", "self", "supervisor", "fork_server", "worker"],
                "default": "",
                "description": "Whom it kills with KILL after `kill_after` seconds.",
            },
            "kill_after": _number("Seconds before it kills.", 0.05),
            "kill_times": _count("Only its first attempts, so many, kill; 0: every one."),
            "allocate_mb": _count("Memory that it takes and touches, before it waits."),
        },
    }
    outputs_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "fence": {"type": "string", "description": "The token of the attempt that succeeded."},
            "padding": {"type": "string"},
        },
    }

    def run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        note = _notes(context, context.roots.resolve(parameters["path"], for_writing=True))
        _mind_term(note, parameters)
        note("start")
        started = time.monotonic()
        taken = b"x" * (int(parameters.get("allocate_mb", 0)) << 20)
        _print(int(parameters.get("log_bytes", 0)))
        _fork_away(note, parameters)
        _kill(context, parameters)
        _live_until(_beat_after(started + float(parameters.get("seconds", 0.1)), parameters), note, parameters)
        del taken
        note("end")
        if parameters.get("skip"):
            raise SkipTask("nothing_to_do")
        if context.attempt_number <= int(parameters.get("fail_times", 0)):
            raise OperatorFailure("chaos", f"Attempt {context.attempt_number} fails as it was told to.", retryable=True)
        outputs = {"fence": context.fence}
        padding = int(parameters.get("outputs_bytes", 0))
        return {**outputs, "padding": "x" * padding} if padding else outputs


Note = Callable[[str], None]


def _notes(context: TaskContext, path: Path) -> Note:
    """Return what appends one line to the ledger."""
    host = _host(context.workdir)

    def note(what: str) -> None:
        line = {
            "what": what,
            "run": context.run_id,
            "task": context.task,
            "attempt": context.attempt_id,
            "fence": context.fence,
            "host": host,
            "pid": os.getpid(),
            # The monotonic clock is one for the whole machine, and nobody's wall clock moves it.
            "at": time.monotonic(),
            "wall": time.time(),
        }
        # One short write in append mode is atomic on a local file system; opened anew, so that forks share no offset.
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, (json.dumps(line) + "\n").encode())
        finally:
            os.close(file)

    return note


def _host(workdir: Path) -> str:
    """Return the host that the worker pretends to be on: its folders of this host hold ours."""
    for part in reversed(workdir.parts):
        if part.startswith("host-"):
            return unquote(part.removeprefix("host-"))
    return socket.gethostname()


def _mind_term(note: Note, parameters: Mapping[str, Json]) -> None:
    """Note TERM; then go on, or save and end of it, or end of it at once. Ending of the signal leaves no result."""

    def on_term(*_: object) -> None:
        note("term")
        if parameters.get("ignore_term"):
            return
        if parameters.get("checkpoint"):
            time.sleep(float(parameters.get("checkpoint_seconds", 0.2)))
            note("saved")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, on_term)


def _print(size: int) -> None:
    while size > 0:
        print(LINE[: min(size, len(LINE)) - 1])
        size -= len(LINE)


def _fork_away(note: Note, parameters: Mapping[str, Json]) -> None:
    """Leave processes behind: children, and a grandchild in a session of its own."""
    for _ in range(int(parameters.get("fork_bomb", 0))):
        if os.fork() == 0:
            _linger(note, parameters)
    if parameters.get("double_fork"):
        child = os.fork()
        if child == 0:
            os.setsid()
            if os.fork() == 0:
                _linger(note, parameters)
            os._exit(0)
        os.waitpid(child, 0)


def _linger(note: Note, parameters: Mapping[str, Json]) -> NoReturn:
    try:
        _live_until(time.monotonic() + LONGEST_LIFE, note, parameters)
    finally:
        os._exit(0)


def _kill(context: TaskContext, parameters: Mapping[str, Json]) -> None:
    """Kill this process or one above it: task, supervisor, fork server, worker."""
    chain = ("self", "supervisor", "fork_server", "worker")
    whom = parameters.get("kill") or ""
    times = int(parameters.get("kill_times", 0))
    if not whom or (times and context.attempt_number > times):
        return
    time.sleep(float(parameters.get("kill_after", 0.05)))
    pid = os.getpid()
    for _ in range(chain.index(whom)):
        pid = _parent(pid)
    os.kill(pid, signal.SIGKILL)


def _parent(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    # The command's name stands in parentheses and may itself hold spaces and parentheses.
    return int(stat[stat.rindex(")") + 2 :].split()[1])


def _beat_after(moment: float, parameters: Mapping[str, Json]) -> float:
    """Return the moment at which all tasks with this beat end that would end about now."""
    every = float(parameters.get("tick_seconds", 0))
    return math.ceil(max(moment, time.monotonic()) / every) * every if every else moment


def _live_until(moment: float, note: Note, parameters: Mapping[str, Json]) -> None:
    """Wait, saying now and then that this process lives."""
    every = float(parameters.get("beat_seconds", 0))
    while (left := moment - time.monotonic()) > 0:
        time.sleep(min(left, every) if every else left)
        if every:
            note("beat")
