"""Admission: ready tasks get a reservation on one live worker, an attempt and a hint. Only ``Tick`` comes here."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import replace

from orchestrator.effects import CreateAttempt, SendHint
from orchestrator.kernel.cache import goes_back, stuck
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.gatekeeping import displace, is_ended_by_its_gate, older_in_the_way, shut, shut_anyhow
from orchestrator.kernel.index import Kernel
from orchestrator.kernel.nodes import TaskNode
from orchestrator.kernel.services import note_sent
from orchestrator.kernel.waiting import Line, Rank
from orchestrator.placement import Ask, Choice, Wait, choose, could_ever_fit, suits
from orchestrator.records import AttemptRecord, Reservation, WorkerRecord
from orchestrator.states import TaskState, WorkerState

SHORT_LINE = 100
"""Tasks in a line that are all told when it waits now for capacity and now for a limit of its own."""
NO_REDIS = Wait("waiting_for_redis", "Redis does not answer, so no worker can be told of it.")


def dispatch(changes: Changes) -> None:
    """Place the best-ranked ready tasks until every line is empty or blocked; then tell the others what they wait for.

    A line that is blocked stays so until something is freed, so a pass costs what it places.
    """
    waiting = changes.kernel.waiting_lines
    if waiting.stirred:
        _drop_useless_holds(changes)
    _hold_for_the_aged(changes)
    if not waiting.stirred:
        return
    if changes.kernel.redis_away:
        _tell_redis_is_away(changes)
        return
    while waiting.stirred:
        # Again when a task was placed for which room was held: what was kept from others is theirs now.
        waiting.stirred = False
        _place_heads(changes)
    for line in list(waiting.awake):
        _explain_line(changes, line)


def _place_heads(changes: Changes) -> None:
    """Place the best-ranked tasks until every line is empty, blocked or at rest."""
    waiting = changes.kernel.waiting_lines
    heads = _open_heads(changes)
    while heads:
        rank, line = heapq.heappop(heads)
        if waiting.may_rest(line):
            _explain_line(changes, line)
            waiting.rest(line, rank)
            continue
        head = line.head()
        if head is not None and _place(changes, head[1], line):
            following = line.head()
            if following is not None:
                heapq.heappush(heads, (following[0], line))
        if (woken := waiting.woken(line.ask)) is not None:
            heapq.heappush(heads, woken)


def _open_heads(changes: Changes) -> list[tuple[Rank, Line]]:
    """Return the heads of all lines that may move, as a heap; lines nobody stands in are closed."""
    waiting = changes.kernel.waiting_lines
    heads: list[tuple[Rank, Line]] = []
    for line in list(waiting.awake):
        head = line.head()
        if head is None:
            waiting.close(line)
        elif line.blocked_in != waiting.round:
            heads.append((head[0], line))
    heads += filter(None, map(waiting.woken, list(waiting.resting)))
    while waiting.left:
        ask = waiting.left.pop()
        if ask not in waiting.asks:
            _drop_hold(changes, ask)
    heapq.heapify(heads)
    return heads


def _tell_redis_is_away(changes: Changes) -> None:
    for line in changes.kernel.waiting_lines.awake:
        line.told = NO_REDIS
        _explain_line(changes, line)


def _place(changes: Changes, node: TaskNode, line: Line) -> bool:
    """Dispatch the task if its gate is open and a worker can take it now, else block its line."""
    if is_ended_by_its_gate(changes, node, line.gate):
        return True
    waiting = changes.kernel.waiting_lines
    answer = _kept_out(changes, node, line) or _answer(changes, node, line.ask)
    if isinstance(answer, Choice):
        if not goes_back(changes, node):
            send_out(changes, node, answer)
        return True
    told = line.told
    if answer.for_its_kind and told is not None and not told.for_its_kind:
        for member in list(line.members()):
            stuck(changes, member)
    if told is not None and told.reason != answer.reason and _is_told_to_all(line, told, answer):
        line.unexplained = list(line.members())
    if answer.for_capacity:
        waiting.full[line.ask] = answer
    line.told, line.blocked_in = answer, waiting.round
    changes.explain(node, answer.reason, answer.message)
    return False


def _kept_out(changes: Changes, node: TaskNode, line: Line) -> Wait | None:
    """Return what keeps the task from any worker. Where it is only older ones that are to give way, they are stopped;
    but not for a task that something else keeps too, or that no worker is there for."""
    held = shut(changes, line.gate)
    older = older_in_the_way(changes, node, line.gate) if held is not None else {}
    if not older:
        return held
    if (anyhow := shut_anyhow(changes, line.gate, older)) is not None:
        return anyhow
    if not _hosts_for(changes, line.ask):
        answer = _answer(changes, node, line.ask)
        return answer if isinstance(answer, Wait) else held
    displace(changes, node, older)
    # Those that nobody had claimed are gone by now.
    return shut(changes, line.gate)


def _answer(changes: Changes, node: TaskNode, ask: Ask) -> Choice | Wait:
    return changes.kernel.waiting_lines.full.get(ask) or _chosen(changes, node, ask)


def _is_told_to_all(line: Line, told: Wait, answer: Wait) -> bool:
    """Say whether all of the line are to be told this change of mind, or only its head: see :func:`_explain_line`."""
    if told.for_capacity and answer.for_capacity:
        return False
    return len(line.entries) <= SHORT_LINE or not (told.is_passing and answer.is_passing)


def _chosen(changes: Changes, node: TaskNode, ask: Ask) -> Choice | Wait:
    """Choose a worker, rather none of those that :func:`_shunned` names."""
    kernel = changes.kernel
    listeners = kernel.listeners_of(ask.queue)
    for shunned in _shunned(kernel, node, listeners):
        answer = choose(ask, listeners, kernel.ledger, prefer_host=node.run.home, exclude=shunned)
        if isinstance(answer, Choice):
            # To its own queue: the shunned workers listen to the pool's.
            return replace(answer, direct=True)
    return choose(ask, listeners, kernel.ledger, prefer_host=node.run.home)


def _shunned(kernel: Kernel, node: TaskNode, listeners: Iterable[WorkerRecord]) -> Iterator[frozenset[str]]:
    """Yield the workers that the task had better not go to, the strictest wish first.

    - Not to the one that has just lost it for reasons of its own: a broken one has a free slot all the time, and would
      eat the backlog. One that is gone takes no hint, so all may have that one: a single worker chosen here may have
      just died too.
    - When it was lost with its host, not to a host that runs another such task. One of them may be what killed that
      host; together they would be lost again and again, and the innocent be called ``poison`` with it.
    """
    avoided = kernel.workers.get(node.avoid)
    away_from = frozenset({node.avoid} if avoided is not None and avoided.state is WorkerState.ONLINE else ())
    beside = {worker.id for worker in listeners if worker.host_id in kernel.relapses.hosts} if node.losses else set()
    if beside:
        yield away_from | beside
    if away_from:
        yield away_from


def _explain_line(changes: Changes, line: Line) -> None:
    """Tell the tasks that joined the line what it waits for.

    While the line waits for capacity only its head is told each change of mind (cpu, then memory, then a slot …):
    behind it thousands may stand. What the head was told counts, not whether the line is still blocked: a later line
    of the same pass may have unblocked it.
    """
    if line.told is not None:
        for node in line.unexplained:
            if node.state is TaskState.READY and node.dispatches and node.ask == line.ask:
                changes.explain(node, line.told.reason, line.told.message)
                if line.told.for_its_kind:
                    stuck(changes, node)
    line.unexplained = []


def _hold_for_the_aged(changes: Changes) -> None:
    """Hold room for the lines whose head has waited long for capacity, before others of higher rank take what is
    freed."""
    kernel, waiting = changes.kernel, changes.kernel.waiting_lines
    best = (resting[0][1] for resting in waiting.resting.values())
    for line in (*waiting.awake, *best):
        if line.told is None or not line.told.for_capacity or line.ask in kernel.ledger.held:
            continue
        head = line.head()
        if head is not None and changes.now - head[1].ready_at >= kernel.settings.hold_after:
            _hold_room(changes, line.ask)


def _drop_useless_holds(changes: Changes) -> None:
    """Hold no room where nobody could take the task any more: its worker drains, is silent or has ended."""
    ledger = changes.kernel.ledger
    for ask, host_id in list(ledger.held.items()):
        if host_id not in _hosts_for(changes, ask):
            _drop_hold(changes, ask)


def _drop_hold(changes: Changes, ask: Ask) -> None:
    """Hold no room for the ask any more; others may take it."""
    if changes.kernel.ledger.drop_hold(ask):
        changes.kernel.waiting_lines.unblock()


def _hosts_for(changes: Changes, ask: Ask) -> set[str]:
    """Return the hosts with a well worker that could serve the ask if nothing else ran."""
    kernel, hosts = changes.kernel, changes.kernel.ledger.hosts
    return {
        worker.host_id
        for worker in kernel.listeners_of(ask.queue)
        if worker.state is WorkerState.ONLINE
        and suits(ask, worker)
        and could_ever_fit(ask, worker, hosts[worker.host_id])
    }


def _hold_room(changes: Changes, ask: Ask) -> None:
    """Keep what gets free on one host for an ask that has waited long, so that small ones can't starve it.

    One hold per host and per queue: the host that comes nearest to serving it.
    """
    ledger = changes.kernel.ledger
    if any(held.queue == ask.queue for held in ledger.held):
        return
    hosts = map(ledger.hosts.__getitem__, sorted(_hosts_for(changes, ask)))
    candidates = [host for host in hosts if host.hold is None]
    if candidates:
        nearest = max(candidates, key=lambda host: (host.cpu_free / max(1, host.capacity.cpu), host.id))
        ledger.hold(nearest.id, ask)


def send_out(changes: Changes, node: TaskNode, choice: Choice) -> None:
    """Create the attempt with its reservation and send its hint."""
    kernel, ask = changes.kernel, node.ask or changes.kernel.ask_of(node)
    new_id = kernel.settings.new_id
    attempt = AttemptRecord(
        id=new_id(),
        run_id=node.run.id,
        task_run_id=node.id,
        number=node.attempts + 1,
        queue=ask.queue,
        resources=ask.resources,
        host_id=choice.host_id,
        worker_id=choice.worker_id,
        token=new_id(),
        devices=choice.devices,
        direct=choice.direct,
        hinted_at=changes.now,
    )
    if not changes.task(node, TaskState.QUEUED, "dispatch", attempts=attempt.number, attempt_id=attempt.id):
        return
    node.avoid = ""
    rate = kernel.passed.note_dispatch(node, changes.now)
    changes.emit(CreateAttempt(attempt, node.run.tenant_id, node.name, rate))
    kernel.keep_attempt(attempt)
    note_sent(changes, node, attempt)
    changes.reserve(Reservation(attempt.id, choice.host_id, choice.worker_id, ask.resources, choice.devices))
    if not node.run.home and kernel.workers[choice.worker_id].store_scope != "shared":
        node.run.home = choice.host_id
    changes.emit(SendHint(attempt.id, attempt.seq, hint_queue(attempt)))


def hint_queue(attempt: AttemptRecord) -> str:
    """Return the queue its hint goes to: the pool's, or the planned worker's own."""
    return f"w.{attempt.worker_id}" if attempt.direct else attempt.queue


def hint_again(changes: Changes, attempt: AttemptRecord, *, direct: bool | None = None) -> None:
    """Send the hint of an unclaimed attempt once more, ``seq + 1``."""
    direct = attempt.direct if direct is None else direct
    seq = attempt.seq + 1
    changed = changes.note_attempt(
        attempt,
        {"seq": seq, "direct": direct, "hinted_at": ("in", 0.0)},
        seq=seq,
        direct=direct,
        hinted_at=changes.now,
    )
    changes.emit(SendHint(changed.id, seq, hint_queue(changed)))


def redispatch(changes: Changes, claims_waiting: bool) -> None:
    """Send the hints again that nobody has claimed in time (DESIGN §4).

    Not while claims wait unread in the stream, nor while Redis is away: the count begins anew afterwards.
    """
    kernel = changes.kernel
    if claims_waiting or kernel.redis_away:
        kernel.hints_from = changes.now
        return
    while kernel.unclaimed:
        attempt = kernel.attempts[next(iter(kernel.unclaimed))]
        if changes.now - max(attempt.hinted_at, kernel.hints_from) < kernel.settings.redispatch:
            return
        changes.count("redispatched", f"attempt {attempt.id}")
        hint_again(changes, _moved_if_deaf(changes, attempt))


def _moved_if_deaf(changes: Changes, attempt: AttemptRecord) -> AttemptRecord:
    """Plan an unclaimed attempt for another worker if its own is not well or has let the hint pass before."""
    kernel = changes.kernel
    worker = kernel.workers.get(attempt.worker_id)
    if worker is not None and worker.state is WorkerState.ONLINE and attempt.seq < 2:
        return attempt
    ask = kernel.ask_of(kernel.tasks[attempt.task_run_id])
    answer = choose(ask, kernel.listeners_of(ask.queue), kernel.ledger, exclude=frozenset({attempt.worker_id}))
    return attempt if isinstance(answer, Wait) else move(changes, attempt, answer)


def move(changes: Changes, attempt: AttemptRecord, choice: Choice) -> AttemptRecord:
    """Move an unclaimed attempt and its reservation to another worker."""
    reservation = changes.kernel.ledger.reservations[attempt.id]
    changed = changes.note_attempt(
        attempt,
        {
            "worker_id": choice.worker_id,
            "host_id": choice.host_id,
            "devices": choice.devices,
            "direct": choice.direct,
        },
        worker_id=choice.worker_id,
        host_id=choice.host_id,
        devices=choice.devices,
        direct=choice.direct,
    )
    changes.reserve(replace(reservation, worker_id=choice.worker_id, host_id=choice.host_id, devices=choice.devices))
    changes.kernel.waiting_lines.unblock()
    return changed
