"""Says whether a URL lies below another one: what a connection's credentials may be sent to, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import SplitResult, unquote, urlsplit

from orchestrator.errors import ForbiddenAddress
from orchestrator.outbound.address import parse_target

_MOST_DECODINGS = 5
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def is_below(url: str, top: str) -> bool:
    """Say whether ``url`` is ``top`` or something below it.

    For ``http`` and ``https`` the origin must be the same, for ``s3`` the bucket; then ``top``'s path must come first,
    by whole segments. A ``..`` in any spelling is below nothing. Credentials in ``top`` are left out of account.

    :raises ForbiddenAddress: ``url`` is of ``http`` and none that may be called.
    """
    wanted, allowed = _split(url), _split(top)
    if wanted is None or allowed is None or wanted.scheme != allowed.scheme:
        return False
    if wanted.scheme == "s3":
        same = bool(allowed.netloc) and wanted.netloc == allowed.netloc
    elif wanted.scheme in {"http", "https"}:
        same = parse_target(url).origin == _origin(allowed)
    else:
        return False
    path, folder = wanted.path.split("/"), allowed.path.rstrip("/").split("/")
    return same and path[: len(folder)] == folder and not climbs(wanted.path)


def climbs(path: str) -> bool:
    """Say whether some server could read this path as one that leads upwards, however often it decodes it.

    So could one with control characters, which some servers leave out, and one encoded too often to be meant well.
    """
    for _ in range(_MOST_DECODINGS):
        decoded = unquote(path)
        if decoded == path:
            return _CONTROL.search(path) is not None or any(part in {".", ".."} for part in _segments(path))
        path = decoded
    return True


def _segments(path: str) -> Sequence[str]:
    # Some servers take what follows a ';' for parameters of the segment, and a backslash for a slash.
    return [part.partition(";")[0] for part in path.replace("\\", "/").split("/")]


def _origin(top: SplitResult) -> tuple[str, str, int] | None:
    """Return the origin of the site's own URL; a fault in it is not told, for it may hold keys."""
    try:
        return parse_target(top._replace(netloc=top.netloc.rpartition("@")[2]).geturl()).origin
    except ForbiddenAddress:
        return None


def _split(url: str) -> SplitResult | None:
    try:
        return urlsplit(url, allow_fragments=False)
    except ValueError:
        return None
