"""The operator ``data_ingestion`` on real files and a real S3 server."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from operators.data_ingestion import DataIngestion
from orchestrator.artifacts import ObjectArtifacts
from orchestrator.operator import Connection, OperatorFailure, TaskContext
from orchestrator.testing import check_parameters, make_context, run_operator
from tests.contract.ingestion import CSV, ROWS, content, everything_in, failure

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def context(tmp_path: Path) -> TaskContext:
    return make_context(tmp_path)


def test_a_csv_file_becomes_an_artifact_with_the_same_bytes(context: TaskContext, tmp_path: Path) -> None:
    (tmp_path / "data" / "x.csv").write_bytes(CSV)
    dataset = run_operator(DataIngestion, context, {"source_path": "x.csv"})["dataset"]
    assert content(context, dataset["uri"]) == CSV
    assert dataset == {
        "uri": f"artifact://{context.artifact_key('dataset.csv')}",
        "format": "csv",
        "rows": 3,
        "bytes": len(CSV),
        "fingerprint": f"sha256:{hashlib.sha256(CSV).hexdigest()}",
        "columns": [
            {"name": "id", "type": "integer"},
            {"name": "name", "type": "string"},
            {"name": "score", "type": "float"},
        ],
    }


@pytest.mark.parametrize("target", ["csv", "json", "parquet"])
@pytest.mark.parametrize("source", ["csv", "json", "array", "parquet"])
def test_every_format_can_be_turned_into_every_other(
    context: TaskContext, tmp_path: Path, source: str, target: str
) -> None:
    frame = pl.DataFrame(ROWS)
    path = tmp_path / "data" / f"x.{'json' if source == 'array' else source}"
    writers: dict[str, Callable[[Path], object]] = {
        "csv": frame.write_csv, "json": frame.write_ndjson, "parquet": frame.write_parquet,
        "array": lambda p: p.write_text(json.dumps(ROWS, indent=2)),
    }  # fmt: skip
    writers[source](path)
    dataset = run_operator(DataIngestion, context, {"source_path": path.name, "output_format": target})["dataset"]
    assert (dataset["format"], dataset["rows"]) == (target, 3)
    stored = context.artifacts.local_path(dataset["uri"], context.workdir)
    readers: dict[str, Callable[[Path], pl.DataFrame]] = {
        "csv": pl.read_csv, "json": pl.read_ndjson, "parquet": pl.read_parquet,
    }  # fmt: skip
    found = readers[target](stored)
    assert found.columns == ["id", "name", "score"]
    assert found["id"].to_list() == [1, 2, 3]
    assert found["score"].to_list() == [1.5, None, 3.0]


def test_a_column_that_turns_out_to_be_text_after_many_numbers_is_text(context: TaskContext, tmp_path: Path) -> None:
    (tmp_path / "data" / "x.csv").write_text("a,b\n" + "1,2\n" * 20_000 + "one,2\n")
    dataset = run_operator(DataIngestion, context, {"source_path": "x.csv", "output_format": "parquet"})["dataset"]
    assert dataset["rows"] == 20_001
    assert [column["type"] for column in dataset["columns"]] == ["string", "integer"]


def test_a_csv_dialect_is_normalised(context: TaskContext, tmp_path: Path) -> None:
    (tmp_path / "data" / "x.txt").write_text("1;NA\n2;x\n")
    parameters = {
        "source_path": "x.txt", "format": "csv", "csv": {"separator": ";", "has_header": False, "null_values": ["NA"]},
    }  # fmt: skip
    dataset = run_operator(DataIngestion, context, parameters)["dataset"]
    assert content(context, dataset["uri"]).split(b"\n", 1)[1] == b"1,\n2,x\n"


def test_json_records_of_different_shape_are_united(context: TaskContext, tmp_path: Path) -> None:
    (tmp_path / "data" / "x.json").write_text('[{"a": 1}, {"a": 2.5, "b": {"c": [1]}}, 7]')
    dataset = run_operator(DataIngestion, context, {"source_path": "x.json", "output_format": "parquet"})["dataset"]
    assert dataset["columns"] == [
        {"name": "a", "type": "float"}, {"name": "b", "type": "object"}, {"name": "value", "type": "integer"},
    ]  # fmt: skip


def test_the_output_path_receives_the_dataset_whole_or_not_at_all(context: TaskContext, tmp_path: Path) -> None:
    (tmp_path / "data" / "x.csv").write_bytes(CSV)
    dataset = run_operator(DataIngestion, context, {"source_path": "x.csv", "output_path": "out/y.csv"})["dataset"]
    assert dataset["uri"] == "data:out/y.csv"
    assert (tmp_path / "data" / "out" / "y.csv").read_bytes() == CSV
    (tmp_path / "data" / "x.csv").write_text("a,b\n1\n2,3,4\n")
    assert failure(context, {"source_path": "x.csv", "output_path": "out/y.csv"}).reason == "bad_data"
    assert (tmp_path / "data" / "out" / "y.csv").read_bytes() == CSV
    assert sorted(path.name for path in (tmp_path / "data" / "out").iterdir()) == ["y.csv"]


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("x.csv", b"", "empty"),
        ("x.csv", b"a,b\n1,2,3\n", "more fields"),
        ("x.csv", b"a,b\n\xff\xfe\xfa,2\n", "utf-8"),
        ("x.json", b'{"a": 1}\n{"a":', "line 2"),
        ("x.json", b'[{"a": 1}, {"a": NaN}]', "after 1 records"),
        ("x.json", b'[{"a": 1}', "after 1 records"),
        ("x.json", b'{"a": 1}\n[2]\n', "line 2"),
        ("x.parquet", b"PAR1 this is none", ""),
    ],
)
def test_a_file_that_is_not_what_its_format_says_is_bad_data(
    context: TaskContext, tmp_path: Path, name: str, text: bytes, words: str
) -> None:
    (tmp_path / "data" / name).write_bytes(text)
    found = failure(context, {"source_path": name})
    assert (found.reason, found.retryable) == ("bad_data", False)
    assert words in found.message
    assert name in found.message
    assert list(context.artifacts.list()) == []


def test_nested_values_do_not_fit_into_csv_and_the_message_says_what_does(context: TaskContext, tmp_path: Path) -> None:
    (tmp_path / "data" / "x.json").write_text('{"a": [1, 2]}\n')
    found = failure(context, {"source_path": "x.json", "output_format": "csv"})
    assert "json or parquet" in found.message


@pytest.mark.parametrize(
    "parameters, reason",
    [
        ({"source_path": "nothing.csv"}, "not_found"),
        ({"source_path": "folder.csv"}, "not_found"),
        ({"source_path": "../x.csv"}, "forbidden_path"),
        ({"source_path": "/etc/passwd", "format": "csv"}, "forbidden_path"),
        ({"source_path": "x.csv", "output_path": "../y.csv"}, "forbidden_path"),
        ({"source_path": "x.csv", "output_path": "/etc/y.csv"}, "forbidden_path"),
        ({"source_path": "x.csv", "max_bytes": 5}, "too_large"),
        ({"source_path": "artifact://tenant/nothing.csv"}, "artifact_missing"),
        ({"source_path": "artifact://another/secret.csv"}, "forbidden_path"),
        ({"source": "nobody"}, "unknown_connection"),
        ({"source_path": "x.csv", "destination": "nobody"}, "unknown_connection"),
        ({"source_path": "http://127.0.0.1:1/x.csv"}, "forbidden_address"),
        ({"source_path": "http://169.254.169.254/latest", "format": "json"}, "forbidden_address"),
    ],
)
def test_what_can_not_work_is_said_and_not_retried(
    context: TaskContext, tmp_path: Path, parameters: dict[str, Any], reason: str
) -> None:
    (tmp_path / "data" / "x.csv").write_bytes(CSV)
    (tmp_path / "data" / "folder.csv").mkdir()
    found = failure(context, parameters)
    assert (found.reason, found.retryable) == (reason, False)


@pytest.mark.parametrize(
    "parameters, pointer",
    [
        ({}, ""),
        ({"source_type": "local"}, "/source_path"),
        ({"source_type": "s3", "source_path": "local.csv"}, "/source_path"),
        ({"source_type": "local", "source_path": "s3://b/k.csv"}, "/source_path"),
        ({"source_type": "database", "source_path": "x"}, "/source"),
        ({"source_path": "postgresql://u:p@h/d"}, "/source_path"),
        ({"source": "db", "table": "t", "query": "SELECT 1"}, "/query"),
        ({"source_path": "x.csv", "source_type": "local", "pagination": {"type": "page"}}, "/pagination"),
        ({"source_type": "local", "source_path": "no-suffix"}, "/format"),
        ({"source_path": "x.csv", "destination": "d", "input_path": "y"}, "/input_path"),
        ({"source_path": "x.csv", "csv": {"separator": ";;"}}, "/csv/separator"),
        ({"source_path": "x.csv", "source_type": "ftp"}, "/source_type"),
        ({"source_path": "x.csv", "pagination": {"type": "page", "page_size": 0}}, "/pagination/page_size"),
    ],
)
def test_contradictions_are_found_before_anything_runs(parameters: dict[str, Any], pointer: str) -> None:
    assert pointer in [found for found, _ in check_parameters(DataIngestion, parameters)]


def test_an_upstream_dataset_is_asked_for_only_by_a_task_that_loads() -> None:
    assert [i.parameter for i in DataIngestion.active_inputs({"destination": "warehouse"})] == ["input_path"]
    assert DataIngestion.active_inputs({"source_path": "x.csv", "destination": "warehouse"}) == ()
    assert DataIngestion.active_inputs({"source": "database"}) == ()
    assert DataIngestion.connection_names({"source": "a", "destination": "b"}) == {"a", "b"}


MEASURED = """
import sys
from pathlib import Path
from operators.data_ingestion import DataIngestion
from orchestrator.artifacts import ObjectArtifacts
from orchestrator.testing import make_context, run_operator
context = make_context(Path(sys.argv[1]))
out = run_operator(DataIngestion, context, {"source_path": "big." + sys.argv[2], "output_format": sys.argv[3]})
# Not ru_maxrss: a child starts with what its parent had at the fork, and a test process may be large.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(out["dataset"]["rows"], int(status["VmHWM"].split()[0]) * 1024)
"""


@pytest.mark.parametrize("source, target", [("csv", "csv"), ("csv", "parquet"), ("json", "parquet")])
def test_the_peak_of_memory_does_not_follow_the_size_of_the_file(tmp_path: Path, source: str, target: str) -> None:
    """150 MB on disk; polars with one thread takes about 210 MB for a file of any size, itself 50 MB of that."""
    (tmp_path / "data").mkdir()
    csv = "".join(f"{n},{n * 0.37:.4f},DE,customer number {n:012d}\n" for n in range(20_000))
    line = json.dumps({"id": 12345, "amount": 1.5, "country": "DE", "name": "customer number 000000012345"}) + "\n"
    block, head = (csv, "id,amount,country,name\n") if source == "csv" else (line * 20_000, "")
    repeats = 150_000_000 // len(block)
    with (tmp_path / "data" / f"big.{source}").open("w") as sink:
        sink.write(head)
        for _ in range(repeats):
            sink.write(block)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURED), str(tmp_path), source, target],
        capture_output=True, text=True, check=True, env={**os.environ, "POLARS_MAX_THREADS": "1"}, timeout=100,
        cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    rows, peak = map(int, done.stdout.splitlines()[-1].split())
    assert rows == repeats * 20_000
    assert peak < 400 * 2**20, f"{peak / 2**20:.0f} MiB"


def test_a_dry_run_says_what_is_there_and_writes_nothing(context: TaskContext, tmp_path: Path) -> None:
    (tmp_path / "data" / "x.csv").write_bytes(CSV)
    before = everything_in(tmp_path)
    parameters = {"source_path": "x.csv", "output_path": "out/y.csv"}
    assert DataIngestion().dry_run(context, parameters)["source"] == {
        "type": "local", "format": "csv", "bytes": len(CSV),
    }  # fmt: skip
    with pytest.raises(OperatorFailure, match="no file"):
        DataIngestion().dry_run(context, {"source_path": "nothing.csv"})
    assert everything_in(tmp_path) == before


def put_object(options: dict[str, str], bucket: str, key: str, body: bytes) -> None:
    import obstore
    from obstore.store import S3Store

    config: Any = options
    obstore.put(S3Store(bucket, config=config), key, body)


def test_an_object_of_s3_is_ingested_and_can_be_written_back(
    tmp_path: Path, s3_server: dict[str, str], bucket: str
) -> None:
    context = make_context(tmp_path, s3_options=s3_server)
    put_object(s3_server, bucket, "folder/x.csv", CSV)
    parameters = {
        "source_type": "s3", "source_path": f"s3://{bucket}/folder/x.csv", "output_path": f"s3://{bucket}/out/",
    }  # fmt: skip
    assert DataIngestion().dry_run(context, parameters)["source"]["bytes"] == len(CSV)
    dataset = run_operator(DataIngestion, context, parameters)["dataset"]
    assert dataset["uri"] == f"s3://{bucket}/out/dataset.csv"
    again = run_operator(DataIngestion, context, {"source_path": dataset["uri"]})["dataset"]
    assert (again["rows"], again["fingerprint"]) == (3, dataset["fingerprint"])


def test_an_s3_connection_brings_its_own_endpoint_and_folder(
    tmp_path: Path, s3_server: dict[str, str], bucket: str
) -> None:
    options = {name.removeprefix("aws_"): value for name, value in s3_server.items()}
    lake = Connection("lake", f"s3://{bucket}/folder", options)
    context = make_context(tmp_path, connections={"lake": lake})
    put_object(s3_server, bucket, "folder/x.parquet", b"")
    put_object(s3_server, bucket, "folder/x.csv", CSV)
    assert run_operator(DataIngestion, context, {"source": "lake", "source_path": "x.csv"})["dataset"]["rows"] == 3
    assert failure(context, {"source": "lake", "source_path": "x.parquet"}).reason == "bad_data"
    assert failure(context, {"source": "lake", "source_path": "y.csv"}).reason == "not_found"


def test_a_missing_object_bucket_or_store_is_told_apart(tmp_path: Path, s3_server: dict[str, str], bucket: str) -> None:
    context = make_context(tmp_path, s3_options=s3_server)
    assert failure(context, {"source_path": f"s3://{bucket}/x.csv"}).reason == "not_found"
    assert failure(context, {"source_path": "s3://no-such-bucket/x.csv"}).reason == "not_found"
    assert failure(context, {"source_path": "s3://only-a-bucket", "format": "csv"}).reason == "bad_parameters"
    away = make_context(tmp_path, s3_options={**s3_server, "aws_endpoint_url": "http://127.0.0.1:9"})
    found = failure(away, {"source_path": f"s3://{bucket}/x.csv"})
    assert (found.reason, found.retryable) == ("unreachable", True)


def test_a_connection_of_s3_is_read_inside_its_folder_only(
    tmp_path: Path, s3_server: dict[str, str], bucket: str
) -> None:
    lake = Connection("lake", f"s3://{bucket}/in")
    context = make_context(tmp_path, connections={"lake": lake}, s3_options=s3_server, s3_buckets=("another",))
    put_object(s3_server, bucket, "in/x.csv", CSV)
    put_object(s3_server, bucket, "other/x.csv", CSV)
    inside = {"source": "lake", "source_path": f"s3://{bucket}/in/x.csv"}
    assert run_operator(DataIngestion, context, inside)["dataset"]["rows"] == 3
    for path in (f"s3://{bucket}/other/x.csv", "s3://another/in/x.csv", "../other/x.csv"):
        assert failure(context, {"source": "lake", "source_path": path}).reason == "forbidden_address"
    (tmp_path / "data" / "x.csv").write_bytes(CSV)
    upwards = {"source_path": "x.csv", "destination": "lake", "destination_table": "../other/x.csv"}
    assert failure(context, upwards).reason == "forbidden_address"


def test_no_uri_of_s3_leads_into_the_artifact_store(tmp_path: Path, s3_server: dict[str, str], bucket: str) -> None:
    artifacts = ObjectArtifacts.s3(bucket, "artifacts", s3_server)
    lake = Connection("lake", f"s3://{bucket}")
    context = make_context(tmp_path, artifacts=artifacts, s3_options=s3_server, connections={"lake": lake})
    artifacts.put_bytes("another/run/t/1/secret.csv", CSV)
    put_object(s3_server, bucket, "artifacts-of-others/x.csv", CSV)
    (tmp_path / "data" / "x.csv").write_bytes(CSV)
    for parameters in (
        {"source_path": f"s3://{bucket}/artifacts/another/run/t/1/secret.csv"},
        {"source_path": f"s3://{bucket}//artifacts/another/run/t/1/secret.csv"},
        {"source_path": f"S3://{bucket}/artifacts/another/run/t/1/secret.csv"},
        {"source": "lake", "source_path": "artifacts/another/run/t/1/secret.csv"},
        {"source_path": "x.csv", "output_path": f"s3://{bucket}/artifacts/another/run/t/1/secret.csv"},
        {"source_path": "x.csv", "destination": "lake", "destination_table": "artifacts/another/x.csv"},
    ):
        assert failure(context, parameters).reason == "forbidden_path"
    found = failure(context, {"source_path": f"s3://user@{bucket}/x.csv"})
    assert found.reason == "bad_parameters"
    outside = {"source_path": f"s3://{bucket}/artifacts-of-others/x.csv"}
    assert run_operator(DataIngestion, context, outside)["dataset"]["rows"] == 3
    assert list(artifacts.list("another")) == ["another/run/t/1/secret.csv"]
