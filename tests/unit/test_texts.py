"""Texts of values are those that JSON has, none is made longer than it is wanted, and what is read is counted."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import TemplateError
from orchestrator.expressions import texts as texts_of
from orchestrator.expressions.paths import lookup_in
from orchestrator.expressions.templates import resolve, resolve_text
from orchestrator.expressions.texts import Texts, as_text

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=30,
)


class Ours(Mapping[str, Any]):
    """A mapping that works its entries out as they are read."""

    def __init__(self, **entries: Any) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> Any:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of all texts that were made."""
    found: list[int] = []

    def noted(value: Any) -> str:
        text = as_text(value)
        found.append(len(text))
        return text

    monkeypatch.setattr(texts_of, "as_text", noted)
    return found


@given(VALUES, st.integers(0, 120))
def test_a_text_is_all_of_it_or_its_beginning_however_often_it_is_asked_for(value: Any, length: int) -> None:
    text = as_text(value)
    for same in (value, Ours(x=value)):
        text, known = as_text(same), Texts()
        for _ in range(2):
            assert known.start_of(same, length) == text[:length]
            assert known.of(same, length) == (text if len(text) <= length else None)
        assert known.start_of(same, length + 7) == text[: length + 7]


def test_the_text_of_what_is_too_large_is_not_made(made: list[int]) -> None:
    values = {"params": {"l": [[0] * 1000] * 100, "d": {f"k{n}": n for n in range(10_000)}}}
    for path in ("{{ params.l }}", "{{ params.d }}", "{{ params }}"):
        texts = Texts()
        with pytest.raises(TemplateError, match="more than 500 characters"):
            resolve({"x": path}, lookup_in(values), most=500, texts=texts)
        assert len(resolve_text(f"a{path}", lookup_in(values), "", 500, texts) or "") == 501
        assert 500 < texts.read < 10_000
    assert not made


def test_the_text_of_a_value_is_made_once(made: list[int]) -> None:
    values, texts = {"params": {"l": [0] * 1000}}, Texts()
    assert resolve("{{ params.l }}", lookup_in(values), texts=texts) is values["params"]["l"]
    first = texts.read
    assert resolve("{{ params.l }} {{ params.l }}", lookup_in(values), texts=texts).count("0") == 2000
    assert made == [3000]
    assert first > 3000
    assert texts.read - first < 500


def test_what_is_read_in_vain_is_counted_too() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    texts = Texts()
    with pytest.raises(TemplateError, match="nested too deep"):
        resolve("{{ params.x }}", lookup_in({"params": {"x": deep}}), texts=texts)
    assert texts.read > 100_000
    missing = Texts()
    with pytest.raises(TemplateError):
        resolve("{{ params.x }}", lookup_in({"params": {}}), texts=missing)
    assert missing.read >= texts_of.LOOKED_UP
    while deep:
        deep = deep.pop()


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_of, "_MOST_REMEMBERED", 100)
    monkeypatch.setattr(texts_of, "_MOST_BEGUN", 3)
    texts = Texts()
    for length in range(1, 40):
        assert texts.of([0] * length, 200) == as_text([0] * length)
        assert texts.start_of([1] * length, 2) == "[1"
        assert sum(len(text) for _, text in texts._known.values()) <= max(100, 3 * length)
        assert len(texts._begun) <= 3


def test_what_is_put_together_anew_each_time_is_not_kept() -> None:
    texts = Texts()
    for value in (Ours(x=[1, 2]), (1, 2)):
        assert texts.of(value, 100) == as_text(value)
        assert texts.start_of(Ours(x=value), 2) == '{"'
        assert texts.start_of([value], 2) == as_text([value])[:2]
        gone = weakref.ref(ours := Ours(x=[0] * 5000))
        texts.start_of(ours, 2)
        texts.of(ours, 10**7)
        del ours
        gc.collect()
        assert gone() is None
