"""Puts one worker of a site behind a cable of its own, a network namespace and a veth pair, and pulls the cable."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Self

from orchestrator.local.child import ProcessSpec

if TYPE_CHECKING:
    from tests.chaos.site import ChaosSite


@cache
def why_no_namespaces() -> str:
    """Say why network namespaces can't be had here; "" when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip") or not shutil.which("nsenter"):
        return "network namespaces need ip (iproute2) and nsenter (util-linux)"
    name = f"chaos-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"no network namespace can be made here: {tried.stderr.strip()}"
    try:
        made = subprocess.run(
            ["ip", "link", "add", f"ct{os.getpid()}", "type", "veth", "peer", "name", "far", "netns", name],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        _ip("netns", "delete", name)
    return f"no veth pair can be made here: {made.stderr.strip()}" if made.returncode else ""


class HostNetwork:
    """A network namespace with one cable to ours; usable as a context manager.

    :param name: tells several apart; the process id is added.
    """

    def __init__(self, name: str) -> None:
        self._name = f"{name}-{os.getpid()}"
        self._near = f"cn{os.getpid()}"
        # A /30 of the range for benchmarks (RFC 2544), which no real network uses; apart by process id.
        block = os.getpid() % 16384 * 4
        prefix = f"198.18.{block // 256}"
        self._here, self._there = f"{prefix}.{block % 256 + 1}", f"{prefix}.{block % 256 + 2}"

    def __enter__(self) -> Self:
        _ip("netns", "add", self._name)
        try:
            _ip("link", "add", self._near, "type", "veth", "peer", "name", "far", "netns", self._name)
            _ip("address", "add", f"{self._here}/30", "dev", self._near)
            _ip("link", "set", self._near, "up")
            for words in (f"address add {self._there}/30 dev far", "link set far up", "link set lo up"):
                _ip("-n", self._name, *words.split())
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        _ip("netns", "delete", self._name)  # and with it its end of the cable, and so ours

    def take_in(self, site: ChaosSite, worker: str) -> None:
        """Restart a worker of the site behind the cable, and wait until it is online again."""
        # Redis listens on the near end, too; its password is the same everywhere.
        site.redis.do(lambda client: client.config_set("bind", f"127.0.0.1 {self._here}"))
        url = site.redis.url().replace("127.0.0.1", self._here)
        known = _online(site, worker)
        site.processes.stop(worker)
        site.variables[worker] = {**site.variables.get(worker, {}), "REDIS_URL": url}
        supervised = site.processes[worker]
        spec = supervised.spec
        supervised.spec = lambda: self._inside(spec())
        site.processes.start(worker)
        site.wait_until(lambda: _online(site, worker) - known, f"{worker} is online behind its cable", 20.0)

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Pull the cable for the block."""
        _ip("link", "set", self._near, "down")
        try:
            yield
        finally:
            _ip("link", "set", self._near, "up")

    def _inside(self, spec: ProcessSpec) -> ProcessSpec:
        enter = (str(shutil.which("nsenter")), f"--net=/run/netns/{self._name}")
        return replace(spec, command=(*enter, *spec.command))


def _online(site: ChaosSite, worker: str) -> set[str]:
    host = worker.replace("worker", "host")
    rows = site.postgres.query("SELECT id FROM workers WHERE host_id = %s AND state = 'online'", host)
    return {row[0] for row in rows}


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
