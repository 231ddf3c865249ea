"""Ways to plant a fault in an eventful story: an event that is missing, late or otherwise, a row that is not so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tests.chaos.history import Event, History
from tests.chaos.story import Story

Plant = Callable[[Story], History | None]
"""Breaks a story and returns the history to judge; ``None``: the story's own."""


def of(story: Story, entity_id: str, after: str) -> Event:
    """Return the first event in which this entity came to this state."""
    return next(e for e in story.events if e.entity_id == entity_id and e.after == after)


def changed(story: Story, event: Event, **fields: Any) -> History:
    """Return the history in which one event reads otherwise."""
    history = story.history()
    return replace(history, events=tuple(replace(e, **fields) if e is event else e for e in history.events))


def without(story: Story, *events: Event) -> History:
    history = story.history()
    return replace(history, events=tuple(e for e in history.events if e not in events))


def later(story: Story, event: Event, behind: Event) -> History:
    """Return the history in which an event comes behind another one."""
    events = [e for e in story.events if e is not event]
    events.insert(events.index(behind) + 1, event)
    return replace(story.history(), events=tuple(replace(e, id=n) for n, e in enumerate(events, start=1)))


def row(story: Story, table: str, key: str, **fields: Any) -> History:
    """Return the history with another row."""
    history = story.history()
    rows: Mapping[str, Any] = getattr(history, table)
    return _with_table(history, table, {**rows, key: replace(rows[key], **fields)})


def without_row(story: Story, table: str, key: str) -> History:
    history = story.history()
    return _with_table(history, table, {k: v for k, v in getattr(history, table).items() if k != key})


def _with_table(history: History, table: str, rows: Mapping[str, Any]) -> History:
    changes: dict[str, Any] = {table: rows}
    return replace(history, **changes)
