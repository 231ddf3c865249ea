"""A whole site that may be broken: own stores, two APIs, two schedulers, three workers, a proxy on every link.

Processes that die are started again after 0.2 s, as systemd, compose and the one-host command do.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.local.child import ProcessSpec, last_lines
from orchestrator.store.engine import Limits, create_store_engine
from tests.acceptance.system import (
    ADMIN_KEY,
    ROOT,
    SCHEDULER_COMMAND,
    Questions,
    api_command,
    control_plane_environment,
    host_environment,
    site_environment,
    worker_command,
)
from tests.chaos import parts
from tests.chaos.client import ChaosClient, Memory
from tests.chaos.clock import clock_variables, forget_clocks, shift_clock, with_clock
from tests.chaos.faulty_process import VARIABLE
from tests.chaos.history import History, read_history
from tests.chaos.parts import Use, WorkerParts
from tests.chaos.ports import steady_port
from tests.chaos.processes import Processes, send
from tests.chaos.proxy import Proxies
from tests.chaos.servers import ChaosPostgres, ChaosRedis
from workers.process_tree import Proc

OPERATORS = ROOT / "tests" / "chaos" / "operators"
LEDGER = "ledger.jsonl"

SETTINGS = {
    # Four slots fit, in both dimensions, and not one task more: half a core and a quarter GiB is what a task asks.
    "MAX_CPU_CORES": "2",
    "MAX_MEMORY_GB": "1",
    "MAX_CONCURRENT_RUNS": "100",
    "RATE_LIMIT_PER_SECOND": "10000",
    "CANCEL_GRACE_SECONDS": "2",
}


ROUTINE = ('"celery.app.trace"', '"celery.worker.strategy"', '"outcome_answered"', '"status": 20')
"""Marks of log lines that say nothing of a failure."""


class ChaosSite(Questions):
    """One site on one folder; usable as a context manager.

    :param template: PostgreSQL's folder, made by :func:`tests.chaos.servers.make_template`.
    :param workers: letters of the workers, each a pretended host of its own.
    :param faults: message faults per kind of process (``api``, ``scheduler``, ``worker``), see ``faulty_process``.
    :param clocks: names of processes whose wall clock :meth:`shift_clock` may set wrong.
    :param postgres_disk_mb: give PostgreSQL a file system of its own of this size, which can be filled; needs root.
    :param code: the release that all processes run at first.
    :param settings: environment variables of all processes.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        template: Path,
        *,
        workers: tuple[str, ...] = ("a", "b", "c"),
        slots: int = 4,
        apis: int = 2,
        schedulers: int = 2,
        queues: str = "cpu,highmem",
        faults: Mapping[str, Mapping[str, Any]] | None = None,
        clocks: tuple[str, ...] = (),
        postgres_disk_mb: int = 0,
        code: Path = ROOT,
        **settings: str,
    ) -> None:
        self.folder = folder
        self.seed = seed
        self.memory = Memory(grace=float({**SETTINGS, **settings}["CANCEL_GRACE_SECONDS"]))
        """What users were told: accepted runs, cancels, every answer with its status and seconds."""
        self.notes: list[str] = []
        """What was broken and what died, with the seconds since the start; printed with a failure."""
        self.variables: dict[str, dict[str, str]] = {}
        """Environment variables of single processes by name; they count from the process's next start."""
        self.code: defaultdict[str, Path] = defaultdict(lambda: code)
        """The folder of the release that a process runs, by name; counts from its next start."""
        self.faults = {kind: dict(wanted) for kind, wanted in (faults or {}).items()}
        """May be changed; counts from the next start of a process of that kind."""
        self._clocks = {name: clock_variables(folder, name) for name in clocks}
        self._began = time.monotonic()
        for made in ("data", "postgres", "redis"):
            (folder / made).mkdir(parents=True, exist_ok=True)
        self.processes = Processes(folder, self.note)
        self.proxies = Proxies()
        self.postgres = ChaosPostgres(
            folder / "postgres",
            template,
            self.processes,
            clock=self._clocks.get("postgres", {}),
            disk_mb=postgres_disk_mb,
        )
        self.redis = ChaosRedis(folder / "redis", self.processes)
        self.workers = tuple(f"worker-{letter}" for letter in workers)
        self.schedulers = tuple(f"scheduler-{number}" for number in range(1, schedulers + 1))
        self.apis = {f"api-{number}": steady_port() for number in range(1, apis + 1)}
        self.slots = slots
        self._queues = queues
        self._environment = {**site_environment(folder, OPERATORS), **SETTINGS, **settings}
        self.client = self.new_client()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.tell()
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.tell()
        self.close()

    # --- start and end ---

    def start(self) -> None:
        """Start everything, and wait until all of it works."""
        self.postgres.add()
        self.redis.add()
        self.postgres.wait_until_ready()
        self.redis.wait_until_ready()
        for name in (*self.schedulers, *self.apis):
            self.proxies.add(f"{name}→postgres", lambda: self.postgres.port)
        for name in (*self.workers, *self.schedulers, *self.apis):
            self.proxies.add(f"{name}→redis", lambda: self.redis.port)
        for name in (*self.workers, *self.apis, *self.schedulers):
            self.processes.add(name, lambda name=name: self._spec(name))  # type: ignore[misc]
        self.wait_until_online(len(self.workers))
        self.note("everything works")

    def close(self) -> None:
        """End everything, by force and without traces; the contract was checked before.

        :raises AssertionError: a process of the site outlived it.
        """
        self.client.close()
        self.processes.restart_no_more()
        self._end_all()
        self.processes.close(last=(self.postgres.name,))
        self.proxies.close()
        self.postgres.close()
        forget_clocks(pid for name in self._clocks for pid in self.processes[name].pids)
        left = [process for process in parts.site_processes(self.folder) if process.is_alive]
        for process in left:
            send(process.pid, signal.SIGKILL)
        assert not left, f"outlived the site (seed {self.seed}): {parts.describe(left)}"

    def _end_all(self) -> None:
        """Kill the services and what the tasks run; supervisors and fork servers then clear up and end by themselves.

        PostgreSQL is told to end at once, but by itself: killed, it would leave shared memory behind.
        """
        pids = self.processes.pids()
        database = pids.pop(self.postgres.name, 0)
        for pid in pids.values():
            send(pid, signal.SIGKILL)
        if database:
            send(database, signal.SIGCONT)
            send(database, signal.SIGQUIT)
        began = time.monotonic()
        while left := [one for one in parts.site_processes(self.folder) if database not in (one.pid, one.parent)]:
            waited = time.monotonic() - began
            if waited > 5.0:
                return
            parts.end_tasks(left, all_of_them=waited > 3.0)
            time.sleep(0.02)

    def _spec(self, name: str) -> ProcessSpec:
        """Return how the process is run now; asked at each of its starts."""
        kind = name.partition("-")[0]
        environment = {**self._environment, "REDIS_URL": self.redis.url(self.proxies[f"{name}→redis"].port)}
        if kind == "worker":
            letter = name.partition("-")[2]
            command: tuple[str, ...] = worker_command(letter, self._queues, self.slots)
            environment |= host_environment(self.folder, letter)
        else:
            port = self.apis.get(name, 0)
            command = self._api_command(name, port) if kind == "api" else SCHEDULER_COMMAND
            address = self.postgres.url(self.proxies[f"{name}→postgres"].port)
            environment |= control_plane_environment(address, port or 8001)
        if kind in self.faults:
            command = ("tests.chaos.faulty_process", *command)
            environment[VARIABLE] = json.dumps({**self.faults[kind], "seed": f"{self.seed}/{name}"})
        spec = ProcessSpec(
            name=name,
            command=(sys.executable, "-m", *command),
            folder=self.code[name],
            environment={**environment, **self.variables.get(name, {})},
        )
        return with_clock(spec, self._clocks.get(name, {}))

    def _api_command(self, name: str, port: int) -> tuple[str, ...]:
        """Return how a release serves its API: one that has no worker class of its own, with gunicorn's."""
        has_own = (self.code[name] / "api" / "server.py").exists()
        return api_command(port) if has_own else api_command(port, worker_class="gthread")

    # --- randomness, notes, clients ---

    def dice(self, purpose: str) -> random.Random:
        """Return the random numbers of one purpose: they follow from the seed, whatever others draw."""
        return random.Random(f"{self.seed}/{purpose}")

    def note(self, what: str) -> None:
        """Remember what was done or seen."""
        self.notes.append(f"{time.monotonic() - self._began:7.2f} s  {what}")

    def new_client(self, patience: float = 60.0, timeout: float = 10.0) -> ChaosClient:
        """Return another user, for another thread."""
        urls = [f"http://127.0.0.1:{port}" for port in self.apis.values()]
        return ChaosClient(urls, ADMIN_KEY, self.memory, patience=patience, timeout=timeout)

    def tell(self) -> None:
        """Print what helps to understand a failure: the seed, what was done, how processes ended, their last words."""
        print(f"\n=== chaos: seed {self.seed} (repeat with --seed={self.seed})")
        print("\n".join(self.notes[-120:]))
        for name in self.processes.names():
            one = self.processes[name]
            print(f"--- {name}: {one.starts} starts, ended with {one.statuses}")
            lines = last_lines(self.processes.log(name), 400).splitlines()
            print(*[line[:400] for line in lines if not any(word in line for word in ROUTINE)][-25:], sep="\n")
        if self.processes.troubles:
            print("--- could not be started:", *self.processes.troubles[-5:], sep="\n")

    # --- who is who ---

    def leader(self) -> str | None:
        """Return the name of the scheduler that leads by the lease row; None when its holder has ended."""
        rows = self.postgres.query(
            "SELECT holder FROM leases WHERE role = 'scheduler' AND expires_at > clock_timestamp()"
        )
        pids = {pid: name for name, pid in self.processes.pids().items()}
        return pids.get(int(rows[0][0].rsplit("-", 2)[1])) if rows and rows[0][0] else None

    def wait_for_leader(self, other_than: str | None = None, seconds: float = 15.0) -> str:
        """Wait until a scheduler leads (another one than the named) and return its name."""

        def found() -> str | None:
            name = self.leader()
            return name if name != other_than else None

        name: str = self.wait_until(found, f"a leader other than {other_than}", seconds)
        return name

    def host_folder(self, worker: str) -> Path:
        """Return the folder in which a worker's host keeps its spool, its attempts and its locks."""
        host = host_environment(self.folder, worker.removeprefix("worker-"))
        return Path(host["DATA_DIR"]) / f"host-{host['HOST_ID']}"

    def parts(self, worker: str) -> WorkerParts:
        """Return the process ids of a worker's parts, as they are now."""
        return parts.worker_parts(self.processes.pid(worker), self.host_folder(worker))

    def survivors(self) -> list[Proc]:
        """Return what of tasks lives now; nothing may when all runs have ended (I10)."""
        return parts.survivors(self.folder, self.processes.pids().values())

    def use(self, prefix: str = "") -> dict[str, Use]:
        """Measure the services whose names begin so; gunicorn's worker process counts as its own."""
        found: dict[str, Use] = {}
        for name, pid in self.processes.pids().items():
            if not name.startswith(prefix):
                continue
            for process in (pid, *self._children_of_api(name, pid)):
                if (use := parts.use_of(process)) is not None:
                    found[name if process == pid else f"{name}/worker"] = use
        return found

    @staticmethod
    def _children_of_api(name: str, pid: int) -> Iterator[int]:
        if name.startswith("api-"):
            with suppress(OSError):
                yield from map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())

    # --- deeds ---

    def signal(self, pid: int, what: signal.Signals, who: str) -> bool:
        """Signal one process; returns whether it was still there."""
        if not send(pid, what):
            return False
        self.note(f"{what.name} to {who} (pid {pid})")
        return True

    def shift_clock(self, name: str, seconds: float) -> None:
        """Set the wall clock of a process of ``clocks`` wrong by so many seconds; 0 sets it right."""
        shift_clock(self.folder, name, seconds)
        self.note(f"the clock of {name} is off by {seconds:+.0f} s")

    @contextmanager
    def frozen(self, *names: str) -> Iterator[None]:
        """Keep processes stopped (SIGSTOP) for the block."""
        for name in names:
            self.processes.freeze(name)
        try:
            yield
        finally:
            for name in names:
                self.processes.thaw(name)

    # --- what the site did ---

    @property
    def ledger_file(self) -> Path:
        """Where the tasks of the load note their starts and ends."""
        return self.folder / "data" / LEDGER

    def history(self) -> History:
        """Read what PostgreSQL says has happened, past the proxies."""
        engine = create_store_engine(self.postgres.url(), application="chaos", limits=Limits(statement=30.0))
        try:
            return read_history(engine)
        finally:
            engine.dispose()

    def open_business(self) -> str:
        """Say what is not yet at rest: accepted runs that have not ended, live attempts, reservations; else ""."""
        accepted = {run.run_id for run in list(self.memory.accepted)}
        states = dict(self.postgres.query("SELECT id::text, state FROM runs"))
        missing = accepted - set(states)
        open_runs = [
            f"{id_} {state}" for id_, state in states.items() if state not in ("success", "failed", "cancelled")
        ]
        live = self.postgres.query(
            "SELECT id::text, state, worker_id FROM attempts WHERE state IN ('dispatched', 'running')"
        )
        held = self.postgres.query("SELECT attempt_id::text, host_id, zombie FROM reservations")
        told = {
            "accepted runs that are not there": missing,
            "open runs": open_runs,
            "live attempts": live,
            "reservations": held,
        }
        return "; ".join(f"{len(found)} {what}: {list(found)[:5]}" for what, found in told.items() if found)

    def wait_until_quiet(self, seconds: float = 30.0) -> float:
        """Wait until every accepted run has ended and nothing is held for any; returns the seconds it took."""
        began = time.monotonic()
        while business := self.open_business():
            if time.monotonic() - began > seconds:
                raise AssertionError(f"not quiet after {seconds:.0f} s (seed {self.seed}): {business}")
            time.sleep(0.1)
        self.note("quiet")
        return time.monotonic() - began

    def wait_until_no_survivors(self, seconds: float = 10.0) -> None:
        """Wait until nothing of any task lives."""
        deadline = time.monotonic() + seconds
        while left := self.survivors():
            assert time.monotonic() < deadline, f"survived (seed {self.seed}): {parts.describe(left)}"
            time.sleep(0.05)
