"""How an API is asked for the next page: by number, offset, cursor, or the link it gives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urljoin, urlsplit

from orchestrator.operator import Json, OperatorFailure
from orchestrator.outbound import Response
from orchestrator.reach import is_below

_LINK = re.compile(r'<([^>]*)>\s*((?:;\s*[\w*-]+\s*=\s*(?:"[^"]*"|[^",;]*)\s*)*)')
_LONGEST_PLACE = 20
_NEXT = re.compile(r'rel\s*=\s*(?:"[^"]*\bnext\b[^"]*"|next\b)', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Page:
    """One request."""

    url: str
    params: Mapping[str, Any] = field(default_factory=dict)
    own_query: bool = True
    """Whether the task's ``params`` are added; a link that the API gave is complete as it is."""
    position: int = 0
    seen: frozenset[str] = frozenset()


def start_page(pagination: Mapping[str, Json] | None, url: str) -> Page:
    """Return the first request."""
    if pagination is None:
        return Page(url)
    kind = pagination["type"]
    size = pagination.get("page_size")
    sized = {pagination.get("size_param", "limit" if kind == "offset" else "page_size"): size} if size else {}
    if kind == "page":
        start = pagination.get("start", 1)
        return Page(url, {**sized, pagination.get("page_param", "page"): start}, position=start)
    if kind == "offset":
        start = pagination.get("start", 0)
        return Page(url, {**sized, pagination.get("offset_param", "offset"): start}, position=start)
    return Page(url, sized)


def next_page(
    pagination: Mapping[str, Json] | None, page: Page, response: Response, body: Any, found: int, top: str | None = None
) -> Page | None:
    """Return the request after this one, or ``None`` at the end.

    :param top: the URL of the connection whose credentials the request carries; a link must lie below it.
    :raises OperatorFailure: the API leads in a circle, to another host, or out of ``top``.
    """
    if pagination is None:
        return None
    kind = pagination["type"]
    if kind in ("page", "offset"):
        size = pagination.get("page_size")
        if found == 0 or (size and found < size):
            return None
        name = pagination.get(f"{kind}_param", kind)
        position = page.position + (1 if kind == "page" else found)
        return replace(page, params={**page.params, name: position}, position=position)
    if kind == "cursor":
        return _after_cursor(pagination, page, body)
    return _after_link(page, response, top)


def value_at(body: Any, path: str) -> Any:
    """Return what lies at a dotted path such as ``meta.next``; ``None`` when nothing does."""
    for name in path.split("."):
        if isinstance(body, dict):
            body = body.get(name)
        elif isinstance(body, list) and name.isdecimal() and len(name) < _LONGEST_PLACE and int(name) < len(body):
            body = body[int(name)]
        else:
            return None
    return body


def _after_cursor(pagination: Mapping[str, Json], page: Page, body: Any) -> Page | None:
    cursor = value_at(body, pagination.get("cursor_path", "next_cursor"))
    if cursor in (None, "", False):
        return None
    name = pagination.get("cursor_param", "cursor")
    return replace(page, params={**page.params, name: cursor}, seen=_unseen(page, str(cursor)))


def _after_link(page: Page, response: Response, top: str | None) -> Page | None:
    links = _LINK.findall(response.headers.get("link", ""))
    target = next((url for url, attributes in links if _NEXT.search(attributes)), None)
    if target is None:
        return None
    url = urljoin(page.url, target)
    if urlsplit(url)[:2] != urlsplit(page.url)[:2]:
        raise OperatorFailure(
            "forbidden_address", f"{response.url} gives a next page on another host; credentials do not go there."
        )
    if top is not None and not is_below(url, top):
        raise OperatorFailure(
            "forbidden_address",
            f"{response.url} gives a next page that does not lie below the connection's URL; credentials do not go "
            "there. Give the connection a URL that both lie below.",
        )
    return Page(url, own_query=False, seen=_unseen(page, url))


def _unseen(page: Page, mark: str) -> frozenset[str]:
    if mark in page.seen:
        raise OperatorFailure(
            "bad_data", f"{page.url.partition('?')[0]} leads to the same page again; its pages form a circle."
        )
    return page.seen | {mark}
