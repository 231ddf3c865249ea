"""Keyset pages: a list goes on from where its last page ended, so every page costs the same and none shifts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, literal, tuple_
from sqlalchemy.sql.elements import ColumnElement

Row = dict[str, Any]
"""A row as the API shows it: plain values by name."""


@dataclass(frozen=True, slots=True)
class Order:
    """Columns to sort by; together they are unique, so that a page's last row says where the next one begins."""

    columns: tuple[ColumnElement[Any], ...]
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Window:
    """Which page is wanted: at most ``limit`` rows after the row with these values of the order's columns."""

    order: Order
    after: tuple[Any, ...] | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Page:
    items: list[Row]
    after: tuple[Any, ...] | None
    """Where the next page begins; ``None`` at the end."""


def read_page(connection: Connection, query: Select[Any], window: Window) -> Page:
    """Run the query for one page; one row more is read, to know whether another page follows."""
    columns = window.order.columns
    marks = [column.label(f"_mark{place}") for place, column in enumerate(columns)]
    query = query.add_columns(*marks)
    if window.after is not None:
        here = tuple_(*columns)
        there = tuple_(*(literal(value, column.type) for value, column in zip(window.after, columns, strict=True)))
        query = query.where(here < there if window.order.descending else here > there)
    query = query.order_by(*(c.desc() if window.order.descending else c.asc() for c in columns))
    rows = connection.execute(query.limit(window.limit + 1)).mappings().all()
    items = [dict(row) for row in rows[: window.limit]]
    after = _mark(items[-1], len(columns)) if len(rows) > window.limit else None
    for item in items:
        _mark(item, len(columns), drop=True)
    return Page(items, after)


def _mark(item: Row, count: int, *, drop: bool = False) -> tuple[Any, ...]:
    names: Sequence[str] = [f"_mark{place}" for place in range(count)]
    return tuple(item.pop(name) if drop else item[name] for name in names)
