"""The seed's pipelines, as it wrote them: each runs when what it needs from outside is there, and says so when not."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import boto3
import pytest
import sqlalchemy
from moto.server import ThreadedMotoServer

from orchestrator.client import ApiError
from tests.acceptance.system import ROOT, System

pytestmark = pytest.mark.timeout(180)

BREAST_CANCER = ROOT / "examples" / "data" / "breast_cancer.csv"


def _seed(number: int) -> dict[str, Any]:
    path = next((ROOT / "tests" / "seed_pipelines").glob(f"{number:02d}-*.json"))
    document: dict[str, Any] = json.loads(path.read_text())
    return document


class _Registry(BaseHTTPRequestHandler):
    """An external model registry that accepts whatever version it is given."""

    seen: ClassVar[list[tuple[str, str]]] = []

    def _accept(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.command, self.path))
        answer = json.dumps({**body, "version": body.get("version") or "1"}).encode()
        self.send_response(201)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_PUT = do_POST = _accept  # noqa: N815 - the names are http.server's

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture(scope="module")
def registry() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Registry)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def object_store() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    client.create_bucket(Bucket="data")
    client.upload_file(str(BREAST_CANCER), "data", "training-data.csv")
    client.close()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def system(tmp_path: Path, database_url: str, redis_url: str, registry: str, object_store: str) -> Iterator[System]:
    engine = sqlalchemy.create_engine(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE source_rows (id int, amount float)")
        connection.exec_driver_sql("INSERT INTO source_rows SELECT n, n * 1.5 FROM generate_series(1, 500) n")
    engine.dispose()
    connections = {
        "database": {"url": database_url, "table": "source_rows"},
        "warehouse": {"url": database_url, "table": "warehouse_rows"},
    }
    settings = {
        "CONNECTIONS": json.dumps(connections),
        "ALLOWED_PRIVATE_HOSTS": registry,
        "MINIO_ENDPOINT": object_store,
        "MINIO_ACCESS_KEY": "key",
        "MINIO_SECRET_KEY": "secret",
    }
    with System(tmp_path, database_url, redis_url, **settings) as system:
        system.start_all(workers=("a",))
        yield system


def test_training_from_s3_goes_as_far_as_this_host_can_and_names_the_missing_gpu(system: System) -> None:
    run_id = system.start_run(_seed(1), {"experiment_name": "baseline-model-v1"})
    system.wait_for_task(run_id, "validate-data", "success", seconds=60)

    def infeasible() -> dict[str, Any] | None:
        task = system.task(run_id, "train-model")
        return task if task["state"] == "ready" and task["reason"] not in ("", "waiting_for_slot") else None

    task = system.wait_until(infeasible, "the training is explained")
    assert task["reason"] in {"infeasible", "waiting_for_worker"}
    assert "gpu" in task["message"].lower()
    system.client.cancel(run_id)
    assert system.finish(run_id)["state"] == "cancelled"


def test_data_processing_moves_rows_from_one_connection_to_the_other(system: System, database_url: str) -> None:
    system.succeed(system.start_run(_seed(2)))
    engine = sqlalchemy.create_engine(database_url)
    with engine.connect() as connection:
        moved = connection.exec_driver_sql("SELECT count(*), sum(amount) FROM warehouse_rows").one()
    engine.dispose()
    assert tuple(moved) == (500, 187875.0)


def test_training_with_validation_takes_its_data_set_from_the_run_and_its_model_reaches_an_external_registry(
    system: System, registry: str
) -> None:
    with pytest.raises(ApiError) as refused:
        system.start_run(_seed(3))
    assert refused.value.status == 422
    assert [problem.pointer for problem in refused.value.problems] == ["/parameters/input_path"]
    assert "prepare-data" in refused.value.problems[0].message

    header, _, rows = BREAST_CANCER.read_text().partition("\n")
    labelled = header.replace("diagnosis", "target")  # the column a training takes that names none
    (system.folder / "data" / "labelled.csv").write_text(f"{labelled}\n{rows}")
    run = system.succeed(system.start_run(_seed(3), {"input_path": "data:labelled.csv"}))
    model = next(t["outputs"]["model"] for t in run["tasks"] if t["name"] == "train-candidate-model")

    external = _seed(4)
    external["tasks"][0]["parameters"]["registry_url"] = f"http://{registry}"
    system.succeed(system.start_run(external, {"model_uri": model["uri"]}))
    assert any("customer-churn-v1" in path for _, path in _Registry.seen)


def test_a_script_alone_runs(system: System) -> None:
    system.succeed(system.start_run(_seed(5)))


def test_the_operators_reference_is_accepted_by_validate(system: System) -> None:
    assert system.client.validate_pipeline(_seed(6))["valid"]
