"""The outbound client against a real server on loopback."""

from __future__ import annotations

import gzip
import io
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from orchestrator.errors import ForbiddenAddress, TooLarge, Unreachable
from orchestrator.outbound import OutboundClient

pytestmark = pytest.mark.timeout(60)
Answer = Callable[[BaseHTTPRequestHandler], None]


class Site:
    """A server whose answers are functions, and a record of what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                headers = {name.lower(): value for name, value in self.headers.items()}
                site.asked.append((self.command, self.path, headers, self.rfile.read(length)))
                site.answers[self.path.partition("?")[0]](self)

            do_GET = do_POST = do_PUT = answer  # noqa: N815 – the names that http.server asks for

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def reply(status: int, body: bytes = b"", **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


@pytest.fixture
def site() -> Iterator[Site]:
    opened = Site()
    yield opened
    opened.close()


def client_of(site: Site, waits: list[float] | None = None, **options: Any) -> OutboundClient:
    """A client for which ``api.example`` and ``other.example`` lead to the server, and nothing else is private."""
    allowed = [f"api.example:{site.port}", f"other.example:{site.port}"]
    options.setdefault("resolve", lambda _host, _port: ["127.0.0.1"])
    return OutboundClient(allowed, sleep=(waits if waits is not None else []).append, **options)


def test_a_request_arrives_with_its_host_query_and_body(site: Site) -> None:
    site.answers["/x"] = reply(200, b'{"ok": true}', Content_Type="application/json")
    response = client_of(site).request(
        "POST", f"http://api.example:{site.port}/x?a=1", params={"b": "ü"}, json={"c": 2}
    )
    assert response.json() == {"ok": True}
    method, path, headers, body = site.asked[0]
    assert (method, path, body) == ("POST", "/x?a=1&b=%C3%BC", b'{"c": 2}')
    assert headers["host"] == f"api.example:{site.port}"
    assert headers["content-type"] == "application/json"


def test_a_private_address_is_refused_before_anything_is_sent(site: Site) -> None:
    for host in ("127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f000001"):
        with pytest.raises((ForbiddenAddress, Unreachable)):
            OutboundClient(retries=0).request("GET", f"http://{host}:{site.port}/x")
    assert site.asked == []


def test_a_redirect_to_a_private_address_is_refused(site: Site) -> None:
    site.answers["/x"] = reply(302, Location=f"http://internal.example:{site.port}/secret")
    with pytest.raises(ForbiddenAddress, match=r"internal\.example"):
        client_of(site).request("GET", f"http://api.example:{site.port}/x")
    assert [path for _, path, _, _ in site.asked] == ["/x"]


def test_a_redirect_to_another_scheme_is_refused(site: Site) -> None:
    site.answers["/x"] = reply(302, Location="file:///etc/passwd")
    with pytest.raises(ForbiddenAddress):
        client_of(site).request("GET", f"http://api.example:{site.port}/x")


def test_a_name_that_answers_otherwise_the_second_time_changes_nothing(site: Site) -> None:
    """DNS rebinding: what was checked is what is connected to, so the second answer is never asked for."""
    site.answers["/x"] = reply(200, b"internal")
    asked: list[str] = []

    def rebinding(host: str, _port: int) -> list[str]:
        asked.append(host)
        return ["192.0.2.1"] if len(asked) == 1 else ["127.0.0.1"]

    with pytest.raises(ForbiddenAddress):
        OutboundClient(resolve=rebinding, retries=0).request("GET", f"http://evil.example:{site.port}/x")
    public_first = iter([["127.0.0.1"], ["10.9.9.9"]])
    client = client_of(site, resolve=lambda _host, _port: next(public_first))
    assert client.request("GET", f"http://api.example:{site.port}/x").body == b"internal"
    assert next(public_first) == ["10.9.9.9"], "the name was resolved once"
    assert asked == ["evil.example"]


def test_credentials_do_not_follow_a_redirect_to_another_host(site: Site) -> None:
    site.answers["/x"] = reply(302, Location=f"http://other.example:{site.port}/y")
    site.answers["/y"] = reply(307, Location="/z")
    site.answers["/z"] = reply(200)
    headers = {"Authorization": "Bearer secret", "X-Api-Key": "secret", "Accept": "text/csv"}
    client_of(site).request("GET", f"http://api.example:{site.port}/x", headers=headers)
    first, second, third = (headers for _, _, headers, _ in site.asked)
    assert first["authorization"] == "Bearer secret"
    for later in (second, third):
        assert "authorization" not in later
        assert "x-api-key" not in later
        assert later["accept"] == "text/csv"


def test_a_redirect_after_a_post_is_a_get_unless_it_keeps_the_method(site: Site) -> None:
    site.answers["/see"] = reply(303, Location="/end")
    site.answers["/keep"] = reply(308, Location="/end")
    site.answers["/end"] = reply(200)
    for path in ("/see", "/keep"):
        client_of(site).request("POST", f"http://api.example:{site.port}{path}", json=1)
    assert [(m, p, b) for m, p, _, b in site.asked if p == "/end"] == [("GET", "/end", b""), ("POST", "/end", b"1")]


def test_endless_redirects_end(site: Site) -> None:
    site.answers["/x"] = reply(302, Location="/x")
    with pytest.raises(ForbiddenAddress, match="more than 5"):
        client_of(site).request("GET", f"http://api.example:{site.port}/x")
    assert len(site.asked) == 6


def test_an_answer_over_the_limit_is_refused_also_when_it_is_compressed(site: Site) -> None:
    site.answers["/plain"] = reply(200, b"x" * 2000)
    site.answers["/bomb"] = reply(200, gzip.compress(b"x" * 5_000_000), Content_Encoding="gzip")
    for path in ("/plain", "/bomb"):
        with pytest.raises(TooLarge, match="1,000"):
            client_of(site).request("GET", f"http://api.example:{site.port}{path}", max_bytes=1000)
    assert len(client_of(site).request("GET", f"http://api.example:{site.port}/bomb").body) == 5_000_000


def test_an_answer_that_drips_meets_a_deadline(site: Site) -> None:
    def drip(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        stop = time.monotonic() + 40
        while time.monotonic() < stop:
            try:
                request.wfile.write(b"x")
            except OSError:
                return
            time.sleep(0.02)

    site.answers["/x"] = drip
    with pytest.raises(Unreachable, match="did not finish"):
        client_of(site, retries=0).request("GET", f"http://api.example:{site.port}/x", timeout=1.0)


def test_a_get_is_tried_again_after_503_and_waits_as_long_as_asked(site: Site) -> None:
    answers = iter([reply(503, Retry_After="7"), reply(429), reply(200, b"done")])
    site.answers["/x"] = lambda request: next(answers)(request)
    waits: list[float] = []
    assert client_of(site, waits).request("GET", f"http://api.example:{site.port}/x").body == b"done"
    assert waits[0] == 7
    assert 0.7 < waits[1] < 1.3


def test_a_wait_that_is_too_long_is_left_to_the_caller(site: Site) -> None:
    site.answers["/x"] = reply(429, Retry_After="3600")
    waits: list[float] = []
    response = client_of(site, waits).request("GET", f"http://api.example:{site.port}/x")
    assert (response.status, response.retry_after, waits) == (429, 3600, [])


def test_a_post_is_sent_once_unless_the_caller_says_it_may_be_repeated(site: Site) -> None:
    site.answers["/x"] = reply(503)
    url = f"http://api.example:{site.port}/x"
    client_of(site).request("POST", url, json=1)
    assert len(site.asked) == 1
    client_of(site).request("POST", url, json=1, idempotent=True)
    assert len(site.asked) == 5


def test_a_connection_that_is_refused_is_tried_again_and_then_explained(site: Site) -> None:
    site.close()
    waits: list[float] = []
    with pytest.raises(Unreachable, match=r"api\.example"):
        client_of(site, waits).request("GET", f"http://api.example:{site.port}/x?key=secret")
    assert len(waits) == 3


def test_the_next_address_is_tried_when_the_first_does_not_accept(site: Site) -> None:
    site.answers["/x"] = reply(200, b"second")
    client = client_of(site, resolve=lambda _host, _port: ["127.0.0.99", "127.0.0.1"])
    assert client.request("GET", f"http://api.example:{site.port}/x").body == b"second"


def test_content_goes_into_a_file_and_what_a_failed_try_left_there_is_removed(site: Site) -> None:
    def broken(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.wfile.write(b"a much longer beginning")

    answers = iter([broken, reply(200, b"whole")])
    site.answers["/x"] = lambda request: next(answers)(request)
    into = io.BytesIO()
    response = client_of(site).request("GET", f"http://api.example:{site.port}/x", into=into)
    assert (into.getvalue(), response.body, response.size) == (b"whole", b"", 5)


def test_a_certificate_that_nobody_vouches_for_is_refused(site: Site) -> None:
    site.answers["/x"] = reply(200)
    with pytest.raises(Unreachable):
        client_of(site, retries=0).request("GET", f"https://api.example:{site.port}/x")
