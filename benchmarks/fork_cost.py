"""What a process per attempt costs: ``python -m benchmarks.fork_cost`` prints the figures of ADR 0002.

It starts a fork server as a worker does, runs attempts of an operator that does nothing, and times each from the order
to its outcome on disk. Beside it: a bare fork and wait from this process, lean and with scikit-learn imported.
"""

from __future__ import annotations

import os
import queue
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil

from orchestrator.config import load_settings
from orchestrator.records import Resources
from orchestrator.wire.messages import GrantSpec, grant_body
from workers import environment
from workers.fork_client import ForkClient, Listener
from workers.identity import IncarnationLock, open_folders, read_boot_id
from workers.orders import Site

ATTEMPTS = 40
FORKS = 200
MIB = 2**20
OPERATORS = Path(__file__).parent / "operators"


def main() -> None:
    """Measure and print."""
    lean = _bare_fork()
    print(f"bare fork, setsid, wait   {lean:6.2f} ms   from this process, {_rss(os.getpid()):.0f} MiB, lean")
    with tempfile.TemporaryDirectory() as folder, _fork_server(Path(folder)) as (client, ended, spec):
        times = [_attempt(client, ended, spec) for _ in range(ATTEMPTS)]
        print(
            f"one attempt, order to end {statistics.median(times):6.2f} ms   median of {ATTEMPTS}, one after another; "
            f"slowest {max(times):.0f} ms"
        )
        print(
            f"the fork server           {_rss(client.process.pid):6.1f} MiB resident, "
            f"{_private(client.process.pid):.1f} MiB its own"
        )
    import sklearn.ensemble  # noqa: F401 - its pages are what makes the next fork dear

    print(
        f"bare fork, setsid, wait   {_bare_fork():6.2f} ms   from this process, {_rss(os.getpid()):.0f} MiB, "
        "with scikit-learn"
    )


def _bare_fork() -> float:
    """Return the median milliseconds of a fork whose child starts a session and ends."""
    times = []
    for _ in range(FORKS):
        began = time.perf_counter()
        child = os.fork()
        if child == 0:
            os.setsid()
            os._exit(0)
        os.waitpid(child, 0)
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


@contextmanager
def _fork_server(folder: Path) -> Iterator[tuple[ForkClient, queue.Queue[str], GrantSpec]]:
    variables = {"DATA_DIR": str(folder), "OPERATORS_PATH": str(OPERATORS), "PATH": os.environ["PATH"]}
    settings = load_settings(variables)
    folders = open_folders(settings)
    incarnation = str(uuid.uuid4())
    lock = IncarnationLock(folders, incarnation)
    site = Site(
        incarnation=incarnation, boot_id=read_boot_id(), attempts=str(folders.attempts), spool=str(folders.spool),
        local_to="", settings=environment.settings_for_tasks(variables, settings, "host"),
        environment=environment.task_base(variables), use_cgroups=False,
    )  # fmt: skip
    ended: queue.Queue[str] = queue.Queue()
    died = threading.Event()
    client = ForkClient(
        site, environment.fork_server_environment(variables, incarnation), lock.fd,
        Listener(lambda: None, lambda _: None, ended.put, lambda _, why: ended.put(why), died.set),
    )  # fmt: skip
    spec = GrantSpec(
        attempt_id="", token="token", run_id="run", tenant_id="tenant", task="task", number=1, operator="noop",
        parameters={}, resources=Resources(cpu=1000, memory=2**30),
    )  # fmt: skip
    try:
        yield client, ended, spec
    finally:
        client.close()
        lock.release()


def _attempt(client: ForkClient, ended: queue.Queue[str], spec: GrantSpec) -> float:
    attempt_id = uuid.uuid4().hex
    body = grant_body(replace(spec, attempt_id=attempt_id))
    began = time.perf_counter()
    client.start(attempt_id, body, None)
    assert ended.get(timeout=30) == attempt_id
    return (time.perf_counter() - began) * 1000


def _rss(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / MIB


def _private(pid: int) -> float:
    return psutil.Process(pid).memory_full_info().uss / MIB


if __name__ == "__main__":
    main()
