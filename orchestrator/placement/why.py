"""Why a ready task has no worker: one word that drives people's next step, and a sentence with the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.placement.ask import Ask, Wait
from orchestrator.placement.ledger import HostAccount, Ledger
from orchestrator.records import WorkerRecord
from orchestrator.states import WorkerState

_LIVE = frozenset({WorkerState.ONLINE, WorkerState.SUSPECT})
_GIB = 2**30


def explain(ask: Ask, listeners: Iterable[WorkerRecord], ledger: Ledger) -> Wait:
    """Say what the ask waits for, given every registered listener of its queue.

    - ``waiting_for_worker``: no live worker listens to the queue.
    - ``waiting_for_host``: its inputs lie on a host where none does.
    - ``infeasible``: no live listener could serve it even if nothing else ran; names what is missing.
    - ``waiting_for_slot | cpu | memory | gpu``: one could, once others end.
    """
    live = [w for w in listeners if w.state in _LIVE and ask.queue in w.queues and w.host_id in ledger.hosts]
    if not live:
        return Wait("waiting_for_worker", f"No live worker listens to queue {ask.queue}; start one for it.")
    if len(ask.hosts) > 1:
        return Wait(
            "infeasible",
            f"Its inputs lie on the hosts {_names(ask.hosts)} and on no shared store, so no host "
            "has all of them; set ARTIFACT_URL to a store that all hosts reach.",
        )
    if ask.hosts:
        live = [w for w in live if w.host_id == ask.hosts[0]]
        if not live:
            return Wait(
                "waiting_for_host",
                f"Its inputs lie on host {ask.hosts[0]} only, and no live worker there "
                f"listens to queue {ask.queue}; start one, or set ARTIFACT_URL to a store all hosts reach.",
            )
    labelled = [w for w in live if all(w.labels.get(name) == value for name, value in ask.labels)]
    if not labelled:
        wanted = ", ".join(f"{name}={value}" for name, value in ask.labels)
        return Wait("infeasible", f"Asks a host labelled {wanted}; no worker on queue {ask.queue} has that.")
    feasible = [w for w in labelled if not _missing(ask, w, ledger)]
    if not feasible:
        return Wait("infeasible", _shortfall(ask, labelled, ledger))
    return min((_blocker(ask, w, ledger) for w in feasible), key=lambda pair: pair[0])[1]


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}"


def offers(ask: Ask, worker: WorkerRecord, host: HostAccount) -> dict[str, tuple[int, int]]:
    """Return, by dimension, what is asked and what the worker offers while its host is empty."""
    fitting = sum(
        device.memory >= ask.resources.gpu_memory
        for device in host.capacity.gpus
        if worker.devices is None or device.uuid in worker.devices
    )
    return {
        "cpu": (ask.resources.cpu, host.capacity.cpu),
        "memory": (ask.resources.memory, host.capacity.memory),
        "gpu": (ask.resources.gpus, fitting),
    }


def _missing(ask: Ask, worker: WorkerRecord, ledger: Ledger) -> list[str]:
    """Name the dimensions in which the worker is too small even while its host is empty."""
    found = offers(ask, worker, ledger.hosts[worker.host_id])
    return [name for name, (asked, has) in found.items() if asked > has]


def _shortfall(ask: Ask, workers: list[WorkerRecord], ledger: Ledger) -> str:
    """Say, for the nearest candidate's missing dimensions, what is asked and what the largest worker has."""
    nearest = min(workers, key=lambda w: (len(_missing(ask, w, ledger)), w.id))
    sentences = []
    for name in _missing(ask, nearest, ledger):
        by_worker = {w.id: (w, *offers(ask, w, ledger.hosts[w.host_id])[name]) for w in workers}
        largest, asked, has = max(by_worker.values(), key=lambda found: (found[2], found[0].id))
        sentences.append(
            f"asks {_amount(name, asked, ask)}; the largest worker on queue {ask.queue}, "
            f"host {largest.hostname or largest.host_id}, has {_number(name, has)}"
        )
    text = "; ".join(sentences) + "."
    return text[0].upper() + text[1:]


def _amount(name: str, amount: int, ask: Ask) -> str:
    if name == "gpu" and ask.resources.gpu_memory:
        return f"{amount} gpu of {_number('memory', ask.resources.gpu_memory)} each"
    return f"{amount} gpu" if name == "gpu" else _number(name, amount, unit=True)


def _number(name: str, amount: int, *, unit: bool = False) -> str:
    if name == "cpu":
        return f"{amount / 1000:g}" + (" cpu" if unit else "")
    if name == "memory":
        size = amount / _GIB
        return (f"{size:.0f} GiB" if size >= 1000 else f"{size:.4g} GiB") + (" memory" if unit else "")
    return str(amount)


def _blocker(ask: Ask, worker: WorkerRecord, ledger: Ledger) -> tuple[tuple[int, int, str], Wait]:
    """Return how far this worker is from taking the task (fewer lacks are nearer) and the first thing it lacks."""
    host, where = ledger.hosts[worker.host_id], worker.hostname or worker.host_id
    asked = ask.resources
    lacks: list[Wait] = []
    if ledger.slots_used(worker.id) >= worker.slots:
        lacks.append(Wait("waiting_for_slot", f"All {worker.slots} slots of the worker on host {where} are taken."))
    if asked.cpu > host.cpu_free:
        lacks.append(
            Wait(
                "waiting_for_cpu",
                f"Asks {_number('cpu', asked.cpu)} cpu; host {where} has "
                f"{_number('cpu', max(0, host.cpu_free))} of {_number('cpu', host.capacity.cpu)} free.",
            )
        )
    if asked.memory > host.memory_free:
        lacks.append(
            Wait(
                "waiting_for_memory",
                f"Asks {_number('memory', asked.memory)}; host {where} has "
                f"{_number('memory', max(0, host.memory_free))} of "
                f"{_number('memory', host.capacity.memory)} free.",
            )
        )
    free = [uuid for uuid in host.free_devices(asked.gpu_memory) if uuid in (worker.devices or ())]
    if asked.gpus and worker.devices is None:
        lacks.append(Wait("waiting_for_gpu", f"The worker on host {where} has not said yet which GPUs it may use."))
    elif asked.gpus > len(free):
        lacks.append(
            Wait(
                "waiting_for_gpu",
                f"Asks {asked.gpus} gpu; host {where} has {len(free)} of {len(host.capacity.gpus)} free.",
            )
        )
    if not lacks:
        # Everything is free, so room is held for an older task, or the worker has stopped answering.
        quiet = worker.state is not WorkerState.ONLINE
        reason = "waiting_for_slot" if quiet else "waiting_for_cpu"
        sentence = (
            f"The worker on host {where} is silent."
            if quiet
            else f"The room on host {where} is held for a task that has waited longer."
        )
        lacks.append(Wait(reason, sentence))
    return (len(lacks), worker.state is not WorkerState.ONLINE, worker.id), lacks[0]
