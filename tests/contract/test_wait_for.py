"""``wait_for``: what counts as there, and how what is not there yet is waited for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from operators.wait_for import WaitFor
from orchestrator.operator import Connection, NotYet, OperatorFailure, TaskContext
from orchestrator.outbound import OutboundClient
from orchestrator.testing import check_parameters, make_context, run_operator

pytestmark = pytest.mark.timeout(60)


def look(context: TaskContext, **parameters: Any) -> Mapping[str, Any]:
    return run_operator(WaitFor, context, parameters)


def test_a_file_in_a_data_root_is_found_when_it_is_there(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    with pytest.raises(NotYet, match=r"in/x\.csv is not there yet") as caught:
        look(context, file="in/x.csv", interval_seconds=7)
    assert caught.value.retry_in == 7
    (tmp_path / "data" / "in").mkdir()
    with pytest.raises(NotYet):
        look(context, file="in")
    (tmp_path / "data" / "in" / "x.csv").write_text("a\n1\n")
    digest = hashlib.sha256(b"a\n1\n").hexdigest()
    assert look(context, file="in/x.csv") == {"uri": "in/x.csv", "size": 4}
    assert look(context, file="in/x.csv", fingerprint=True)["fingerprint"] == f"sha256:{digest}"


def test_an_artifact_is_found_when_it_is_there_and_ones_own(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    with pytest.raises(NotYet):
        look(context, file="artifact://tenant/r/t/1/x")
    context.artifacts.put_bytes("tenant/r/t/1/x", b"123")
    assert look(context, file="artifact://tenant/r/t/1/x")["size"] == 3
    context.artifacts.put_bytes("other/r/t/1/x", b"123")
    for file in ("artifact://other/r/t/1/x", "../x", "/etc/passwd"):
        with pytest.raises(OperatorFailure) as caught:
            look(context, file=file)
        assert caught.value.reason == "forbidden_path"


def test_an_object_in_s3_is_found_when_it_is_there(tmp_path: Path, s3_server: dict[str, str], bucket: str) -> None:
    import obstore
    from obstore.store import S3Store

    context = make_context(tmp_path, s3_options=s3_server)
    with pytest.raises(NotYet):
        look(context, file=f"s3://{bucket}/day/x.csv")
    config: Any = s3_server
    obstore.put(S3Store(bucket, config=config), "day/x.csv", b"12345")
    found = look(context, file=f"s3://{bucket}/day/x.csv", fingerprint=True)
    assert (found["size"], found["fingerprint"][:7]) == (5, "sha256:")


def test_a_store_that_does_not_answer_is_a_failure_and_no_wait(tmp_path: Path, s3_server: dict[str, str]) -> None:
    options = {**s3_server, "aws_endpoint_url": "http://127.0.0.1:9"}
    with pytest.raises(OperatorFailure) as caught:
        look(make_context(tmp_path, s3_options=options), file="s3://bucket/x")
    assert (caught.value.reason, caught.value.retryable) == ("unreachable", True)


class Service:
    """An HTTP server that answers what it is told to."""

    def __init__(self) -> None:
        self.status, self.body, self.headers = 200, b"{}", dict[str, str]()
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                service.asked.append((self.command, self.path, headers, sent))
                self.send_response(service.status)
                for name, value in service.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(service.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(service.body)

            do_GET = do_POST = do_HEAD = answer  # noqa: N815 (names of the library)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        self.url = f"http://{self.host}/jobs/7"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


@pytest.fixture
def context(service: Service, tmp_path: Path) -> TaskContext:
    return make_context(tmp_path, http=OutboundClient([service.host]))


def test_a_status_is_waited_for(service: Service, context: TaskContext) -> None:
    service.status = 404
    with pytest.raises(NotYet, match="answered 404, not 200 yet"):
        look(context, http={"url": service.url + "?key=secret"}, interval_seconds=3)
    assert look(context, http={"url": service.url, "status": 404})["status"] == 404
    service.status, service.headers = 503, {"Retry-After": "90"}
    with pytest.raises(NotYet) as caught:
        look(context, http={"url": service.url}, interval_seconds=3)
    assert caught.value.retry_in == 90
    assert len(service.asked) == 3, "the next look is the next try"
    service.status = 200
    found = look(context, http={"url": service.url + "?key=secret", "method": "HEAD"})
    assert found == {"uri": service.url, "status": 200, "size": 0}


@pytest.mark.parametrize("asked", ["999999999", "Fri, 31 Dec 9999 23:59:59 GMT", "²"])
def test_a_service_may_put_the_next_look_off_for_a_day_at_most(
    service: Service, context: TaskContext, asked: str
) -> None:
    service.status, service.headers = 503, {"Retry-After": asked}
    with pytest.raises(NotYet) as caught:
        look(context, http={"url": service.url}, interval_seconds=3)
    assert caught.value.retry_in == (3 if asked == "²" else 86_400)


@pytest.mark.parametrize(("code", "waits"), [("AccessDenied", True), ("InvalidAccessKeyId", False)])
def test_what_s3_denies_to_those_who_may_not_list_may_just_not_be_there_yet(
    service: Service, tmp_path: Path, s3_server: dict[str, str], code: str, waits: bool
) -> None:
    service.status, service.body = 403, f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode()
    options = {**s3_server, "aws_endpoint_url": f"http://{service.host}"}
    with pytest.raises(NotYet if waits else OperatorFailure) as caught:
        look(make_context(tmp_path, s3_options=options), file="s3://bucket/day/x.csv")
    if isinstance(caught.value, NotYet):
        assert "s3://bucket/day/x.csv is not there yet, or may not be read" in caught.value.message
    else:
        assert getattr(caught.value, "reason", "") == "unauthorised"


@pytest.mark.parametrize(
    ("body", "condition", "is_met"),
    [
        ({"state": "done"}, {"path": "state", "equals": "done"}, True),
        ({"state": "running"}, {"path": "state", "equals": "done"}, False),
        ({"jobs": [{"n": 0}, {"n": 1}]}, {"path": "jobs.1.n", "equals": 1}, True),
        ({"jobs": [{"n": True}]}, {"path": "jobs.0.n", "equals": 1}, False),
        ({"n": 0}, {"path": "n", "equals": False}, False),
        ({"n": [True]}, {"path": "n", "equals": [1]}, False),
        ({"n": [1, {"a": 2}]}, {"path": "n", "equals": [1.0, {"a": 2}]}, True),
        ({"n": [5]}, {"path": "n.²", "equals": 5}, False),
        ({"n": [5]}, {"path": "n." + "9" * 400, "equals": 5}, False),
        ({"n": None}, {"path": "n", "equals": None}, True),
        ({"n": 0}, {"path": "n"}, True),
        ({"n": False}, {"path": "n"}, False),
        ({}, {"path": "n"}, False),
    ],
)
def test_a_value_in_the_answer_is_waited_for(
    service: Service, context: TaskContext, body: Any, condition: dict[str, Any], is_met: bool
) -> None:
    service.body = json.dumps(body).encode()
    if is_met:
        assert "value" in look(context, http={"url": service.url, **condition})
    else:
        with pytest.raises(NotYet, match="not what is waited for"):
            look(context, http={"url": service.url, **condition})


def test_an_answer_that_is_no_json_is_not_there_yet(service: Service, context: TaskContext) -> None:
    service.body = b"<html>starting</html>"
    with pytest.raises(NotYet, match="no JSON"):
        look(context, http={"url": service.url, "path": "state"})


def test_a_service_that_does_not_run_yet_is_waited_for(service: Service, context: TaskContext) -> None:
    service.close()
    with pytest.raises(NotYet, match="did not answer"):
        look(context, http={"url": service.url})


def test_what_another_look_can_not_mend_is_a_failure(service: Service, tmp_path: Path, context: TaskContext) -> None:
    def reason(task: TaskContext, **parameters: Any) -> str:
        with pytest.raises(OperatorFailure) as caught:
            look(task, **parameters)
        assert not caught.value.retryable
        return caught.value.reason

    assert reason(make_context(tmp_path / "b"), http={"url": service.url}) == "forbidden_address"
    service.status = 403
    assert reason(context, http={"url": service.url}) == "unauthorised"
    service.status, service.body = 200, b"x" * 2_000_000
    assert reason(context, http={"url": service.url}) == "too_large"
    assert reason(context, http={"url": service.url}, connection="none") == "unknown_connection"


def test_a_connection_authorises_what_lies_below_its_url_alone(service: Service, tmp_path: Path) -> None:
    connection = Connection("jobs", f"http://{service.host}/jobs", {"token": "secret"})
    context = make_context(tmp_path, http=OutboundClient([service.host]), connections={"jobs": connection})
    body = {"limit": 1}
    look(context, http={"url": "7", "method": "POST", "body": body, "headers": {"X-A": "1"}}, connection="jobs")
    [(method, path, headers, sent)] = service.asked
    assert (method, path, headers["authorization"], headers["x-a"]) == ("POST", "/jobs/7", "Bearer secret", "1")
    assert json.loads(sent) == body
    for url in (f"http://{service.host}/other", "../other", "http://example.org/jobs/7"):
        with pytest.raises(OperatorFailure) as caught:
            look(context, http={"url": url}, connection="jobs")
        assert caught.value.reason == "forbidden_address"
    assert WaitFor.connection_names({"connection": "jobs"}) == {"jobs"}


def test_a_wait_ends_after_its_time_wherever_the_looks_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000.0
    monkeypatch.setattr("operators.wait_for.time.time", lambda: now)
    store = make_context(tmp_path / "0").artifacts

    def wait(number: int) -> Exception:
        context = make_context(tmp_path / str(number), artifacts=store, attempt_number=number)
        with pytest.raises((NotYet, OperatorFailure)) as caught:
            look(context, file="x", interval_seconds=30, timeout_seconds=100)
        return caught.value

    assert isinstance(wait(1), NotYet)
    now += 30
    assert isinstance(wait(2), NotYet)
    now += 3600  # a clock that jumps, or a control plane that was away, is no wait of so long
    jumped = wait(3)
    assert isinstance(jumped, OperatorFailure)
    assert (jumped.reason, jumped.retryable) == ("wait_timeout", False)
    assert "120 s" in jumped.message


def test_a_clock_that_goes_back_ends_no_wait_and_begins_none_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000_000.0
    monkeypatch.setattr("operators.wait_for.time.time", lambda: now)
    store, waits = make_context(tmp_path / "0").artifacts, list[float]()
    for number, step in enumerate((0.0, 30.0, -3600.0, 30.0, 30.0), start=1):
        now += step
        context = make_context(tmp_path / str(number), artifacts=store, attempt_number=number)
        with pytest.raises(NotYet) as caught:
            look(context, file="x", interval_seconds=30, timeout_seconds=100)
        waits.append(caught.value.retry_in)
    assert waits == [30, 30, 30, 30, 10]


@pytest.mark.parametrize(
    ("parameters", "pointer"),
    [
        ({}, ""),
        ({"file": "x", "http": {"url": "http://a"}}, "/http"),
        ({"http": {"url": "http://a", "equals": 1}}, "/http/path"),
        ({"http": {"url": "http://a", "method": "HEAD", "path": "a"}}, "/http/path"),
        ({"file": "http://a/b"}, "/file"),
        ({"file": "s3://bucket"}, "/file"),
        ({"file": "s3://bucket/day/"}, "/file"),
        ({"http": {"url": "jobs/7"}}, "/http/url"),
        ({"http": {"url": "ftp://a"}}, "/http/url"),
        ({"http": {"url": "http://a"}, "fingerprint": True}, "/fingerprint"),
        ({"file": "x", "interval_seconds": 0}, "/interval_seconds"),
    ],
)
def test_a_wrong_definition_is_refused_when_it_is_saved(parameters: dict[str, Any], pointer: str) -> None:
    assert [place for place, _ in check_parameters(WaitFor, parameters)] == [pointer]


def test_a_dry_run_says_whether_it_is_there(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    run: Callable[..., Mapping[str, Any]] = WaitFor().dry_run
    assert run(context, {"file": "x", "timeout_seconds": 5})["is_there"] is False
    (tmp_path / "data" / "x").write_text("1")
    assert run(context, {"file": "x"}) == {"is_there": True, "uri": "x", "size": 1}
    assert list(context.artifacts.list()) == []
