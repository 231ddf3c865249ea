"""The rules of the simulation: what may happen to a world with one kernel that leads, in any order."""

from __future__ import annotations

import sys
from random import Random
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator.events import Event, OutcomeReceived
from orchestrator.records import AttemptRecord, Outcome, Plan, RunRecord, TaskRunRecord
from orchestrator.states import RUN_TERMINAL, AttemptState, RunState, TaskState
from tests.unit.simulated_judge import Violation
from tests.unit.simulated_plans import MOST_NESTED, PLANS, RICH, nested
from tests.unit.simulated_site import OUTCOMES, Host, Worker
from tests.unit.simulated_world import World

PICK = st.integers(0, 11)
NESTED = st.builds(nested, st.integers(0, MOST_NESTED))


class Simulation(RuleBasedStateMachine):
    """Submit, deliver, double, drop, reorder, crash, adopt, freeze, drain, flush, take over, cancel, run again; then
    check and heal."""

    checks_epoch = True

    @initialize(
        plan=st.one_of(st.sampled_from(PLANS), st.sampled_from(RICH), NESTED),
        turns=st.integers(0, 2),
        breaker=st.booleans(),
    )
    def begin(self, plan: Plan, turns: int, breaker: bool) -> None:
        self.world = World(breaker=breaker)
        self.world.store.checks_epoch = self.checks_epoch
        self.world.step([])
        self.world.submit(plan, 0)
        for _ in range(turns):
            self.world.everyone_works()

    def worker(self, pick: int, *, busy: bool = False) -> Worker | None:
        """Choose a worker; a ``busy`` one if there is any, for what happens to the others matters little."""
        workers = list(self.world.workers.values())
        workers = [worker for worker in workers if busy and (worker.trees or worker.claims)] or workers
        return workers[pick % len(workers)] if workers else None

    # The path of a task

    @rule(plan=st.sampled_from(PLANS), priority=st.integers(0, 1))
    def submit(self, plan: Plan, priority: int) -> None:
        if len(self.world.store.runs) < 8:
            self.world.submit(plan, priority)

    @rule(turns=st.integers(1, 3), mend=st.booleans())
    def all_goes_well_for_a_moment(self, turns: int, mend: bool) -> None:
        if mend:
            self.world.mend()
        for _ in range(turns):
            self.world.everyone_works()

    @rule(outcome=st.sampled_from(OUTCOMES[:3]), turns=st.integers(1, 6))
    def whatever_runs_ends_and_more_follows(self, outcome: Outcome, turns: int) -> None:
        self.world.mend()
        for _ in range(turns):
            for worker, attempt_id in self.trees():
                self.world.finish(worker, attempt_id, outcome)
            self.world.everyone_works()

    @precondition(lambda self: self.world.hints)
    @rule(pick=PICK, double=st.booleans())
    def a_worker_takes_a_hint(self, pick: int, double: bool) -> None:
        if worker := self.worker(pick):
            self.world.take_hint(worker, keep=double)

    @precondition(lambda self: self.world.stream)
    @rule(order=st.randoms(use_true_random=False), dropped=st.integers(0, 2), doubled=st.booleans())
    def the_leader_takes_messages_in_any_order(self, order: Random, dropped: int, doubled: bool) -> None:
        taken, self.world.stream = self.world.stream, []
        order.shuffle(taken)
        del taken[:dropped]
        self.world.step(taken * 2 if doubled else taken)

    @precondition(lambda self: self.world.stream)
    @rule()
    def the_leader_takes_one_message(self) -> None:
        taken: list[Event] = self.world.stream[:1]
        del self.world.stream[:1]
        self.world.step(taken)

    @precondition(lambda self: self.world.replies)
    @rule(pick=PICK, drop=st.booleans(), double=st.booleans())
    def a_reply_arrives_or_not(self, pick: int, drop: bool, double: bool) -> None:
        at = pick % len(self.world.replies)
        reply = self.world.replies[at]
        if not double:
            del self.world.replies[at]
        if not drop:
            self.world.deliver(reply)

    @precondition(lambda self: self.world.replies)
    @rule()
    def all_replies_arrive(self) -> None:
        replies, self.world.replies = self.world.replies, []
        for reply in replies:
            self.world.deliver(reply)

    @precondition(lambda self: self.world.hints)
    @rule(pick=PICK, seconds=st.sampled_from((16.0, 29.0, 35.0)))
    def a_grant_is_long_under_way(self, pick: int, seconds: float) -> None:
        """Heartbeats that do not show the attempt pass it, and it may have become too old."""
        if worker := self.worker(pick):
            self.world.take_hint(worker, keep=False)
            taken, self.world.stream = self.world.stream, []
            self.world.step(taken)
            self.time_passes_while_the_others_speak(seconds)
            self.all_replies_arrive()

    def trees(self) -> list[tuple[Worker, str]]:
        return [(w, a) for w in self.world.workers.values() if not w.frozen for a in w.trees]

    @precondition(lambda self: self.trees())
    @rule(pick=PICK, outcome=st.sampled_from(OUTCOMES))
    def a_tree_ends(self, pick: int, outcome: Outcome) -> None:
        running = self.trees()
        worker, attempt_id = running[pick % len(running)]
        self.world.finish(worker, attempt_id, outcome)

    @precondition(lambda self: self.trees())
    @rule(outcome=st.sampled_from(OUTCOMES))
    def every_tree_ends(self, outcome: Outcome) -> None:
        for worker, attempt_id in self.trees():
            self.world.finish(worker, attempt_id, outcome)

    @rule(pick=PICK)
    def a_worker_repeats_itself(self, pick: int) -> None:
        if worker := self.worker(pick):
            self.world.resend(worker)

    @rule()
    def all_workers_beat(self) -> None:
        for worker in list(self.world.workers.values()):
            self.world.beat(worker)

    # Faults

    @precondition(lambda self: self.world.store.attempts)
    @rule(pick=PICK, token=st.sampled_from(("", "made-up")))
    def a_report_comes_with_another_token(self, pick: int, token: str) -> None:
        attempts = list(self.world.store.attempts.values())
        attempt = attempts[-1 - pick % len(attempts)]
        self.world.stream.append(
            OutcomeReceived(attempt.worker_id, attempt.id, token, Outcome(AttemptState.SUCCEEDED, "forged"))
        )

    @precondition(lambda self: self.world.reported)
    @rule(pick=st.integers(0, 39))
    def a_report_of_long_ago_comes_once_more(self, pick: int) -> None:
        reports = list(self.world.reported)
        reports = [report for report in reports if self.world.store.is_of_an_older_generation(report)] or reports
        self.world.stream.append(reports[pick % len(reports)])

    @precondition(lambda self: self.world.hints)
    @rule(drop=st.integers(1, 3))
    def hints_are_dropped(self, drop: int) -> None:
        del self.world.hints[:drop]

    @rule(pick=PICK, polite=st.booleans())
    def a_worker_ends(self, pick: int, polite: bool) -> None:
        if worker := self.worker(pick, busy=True):
            self.world.crash(worker, polite=polite and not worker.frozen)

    @precondition(lambda self: self.world.gone)
    @rule()
    def a_worker_is_started_again(self) -> None:
        self.world.restart()

    def keepers(self) -> list[Worker]:
        workers = self.world.workers.values()
        return [worker for worker in workers if any(tree.task.is_adoptable for tree in worker.trees.values())]

    @precondition(lambda self: self.keepers())
    @rule(pick=PICK, seconds=st.sampled_from((0.0, 16.0, 31.0, 45.0)), again=st.booleans())
    def a_worker_ends_and_a_tree_of_it_lives_on(self, pick: int, seconds: float, again: bool) -> None:
        worker = self.keepers()[pick % len(self.keepers())]
        self.world.crash(worker)
        self.time_passes_while_the_others_speak(seconds)
        if again:
            self.world.restart()
            self.world.step([])

    @rule(seconds=st.sampled_from((5.0, 16.0, 31.0)))
    def time_passes_while_the_others_speak(self, seconds: float) -> None:
        until = self.world.now + seconds
        while self.world.now < until:
            self.world.now += min(5.0, until - self.world.now)
            self.all_workers_beat()
            self.world.step([])

    @rule(pick=PICK, says_so_first=st.booleans())
    def a_worker_is_told_to_leave(self, pick: int, says_so_first: bool) -> None:
        if worker := self.worker(pick, busy=True):
            self.world.leave(worker, says_so_first=says_so_first)

    def orphans(self) -> list[tuple[Host, str]]:
        return [(host, attempt_id) for host in self.world.hosts.values() for attempt_id in host.orphans]

    @precondition(lambda self: self.orphans())
    @rule(pick=PICK)
    def a_worker_finds_what_has_outlived_another(self, pick: int) -> None:
        worker = self.worker(pick)
        if worker and not worker.frozen:
            self.world.adopt(worker)
            self.world.beat(worker)

    @precondition(lambda self: self.orphans())
    @rule(pick=PICK, outcome=st.sampled_from(OUTCOMES))
    def a_tree_ends_that_nobody_has_adopted(self, pick: int, outcome: Outcome) -> None:
        orphans = self.orphans()
        self.world.finish_orphan(*orphans[pick % len(orphans)], outcome)

    @precondition(lambda self: self.adoptable() and not self.world.redis_away)
    @rule(pick=PICK, forged=st.booleans())
    def a_worker_shows_what_it_does_not_have(self, pick: int, forged: bool) -> None:
        """A tree of its own host under a made-up token, or one of another host under the true token."""
        attempts = self.adoptable()
        attempt = attempts[pick % len(attempts)]
        workers = [worker for worker in self.world.workers.values() if attempt.id not in worker.open]
        workers = [worker for worker in workers if (worker.host.id == attempt.host_id) == forged]
        if workers:
            worker = workers[pick % len(workers)]
            self.world.beat(worker, also=(attempt.id, "made-up" if forged else attempt.token))
            self.world.step([])
            self.world.beat(worker)

    def adoptable(self) -> list[AttemptRecord]:
        """Return the running attempts that may be adopted."""
        running = [a for a in self.world.kernel.attempts.values() if a.state is AttemptState.RUNNING]
        return [attempt for attempt in running if self.world.kernel.planned(attempt).is_adoptable]

    @rule(host=st.sampled_from(("a", "b")))
    def a_host_reboots(self, host: str) -> None:
        self.world.reboot(self.world.hosts[host])

    @rule(pick=PICK)
    def a_worker_freezes_or_thaws(self, pick: int) -> None:
        if worker := self.worker(pick, busy=True):
            worker.frozen = not worker.frozen

    @rule()
    def redis_is_flushed(self) -> None:
        self.world.flush()

    @rule(turns=st.integers(0, 2), thaws=st.booleans())
    def another_leader_takes_over(self, turns: int, thaws: bool) -> None:
        self.world.change_leader(lose_tail=False, keep_old=True)
        for _ in range(turns):
            self.world.everyone_works()
        if thaws:
            self.world.old_leader_acts()

    @rule(seconds=st.sampled_from((0.0, 0.0, 40.0)))
    def the_link_to_redis_is_cut_or_comes_back(self, seconds: float) -> None:
        self.world.switch_redis()
        self.time_passes_while_the_others_speak(seconds)

    @rule(seconds=st.sampled_from((1.0, 5.0, 12.0, 100.0)), empty=st.booleans())
    def redis_is_down_for_a_while(self, seconds: float, empty: bool) -> None:
        self.world.redis_fails()
        self.time_passes_while_the_others_speak(seconds)
        if empty:
            self.world.flush()
        self.world.redis_returns()

    @rule(seconds=st.sampled_from((1.0, 12.0, 45.0, 130.0)), outcome=st.sampled_from((None, *OUTCOMES[:3])))
    def postgres_is_down_for_a_while(self, seconds: float, outcome: Outcome | None) -> None:
        """Workers go on, tasks end, nobody hears of it until the same leader makes its memory anew."""
        deaf_from = self.world.now
        while self.world.now < deaf_from + seconds:
            self.world.now += min(5.0, deaf_from + seconds - self.world.now)
            self.all_workers_beat()
        if outcome is not None:
            self.every_tree_ends(outcome)
        self.world.postgres_returns(deaf_from)

    @precondition(lambda self: self.world.store.tail)
    @rule(keep_old=st.booleans())
    def the_database_crashes_and_loses_its_tail(self, keep_old: bool) -> None:
        self.world.change_leader(lose_tail=True, keep_old=keep_old)

    @precondition(lambda self: self.world.old_leader)
    @rule()
    def the_old_leader_thaws(self) -> None:
        self.world.old_leader_acts()

    # People and time

    @rule(pick=PICK, kind=st.sampled_from(("cancel", "cancel_task", "force", "pause", "resume")))
    def somebody_commands_a_run(self, pick: int, kind: str) -> None:
        runs = [run for run in self.world.store.runs.values() if run.state is not RunState.SUCCESS]
        if runs:
            run = runs[pick % len(runs)]
            name = self.task_name(run, pick) if kind == "cancel_task" else None
            if kind == "force":
                self.world.command("cancel", run_id=run.id, mode="force")
            else:
                self.world.command("cancel" if name else kind, run_id=run.id, task=name)

    def task_name(self, run: RunRecord, pick: int) -> str:
        """Choose a task run, one inside of a container or a container if there is one."""
        rows = [self.world.store.task_runs[id_] for id_ in self.world.store.tasks_of[run.id]]
        return rows[-1 - pick % len(rows)].name

    @precondition(lambda self: self.waiting())
    @rule(pick=PICK, answer=st.sampled_from(("approve", "reject", "event", "old token")))
    def somebody_answers_what_waits(self, pick: int, answer: str) -> None:
        rows = self.waiting()
        row = rows[pick % len(rows)]
        payload: dict[str, Any] = {"token": "old" if answer == "old token" else row.wait_token, "payload": {"n": 1}}
        kind = "event" if answer == "old token" else answer
        self.world.command(kind, run_id=row.run_id, task=row.name, **payload)
        self.world.everyone_works()

    def waiting(self) -> list[TaskRunRecord]:
        return [row for row in self.world.store.task_runs.values() if row.state is TaskState.WAITING]

    @rule(pick=PICK, state=st.sampled_from(("success", "failed", "skipped")), before=st.integers(0, 5))
    def somebody_marks_a_task(self, pick: int, state: str, before: int) -> None:
        if before:
            self.whatever_runs_ends_and_more_follows(outcome=OUTCOMES[pick % 3], turns=before)
        runs = [run for run in self.world.store.runs.values() if run.generation < 4]
        if runs:
            run = runs[pick % len(runs)]
            outputs = {"items": [1], "ok": True} if state == "success" and pick % 3 else None
            name = self.task_name(run, pick)
            self.world.command("mark", run_id=run.id, task=name, state=state, outputs=outputs)
            self.world.everyone_works()

    @rule(
        plan=st.sampled_from(RICH) | NESTED,
        turns=st.integers(1, 6),
        outcome=st.sampled_from(OUTCOMES[:2] + OUTCOMES[-2:]),
    )
    def something_with_containers_gets_on(self, plan: Plan, turns: int, outcome: Outcome) -> None:
        if len(self.world.store.runs) < 8:
            self.world.submit(plan, 0)
        self.whatever_runs_ends_and_more_follows(outcome=outcome, turns=turns)

    @rule(
        pick=PICK,
        chosen=st.sampled_from(("failed", "all", "named")),
        clicks=st.sampled_from(("one", "two", "one late")),
        before=st.integers(0, 6),
        then=st.sampled_from(("", "", "cancel", "mark")),
        after=st.integers(0, 2),
    )
    def somebody_runs_it_again(self, pick: int, chosen: str, clicks: str, before: int, then: str, after: int) -> None:
        if before:
            self.whatever_runs_ends_and_more_follows(outcome=OUTCOMES[pick % 3], turns=before)
        runs = [run for run in self.world.store.runs.values() if run.generation < 4]
        runs = [run for run in runs if run.state in RUN_TERMINAL] or runs
        if not runs:
            return
        run = runs[pick % len(runs)]
        names = [self.task_name(run, pick)]
        for click in range(1 if clicks == "one" else 2):
            self.world.rerun(run, names if chosen == "named" else chosen, late=click > 0 and clicks == "one late")
        if then:
            # While it still waits for its place.
            rows = [self.world.store.task_runs[id_] for id_ in self.world.store.tasks_of[run.id]]
            name = rows[pick % len(rows)].name
            self.world.command(then, run_id=run.id, task=name, **({"state": "failed"} if then == "mark" else {}))
        for _ in range(after):
            self.world.everyone_works()

    @rule(pick=PICK, state=st.sampled_from(("skipped", "failed")), before=st.integers(0, 6))
    def what_is_above_a_container_is_marked_before_that_goes_on(self, pick: int, state: str, before: int) -> None:
        if before:
            self.whatever_runs_ends_and_more_follows(outcome=OUTCOMES[0], turns=before)
        store = self.world.store
        found: list[tuple[RunRecord, str, str]] = []
        for run in store.runs.values():
            if run.state in RUN_TERMINAL and run.generation < 4:
                above = {task.name: task.upstream for task in store.plans[run.id].tasks if task.body is not None}
                rows = (store.task_runs[id_] for id_ in store.tasks_of[run.id])
                inside = (row.name for row in rows if row.parent_id is not None and not row.superseded)
                found += [(run, name, up) for name in inside for up in above[name.partition("[")[0]]]
        if found:
            run, name, up = found[pick % len(found)]
            self.world.rerun(run, [name])
            self.world.command("mark", run_id=run.id, task=up, state=state)
            self.world.everyone_works()

    @precondition(lambda self: self.world.late_commands)
    @rule(turns=st.integers(0, 9))
    def a_command_comes_late(self, turns: int) -> None:
        if turns:
            self.whatever_runs_ends_and_more_follows(outcome=OUTCOMES[0], turns=turns)
        self.world.commands.append(self.world.late_commands.pop(0))
        self.world.step([])

    @rule(pick=PICK, kind=st.sampled_from(("drain", "undrain")), seconds=st.sampled_from((None, 0.0, 15.0)))
    def somebody_drains_a_worker(self, pick: int, kind: str, seconds: float | None) -> None:
        if worker := self.worker(pick, busy=kind == "drain"):
            self.world.command(kind, worker_id=worker.id, deadline_seconds=seconds)

    @rule(hours=st.sampled_from((-1, 1)))
    def the_clock_of_the_database_jumps(self, hours: int) -> None:
        self.world.store.clock_ahead += 3600.0 * hours

    @rule(seconds=st.sampled_from((1.0, 6.0, 16.0, 21.0, 31.0)))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.step([])

    @rule()
    def the_leader_reconciles(self) -> None:
        self.world.step([], reconcile=True)
        if self.world.store.checks_epoch and self.world.store.counts.get("repaired"):
            raise Violation("repaired: an event has missed something that the reconcile has found")

    # Invariants

    @invariant()
    def whatever_is_open_has_an_owner(self) -> None:
        self.world.store.check_owners()

    @invariant()
    def no_transition_was_refused(self) -> None:
        if self.world.store.counts.get("refused_transition"):
            raise Violation("a transition was refused")

    def teardown(self) -> None:
        # After a violation there is nothing more to prove, and what healing then runs into would hide it.
        if hasattr(self, "world") and sys.exception() is None:
            self.world.heal()
