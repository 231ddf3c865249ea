"""Makes values storable: PostgreSQL takes neither NUL nor lone surrogates in text, nor NaN in JSON.

A task's own words arrive in outcomes. One such character must not make its outcome impossible to commit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

_NUL, _SURROGATE = "\\u0000", "\\ud"
"""How JSON in ASCII writes them; a letter beyond the first 65,536 is a pair of surrogates."""


def storable(value: Any) -> Any:
    """Return the value with NUL and lone surrogates replaced in every string, and numbers JSON lacks as null."""
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {storable_text(str(key)): storable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [storable(item) for item in value]
    return value


def storable_text(value: str) -> str:
    """Return the text with NUL and lone surrogates replaced by U+FFFD."""
    if value.isascii() and "\x00" not in value:
        return value
    return value.replace("\x00", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def storable_json(value: Any) -> str:
    """Return the value as JSON that a ``jsonb`` column takes."""
    try:
        written = json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError):
        written = _NUL  # a number that JSON lacks, or a mapping that is no dictionary
    # To walk through the rows of 10,000 task runs takes as long as all else that is done to write them.
    if _NUL in written or _SURROGATE in written:
        return json.dumps(storable(value), allow_nan=False, separators=(",", ":"))
    return written
