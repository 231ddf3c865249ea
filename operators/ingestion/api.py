"""Fetches a source that is an HTTP API: one answer as a file, or the records of many pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from operators.ingestion.credentials import connection_headers
from operators.ingestion.pagination import Page, next_page, start_page, value_at
from operators.ingestion.plan import Plan
from operators.tables.json_blocks import as_blocks
from orchestrator.operator import Json, OperatorFailure, TaskContext
from orchestrator.outbound import Response

MAX_PAGE_BYTES = 64 * 2**20
_LISTS = ("items", "data", "results", "records")


def fetch_api(context: TaskContext, plan: Plan, target: Path) -> None:
    """Write the answer, or for JSON the records of all pages, one per line."""
    if plan.format != "json":
        with target.open("wb") as into:
            response = context.http.request(
                "GET", plan.location, headers=_headers(plan), params=_params(plan), into=into,
                max_bytes=plan.max_bytes or 0, timeout=_timeout(plan),
            )  # fmt: skip
        _refuse_bad_status(response)
        return
    with target.open("wb") as into:
        for block in as_blocks(_records(context, plan)):
            into.write(block)


def look_api(context: TaskContext, plan: Plan) -> Mapping[str, Json]:
    """Ask once, for the first page, and keep nothing."""
    page = start_page(plan.parameters.get("pagination"), plan.location)
    response = _get(context, plan, page, plan.max_bytes or MAX_PAGE_BYTES)
    return {"bytes_of_first_answer": len(response.body)}


def _records(context: TaskContext, plan: Plan) -> Iterator[Any]:
    limits = plan.parameters.get("pagination") or {}
    max_pages = int(limits.get("max_pages", 10_000))
    left = plan.max_bytes or 0
    page: Page | None = start_page(limits or None, plan.location)
    top = plan.connection.url if plan.connection is not None else None
    pages = records = 0
    while page is not None:
        if pages >= max_pages:
            raise OperatorFailure("too_large", f"{plan.shown} has more than max_pages ({max_pages}) pages.")
        response = _get(context, plan, page, min(left, MAX_PAGE_BYTES))
        left -= len(response.body)
        body = response.json()
        found = _records_of(body, plan)
        yield from found
        pages, records = pages + 1, records + len(found)
        context.log("page read", page=pages, records=records)
        page = next_page(limits or None, page, response, body, len(found), top)


def _get(context: TaskContext, plan: Plan, page: Page, max_bytes: int) -> Response:
    params = {**_params(plan), **page.params} if page.own_query else {}
    response = context.http.request(
        "GET", page.url, headers={"Accept": "application/json", **_headers(plan)}, params=params,
        max_bytes=max_bytes, timeout=_timeout(plan),
    )  # fmt: skip
    _refuse_bad_status(response)
    return response


def _refuse_bad_status(response: Response) -> None:
    if response.ok:
        return
    where = f"{response.url} answered {response.status}"
    if response.status in (401, 403):
        raise OperatorFailure("unauthorised", f"{where}; check the credentials of the connection.")
    if response.status in (404, 410):
        raise OperatorFailure("not_found", f"{where}; check `source_path`.")
    if response.status in (408, 425, 429) or response.status >= 500:
        raise OperatorFailure(
            "unreachable", f"{where}; it may be better later.", retryable=True, retry_after=response.retry_after
        )
    raise OperatorFailure("bad_request", f"{where}: {response.body[:200].decode('utf-8', 'replace')}")


def _records_of(body: Any, plan: Plan) -> list[Any]:
    """Find the list of records in an answer."""
    path = plan.option("items_path")
    if path:
        found = value_at(body, path)
        if not isinstance(found, list):
            raise OperatorFailure("bad_data", f"The answer of {plan.shown} has no list at items_path {path!r}.")
        return found
    if isinstance(body, list):
        return body
    if isinstance(body, dict):
        return next((body[name] for name in _LISTS if isinstance(body.get(name), list)), [body])
    raise OperatorFailure("bad_data", f"{plan.shown} answered with a JSON value that holds no records.")


def _headers(plan: Plan) -> dict[str, str]:
    """Return the connection's headers and credentials, and those of the task, which may hold no secret."""
    headers = connection_headers(plan.connection) if plan.connection is not None else {}
    return {**headers, **plan.parameters.get("headers", {})}


def _params(plan: Plan) -> dict[str, Any]:
    own = plan.connection.options.get("params") if plan.connection is not None else None
    return {**(own or {}), **plan.parameters.get("params", {})}


def _timeout(plan: Plan) -> float:
    return float(plan.option("timeout_seconds") or 30.0)
