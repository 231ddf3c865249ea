"""Which errors of PostgreSQL mean "not now", what a client is told of them, and the circuit for a silent one."""

from __future__ import annotations

import psycopg2
import psycopg2.errors
import pytest

from orchestrator.circuit import Circuit
from orchestrator.store.refusals import explain, is_away, speaks_of_server, sqlstate


def said(code: str) -> psycopg2.Error:
    kind: type[psycopg2.Error] = type(code, (psycopg2.errors.lookup(code),), {"pgcode": code})
    return kind()


@pytest.mark.parametrize(
    "code",
    [
        "53100",  # disk full
        "53200",  # out of memory
        "53300",  # too many connections
        "57P01",  # being stopped
        "57P02",  # crashed
        "57P03",  # starting
        "57014",  # took too long
        "25006",  # only reads
        "25P03",  # idled in a transaction
        "40001",  # conflict
        "40P01",  # deadlock
        "55P03",  # lock not given
        "58030",  # input or output failed
        "08006",  # connection lost
    ],
)
def test_what_speaks_of_the_server_may_succeed_later(code: str) -> None:
    assert is_away(said(code))


@pytest.mark.parametrize("code", ["54000", "54001", "22001", "22P05", "23505", "42P01", "42501", "XX000", "25001"])
def test_what_speaks_of_the_call_fails_the_same_way_again(code: str) -> None:
    assert not is_away(said(code))


def test_a_driver_that_got_no_answer_has_no_code() -> None:
    for error in (psycopg2.OperationalError("gone"), psycopg2.InterfaceError("connection already closed")):
        assert sqlstate(error) == ""
        assert is_away(error)
        assert explain(error) == ""
    assert not is_away(psycopg2.ProgrammingError("no results to fetch"))
    assert not is_away(ValueError("x"))


@pytest.mark.parametrize(("code", "word"), [("53100", "disk is full"), ("25006", "only reads"), ("57P03", "starting")])
def test_a_client_is_told_why(code: str, word: str) -> None:
    assert word in explain(said(code))


@pytest.mark.parametrize("code", ["53100", "53300", "25006", "57P01", "57P02", "57P03"])
def test_a_server_that_would_refuse_anything_says_nothing_of_what_was_asked(code: str) -> None:
    assert speaks_of_server(said(code))


@pytest.mark.parametrize("code", ["57014", "25P03", "55P03", "53200", "40001", "08006"])
def test_what_took_too_long_or_was_too_much_may_be_the_fault_of_what_was_asked(code: str) -> None:
    assert is_away(said(code))
    assert not speaks_of_server(said(code))


def test_an_open_circuit_lets_one_caller_ask_in_each_hold() -> None:
    now = [100.0]
    circuit = Circuit(2.0, clock=lambda: now[0])
    assert not circuit.refuses()
    circuit.silent()
    assert circuit.refuses()
    now[0] += 2.0
    assert [circuit.refuses() for _ in range(3)] == [False, True, True]
    now[0] += 2.0
    assert [circuit.refuses() for _ in range(2)] == [False, True]
    circuit.answered()
    assert [circuit.refuses() for _ in range(3)] == [False, False, False]
