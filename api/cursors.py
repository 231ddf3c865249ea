"""Cursors of lists: opaque and signed, so that only we say where a page begins and only the list it is of may go on."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from typing import Any

from werkzeug.exceptions import UnprocessableEntity

_MAC_BYTES = 16
_LONGEST = 2048


class CursorSeal:
    """Signs cursors with a key derived from ``SECRET_KEY``."""

    def __init__(self, secret_key: str) -> None:
        self._key = hashlib.sha256(b"cursor|" + secret_key.encode()).digest()

    def seal(self, scope: str, after: tuple[Any, ...]) -> str:
        """Return the cursor that goes on after this row of the list that ``scope`` names (with its filters)."""
        body = json.dumps(list(after), default=str, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._mac(scope, body) + body).decode().rstrip("=")

    def open(self, scope: str, cursor: str) -> tuple[Any, ...]:
        """Return the row a cursor goes on after.

        :raises UnprocessableEntity: not a cursor of ours, or of another list, filter or sort.
        """
        try:
            raw = base64.urlsafe_b64decode(cursor[:_LONGEST] + "=" * (-len(cursor[:_LONGEST]) % 4))
        except (binascii.Error, ValueError) as error:
            raise _refused() from error
        mac, body = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(scope, body)):
            raise _refused()
        return tuple(json.loads(body))

    def _mac(self, scope: str, body: bytes) -> bytes:
        return hmac.new(self._key, scope.encode() + b"|" + body, hashlib.sha256).digest()[:_MAC_BYTES]


def _refused() -> UnprocessableEntity:
    return UnprocessableEntity(
        "cursor: not a cursor of this list with these filters and this sort; take next_cursor from the page before."
    )
