"""How many requests are worked on at once follows how long they take."""

from __future__ import annotations

import threading
import time as real_time
from collections.abc import Callable

from api.gate import FIRST, LEAST, LONGEST, SLOW, SOON, Gate, Place


class Time:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def filled(gate: Gate) -> list[Place]:
    """Take every place there is."""
    places: list[Place] = []
    while (place := gate.enter(0.0)) is not None:
        places.append(place)
    return places


def wait_until(question: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = real_time.monotonic() + seconds
    while not question() and real_time.monotonic() < deadline:
        real_time.sleep(0.01)
    return question()


def served(gate: Gate, time: Time, seconds: float, rounds: int) -> None:
    """Fill the gate so often with requests that take so long each."""
    for _ in range(rounds):
        places = filled(gate)
        time.now += seconds
        for place in places:
            place.leave()


def test_who_finds_no_place_in_time_is_told_so_and_a_place_given_back_goes_to_who_waits() -> None:
    gate = Gate(2)
    first, second = filled(gate)
    assert gate.enter(2 * SOON) is None
    entered: list[Place | None] = []
    waiter = threading.Thread(target=lambda: entered.append(gate.enter(20.0)))
    waiter.start()
    first.leave()
    waiter.join(20.0)
    assert len(entered) == 1
    assert entered[0] is not None
    assert gate.enter(0.0) is None
    # What is given back twice counts once.
    first.leave()
    assert gate.enter(0.0) is None
    second.leave()
    assert gate.enter(0.0) is not None


def test_who_would_wait_too_long_behind_others_is_told_so_at_once() -> None:
    time = Time()
    gate = Gate(1, time)
    served(gate, time, 1.0, rounds=20)
    (place,) = filled(gate)
    entered: list[Place | None] = []
    first = threading.Thread(target=lambda: entered.append(gate.enter(1.5)))
    first.start()
    # Behind it there is a wait of two seconds.
    assert wait_until(lambda: gate.waiting == 1)
    assert gate.enter(1.5) is None
    assert first.is_alive(), "nobody waited for this answer"
    place.leave()
    first.join(20.0)
    assert entered[0] is not None


def test_there_are_fewer_places_while_answers_are_slow_and_more_again_when_they_come_soon() -> None:
    time = Time()
    gate = Gate(20, time)
    assert gate.places == FIRST
    served(gate, time, SLOW + 0.1, rounds=1)
    assert LEAST <= gate.places < FIRST, "those that were slow together count once"
    served(gate, time, SLOW + 0.1, rounds=10)
    assert gate.places == LEAST
    served(gate, time, (SOON + SLOW) / 2, rounds=10)
    assert gate.places == LEAST
    served(gate, time, SOON / 2, rounds=400)
    assert gate.places == 20


def test_what_is_slow_by_itself_while_there_is_room_takes_no_place_away() -> None:
    time = Time()
    gate = Gate(20, time)
    for _ in range(20):
        place = gate.enter(0.0)
        assert place is not None
        time.now += 3 * SLOW
        place.leave()
    assert gate.places == FIRST


def test_a_site_with_few_connections_works_on_no_more_than_them() -> None:
    time = Time()
    gate = Gate(2, time)
    served(gate, time, SLOW + 0.1, rounds=10)
    served(gate, time, SOON / 2, rounds=10)
    assert gate.places == 2


def test_requests_that_hang_take_nobodys_place_for_ever() -> None:
    time = Time()
    gate = Gate(4, time)
    hanging = filled(gate)
    assert len(hanging) == 4
    time.now += LONGEST + 0.1
    assert len(filled(gate)) == 4
    # When they end after all, nobody else loses a place or gets one too many.
    for place in hanging:
        place.leave()
    assert gate.enter(0.0) is None


def test_a_client_that_sends_slowly_takes_no_place_and_makes_nothing_look_slow() -> None:
    time = Time()
    gate = Gate(4, time)
    slow = gate.enter(0.0)
    assert slow is not None
    with slow.waiting_for_client():
        time.now += 3.0
        others = filled(gate)
    assert len(others) == 4
    others[0].leave()
    assert gate.enter(0.0) is None, "it has its body, and goes on, whether there is room or not"
    places = gate.places
    slow.leave()
    assert gate.places == places
    assert gate.enter(0.0) is not None


def test_one_that_has_left_does_not_come_back() -> None:
    gate = Gate(1)
    (place,) = filled(gate)
    place.leave()
    with place.waiting_for_client():
        pass
    assert gate.enter(0.0) is not None
