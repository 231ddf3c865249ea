"""An answer that was read in full, within its size limit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from orchestrator.errors import Unreachable


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP answer; ``headers`` have lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    url: str
    """Where the answer came from, after redirects, without the query."""
    size: int = 0
    """Bytes of the content, also when it went into a file."""

    @property
    def ok(self) -> bool:
        """Say whether the status is 2xx."""
        return 200 <= self.status < 300

    def json(self) -> Any:
        """Parse the body.

        :raises Unreachable: it is no JSON.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            kind = self.headers.get("content-type", "no content type")
            raise Unreachable(f"{self.url} answered {self.status} with something that is no JSON ({kind}).") from error

    @property
    def retry_after(self) -> float | None:
        """Seconds the other side asks to wait (``Retry-After``, as a number or a date), if it does."""
        return retry_after_seconds(self.headers.get("retry-after"), datetime.now(UTC))


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """Read a ``Retry-After`` header; ``None`` when there is none or it is not one."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())
