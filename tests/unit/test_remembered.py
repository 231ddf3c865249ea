"""What is read from texts is remembered as far as a bound on their characters goes."""

from __future__ import annotations

import pytest

from orchestrator.errors import ExpressionError
from orchestrator.expressions import compile_expression
from orchestrator.expressions.remembered import LONGEST, MOST_CHARACTERS, Remembered
from orchestrator.expressions.templates import pieces


def test_a_text_is_read_once() -> None:
    asked: list[str] = []

    @Remembered
    def read(text: str) -> int:
        """Read it."""
        asked.append(text)
        return len(text)

    assert (read("ab"), read("ab"), read("abc")) == (2, 2, 3)
    assert asked == ["ab", "abc"]
    assert read.__doc__ == "Read it."


def test_what_came_first_is_forgotten_first() -> None:
    asked: list[str] = []

    @Remembered
    def read(text: str) -> str:
        asked.append(text)
        return text

    texts = [f"{at:>{LONGEST}}" for at in range(MOST_CHARACTERS // LONGEST + 10)]
    for text in texts:
        read(text)
        assert read.characters <= MOST_CHARACTERS
    asked.clear()
    read(texts[-1])
    assert not asked
    read(texts[0])
    assert asked == [texts[0]]


def test_a_long_text_is_not_kept() -> None:
    for read in (pieces, compile_expression):
        before = read.characters
        try:
            read("x" * 100_000 + "{{ params.a }}")
        except ExpressionError:
            assert read is compile_expression
        assert read.characters == before


def test_what_is_refused_is_not_kept() -> None:
    before = compile_expression.characters
    with pytest.raises(ExpressionError):
        compile_expression("never seen before ==")
    assert compile_expression.characters == before
