"""Tells clean histories step by step, as a leader and its workers would write them: what the checker is tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.records import PlannedTask
from tests.chaos.history import (
    AttemptRow,
    CommandRow,
    Event,
    History,
    ReservationRow,
    RunRow,
    TaskRow,
    WorkerRow,
)
from tests.chaos.ledger import Accepted, CancelAsked, Line

ENDED = frozenset({"success", "failed", "upstream_failed", "skipped", "cancelled"})

MET_BY_SUCCESSES = frozenset({"all_success", "all_done", "none_failed", "none_skipped"})


def task(name: str, *upstream: str, rule: str = "all_success") -> PlannedTask:
    return PlannedTask(name, "chaos_task", upstream=upstream, trigger_rule=rule)


DIAMOND = (task("a"), task("b", "a"), task("c", "a"), task("d", "b", "c"))


@dataclass
class Story:
    """Each method is one transaction of the leader, unless it is told inside of another.

    The monotonic clock is the database's here (``clock`` 0), and a second passes with each event.
    """

    events: list[Event] = field(default_factory=list)
    runs: dict[str, RunRow] = field(default_factory=dict)
    tasks: dict[str, TaskRow] = field(default_factory=dict)
    attempts: dict[str, AttemptRow] = field(default_factory=dict)
    reservations: dict[str, ReservationRow] = field(default_factory=dict)
    workers: dict[str, WorkerRow] = field(default_factory=dict)
    plans: dict[str, Mapping[str, PlannedTask]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    accepted: list[Accepted] = field(default_factory=list)
    cancels: list[CancelAsked] = field(default_factory=list)
    commands: list[CommandRow] = field(default_factory=list)
    refusals: dict[str, int] = field(default_factory=dict)
    now: float = 100.0
    epoch: int = 1
    txn: int = 0

    def history(self) -> History:
        return History(
            events=tuple(self.events),
            runs=dict(self.runs),
            tasks=dict(self.tasks),
            attempts=dict(self.attempts),
            reservations=dict(self.reservations),
            workers=dict(self.workers),
            plans=dict(self.plans),
            keys=dict(self.keys),
            commands=tuple(self.commands),
            refusals=dict(self.refusals),
            epoch=self.epoch,
            clock=0.0,
        )

    def commit(self) -> None:
        """What follows is of another transaction."""
        self.txn += 1

    def tell(self, entity: str, entity_id: str, before: str | None, after: str, **fields: Any) -> Event:
        """Write one row of the audit."""
        self.now += 1.0
        fields = {"epoch": self.epoch, **fields}
        event = Event(len(self.events) + 1, str(self.txn), self.now, entity, entity_id, before, after, **fields)
        self.events.append(event)
        return event

    # Hosts, runs and task runs

    def join(self, worker: str, host: str, *, cpu: int = 1000, memory: int = 1000, gpus: Sequence[str] = ()) -> None:
        self.commit()
        detail = {"host": host, "cpu": cpu, "memory": memory, "gpus": list(gpus), "slots": 4}
        self.tell("worker", worker, None, "online", cause="joined", detail=detail)
        self.workers[worker] = WorkerRow(worker, host, "online")

    def lose_worker(self, worker: str) -> None:
        self.tell("worker", worker, self.workers[worker].state, "lost", cause="lease")
        self.workers[worker] = replace(self.workers[worker], state="lost")

    def submit(self, run: str, plan: Sequence[PlannedTask] = DIAMOND) -> None:
        """The API accepts a run and the leader starts it."""
        self.commit()
        self.keys[f"key-{run}"] = run
        self.accepted.append(Accepted(run, f"key-{run}", self.now))
        self.plans[run] = {planned.name: planned for planned in plan}
        self.runs[run] = RunRow(run, "queued")
        for planned in plan:
            self.tasks[f"{run}.{planned.name}"] = TaskRow(f"{run}.{planned.name}", run, planned.name, "pending")
        self.tell("run", run, None, "queued", cause="request", run_id=run, epoch=0)
        self.admit(run)

    def admit(self, run: str) -> None:
        self.commit()
        self.move_run(run, "running", cause="admission")
        for name in self.plans[run]:
            if not self.plans[run][name].upstream and self.tasks[f"{run}.{name}"].state == "pending":
                self.move_task(run, name, "ready", cause="upstream")

    def move_run(self, run: str, after: str, **fields: Any) -> None:
        self.tell("run", run, self.runs[run].state, after, run_id=run, **fields)
        self.runs[run] = replace(self.runs[run], state=after)

    def move_task(self, run: str, name: str, after: str, *, reason: str = "", cause: str = "test", **row: Any) -> None:
        known = self.tasks[f"{run}.{name}"]
        self.tell("task_run", known.id, known.state, after, run_id=run, task=name, reason=reason, cause=cause)
        has_timer = after == "retry_wait"
        # Whoever stands in line is told what for, without a transition.
        told = reason or ("no_slot" if after == "ready" else "")
        self.tasks[known.id] = replace(known, state=after, reason=told, has_timer=has_timer, **row)

    def settle(self, run: str) -> None:
        """Make ready what only waited for successes; end the run when nothing is open."""
        for name, planned in self.plans[run].items():
            states = {self.tasks[f"{run}.{up}"].state for up in planned.upstream}
            is_met = planned.trigger_rule in MET_BY_SUCCESSES and states <= {"success"}
            if is_met and self.tasks[f"{run}.{name}"].state == "pending":
                self.move_task(run, name, "ready", cause="upstream")
        of_run = [row for row in self.tasks.values() if row.run_id == run]
        if all(row.state in ENDED for row in of_run):
            self.move_run(run, "success" if all(row.state == "success" for row in of_run) else "failed")

    # Attempts

    def dispatch(self, run: str, name: str, worker: str = "w1", **charge: Any) -> str:
        """Returns the attempt's id."""
        self.commit()
        row = self.tasks[f"{run}.{name}"]
        number = sum(attempt.task_run_id == row.id for attempt in self.attempts.values()) + 1
        attempt = f"{row.id}#{number}"
        self.move_task(run, name, "queued", cause="dispatch", attempt_id=attempt)
        detail = self.charge(attempt, worker, **charge)
        token = f"token-{attempt}"
        fields = {"run_id": run, "task": name, "token": token}
        self.tell("attempt", attempt, None, "dispatched", cause="dispatch", detail=detail, **fields)
        self.attempts[attempt] = AttemptRow(attempt, run, row.id, "dispatched", token, detail["host"], worker)
        return attempt

    def charge(
        self, attempt: str, worker: str, *, cpu: int = 100, memory: int = 100, devices: Sequence[str] = ()
    ) -> dict[str, Any]:
        host = self.workers[worker].host_id
        row = ReservationRow(attempt, host, worker, cpu, memory, len(devices), tuple(devices), zombie=False)
        self.reservations[attempt] = row
        return _detail(row)

    def move(self, attempt: str, worker: str) -> None:
        """Charge a live attempt elsewhere while its state stays."""
        state = self.attempts[attempt].state
        self.of_attempt(attempt, state, state, cause="moved", detail=self.charge(attempt, worker))
        self.attempts[attempt] = replace(self.attempts[attempt], worker_id=worker, host_id=self.workers[worker].host_id)

    def of_attempt(self, attempt: str, before: str, after: str, **fields: Any) -> Event:
        row = self.attempts[attempt]
        name = self.tasks[row.task_run_id].name
        return self.tell("attempt", attempt, before, after, run_id=row.run_id, task=name, token=row.token, **fields)

    def grant(self, attempt: str) -> None:
        self.commit()
        row = self.attempts[attempt]
        self.of_attempt(attempt, "dispatched", "running", cause="claim")
        self.attempts[attempt] = replace(row, state="running")
        self.move_task(row.run_id, self.tasks[row.task_run_id].name, "running", cause="claim", attempt_id=attempt)
        self.line(attempt, "start")

    def line(self, attempt: str, what: str, at: float | None = None) -> Line:
        row = self.attempts[attempt]
        self.now += 1.0
        name = self.tasks[row.task_run_id].name
        moment = self.now if at is None else at
        line = Line(what, row.run_id, name, attempt, row.token, row.host_id, 1, moment)
        self.lines.append(line)
        return line

    def end_attempt(self, attempt: str, after: str, *, held: bool = False, reason: str = "", **detail: Any) -> None:
        """End an attempt, and keep or give back what it holds."""
        self.commit()
        if held:
            # It is charged to whoever ran it, who may not be who kept it.
            zombie = replace(self.reservations[attempt], zombie=True, worker_id=self.attempts[attempt].worker_id)
            self.reservations[attempt] = zombie
            detail |= {"held": True, **_detail(zombie)}
        else:
            del self.reservations[attempt]
        self.of_attempt(attempt, self.attempts[attempt].state, after, cause="test", reason=reason, detail=detail)
        self.attempts[attempt] = replace(self.attempts[attempt], state=after)

    def release(self, attempt: str) -> None:
        """The host confirms that the tree of an attempt that was given up is dead."""
        self.commit()
        self.tell("reservation", attempt, "held", "released", cause="released")
        del self.reservations[attempt]

    def succeed(self, attempt: str) -> None:
        self.line(attempt, "end")
        self.end_attempt(attempt, "succeeded")
        row = self.attempts[attempt]
        name = self.tasks[row.task_run_id].name
        self.move_task(row.run_id, name, "success", cause="outcome", attempt_id=None, fence=row.token)
        self.settle(row.run_id)

    def fail(self, attempt: str, *, again: bool) -> None:
        self.line(attempt, "end")
        self.end_attempt(attempt, "failed", reason="chaos")
        row = self.attempts[attempt]
        known = self.tasks[row.task_run_id]
        after = "retry_wait" if again else "failed"
        self.move_task(row.run_id, known.name, after, reason="chaos", failures=known.failures + 1, attempt_id=None)
        if again:
            self.move_task(row.run_id, known.name, "ready", cause="timer")

    def lose(self, attempt: str, *, held: bool = True, reason: str = "worker_lost") -> None:
        self.end_attempt(attempt, "lost", held=held, reason=reason)
        row = self.attempts[attempt]
        known = self.tasks[row.task_run_id]
        losses = known.losses + 1
        after, why = ("ready", reason) if losses < 3 else ("failed", "poison")
        self.move_task(row.run_id, known.name, after, reason=why, losses=losses, attempt_id=None)

    def run_task(self, run: str, name: str, worker: str = "w1") -> str:
        """Dispatch, grant and finish a task; returns the attempt's id."""
        attempt = self.dispatch(run, name, worker)
        self.grant(attempt)
        self.succeed(attempt)
        return attempt

    def cancel(self, run: str, running: str) -> None:
        """Cancel a run of which one attempt runs."""
        self.cancels.append(CancelAsked(run, self.now, grace=5.0))
        self.commands.append(CommandRow("cancel", run, None, None))
        self.commit()
        self.commands[-1] = replace(self.commands[-1], result=f"Run {run} is being cancelled.")
        self.move_run(run, "cancelling", cause="cancel")
        for row in [row for row in self.tasks.values() if row.run_id == run and row.state not in ENDED]:
            is_running = row.state == "running"
            self.move_task(run, row.name, "cancelling" if is_running else "cancelled", cause="cancel")
        self.line(running, "term")
        self.end_attempt(running, "cancelled")
        name = self.tasks[self.attempts[running].task_run_id].name
        self.move_task(run, name, "cancelled", cause="outcome", attempt_id=None)
        self.move_run(run, "cancelled", cause="tasks_ended")

    def rerun(self, run: str, *names: str) -> None:
        """Start tasks of a run that is over again, as the next generation."""
        self.commit()
        for name in names:
            row = self.tasks[f"{run}.{name}"]
            self.move_task(
                run, name, "pending", cause="rerun", generation=row.generation + 1, failures=0, losses=0, fence=None
            )
        self.move_run(run, "queued", cause="rerun")
        self.runs[run] = replace(self.runs[run], generation=self.runs[run].generation + 1)
        self.admit(run)
        self.settle(run)


def _detail(row: ReservationRow) -> dict[str, Any]:
    """Return what the audit tells of a charge."""
    return {
        "host": row.host_id,
        "worker": row.worker_id,
        "cpu": row.cpu,
        "memory": row.memory,
        "gpus": row.gpus,
        "gpu_memory": 0,
        "devices": list(row.devices),
    }
