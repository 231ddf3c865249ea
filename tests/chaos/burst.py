"""A crowd that wants runs all at once: many connections, each asks, does as it is told, and asks again."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

LONGEST_ANSWER = 60.0
"""Seconds after which a caller gives up; its answer then counts as missing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, or its absence."""

    key: str
    status: int
    """0: none."""
    seconds: float
    at: float
    run_id: str = ""


@dataclass(slots=True)
class Crowd:
    """Starts one run per key over many connections to several servers.

    A caller who is told to come back later does so after the seconds of ``Retry-After``, with the same key.
    """

    ports: Sequence[int]
    api_key: str
    pipeline: str
    answers: list[Answer] = field(default_factory=list)

    def ask(self, keys: Iterable[str], connections: int, seconds: float) -> None:
        """Ask until each key has its run.

        :raises TimeoutError: not all had one after so many seconds.
        """
        asyncio.run(asyncio.wait_for(self._ask(deque(keys), connections), seconds))

    @property
    def statuses(self) -> Counter[int]:
        return Counter(answer.status for answer in self.answers)

    def slowest(self, share: float) -> float:
        """Return within how many seconds this share of the answers came."""
        took = sorted(answer.seconds for answer in self.answers)
        return took[min(len(took) - 1, int(share * len(took)))]

    async def _ask(self, keys: deque[str], connections: int) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(connections):
                group.create_task(self._caller(self.ports[number % len(self.ports)], keys))

    async def _caller(self, port: int, keys: deque[str]) -> None:
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while keys:
            key, accepted = keys.popleft(), False
            while not accepted:
                began = time.monotonic()
                try:
                    if connection is None:
                        connection = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), LONGEST_ANSWER)
                    answer, wait, is_kept = await asyncio.wait_for(self._post(*connection, key, began), LONGEST_ANSWER)
                except (OSError, EOFError, TimeoutError, ValueError):
                    answer, wait, is_kept = Answer(key, 0, time.monotonic() - began, began), 1.0, False
                self.answers.append(answer)
                accepted = answer.status in (200, 201)
                if not is_kept and connection is not None:
                    connection[1].close()
                    connection = None
                if not accepted:
                    await asyncio.sleep(wait)
        if connection is not None:
            connection[1].close()

    async def _post(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str, began: float
    ) -> tuple[Answer, float, bool]:
        """Return the answer, the seconds that it asks to wait, and whether the connection is kept open."""
        body = json.dumps({"pipeline_name": self.pipeline}).encode()
        head = (
            "POST /api/v1/runs HTTP/1.1\r\nHost: burst\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {self.api_key}\r\nIdempotency-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        content = await reader.readexactly(int(headers["content-length"]))
        at = time.monotonic()
        status = int(lines[0].split()[1])
        run_id = str(json.loads(content)["id"]) if status in (200, 201) else ""
        answer = Answer(key, status, at - began, at, run_id)
        return answer, float(headers.get("retry-after", 1.0)), headers.get("connection", "").lower() != "close"
