"""Nonces of claims, ``<claim>.<sending>``: a grant answers one sending of a claim, and ages from just that.

Counted from any other sending, a grant that was long under way could look fresh and start what was given up meanwhile.
"""

from __future__ import annotations


def nth(claim: str, sending: int) -> str:
    """Return the nonce of the ``sending``-th time (from 1) that this claim is sent."""
    return f"{claim}.{sending}"


def claim_of(nonce: str) -> str:
    """Return the claim that the nonce is of; all its sendings ask for one and the same grant."""
    return nonce.partition(".")[0]


def sending_of(nonce: str) -> int:
    """Return which sending the nonce is of; 0 when it does not say, as those of releases before this one."""
    sending = nonce.partition(".")[2]
    return int(sending) if sending.isascii() and sending.isdecimal() and len(sending) < 10 else 0
