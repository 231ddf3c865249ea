"""Lets many lasting objects be made without the garbage collector looking at all of them again and again.

A definition of 10,000 tasks becomes a million objects, none of which is garbage before the answer is sent. The
collector starts over whenever there are a quarter more of them: half of the time that such a definition takes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the collector of reference cycles from starting by itself; what nothing refers to is freed all the same.

    Of several threads in here at once the first lets it start again: requests that overlap without end keep it from
    nothing.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
