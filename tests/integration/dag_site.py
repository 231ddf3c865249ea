"""Pipelines given as JSON, on the real leader and real stores, with a worker whose tasks do what the test says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import Engine, text

from orchestrator.compile import Compiled, Site, compile_pipeline, run_problems
from orchestrator.config import Settings
from orchestrator.errors import NotFound
from orchestrator.plan_json import plan_from_json, plan_to_json
from orchestrator.records import Outcome, Plan
from orchestrator.registry import load_operators, operator_version
from orchestrator.states import RUN_TERMINAL, AttemptState, RunState
from orchestrator.store import command_requests
from orchestrator.store.bootstrap import ensure_tenant_and_admin
from orchestrator.store.definitions import (
    Definition,
    RunTarget,
    create_pipeline,
    find_run_target,
    get_pipeline,
    read_version,
    save_pipeline,
)
from orchestrator.store.engine import create_store_engine
from orchestrator.store.reruns import request_rerun
from orchestrator.store.run_requests import NewRun, NewTask, insert_run
from orchestrator.wire.keys import Keys
from orchestrator.wire.messages import GrantSpec
from orchestrator.wire.redis import connect
from orchestrator.wire.stream import wake
from scheduler.daemon import Daemon
from tests.integration.fake_worker import FakeWorker

ROOT = Path(__file__).parents[2]
WORKER_KEY = "worker-key-for-tests"
_INDEX = re.compile(r"\[\d+\]")

Act = Callable[[GrantSpec], Outcome | None]


def script(name: str, *upstream: str, **fields: Any) -> dict[str, Any]:
    """Return a task as written, that is tried once; ``arguments`` are what it leaves as its outputs."""
    arguments = fields.pop("arguments", {})
    return {
        "name": name,
        "operator": "custom_script",
        "upstream_tasks": list(upstream),
        "parameters": {"script_content": "pass", "arguments": arguments},
        "cpu": 0.1,
        "memory_gb": 0.1,
        "retries": 0,
        "retry_delay_seconds": 0,
        **fields,
    }


def failed(reason: str = "", **fields: Any) -> Outcome:
    return Outcome(AttemptState.FAILED, reason, **fields)


def left(**outputs: Any) -> Outcome:
    return Outcome(AttemptState.SUCCEEDED, outputs=outputs, exit_code=0)


class Played:
    """What tasks do: by the name of a task run, or of its task; those that are not named leave their arguments."""

    def __init__(self, **acts: Act | Outcome) -> None:
        self.acts: dict[str, Act | Outcome] = acts
        self.ran: list[str] = []

    def __call__(self, spec: GrantSpec) -> Outcome | None:
        self.ran.append(spec.task)
        act = self.acts.get(spec.task, self.acts.get(_INDEX.sub("", spec.task)))
        if act is None:
            return left(**spec.parameters.get("arguments", {}))
        return act if isinstance(act, Outcome) else act(spec)


def goes_on(spec: GrantSpec) -> None:
    """Go on until the test or a cancel ends it."""


@cache
def operators() -> Any:
    return load_operators()


@dataclass
class DagSite:
    """Stores and settings, the leader that runs on them, and what people ask of it."""

    settings: Settings
    engine: Engine
    client: redis.Redis
    tenant: str = ""
    _stops: list[Callable[[], None]] = field(default_factory=list)

    @property
    def compiling(self) -> Site:
        return Site.of(self.settings)

    def lead(self, **changes: Any) -> Callable[[], None]:
        """Run a scheduler; returns what stops it."""
        stop = threading.Event()
        thread = threading.Thread(target=Daemon(replace(self.settings, **changes)).run, args=(stop,))
        thread.start()

        def end() -> None:
            stop.set()
            thread.join()

        self._stops.append(end)
        return end

    def spawn(self) -> subprocess.Popen[bytes]:
        """Run a scheduler as a process."""
        settings = self.settings
        environment = {
            "PATH": os.environ["PATH"],
            "DATABASE_URL": settings.database_url,
            "REDIS_URL": settings.redis_url,
            "REDIS_TASK_QUEUE": settings.redis_task_queue,
            "WORKER_KEY": WORKER_KEY,
            "DATA_DIR": str(settings.data_dir),
            "LEADER_LEASE_SECONDS": str(settings.leader_lease_seconds),
            "HEARTBEAT_INTERVAL_SECONDS": str(settings.heartbeat_interval_seconds),
            "REDISPATCH_SECONDS": str(settings.redispatch_seconds),
            "RECONCILE_SECONDS": str(settings.reconcile_seconds),
        }
        process = subprocess.Popen([sys.executable, "-m", "scheduler"], cwd=ROOT, env=environment)

        def end() -> None:
            process.kill()
            process.wait()

        self._stops.append(end)
        return process

    def worker(self, played: Played | None = None, **options: Any) -> FakeWorker:
        names = (self.settings.redis_url, self.settings.redis_task_queue, WORKER_KEY)
        return FakeWorker(*names, behave=played or Played(), **options)

    def stop(self) -> None:
        """Stop all schedulers."""
        while self._stops:
            self._stops.pop()()

    def close(self) -> None:
        self.stop()
        self.engine.dispose()
        self.client.close()

    def compiled(self, document: Mapping[str, Any]) -> Compiled:
        return compile_pipeline(document, operators(), self.compiling, operator_version)

    def save(self, name: str, *tasks: Mapping[str, Any], **fields: Any) -> str:
        """Save a definition, or a new version of it; returns the id of the pipeline."""
        found = self.compiled({"name": name, "tasks": list(tasks), **fields})
        definition = Definition(name, "", "", found.content_hash, found.definition, plan_to_json(found.plan))
        with self.engine.begin() as connection:
            try:
                known = get_pipeline(connection, self.tenant, name=name)
            except NotFound:
                row, _ = create_pipeline(connection, self.tenant, definition, "ann")
                return str(row["id"])
            return str(save_pipeline(connection, self.tenant, known["id"], definition, "ann", None)["id"])

    def start(self, name: str, **parameters: Any) -> str:
        """Ask for a run of a saved pipeline; returns its id."""
        run_id = str(uuid.uuid4())
        with self.engine.begin() as connection:
            target = find_run_target(connection, self.tenant, name=name)
            stored = read_version(connection, self.tenant, target.version_id)
            plan, defaults = plan_from_json(stored["plan"]), stored["definition"].get("parameters", {})
            assert run_problems(plan, parameters, self.compiling, defaults) == []
            insert_run(connection, self._new_run(run_id, target, plan, {**defaults, **parameters}))
        self.wake()
        return run_id

    def _new_run(self, id_: str, target: RunTarget, plan: Plan, parameters: Mapping[str, Any]) -> NewRun:
        return NewRun(
            id=id_,
            tenant_id=self.tenant,
            pipeline_id=target.pipeline_id,
            version_id=target.version_id,
            tasks=[NewTask(task.name, task.operator) for task in plan.tasks],
            parameters=parameters,
            triggered_by="ann",
            actor="ann",
        )

    def run(self, *tasks: Mapping[str, Any], parameters: Mapping[str, Any] | None = None, **fields: Any) -> str:
        """Save these tasks as a new pipeline and ask for a run of it."""
        name = f"p-{uuid.uuid4().hex[:8]}"
        self.save(name, *tasks, **fields)
        return self.start(name, **(parameters or {}))

    def wake(self) -> None:
        wake(self.client, Keys(self.settings.redis_task_queue))

    def cancel(self, run: str, **options: Any) -> None:
        with self.engine.begin() as connection:
            command_requests.request_cancel(connection, self.tenant, run, "ann", **options)
        self.wake()

    def pause(self, run: str, *, pause: bool = True) -> None:
        with self.engine.begin() as connection:
            command_requests.request_pause(connection, self.tenant, run, "ann", pause=pause)
        self.wake()

    def mark(self, run: str, task: str, **options: Any) -> None:
        with self.engine.begin() as connection:
            command_requests.request_mark(connection, self.tenant, run, task, "ann", reason="known", **options)
        self.wake()

    def answer(self, run: str, task: str, **options: Any) -> None:
        with self.engine.begin() as connection:
            command_requests.request_approval(connection, self.tenant, run, task, "ann", **options)
        self.wake()

    def report(self, token: str, payload: Any) -> None:
        with self.engine.begin() as connection:
            command_requests.report_event(connection, token, payload)
        self.wake()

    def rerun(self, run: str, *tasks: str) -> None:
        with self.engine.begin() as connection:
            request_rerun(connection, self.tenant, run, "ann", list(tasks) or "failed")
        self.wake()

    def rows(self, query: str, **values: Any) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(text(query), values).all())

    def state(self, run: str) -> str:
        return str(self.rows("SELECT state FROM runs WHERE id = :id", id=run)[0].state)

    def states(self, run: str) -> dict[str, str]:
        return {row.name: row.state for row in self._tasks(run)}

    def outputs(self, run: str) -> dict[str, Any]:
        return {row.name: row.outputs for row in self._tasks(run)}

    def task(self, run: str, name: str) -> Any:
        [row] = self.rows("SELECT * FROM task_runs WHERE run_id = :id AND name = :name", id=run, name=name)
        return row

    def _tasks(self, run: str) -> list[Any]:
        return self.rows("SELECT * FROM task_runs WHERE run_id = :id AND reason <> 'superseded' ORDER BY name", id=run)

    def ended(self, run: str, state: str | None = "success", seconds: float = 40.0) -> dict[str, str]:
        """Wait until the run is over, which must be as this state; returns the states of its task runs.

        :param state: ``None``: however it ends.
        """
        until(lambda: RunState(self.state(run)) in RUN_TERMINAL, seconds, lambda: self.story(run))
        assert state is None or self.state(run) == state, self.story(run)
        return self.states(run)

    def becomes(self, run: str, task: str, state: str, reason: str | None = None, seconds: float = 30.0) -> None:
        """Wait until the task run is in this state, for this reason."""

        def is_so() -> bool:
            found = self.rows(
                "SELECT state, reason FROM task_runs WHERE run_id = :id AND name = :name", id=run, name=task
            )
            return bool(found) and found[0].state == state and reason in (None, found[0].reason)

        until(is_so, seconds, lambda: self.story(run))

    def story(self, run: str) -> str:
        """Return the audit of a run and how its task runs are, for a failure's message."""
        events = self.rows("SELECT * FROM events WHERE run_id = :id OR run_id IS NULL ORDER BY id", id=run)
        told = [
            f"{e.at:%T.%f} {e.entity} {e.task} {e.before}→{e.after} {e.reason} ({e.cause}) {e.message}" for e in events
        ]
        told += [f"{row.name}: {row.state} {row.reason} {row.message}" for row in self._tasks(run)]
        return "\n".join(told)


def open_site(database_url: str, redis_url: str, folder: Path, **changes: Any) -> DagSite:
    settings = Settings(
        database_url=database_url,
        redis_url=redis_url,
        redis_task_queue=f"test-{uuid.uuid4().hex[:8]}",
        worker_key=WORKER_KEY,
        data_dir=folder,
        heartbeat_interval_seconds=0.5,
        leader_lease_seconds=3.0,
        redispatch_seconds=2.0,
        reconcile_seconds=1.0,
        connections={"shop": {"url": "http://shop.example"}},
    )
    site = DagSite(replace(settings, **changes), create_store_engine(database_url), connect(redis_url))
    with site.engine.begin() as connection:
        site.tenant = ensure_tenant_and_admin(connection, "an-admin-key-for-tests-that-is-long")
    return site


def until(
    condition: Callable[[], object], seconds: float = 30.0, why: Callable[[], str] = lambda: "it never came"
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, why()
        time.sleep(0.02)
