"""Ports that stay free between a server's end and its next start: no outgoing connection is ever given one of them."""

from __future__ import annotations

import random
from pathlib import Path

from orchestrator.local.ports import is_free

LOWEST = 10_000


def steady_port() -> int:
    """Return a free port below those that the kernel gives to outgoing connections.

    :raises OSError: a hundred that were tried are all taken.
    """
    below = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        # Not of the seed: two runs of one seed at once want different ones.
        port = random.SystemRandom().randrange(LOWEST, below)
        if is_free(port):
            return port
    raise OSError(f"No port between {LOWEST} and {below} is free.")
