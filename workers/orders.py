"""What the worker tells its fork server and hears from it: one JSON object per line over a socket pair."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.records import SETUP_SECONDS
from orchestrator.wire.messages import GrantSpec, grant_body


@dataclass(frozen=True, slots=True)
class Site:
    """What all attempts of one worker share. The first order of all."""

    incarnation: str
    boot_id: str
    attempts: str
    """Folder of the attempts' folders."""
    spool: str
    local_to: str | None
    """The host's id when only this host can read the artifact store."""
    settings: Mapping[str, str]
    """Environment variables that hold our settings, secrets of the object store among them; for our own code."""
    environment: Mapping[str, str]
    """The scrubbed environment every task starts with."""
    use_cgroups: bool = True
    """Whether the kernel may keep the ceilings where it can; else the supervisors watch them."""
    max_processes: int = 4096
    """Of one tree; with more it is stopped."""
    doors: str = ""
    """Folder in which a fork server whose worker died makes its socket (see ``door``)."""
    orphan_seconds: float = 600.0
    """How long trees may live on without a worker that answers for them; then they are stopped."""
    orphan_grace: float = 20.0
    """The longest grace of such a stop: the leader counts from the worker's silence, and soon starts them elsewhere."""
    setup_seconds: float = SETUP_SECONDS
    """How long an attempt's process may take until its operator runs."""

    @property
    def attempts_folder(self) -> Path:
        return Path(self.attempts)

    @property
    def spool_folder(self) -> Path:
        return Path(self.spool)

    def to_line(self) -> dict[str, Any]:
        return {"do": "configure", **asdict(self)}

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> Site:
        # A worker of the release before starts us anew when we die, and the code on the disk may be newer than it is.
        return cls(**{name: line[name] for name in cls.__dataclass_fields__ if name in line})


def start_order(attempt_id: str, grant: bytes, fresh_until: float | None) -> dict[str, Any]:
    """Order a start. ``grant``: the JSON of the grant. ``fresh_until``: see :func:`fresh_order`."""
    return {"do": "start", "attempt": attempt_id, "grant": grant.decode(), "fresh_until": fresh_until}


def stop_order(attempt_id: str, why: str, grace: float | None) -> dict[str, Any]:
    """Order a stop: TERM, ``grace`` seconds (``None``: the task's own), KILL. ``why`` is a stop of ``verdict``."""
    return {"do": "stop", "attempt": attempt_id, "why": why, "grace": grace}


def fresh_order(until: float) -> dict[str, Any]:
    """Tell exclusive attempts until when (CLOCK_MONOTONIC, one for the whole host) they may run unheard."""
    return {"do": "fresh", "until": until}


def keep_order() -> dict[str, Any]:
    """Say, once greeted at the door, that we hold what lives behind it, and answer for it from now on."""
    return {"do": "keep"}


def known_order() -> dict[str, Any]:
    """Say that the leader has read that we do: when we die, it counts from then on."""
    return {"do": "known"}


def kept_grant(spec: GrantSpec) -> str:
    """Return what a keeper must know of a grant: no parameters, no secrets."""
    bare = replace(spec, parameters={}, run_parameters={}, upstream_outputs={}, connections={}, outputs_schema=None)
    return grant_body(bare).decode()


class Lines:
    """Splits a stream of bytes into JSON lines."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, piece: bytes) -> Iterator[dict[str, Any]]:
        """Yield the objects that are complete now."""
        while (line := self.feed_one(piece)) is not None:
            piece = b""
            yield line

    def feed_one(self, piece: bytes) -> dict[str, Any] | None:
        """Return the next object if it is complete now; what follows it waits for the next call."""
        self._rest += piece
        if (end := self._rest.find(b"\n")) < 0:
            return None
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        found: dict[str, Any] = json.loads(line)
        return found


def send_line(peer: socket.socket, document: Mapping[str, Any]) -> None:
    """Send one object; blocks while the peer is slow, unless the socket does not."""
    peer.sendall(json.dumps(document).encode() + b"\n")
