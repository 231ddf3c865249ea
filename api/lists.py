"""Lists: their page size, cursor and sort in the query, and their shape in the answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flask import request
from marshmallow import Schema, fields, validate

from api.access import caller
from api.services import services
from orchestrator.store.pages import Order, Page, Window

LARGEST_PAGE = 500
USUAL_PAGE = 100
Orders = Mapping[str, tuple[Any, ...]]


class PageQuery(Schema):
    """What every list takes."""

    limit = fields.Integer(
        load_default=USUAL_PAGE,
        validate=validate.Range(1, LARGEST_PAGE),
        metadata={"description": "Most items of one page."},
    )
    cursor = fields.String(
        load_default=None,
        validate=validate.Length(1, 2048),
        metadata={"description": "`next_cursor` of the page before."},
    )


def sort_field(names: Sequence[str], usual: str) -> fields.String:
    """Return the ``sort`` parameter of a list: one of the names, ``-`` before it for descending."""
    allowed = [f"{sign}{name}" for name in names for sign in ("", "-")]
    return fields.String(
        load_default=usual,
        validate=validate.OneOf(allowed),
        metadata={"description": "What to sort by; `-` in front turns it round."},
    )


def page_of(item: type[Schema]) -> type[Schema]:
    """Return the schema of a page of these items."""
    name = item.__name__.removesuffix("Schema") + "Page"
    return type(
        name,
        (Schema,),
        {
            "items": fields.List(fields.Nested(item), required=True),
            "next_cursor": fields.String(
                required=True,
                allow_none=True,
                metadata={"description": "Send it as `cursor` for the next page; null on the last one."},
            ),
        },
    )


def window(query: Mapping[str, Any], orders: Orders) -> Window:
    """Return which page the query asks for.

    :raises UnprocessableEntity: the cursor is not of this list.
    """
    sort: str = query["sort"]
    order = Order(orders[sort.removeprefix("-")], descending=sort.startswith("-"))
    cursor = query["cursor"]
    return Window(order, services().cursors.open(_scope(), cursor) if cursor else None, query["limit"])


def page_json(page: Page) -> dict[str, Any]:
    """Return the page as the answer shows it."""
    after = None if page.after is None else services().cursors.seal(_scope(), page.after)
    return {"items": page.items, "next_cursor": after}


def sequence_page(query: Mapping[str, Any], items: Sequence[dict[str, Any]], key: str) -> dict[str, Any]:
    """Return one page of a list that is in memory, sorted by one unique key."""
    descending = query["sort"].startswith("-")
    ordered = sorted(items, key=lambda item: str(item[key]), reverse=descending)
    if query["cursor"]:
        (last,) = services().cursors.open(_scope(), query["cursor"])
        ordered = [item for item in ordered if (item[key] < last if descending else item[key] > last)]
    shown = ordered[: query["limit"]]
    return page_json(Page(shown, (shown[-1][key],) if len(ordered) > len(shown) else None))


def _scope() -> str:
    """Name the list with its filters and sort: a cursor is good for this one alone."""
    filters = sorted((k, v) for k, v in request.args.items(multi=True) if k not in {"cursor", "limit"})
    return json.dumps([caller().tenant_id, request.path, filters])
