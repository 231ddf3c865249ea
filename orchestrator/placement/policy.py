"""The choice of a worker for one task: best fit among those that can take it now.

This is the seam where richer policies come in: whatever decides, it answers with a :class:`Choice` or a :class:`Wait`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from orchestrator.placement.ask import Ask, Choice, Wait
from orchestrator.placement.ledger import HostAccount, Ledger
from orchestrator.placement.why import explain, offers
from orchestrator.records import WorkerRecord
from orchestrator.states import WorkerState

Score = tuple[int, int, float, int, str]


def choose(
    ask: Ask,
    listeners: Iterable[WorkerRecord],
    ledger: Ledger,
    *,
    prefer_host: str = "",
    exclude: Collection[str] = (),
) -> Choice | Wait:
    """Choose a worker for the task among the live listeners of its queue.

    :param prefer_host: taken if it fits there (the run's earlier outputs lie on it).
    :param exclude: workers that have had their chance, or are not to get one.
    """
    listeners = tuple(listeners)
    best: tuple[Score, WorkerRecord, tuple[str, ...]] | None = None
    refused = False
    for worker in listeners:
        if worker.state is not WorkerState.ONLINE or worker.id in exclude:
            continue
        used = ledger.slots_used(worker.id)
        if used >= worker.slots:
            continue
        devices = ledger.fit(worker, ask) if suits(ask, worker) else None
        if devices is None:
            refused = True
            continue
        score = _score(ask, worker, used, ledger.hosts[worker.host_id], prefer_host)
        if best is None or score < best[0]:
            best = (score, worker, devices)
    if best is None:
        return explain(ask, listeners, ledger)
    _, worker, devices = best
    return Choice(worker.id, worker.host_id, devices, direct=refused)


def suits(ask: Ask, worker: WorkerRecord) -> bool:
    """Say whether the worker is of the kind asked for: its queue, labels and host; capacity is another question."""
    if ask.queue not in worker.queues:
        return False
    if ask.hosts and (len(ask.hosts) > 1 or worker.host_id != ask.hosts[0]):
        return False
    return all(worker.labels.get(name) == value for name, value in ask.labels)


def could_ever_fit(ask: Ask, worker: WorkerRecord, host: HostAccount) -> bool:
    """Say whether the worker could serve the ask if nothing else were on its host."""
    return all(asked <= has for asked, has in offers(ask, worker, host).values())


def _score(ask: Ask, worker: WorkerRecord, used: int, host: HostAccount, prefer_host: str) -> Score:
    """Lower is better: the wanted host, then as few GPUs left idle beside a task without one, then the tightest fit,
    then the worker with most free slots."""
    elsewhere = int(bool(prefer_host) and host.id != prefer_host)
    idle_gpus = len(host.capacity.gpus) - len(host.devices_used) - ask.resources.gpus
    left = (host.cpu_free - ask.resources.cpu) / max(1, host.capacity.cpu)
    left += (host.memory_free - ask.resources.memory) / max(1, host.capacity.memory)
    return (elsewhere, idle_gpus, round(left, 6), used - worker.slots, worker.id)
