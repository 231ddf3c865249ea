"""Free ports: asked from the kernel, remembered in a file so that addresses survive a restart."""

from __future__ import annotations

import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Say whether a server could listen on the port now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def is_open(port: int, host: str = LOOPBACK) -> bool:
    """Say whether a server accepts connections on the port."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def free_port() -> int:
    """Return a port of the loopback address that is free now; another process may take it first."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def remembered_port(file: Path) -> int:
    """Return the port kept in ``file`` if it is still free, else a new one, which is then kept."""
    try:
        port = int(file.read_text())
        if is_free(port):
            return port
    except (OSError, ValueError):
        pass
    port = free_port()
    file.write_text(f"{port}\n")
    return port
