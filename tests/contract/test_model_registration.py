"""``model_registration``: the record for our registry, and the site's registry behind real HTTP on loopback."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from operators.model_registration import ModelRegistration
from orchestrator.operator import Connection, OperatorFailure, TaskContext
from orchestrator.outbound import OutboundClient
from orchestrator.testing import check_parameters, make_context, run_operator


@dataclass
class Registry:
    """A registry of a site, as the protocol in the operator's file describes it."""

    url: str = ""
    versions: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    requests: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)
    answers: list[tuple[int, Mapping[str, str], bytes]] = field(default_factory=list)
    """Given out first, in place of the real ones."""

    def put(self, name: str, version: str | None, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Register; without a version, number it, once per digest."""
        known = [key for key, kept in self.versions.items() if key[0] == name and kept["digest"] == body["digest"]]
        if version is None:
            version = known[0][1] if known else str(1 + len([key for key in self.versions if key[0] == name]))
        kept = self.versions.get((name, version))
        if kept is not None and kept["digest"] != body["digest"]:
            return 409, {"digest": kept["digest"]}
        self.versions[name, version] = body
        return (200 if kept else 201), {"name": name, "version": version, "digest": body["digest"]}


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A registry that listens on a free port of loopback."""
    state = Registry()

    class Answer(BaseHTTPRequestHandler):
        """PUT and POST on /api/models/{name}/versions[/{version}]."""

        def do_PUT(self) -> None:
            length = int(self.headers["Content-Length"])
            body = json.loads(self.rfile.read(length))
            state.requests.append((self.command, self.path, dict(self.headers)))
            if state.answers:
                status, headers, content = state.answers.pop(0)
            else:
                parts = self.path.split("/")
                status, answer = state.put(parts[3], parts[5] if len(parts) > 5 else None, body)
                headers, content = {"Content-Type": "application/json"}, json.dumps(answer).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}/api"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield state
        server.shutdown()
        thread.join()


def make_trained(tmp_path: Path, content: bytes = b"a model", **overrides: Any) -> tuple[TaskContext, dict[str, Any]]:
    """Return a context whose ancestor left a model, and the parameters as they arrive: the input filled in."""
    client = OutboundClient(["127.0.0.1"], sleep=lambda seconds: None)
    context = make_context(tmp_path, http=client, task="register-model", **overrides)
    stored = context.artifacts.put_bytes(f"{context.tenant_id}/run/train/1/model.skops", content)
    model = {
        "uri": stored.uri, "digest": stored.fingerprint, "framework": "scikit_learn", "algorithm": "random_forest",
        "model_type": "classification", "metrics": {"accuracy": 0.97}, "signature": {"inputs": [], "output": {}},
        "data_fingerprint": "sha256:" + "d" * 64,
    }  # fmt: skip
    dataset = {"uri": "artifact://tenant/run/ingest/1/d.csv", "fingerprint": model["data_fingerprint"]}
    context.upstream_outputs = {"ingest": {"dataset": dataset}, "train": {"model": model}}
    return context, {"model_uri": stored.uri}


