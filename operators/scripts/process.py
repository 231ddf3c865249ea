"""Starts the interpreter: what it sees of our environment, and how its end is read."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from orchestrator.operator import Json, OperatorFailure, TaskContext

PREFIX = "ORCHESTRATOR_"
SCRIPT_TYPES = ("python", "bash")

_PASSED = frozenset(
    {
        "PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS", "POLARS_MAX_THREADS", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
        "FEATURE_STORE_URL",
        # By this the worker finds what a script left behind.
        "ORCHESTRATOR_INCARNATION",
    }
)  # fmt: skip
"""A list of what may pass, not of what may not: the next secret will have a name that no list knows."""

_LONGEST_VALUE = 32 * 1024
"""Longer values are only in the input file: Linux refuses a process whose one variable exceeds 128 KiB."""

_TEND_SECONDS = 0.5

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_MACHINE = Path("/proc/vmstat")


def command(script_type: str, script: Path) -> list[str]:
    """Return the command line.

    Python ignores ``PYTHON*`` variables and the user's own packages (``-E -s``) and prints without delay (``-u``), but
    finds modules beside the script, unlike with ``-I``: a script of the scripts root may be more than one file.
    """
    if script_type == "python":
        return [sys.executable, "-E", "-s", "-u", "-B", "-X", "utf8", str(script)]
    return [_bash(), "--noprofile", "--norc", str(script)]


def check_syntax(script_type: str, script: Path) -> None:
    """Parse the script without running it.

    :raises OperatorFailure: ``bad_script``.
    """
    if script_type == "python":
        try:
            compile(script.read_bytes(), script.name, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            raise OperatorFailure("bad_script", f"The script is no valid Python: {error}.") from error
        return
    done = subprocess.run([_bash(), "-n", str(script)], capture_output=True, text=True, check=False, env={})
    if done.returncode != 0:
        raise OperatorFailure("bad_script", f"The script is no valid bash: {done.stderr.strip()[:300]}")


def _bash() -> str:
    found = shutil.which("bash")
    if found is None:
        raise OperatorFailure("no_interpreter", "There is no bash on this worker's host; install it or use python.")
    return found


def environment(context: TaskContext, values: Mapping[str, Json], files: Mapping[str, str]) -> dict[str, str]:
    """Return the script's whole environment.

    :param values: run parameters and arguments; plain ones become ``ORCHESTRATOR_PARAM_<NAME>``.
    :param files: variables without their prefix that hold paths.
    """
    passed = {name: value for name, value in os.environ.items() if name in _PASSED}
    folder = str(Path(sys.executable).parent)
    scratch = context.workdir / "tmp"
    scratch.mkdir(exist_ok=True)
    passed["PATH"] = f"{folder}{os.pathsep}{passed.get('PATH', os.defpath)}"
    passed |= {"HOME": str(context.workdir), "TMPDIR": _short(scratch), "LANG": passed.get("LANG", "C.UTF-8")}
    if context.registry_url:
        passed["MODEL_REGISTRY_URL"] = context.registry_url
    own = {
        "PIPELINE": context.pipeline, "RUN_ID": context.run_id, "TASK": context.task, "TENANT_ID": context.tenant_id,
        "ATTEMPT_ID": context.attempt_id, "ATTEMPT_NUMBER": str(context.attempt_number), "FENCE": context.fence,
        "CPU": f"{context.cpu:g}", "MEMORY_BYTES": str(context.memory_bytes), **_parameters(values), **files,
    }  # fmt: skip
    return passed | {PREFIX + name: value for name, value in own.items()}


def _short(scratch: Path) -> str:
    """Return the path by which the worker names this folder: sockets are bound below it, and of a path the kernel takes
    107 bytes, however deep ``DATA_DIR`` lies."""
    given = os.environ.get("TMPDIR", "")
    try:
        return given if scratch.samefile(given) else str(scratch)
    except OSError:
        return str(scratch)


def variable_name(text: str) -> str:
    """Return text as the tail of a variable's name: ``ingest-data`` becomes ``INGEST_DATA``."""
    return re.sub(r"[^A-Z0-9]+", "_", text.upper()).strip("_")


def _parameters(values: Mapping[str, Json]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in values.items():
        if not isinstance(value, (str, int, float)) or not variable_name(name):
            continue
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if "\0" not in text and len(text.encode(errors="replace")) <= _LONGEST_VALUE:
            found[f"PARAM_{variable_name(name)}"] = text.encode(errors="replace").decode()
    return found


def run_process(
    arguments: Sequence[str], env: Mapping[str, str], folder: Path, tend: Callable[[], None] = lambda: None
) -> int:
    """Run to the end and return the exit status; output goes to the attempt's log, where ours goes.

    The process stays in the session of the attempt: the runner stops both, and knows when none of them lives.

    :param tend: called twice a second meanwhile.
    """
    try:
        process = subprocess.Popen(arguments, env=dict(env), cwd=folder, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise OperatorFailure("no_interpreter", f"{arguments[0]} can't be started: {error.strerror}.") from error
    with process:
        try:
            while True:
                try:
                    return process.wait(_TEND_SECONDS)
                except subprocess.TimeoutExpired:
                    tend()
        except BaseException:
            process.kill()
            raise


def memory_kills() -> int:
    """Return how often the kernel has killed a process for memory: of our own cgroup, which is the attempt's or that of
    its container, for a neighbour's death says nothing of ours; of the machine, where no cgroup counts."""
    counts = (_oom_kills(file) for file in (*_own_counters(), _MACHINE))
    return next((count for count in counts if count is not None), 0)


def _own_counters() -> Iterator[Path]:
    """Yield the files in which our cgroup may count, of both versions; a container may see its own as the root."""
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        inside = path.lstrip("/")
        if not controllers:
            yield from (_CGROUPS / place / "memory.events" for place in (inside, "unified/" + inside, "."))
        elif "memory" in controllers.split(","):
            yield from (_CGROUPS / "memory" / place / "memory.oom_control" for place in (inside, "."))


def _oom_kills(file: Path) -> int | None:
    try:
        words = file.read_text().split()
    except OSError:
        return None
    return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else None


def signal_name(number: int) -> str:
    """Return ``SIGKILL`` for 9; a number that has no name is returned as it is."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
