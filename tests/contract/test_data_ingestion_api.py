"""The operator ``data_ingestion`` on a real HTTP server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from operators.data_ingestion import DataIngestion
from orchestrator.operator import Connection, TaskContext
from orchestrator.outbound import OutboundClient
from orchestrator.testing import make_context, run_operator
from tests.contract.ingestion import CSV, content, failure

pytestmark = pytest.mark.timeout(120)

Answer = tuple[int, dict[str, str], Any]


class Api:
    """An HTTP server whose answer is a function of path and query."""

    def __init__(self, answer: Callable[[str, dict[str, str], dict[str, str]], Answer]) -> None:
        self.asked: list[dict[str, str]] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                headers = {name.lower(): value for name, value in self.headers.items()}
                api.asked.append(headers)
                status, extra, body = answer(parts.path, query, headers)
                text = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in extra.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[str, dict[str, str], dict[str, str]], Answer]], Api]]:
    opened: list[Api] = []

    def start(answer: Callable[[str, dict[str, str], dict[str, str]], Answer]) -> Api:
        opened.append(Api(answer))
        return opened[-1]

    yield start
    for api in opened:
        api.close()


def api_context(tmp_path: Path, **overrides: Any) -> TaskContext:
    client = OutboundClient(["127.0.0.1"], sleep=lambda _seconds: None)
    return make_context(tmp_path, http=client, **overrides)


Serve = Callable[[Callable[[str, dict[str, str], dict[str, str]], Answer]], Api]
RECORDS = [{"id": number} for number in range(1, 8)]


def paged(_path: str, query: dict[str, str], _headers: dict[str, str]) -> Answer:
    """Seven records, three a page, in every fashion."""
    given = int(query.get("offset") or query.get("cursor") or 0)
    start = (int(query["page"]) - 1) * 3 if "page" in query else given
    found = RECORDS[start : start + 3]
    following = start + 3 if start + 3 < len(RECORDS) else None
    link = {"Link": f'</other>; rel="prev", </x?cursor={following}>; rel="next"'} if following else {}
    return 200, link, {"items": found, "meta": {"next": following}}


@pytest.mark.parametrize(
    "pagination",
    [
        {"type": "page"},
        {"type": "page", "page_size": 3, "size_param": "per_page", "start": 1},
        {"type": "offset"},
        {"type": "cursor", "cursor_path": "meta.next"},
        {"type": "link"},
    ],
)
def test_the_records_of_all_pages_are_ingested(tmp_path: Path, serve: Serve, pagination: dict[str, Any]) -> None:
    context, api = api_context(tmp_path), serve(paged)
    parameters = {"source_type": "api", "source_path": f"{api.url}/x", "pagination": pagination}
    dataset = run_operator(DataIngestion, context, parameters)["dataset"]
    assert (dataset["format"], dataset["rows"]) == ("json", 7)
    assert [json.loads(line) for line in content(context, dataset["uri"]).splitlines()] == RECORDS


@pytest.mark.parametrize(
    "body, items_path, rows",
    [
        ([1, 2], None, 2),
        ({"results": [{"a": 1}]}, None, 1),
        ({"deep": {"list": [{"a": 1}, {"a": 2}]}}, "deep.list", 2),
        ({"single": "record"}, None, 1),
        ([], None, 0),
    ],
)
def test_records_are_found_in_the_answer(
    tmp_path: Path, serve: Serve, body: Any, items_path: str | None, rows: int
) -> None:
    context, api = api_context(tmp_path), serve(lambda _p, _q, _h: (200, {}, body))
    parameters = {"source_path": f"{api.url}/x", **({"items_path": items_path} if items_path else {})}
    assert run_operator(DataIngestion, context, parameters)["dataset"]["rows"] == rows


def test_a_connection_brings_url_credentials_and_headers_that_no_message_shows(tmp_path: Path, serve: Serve) -> None:
    api = serve(lambda path, _q, _h: (200, {}, [{"path": path}]))
    host = api.url.removeprefix("http://")
    crm = Connection("crm", f"http://user:geheim@{host}/v1", {"headers": {"X-Tenant": "t"}})
    context = api_context(tmp_path, connections={"crm": crm})
    dataset = run_operator(DataIngestion, context, {"source": "crm", "source_path": "customers"})["dataset"]
    assert content(context, dataset["uri"]) == b'{"path":"/v1/customers"}\n'
    assert api.asked[0]["authorization"] == "Basic dXNlcjpnZWhlaW0="
    assert api.asked[0]["x-tenant"] == "t"


def test_a_csv_answer_is_streamed_into_the_dataset(tmp_path: Path, serve: Serve) -> None:
    context, api = api_context(tmp_path), serve(lambda _p, _q, _h: (200, {}, CSV))
    dataset = run_operator(DataIngestion, context, {"source_path": f"{api.url}/export.csv?key=geheim"})["dataset"]
    assert (dataset["format"], content(context, dataset["uri"])) == ("csv", CSV)
    found = failure(context, {"source_path": f"{api.url}/export.csv?key=geheim", "max_bytes": 5})
    assert (found.reason, "geheim" in found.message) == ("too_large", False)


@pytest.mark.parametrize(
    "status, reason, retryable",
    [
        (401, "unauthorised", False), (403, "unauthorised", False), (404, "not_found", False),
        (400, "bad_request", False), (429, "unreachable", True), (500, "unreachable", True), (503, "unreachable", True),
    ],
)  # fmt: skip
def test_an_error_of_the_api_says_whether_another_try_helps(
    tmp_path: Path, serve: Serve, status: int, reason: str, retryable: bool
) -> None:
    context, api = api_context(tmp_path), serve(lambda _p, _q, _h: (status, {"Retry-After": "90"}, b"no"))
    for name in ("x", "x.csv"):
        found = failure(context, {"source_path": f"{api.url}/{name}"})
        assert (found.reason, found.retryable) == (reason, retryable)
        assert found.retry_after == (90 if retryable else None)


def test_pages_that_form_a_circle_or_lead_elsewhere_are_refused(tmp_path: Path, serve: Serve) -> None:
    context = api_context(tmp_path)
    circle = serve(lambda _p, _q, _h: (200, {}, {"items": [1], "next_cursor": "same"}))
    found = failure(context, {"source_path": f"{circle.url}/x", "pagination": {"type": "cursor"}})
    assert "circle" in found.message
    link = serve(lambda _p, _q, _h: (200, {"Link": '<http://evil.example/x>; rel="next"'}, [1]))
    found = failure(context, {"source_path": f"{link.url}/x", "pagination": {"type": "link"}})
    assert found.reason == "forbidden_address"
    endless = serve(lambda _p, _q, _h: (200, {}, [1]))
    found = failure(context, {"source_path": f"{endless.url}/x", "pagination": {"type": "page", "max_pages": 3}})
    assert found.reason == "too_large"
    found = failure(context, {"source_path": f"{endless.url}/x", "pagination": {"type": "page"}, "max_bytes": 20})
    assert found.reason == "too_large"


def crm_at(url: str) -> Connection:
    options = {"token": "geheim", "headers": {"X-Key": "geheim"}, "params": {"key": "geheim"}}
    return Connection("crm", f"{url}/v1", options)


def test_the_credentials_of_a_connection_go_nowhere_else(tmp_path: Path, serve: Serve) -> None:
    own, attacker = serve(lambda _p, _q, _h: (200, {}, [1])), serve(lambda _p, _q, _h: (200, {}, [1]))
    context = api_context(tmp_path, connections={"crm": crm_at(own.url), "lake": Connection("lake", "s3://lake/in")})
    for elsewhere in (f"{attacker.url}/v1/x", f"{own.url}/admin", f"{own.url}/v1/%2e%2e/admin", "s3://bucket/x.csv"):
        found = failure(context, {"source": "crm", "source_path": elsewhere})
        assert (found.reason, found.retryable) == ("forbidden_address", False)
        assert "geheim" not in found.message
    assert failure(context, {"source": "crm", "source_path": "../admin"}).reason == "forbidden_address"
    assert failure(context, {"source": "lake", "source_path": f"{attacker.url}/x"}).reason == "forbidden_address"
    assert (own.asked, attacker.asked) == ([], [])


def test_a_full_url_below_that_of_the_connection_is_as_good_as_a_relative_path(tmp_path: Path, serve: Serve) -> None:
    api = serve(lambda path, query, _h: (200, {}, [{"path": path, **query}]))
    context = api_context(tmp_path, connections={"crm": crm_at(api.url)})
    for path in ("customers", f"{api.url}/v1/customers"):
        dataset = run_operator(DataIngestion, context, {"source": "crm", "source_path": path})["dataset"]
        assert content(context, dataset["uri"]) == b'{"path":"/v1/customers","key":"geheim"}\n'
    assert [asked["authorization"] for asked in api.asked] == ["Bearer geheim"] * 2


def test_a_task_can_not_send_credentials_to_another_site_of_the_same_address(tmp_path: Path, serve: Serve) -> None:
    api = serve(lambda _p, _q, _h: (200, {}, [1]))
    context = api_context(tmp_path, connections={"crm": crm_at(api.url)})
    run_operator(DataIngestion, context, {"source": "crm", "source_path": "x", "headers": {"host": "attacker.example"}})
    assert api.asked[0]["host"] == api.url.removeprefix("http://")


def test_the_credentials_of_a_connection_follow_no_link_out_of_its_url(tmp_path: Path, serve: Serve) -> None:
    for target in ("/admin", "/v10/x", "../admin", "/v1/%252e%252e/admin", "/v1/.%0a./admin", "http://geheim@h/v1/x"):
        link = f'<{target}>; rel="next"'
        api = serve(lambda path, _q, _h, link=link: (200, {"Link": link} if path == "/v1/x" else {}, [1]))  # type: ignore[misc]
        context = api_context(tmp_path, connections={"crm": crm_at(api.url)})
        found = failure(context, {"source": "crm", "source_path": "x", "pagination": {"type": "link"}})
        assert (found.reason, found.retryable) == ("forbidden_address", False), target
        assert len(api.asked) == 1, target


def test_a_link_below_the_connections_url_is_followed_with_its_credentials(tmp_path: Path, serve: Serve) -> None:
    api = serve(paged)
    context = api_context(tmp_path, connections={"crm": Connection("crm", api.url, {"token": "geheim"})})
    parameters = {"source": "crm", "source_path": "x", "pagination": {"type": "link"}}
    assert run_operator(DataIngestion, context, parameters)["dataset"]["rows"] == 7
    assert [asked["authorization"] for asked in api.asked] == ["Bearer geheim"] * 3


def test_credentials_do_not_follow_the_apis_redirect_to_another_host(tmp_path: Path, serve: Serve) -> None:
    attacker = serve(lambda _p, _q, _h: (200, {}, [1]))
    api = serve(lambda _p, _q, _h: (302, {"Location": f"{attacker.url}/x"}, b""))
    context = api_context(tmp_path, connections={"crm": crm_at(api.url)})
    run_operator(DataIngestion, context, {"source": "crm", "source_path": "x"})
    [asked] = attacker.asked
    assert not any("geheim" in value for value in asked.values())