def register(context: TaskContext, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = run_operator(ModelRegistration, context, parameters)["registration"]
    return found


def test_the_record_for_our_registry_tells_metrics_and_lineage(tmp_path: Path) -> None:
    context, parameters = make_trained(tmp_path)
    outputs = register(
        context,
        {**parameters, "model_name": "fraud", "model_version": "1.0.0", "description": "Best so far", "tags": ["ml"],
         "stage": "staging", "metrics": {"latency_ms": 3}},
    )  # fmt: skip
    [record] = context.records
    assert record["kind"] == "model"
    assert (record["name"], record["version"], record["stage"]) == ("fraud", "1.0.0", "staging")
    assert record["metrics"] == {"accuracy": 0.97, "latency_ms": 3}
    assert record["digest"] == outputs["digest"] == context.upstream_outputs["train"]["model"]["digest"]
    assert record["lineage"] == {
        "run_id": "run", "task": "register-model", "attempt_id": context.attempt_id, "model_task": "train",
        "data_fingerprint": "sha256:" + "d" * 64,
        "dataset": {"task": "ingest", "uri": "artifact://tenant/run/ingest/1/d.csv"},
    }  # fmt: skip
    assert "registry" not in outputs


def test_without_name_and_version_the_run_decides_then_the_task_and_the_next_number(tmp_path: Path) -> None:
    context, parameters = make_trained(tmp_path)
    assert (register(context, parameters)["name"], context.records[0]["version"]) == ("pipeline.register-model", "")
    context, parameters = make_trained(tmp_path, run_parameters={"model_name": "churn", "model_version": "7"})
    assert (register(context, parameters)["name"], context.records[0]["version"]) == ("churn", "7")
    context, parameters = make_trained(tmp_path, run_parameters={"model_name": "../churn"})
    with pytest.raises(OperatorFailure, match="is no model_name"):
        register(context, parameters)


def test_a_model_from_outside_gets_its_digest_from_its_content(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    (tmp_path / "data" / "model.onnx").write_bytes(b"weights")
    outputs = register(context, {"model_uri": "model.onnx", "model_name": "ours"})
    assert outputs["digest"] == "sha256:" + hashlib.sha256(b"weights").hexdigest()
    assert outputs["metrics"] == {}


@pytest.mark.parametrize(
    ("uri", "reason"),
    [("artifact://tenant/run/train/1/gone", "artifact_missing"),
     ("artifact://other/run/train/1/model.skops", "forbidden_path"),
     ("absent.onnx", "not_found")],
)  # fmt: skip
def test_a_model_that_is_not_there_is_not_registered(uri: str, reason: str, tmp_path: Path) -> None:
    context, _ = make_trained(tmp_path)
    with pytest.raises(OperatorFailure) as caught:
        register(context, {"model_uri": uri})
    told = [{"kind": "missing_artifact", "uri": uri}] if reason == "artifact_missing" else []
    assert (caught.value.reason, list(context.records)) == (reason, told)


def test_a_model_whose_artifact_was_deleted_is_not_registered(tmp_path: Path) -> None:
    context, parameters = make_trained(tmp_path)
    context.artifacts.delete("tenant/run/train")
    with pytest.raises(OperatorFailure, match="run that task again"):
        register(context, parameters)


def test_the_site_registry_is_told_once_however_often_we_ask(registry: Registry, tmp_path: Path) -> None:
    context, parameters = make_trained(tmp_path)
    parameters |= {"registry_url": registry.url, "model_name": "fraud", "model_version": "1.0.0"}
    assert register(context, parameters) == register(context, parameters)
    assert list(registry.versions) == [("fraud", "1.0.0")]
    kept = registry.versions["fraud", "1.0.0"]
    assert kept["digest"] == context.records[0]["digest"]
    assert kept["model"]["algorithm"] == "random_forest"
    method, path, headers = registry.requests[0]
    assert (method, path) == ("PUT", "/api/models/fraud/versions/1.0.0")
    assert headers["Idempotency-Key"] == f"fraud:1.0.0:{kept['digest']}"


def test_another_digest_under_the_same_version_is_a_conflict(registry: Registry, tmp_path: Path) -> None:
    named = {"registry_url": registry.url, "model_name": "fraud", "model_version": "1.0.0"}
    context, parameters = make_trained(tmp_path)
    register(context, {**parameters, **named})
    context, parameters = make_trained(tmp_path, b"another model")
    with pytest.raises(OperatorFailure, match="under another version") as caught:
        register(context, {**parameters, **named})
    assert (caught.value.reason, caught.value.retryable, list(context.records)) == ("registry_conflict", False, [])


def test_the_site_registry_numbers_a_version_and_ours_takes_its_number(registry: Registry, tmp_path: Path) -> None:
    for content, version in ((b"one", "1"), (b"two", "2"), (b"one", "1")):
        context, parameters = make_trained(tmp_path, content, registry_url=registry.url + "/")
        assert register(context, {**parameters, "model_name": "fraud"})["version"] == version
        assert context.records[0]["version"] == version


def test_a_connection_brings_the_address_and_the_token(registry: Registry, tmp_path: Path) -> None:
    connection = Connection("registry", registry.url, {"token": "secret"})
    context, parameters = make_trained(tmp_path, connections={"registry": connection})
    parameters |= {"registry_connection": "registry", "model_name": "fraud"}
    assert ModelRegistration.connection_names(parameters) == {"registry"}
    register(context, parameters)
    assert registry.requests[0][2]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("answer", "reason", "retryable"),
    [
        ((400, {}, b"no such stage"), "registry_refused", False),
        ((404, {}, b""), "registry_refused", False),
        ((201, {}, b'{"digest": "sha256:other", "version": "1"}'), "registry_conflict", False),
        ((500, {}, b""), "registry_unavailable", True),
        ((201, {}, b"x" * (2 << 20)), "registry_refused", False),
    ],
)
def test_what_the_site_registry_answers_decides(
    answer: tuple[int, Mapping[str, str], bytes], reason: str, retryable: bool, registry: Registry, tmp_path: Path
) -> None:
    registry.answers.append(answer)
    context, parameters = make_trained(tmp_path, registry_url=registry.url)
    with pytest.raises(OperatorFailure) as caught:
        register(context, {**parameters, "model_name": "fraud", "model_version": "1"})
    assert (caught.value.reason, caught.value.retryable, list(context.records)) == (reason, retryable, [])


def test_a_busy_registry_says_how_long_to_wait(registry: Registry, tmp_path: Path) -> None:
    registry.answers.append((503, {"Retry-After": "120"}, b""))
    context, parameters = make_trained(tmp_path, registry_url=registry.url)
    with pytest.raises(OperatorFailure) as caught:
        register(context, parameters)
    assert caught.value.retry_after == 120


def test_a_registry_on_a_private_address_is_refused_unless_the_site_allows_it(tmp_path: Path) -> None:
    context, parameters = make_trained(tmp_path)
    context.http = OutboundClient()
    with pytest.raises(OperatorFailure) as caught:
        register(context, {**parameters, "registry_url": "http://127.0.0.1:9/api"})
    assert caught.value.reason == "forbidden_address"


def test_a_dry_run_registers_nothing(registry: Registry, tmp_path: Path) -> None:
    context, parameters = make_trained(tmp_path, registry_url=registry.url)
    assert ModelRegistration().dry_run(context, parameters)["registry"] == registry.url
    assert (list(context.records), registry.requests) == ([], [])


@pytest.mark.parametrize(
    ("parameters", "pointer"),
    [
        ({"model_name": "a/b"}, "/model_name"),
        ({"model_version": ""}, "/model_version"),
        ({"stage": "best"}, "/stage"),
        ({"metrics": {"accuracy": "high"}}, "/metrics/accuracy"),
        ({"registry_url": "file:///etc/passwd"}, "/registry_url"),
        ({"registry_url": "https://registry.example", "registry_connection": "r"}, "/registry_connection"),
    ],
)
def test_a_wrong_definition_is_refused_when_it_is_saved(parameters: Mapping[str, Any], pointer: str) -> None:
    assert [place for place, _ in check_parameters(ModelRegistration, parameters)] == [pointer]
