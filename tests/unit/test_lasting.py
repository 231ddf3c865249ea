"""While many lasting objects are made the collector rests, and only then."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest

from orchestrator.lasting import uncollected


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    assert gc.isenabled()
    yield
    gc.enable()


class Loop:
    def __init__(self) -> None:
        self.itself = self


def test_cycles_stay_while_it_rests_and_go_afterwards() -> None:
    threshold = gc.get_threshold()[0]
    with uncollected():
        loop = Loop()
        seen, loop = weakref.ref(loop), None  # type: ignore[assignment]
        assert [[] for _ in range(10 * threshold)]
        assert seen() is not None
    assert gc.isenabled()
    gc.collect()
    assert seen() is None


def test_it_collects_again_after_an_error() -> None:
    with pytest.raises(KeyError), uncollected():
        raise KeyError
    assert gc.isenabled()


def test_who_has_turned_it_off_finds_it_off() -> None:
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()


def test_of_two_at_once_the_first_to_begin_lets_it_start_again() -> None:
    """So that a server that is never without one of them is collected all the same."""
    inside, may_end = threading.Event(), threading.Event()

    def second() -> None:
        with uncollected():
            inside.set()
            may_end.wait(10)

    with uncollected():
        other = threading.Thread(target=second)
        other.start()
        assert inside.wait(10)
    assert gc.isenabled()
    may_end.set()
    other.join()
    assert gc.isenabled()
