"""One who reaches Redis but has no WORKER_KEY: listens, replays, swaps seals, forges, and floods (DESIGN §8)."""

from __future__ import annotations

import base64
import json
import random
import re
import socket
import threading
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

import redis

_ARGUMENT = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(rb"\\(x[0-9a-f]{2}|.)", re.DOTALL)
_PLAIN = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}
_BATCH = 1000
MISDIRECTED = 60
"""So many messages of each kind, the latest: a hint to nothing costs a slot a round trip, and only time is lost."""

Fields = dict[bytes, bytes]


@dataclass(slots=True)
class Overheard:
    """What went over the wire while somebody listened."""

    reports: list[tuple[bytes, Fields]] = field(default_factory=list)
    """Entries of streams: key and fields."""
    hints: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Messages on Celery's queues: key and message."""
    replies: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Grants, denials and answers: key of the worker's list, and envelope."""
    states: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Heartbeats and desired states: key and value."""

    def sealed(self, *kinds: bytes) -> list[tuple[bytes, Fields]]:
        """Return the reports of these kinds (all that carry a seal, when none is said)."""
        return [(key, fields) for key, fields in self.reports if b"m" in fields and fields.get(b"k") in (kinds or ANY)]

    def incarnations(self) -> list[str]:
        """Return the workers that were heard."""
        return sorted({fields[b"w"].decode() for _, fields in self.sealed() if b"w" in fields})


class _Any:
    def __contains__(self, _: object) -> bool:
        return True


ANY = _Any()


class Eavesdropper:
    """Hears every command that Redis is given (``MONITOR``), save for his own; usable as a context manager."""

    def __init__(self, url: str, namespace: str = "mlops_tasks") -> None:
        parts = urlsplit(url)
        self.heard = Overheard()
        self.client = redis.Redis.from_url(url, socket_timeout=30, single_connection_client=True)
        """What he attacks with."""
        self._mine = f"{self.client.client_info()['addr']}] ".encode()
        self._prefix = f"{namespace}:".encode()
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=5.0)
        self._socket.sendall(f"AUTH {parts.password}\r\nMONITOR\r\n".encode())
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._listen, name="eavesdropper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10.0)
        self._socket.close()
        self.client.close()

    def _listen(self) -> None:
        with self._socket.makefile("rb") as lines:
            for line in lines:
                if self._mine in line[:80]:
                    continue
                arguments = [_ESCAPE.sub(_unescape, found) for found in _ARGUMENT.findall(line)]
                if len(arguments) > 2 and arguments[1].startswith(self._prefix):
                    self._note(arguments)

    def _note(self, arguments: list[bytes]) -> None:
        command, key, kind = arguments[0].upper(), arguments[1], arguments[1].removeprefix(self._prefix)
        if command == b"XADD":
            pairs = arguments[arguments.index(b"*") + 1 :]
            self.heard.reports.append((key, dict(zip(pairs[::2], pairs[1::2], strict=True))))
        elif command == b"LPUSH" and b'"orchestrator.attempt"' in arguments[2]:
            self.heard.hints.append((key, arguments[2]))
        elif command == b"RPUSH" and kind.startswith(b"reply:"):
            self.heard.replies += [(key, envelope) for envelope in arguments[2:]]
        elif command == b"SET" and kind.startswith((b"hb:", b"desired:")):
            self.heard.states.append((key, arguments[2]))


def _unescape(match: re.Match[bytes]) -> bytes:
    found = match[1]
    return bytes([int(found[1:], 16)]) if len(found) == 3 else _PLAIN.get(found, found)


class Attacker:
    """Writes to Redis whatever may be written without a key.

    :param listener: has collected what there is to replay and to forge from.
    """

    def __init__(self, listener: Eavesdropper, dice: random.Random, namespace: str = "mlops_tasks") -> None:
        self._client = listener.client
        self._heard = listener.heard
        self._dice = dice
        self._name = namespace
        self._events = f"{namespace}:ev".encode()

    def replay(self, times: int = 3) -> int:
        """Send everything again, so many times and in any order: reports, hints, replies, states."""
        heard = self._heard
        commands: list[tuple[Any, ...]] = [("XADD", key, "*", *_flat(fields)) for key, fields in heard.reports]
        commands += [("LPUSH", key, hint) for key, hint in heard.hints]
        commands += [("RPUSH", key, envelope) for key, envelope in heard.replies]
        commands *= times
        # States replace each other: each of them once, for the newest of them is written again in half a second.
        commands += [("SET", key, value, "EX", "60") for key, value in heard.states]
        return self._send(self._shuffled(commands))

    def misdirect(self) -> int:
        """Hand everybody what was meant for somebody else: hints to all queues, replies and states to other workers."""
        names = self._heard.incarnations()
        queues = [f"{self._name}:{queue}".encode() for queue in ("cpu", "highmem", "gpu", *(f"w.{n}" for n in names))]
        commands: list[tuple[Any, ...]] = [
            ("LPUSH", self._dice.choice(queues), hint) for _, hint in self._heard.hints[-MISDIRECTED:]
        ]
        for name in names:
            commands += [
                ("RPUSH", f"{self._name}:reply:{name}", envelope) for _, envelope in self._heard.replies[-MISDIRECTED:]
            ]
        for key, value in self._heard.states[-MISDIRECTED:]:
            kind = key.removeprefix(f"{self._name}:".encode()).partition(b":")[0].decode()
            commands.append(("SET", f"{self._name}:{kind}:{self._dice.choice(names)}", value, "EX", "60"))
        return self._send(self._shuffled(commands))

    def swap_seals(self) -> int:
        """Send reports under each other's seals and in each other's names."""
        sealed = self._heard.sealed()
        commands = []
        for key, fields in sealed:
            _, other = self._dice.choice(sealed)
            if other == fields:
                continue
            part = self._dice.choice([b"m", b"w", b"b", b"k"])
            if other.get(part) != fields.get(part):
                commands.append(("XADD", key, "*", *_flat({**fields, part: other.get(part, b"")})))
        return self._send(self._shuffled(commands))

    def forge(self, attempts: Iterable[str]) -> int:
        """Claim, end, cancel and grant these attempts by words of one's own under seals of others."""
        return self._send(self._shuffled([command for attempt in attempts for command in self._forgeries(attempt)]))

    def _forgeries(self, attempt: str) -> Iterator[tuple[Any, ...]]:
        seals = [fields[b"m"] for _, fields in self._heard.sealed()] + [b"", self._dice.randbytes(32)]
        for name in self._heard.incarnations():
            outcome = {"attempt": attempt, "token": str(uuid.uuid4()), "worker": name, "state": "succeeded"}
            claim = {"attempt": attempt, "seq": 1, "nonce": self._dice.randbytes(16).hex()}
            for kind, body in (("outcome", outcome), ("claim", claim), ("goodbye", {})):
                yield ("XADD", self._events, "*", *_flat(self._report(kind, name, body, self._dice.choice(seals))))
            box = base64.b64encode(self._dice.randbytes(600)).decode()
            grant = {"k": "grant", "attempt": attempt, "nonce": claim["nonce"], "lifetime": 1e9, "box": box}
            answer = {"attempt": attempt, "token": outcome["token"], "verdict": "committed"}
            wishes = {"cancel": [[attempt, 0.0]], "fence": [attempt], "confirm": [[attempt, name]], "drain": True}
            desired = {"epoch": 10**6, "hb_seq": 10**6, "gen": 1, **wishes}
            yield ("RPUSH", f"{self._name}:reply:{name}", json.dumps(grant))
            yield ("RPUSH", f"{self._name}:reply:{name}", self._control("answer", answer))
            yield ("SET", f"{self._name}:desired:{name}", self._control("desired", desired), "EX", "60")

    @staticmethod
    def _report(kind: str, name: str, body: Any, seal: bytes) -> Fields:
        return {b"k": kind.encode(), b"w": name.encode(), b"b": json.dumps(body).encode(), b"m": seal}

    def _control(self, kind: str, body: Any) -> str:
        """Return a control message under the seal of a real one."""
        real = [
            json.loads(envelope)
            for _, envelope in (*self._heard.replies, *self._heard.states[-50:])
            if b'"m"' in envelope
        ]
        seals = [found["m"] for found in real if found.get("m")] or [
            base64.b64encode(self._dice.randbytes(32)).decode()
        ]
        return json.dumps({"k": kind, "b": json.dumps(body), "m": self._dice.choice(seals)})

    def flood(self, entries: int) -> int:
        """Post junk: noise, unknown kinds, empty entries, wakes, forged reports, workers that are none."""
        names = [name.encode() for name in self._heard.incarnations()] or [b"nobody"]
        kinds = [b"claim", b"outcome", b"goodbye", b"heartbeat", b"nonsense", b"\xff\xfe", b"", b"k" * 500]

        def junk() -> Fields:
            noise = self._dice.randbytes(self._dice.choice((0, 8, 64, 300)))
            fields = {b"k": self._dice.choice(kinds), b"w": self._dice.choice((*names, noise)), b"b": noise}
            fields[b"m"] = self._dice.randbytes(32)
            return dict(self._dice.sample(sorted(fields.items()), self._dice.randint(1, 4)))

        sent = 0
        while sent < entries:
            sent += self._send(
                [("XADD", self._events, "*", *_flat(junk())) for _ in range(min(_BATCH, entries - sent))]
            )
        wakes = [("XADD", self._events, "*", "k", "wake")] * 200
        strangers = [("SADD", f"{self._name}:live", str(uuid.uuid4())) for _ in range(500)]
        queues = [("LPUSH", f"{self._name}:cpu", noise) for noise in (b"", b"{}", b"\xff", b"[]", b'{"body": 1}')]
        self._send([*wakes, *strangers, *queues])
        return sent

    def _shuffled(self, commands: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        self._dice.shuffle(commands)
        return commands

    def _send(self, commands: list[tuple[Any, ...]]) -> int:
        for start in range(0, len(commands), _BATCH):
            pipeline = self._client.pipeline(transaction=False)
            for command in commands[start : start + _BATCH]:
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
            pipeline.execute(raise_on_error=False)
        return len(commands)


def _flat(fields: Fields) -> list[bytes]:
    return [part for pair in fields.items() for part in pair]
