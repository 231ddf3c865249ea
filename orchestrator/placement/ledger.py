"""The ledger: what every host offers and what is held on it. Integers only, so sums are exact (I13)."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.placement.ask import Ask
from orchestrator.records import Capacity, HostRecord, Reservation, Resources, WorkerRecord


class HostAccount:
    """One host: its capacity and the sums held on it, zombies included."""

    __slots__ = ("boot_id", "capacity", "cpu_used", "devices_used", "hold", "id", "memory_used")

    def __init__(self, host_id: str, boot_id: str, capacity: Capacity) -> None:
        self.id = host_id
        self.boot_id = boot_id
        self.capacity = capacity
        self.cpu_used = 0
        self.memory_used = 0
        self.devices_used: dict[str, str] = {}
        self.hold: Ask | None = None
        """Tasks with this ask have waited long: what gets free here is kept for them."""

    @property
    def cpu_free(self) -> int:
        return self.capacity.cpu - self.cpu_used

    @property
    def memory_free(self) -> int:
        return self.capacity.memory - self.memory_used

    def free_devices(self, gpu_memory: int) -> list[str]:
        """Return the devices nobody holds that are large enough, the smallest first."""
        fitting = [
            device
            for device in self.capacity.gpus
            if not device.busy_with and device.uuid not in self.devices_used and device.memory >= gpu_memory
        ]
        fitting.sort(key=lambda device: (device.memory, device.uuid))
        return [device.uuid for device in fitting]


class Ledger:
    """All hosts and reservations. A host's capacity is shared by its workers; slots are each worker's own."""

    __slots__ = ("by_worker", "held", "hosts", "reservations", "zombies")

    def __init__(self) -> None:
        self.hosts: dict[str, HostAccount] = {}
        self.reservations: dict[str, Reservation] = {}
        self.by_worker: dict[str, set[str]] = {}
        """Attempts that hold a slot of each worker; zombies hold none."""
        self.zombies: dict[str, None] = {}
        """Attempts that are over for us but whose trees may live."""
        self.held: dict[Ask, str] = {}
        """Ask → host on which room is held for it."""

    def register(self, host: HostRecord) -> None:
        """Add a host, or note what it offers now; what is held on it stays."""
        account = self.hosts.get(host.id)
        if account is None:
            self.hosts[host.id] = HostAccount(host.id, host.boot_id, host.capacity)
        else:
            account.boot_id, account.capacity = host.boot_id, host.capacity

    def slots_used(self, worker_id: str) -> int:
        return len(self.by_worker.get(worker_id, ()))

    def fit(self, worker: WorkerRecord, ask: Ask) -> tuple[str, ...] | None:
        """Return the devices the task would get on the worker's host now, or ``None`` where it does not fit.

        Of the host's devices, only those that the worker may use. Room held for others is left alone.
        """
        host, resources = self.hosts.get(worker.host_id), ask.resources
        if host is None or resources.cpu > host.cpu_free or resources.memory > host.memory_free:
            return None
        devices: tuple[str, ...] = ()
        if resources.gpus:
            free = [uuid for uuid in host.free_devices(resources.gpu_memory) if uuid in (worker.devices or ())]
            if len(free) < resources.gpus:
                return None
            devices = tuple(free[: resources.gpus])
        hold = host.hold
        if hold is not None and hold != ask and not self._spares(host, resources, hold.resources):
            return None
        return devices

    @staticmethod
    def _spares(host: HostAccount, asked: Resources, held: Resources) -> bool:
        """Say whether taking this leaves what is held; what it does not ask for it can't take away."""
        if asked.cpu and host.cpu_free - asked.cpu < held.cpu:
            return False
        if asked.memory and host.memory_free - asked.memory < held.memory:
            return False
        if not asked.gpus or not held.gpus:
            return True
        return len(host.free_devices(held.gpu_memory)) - asked.gpus >= held.gpus

    def take(self, reservation: Reservation) -> None:
        """Hold what the reservation says; the caller has asked :meth:`fit`, or the host really holds it already."""
        self.release(reservation.attempt_id)
        self.reservations[reservation.attempt_id] = reservation
        host = self.hosts.get(reservation.host_id)
        if host is None:
            # A host of which only a reservation is known: its capacity comes with its next heartbeat.
            host = self.hosts[reservation.host_id] = HostAccount(reservation.host_id, "", Capacity(0, 0))
        host.cpu_used += reservation.resources.cpu
        host.memory_used += reservation.resources.memory
        for device in reservation.devices:
            host.devices_used[device] = reservation.attempt_id
        if reservation.zombie:
            self.zombies[reservation.attempt_id] = None
        else:
            self.by_worker.setdefault(reservation.worker_id, set()).add(reservation.attempt_id)

    def release(self, attempt_id: str) -> Reservation | None:
        """Give back what the attempt holds; ``None`` when it holds nothing."""
        reservation = self.reservations.pop(attempt_id, None)
        if reservation is None:
            return None
        self.zombies.pop(attempt_id, None)
        host = self.hosts[reservation.host_id]
        host.cpu_used -= reservation.resources.cpu
        host.memory_used -= reservation.resources.memory
        for device in reservation.devices:
            # While two attempts change places, the other may have been given the device already.
            if host.devices_used.get(device) == attempt_id:
                del host.devices_used[device]
        self._free_slot(reservation)
        return reservation

    def bury(self, attempt_id: str) -> Reservation | None:
        """Turn the reservation into a zombie: it stays charged to the host but gives its slot back."""
        reservation = self.reservations.get(attempt_id)
        if reservation is None or reservation.zombie:
            return reservation
        self._free_slot(reservation)
        zombie = replace(reservation, zombie=True)
        self.reservations[attempt_id] = zombie
        self.zombies[attempt_id] = None
        return zombie

    def zombies_on(self, host_id: str) -> list[Reservation]:
        found = (self.reservations[attempt_id] for attempt_id in self.zombies)
        return [reservation for reservation in found if reservation.host_id == host_id]

    def hold(self, host_id: str, ask: Ask) -> None:
        """Keep what gets free on this host for tasks with this ask; one hold per host."""
        self.hosts[host_id].hold = ask
        self.held[ask] = host_id

    def drop_hold(self, ask: Ask) -> bool:
        """Stop keeping room for this ask; say whether any was kept."""
        host_id = self.held.pop(ask, None)
        if host_id is None:
            return False
        self.hosts[host_id].hold = None
        return True

    def forget(self, host_id: str) -> None:
        """Drop a host on which nothing is held."""
        if (host := self.hosts.pop(host_id, None)) is not None and host.hold is not None:
            self.held.pop(host.hold, None)

    def _free_slot(self, reservation: Reservation) -> None:
        holders = self.by_worker.get(reservation.worker_id)
        if holders is not None:
            holders.discard(reservation.attempt_id)
            if not holders:
                del self.by_worker[reservation.worker_id]
