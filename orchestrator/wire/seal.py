"""Seals of the wire: who reaches Redis can delay work, but neither start code nor forge a result (DESIGN §8).

Each purpose and each incarnation has a key of its own, derived from ``WORKER_KEY``. Reports (worker → scheduler) and
control messages (scheduler → worker) carry an HMAC-SHA256; grants are encrypted with AES-256-GCM, since they hold
parameters and resolved secrets.

Grants age on the *worker's* monotonic clock, from the very sending of the claim that they answer. A wall-clock time
of expiry would compare the clocks of two hosts, and a clock an hour wrong would refuse every grant (I14).
"""

from __future__ import annotations

import hashlib
import hmac
import os
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from orchestrator.errors import ForgedMessage
from orchestrator.records import GRANT_LIFETIME

_GCM_NONCE_BYTES = 12


@lru_cache(maxsize=8192)
def _derive(worker_key: bytes, purpose: str, incarnation: str) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=f"{purpose}|{incarnation}".encode()).derive(worker_key)


def _mac(key: bytes, incarnation: str, kind: str, body: bytes) -> bytes:
    # Lengths go first, so that no two (incarnation, kind, body) give the same bytes.
    head = f"{len(incarnation)}|{incarnation}|{len(kind)}|{kind}|".encode()
    return hmac.digest(key, head + body, hashlib.sha256)


class Seal:
    """Makes and checks all seals of a site.

    :param worker_key: ``WORKER_KEY``; the same on the scheduler and on every worker host.
    """

    def __init__(self, worker_key: str) -> None:
        self._key = worker_key.encode()

    def __repr__(self) -> str:
        return "Seal(***)"

    def report_mac(self, incarnation: str, kind: str, body: bytes) -> bytes:
        """Return the MAC of a worker's report (an entry of a stream, or a heartbeat)."""
        return _mac(_derive(self._key, "report", incarnation), incarnation, kind, body)

    def check_report(self, incarnation: str, kind: str, body: bytes, mac: bytes) -> None:
        """Accept a report.

        :raises ForgedMessage: the MAC is not that of this incarnation, kind and body.
        """
        if not hmac.compare_digest(self.report_mac(incarnation, kind, body), mac):
            raise ForgedMessage(
                f"A {kind!r} in the name of worker {incarnation!r} carries no valid seal; dropped. If that worker is "
                "ours, its WORKER_KEY differs from the scheduler's."
            )

    def control_mac(self, incarnation: str, kind: str, body: bytes) -> bytes:
        """Return the MAC of a denial, an answer or a desired state for this incarnation."""
        return _mac(_derive(self._key, "control", incarnation), incarnation, kind, body)

    def check_control(self, incarnation: str, kind: str, body: bytes, mac: bytes) -> None:
        """Accept a control message.

        :raises ForgedMessage: the MAC is not that of this incarnation, kind and body.
        """
        if not hmac.compare_digest(self.control_mac(incarnation, kind, body), mac):
            raise ForgedMessage(
                f"A {kind!r} for worker {incarnation!r} carries no valid seal; dropped. If the scheduler is ours, its "
                "WORKER_KEY differs from this worker's."
            )

    def seal_grant(
        self, incarnation: str, attempt_id: str, nonce: str, body: bytes, lifetime: float = GRANT_LIFETIME
    ) -> bytes:
        """Encrypt a grant so that only this incarnation, for this attempt and this claim's nonce, can open it."""
        box_nonce = os.urandom(_GCM_NONCE_BYTES)
        cipher = AESGCM(_derive(self._key, "grant", incarnation))
        return box_nonce + cipher.encrypt(box_nonce, body, _grant_frame(attempt_id, nonce, lifetime))

    def open_grant(
        self, incarnation: str, attempt_id: str, nonce: str, box: bytes, *, lifetime: float, age: float
    ) -> bytes:
        """Decrypt a grant.

        :param lifetime: seconds, as it stands beside the box; authenticated, so it can't be stretched.
        :param age: seconds on this worker's monotonic clock since the claim was sent with this nonce.
        :raises ForgedMessage: made for another incarnation, attempt or claim, altered, or too old.
        """
        cipher = AESGCM(_derive(self._key, "grant", incarnation))
        try:
            body = cipher.decrypt(
                box[:_GCM_NONCE_BYTES], box[_GCM_NONCE_BYTES:], _grant_frame(attempt_id, nonce, lifetime)
            )
        except (InvalidTag, ValueError) as error:
            raise ForgedMessage(
                f"A grant of attempt {attempt_id!r} does not open for worker {incarnation!r} and its claim; dropped."
            ) from error
        if not 0 <= age <= lifetime:
            raise ForgedMessage(
                f"The grant of attempt {attempt_id!r} came {age:.0f} s after the claim and is good for "
                f"{lifetime:.0f} s; dropped. The claim will be sent again."
            )
        return body


def _grant_frame(attempt_id: str, nonce: str, lifetime: float) -> bytes:
    return f"{len(attempt_id)}|{attempt_id}|{len(nonce)}|{nonce}|{lifetime:.3f}".encode()
