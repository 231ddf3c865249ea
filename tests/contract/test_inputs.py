"""``orchestrator.inputs``: the files operators read, from artifacts, data roots and S3 (a real HTTP server)."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.artifacts import ObjectArtifacts
from orchestrator.inputs import describe_output, fingerprint, local_file, outputs_of_kind
from orchestrator.operator import OperatorFailure, TaskContext
from orchestrator.testing import make_context
from workers.outputs import artifact_records


@pytest.fixture(scope="module")
def s3_options() -> Iterator[dict[str, str]]:
    """A bucket named ``bucket`` with one object, served on a free port of loopback."""
    from moto.server import ThreadedMotoServer
    from obstore import put
    from obstore.store import S3Store

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    options = {
        "aws_endpoint_url": f"http://127.0.0.1:{port}", "aws_access_key_id": "key", "aws_region": "us-east-1",
        "aws_secret_access_key": "secret", "aws_allow_http": "true",
    }  # fmt: skip
    import urllib.request

    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")).close()
    put(S3Store("bucket", config=options), "models/m.bin", b"weights")  # type: ignore[arg-type]
    yield options
    server.stop()


def test_an_object_in_s3_is_downloaded_once(s3_options: dict[str, str], tmp_path: Path) -> None:
    context = make_context(tmp_path, s3_options=s3_options)
    path = local_file(context, "s3://bucket/models/m.bin")
    assert path.read_bytes() == b"weights"
    assert path.is_relative_to(context.workdir)
    assert local_file(context, "s3://bucket/models/m.bin") == path
    assert fingerprint(path) == "sha256:" + hashlib.sha256(b"weights").hexdigest()


@pytest.mark.parametrize("uri", ["s3://bucket/absent.bin", "s3://bucket", "s3:///x", "absent.bin", "data:sub"])
def test_what_is_not_there_is_told(uri: str, s3_options: dict[str, str], tmp_path: Path) -> None:
    context = make_context(tmp_path, s3_options=s3_options)
    (tmp_path / "data" / "sub").mkdir()
    with pytest.raises(OperatorFailure) as caught:
        local_file(context, uri)
    assert (caught.value.reason, caught.value.retryable) == ("not_found", False)


def test_artifacts_and_data_roots_are_read_in_place(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    (tmp_path / "data" / "x.csv").write_text("a\n1\n")
    stored = context.artifacts.put_bytes("tenant/run/t/1/y.csv", b"b\n2\n")
    assert local_file(context, "data:x.csv").read_text() == "a\n1\n"
    assert local_file(context, stored.uri).read_bytes() == b"b\n2\n"


def test_another_tenants_artifact_is_refused_though_it_is_there(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    stored = context.artifacts.put_bytes("other/run/t/1/y.csv", b"b\n2\n")
    with pytest.raises(OperatorFailure) as caught:
        local_file(context, stored.uri)
    assert caught.value.reason == "forbidden_path"


def test_an_output_that_was_handed_on_is_its_makers(tmp_path: Path) -> None:
    model = {"uri": "artifact://tenant/run/train/1/m.skops", "digest": "d"}
    context = make_context(tmp_path, upstream_outputs={"compare": {"model": model}, "train": {"model": model}})
    assert describe_output(context, "model", model["uri"]) == {"task": "train", **model}
    assert describe_output(context, "dataset", model["uri"]) == {}


def test_an_object_of_the_artifact_store_is_refused_by_its_place_in_s3(
    s3_options: dict[str, str], tmp_path: Path
) -> None:
    context = make_context(tmp_path, s3_options=s3_options, artifacts=ObjectArtifacts.s3("bucket", "", s3_options))
    with pytest.raises(OperatorFailure, match="artifact://") as caught:
        local_file(context, "s3://bucket/models/m.bin")
    assert caught.value.reason == "forbidden_path"


def test_only_listed_buckets_are_opened_with_the_sites_keys(s3_options: dict[str, str], tmp_path: Path) -> None:
    allowed = make_context(tmp_path, s3_options=s3_options, s3_buckets=("other", "bucket"))
    assert local_file(allowed, "s3://bucket/models/m.bin").read_bytes() == b"weights"
    narrow = make_context(tmp_path / "narrow", s3_options=s3_options, s3_buckets=("other",))
    with pytest.raises(OperatorFailure, match="S3_BUCKETS") as caught:
        local_file(narrow, "s3://bucket/models/m.bin")
    assert caught.value.reason == "forbidden_path"


def missing(context: TaskContext, uri: str) -> str:
    with pytest.raises(OperatorFailure) as caught:
        local_file(context, uri)
    assert (caught.value.reason, caught.value.retryable) == ("artifact_missing", False)
    return caught.value.message


def test_an_artifact_that_is_gone_is_told_with_the_task_that_had_left_it(tmp_path: Path) -> None:
    named = f"artifact://tenant/sha256/{'0' * 64}"
    outputs = {
        "score": {"deep": [{"weights": named}]},
        "train": [None, {"model": {"uri": "artifact://tenant/r/x/1/m"}}],
    }
    context = make_context(tmp_path, upstream_outputs=outputs)
    assert "task 'score' of this run" in missing(context, named)
    assert "task 'train[1]' of this run" in missing(context, "artifact://tenant/r/x/1/m")
    assert "task 'prepare' of run r2" in missing(context, "artifact://tenant/r2/prepare/1/files/a.csv")
    assert "no task upstream" in missing(context, "artifact://tenant/nothing")


def test_what_was_looked_for_in_vain_is_told_with_the_outcome_though_the_task_fails(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    for _ in range(2):
        missing(context, "artifact://tenant/r/x/1/m")
    context.records.append({"kind": "model", "name": "m"})
    assert artifact_records(context.records) == [{"kind": "missing_artifact", "uri": "artifact://tenant/r/x/1/m"}]


def test_the_outputs_of_a_mapped_task_are_found_index_by_index(tmp_path: Path) -> None:
    first, second, third = (
        {"uri": f"artifact://tenant/r/{task}/1/m"} for task in ("train@0", "folds@2.train", "other")
    )
    outputs = {
        "train": [{"model": first}, None, {"rows": 3}],
        "folds": [None, None, {"train": {"model": second}, "split": {"rows": 1}}],
        "other": {"model": third},
    }
    context = make_context(tmp_path, upstream_outputs=outputs)
    found = dict(outputs_of_kind(context, "model"))
    assert found == {"train[0]": first, "folds[2].train": second, "other": third}
    assert describe_output(context, "model", second["uri"]) == {"task": "folds[2].train", **second}


def test_what_is_saved_is_named_by_its_content_and_saved_once(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    saved = context.save_artifact(b"weights", kind="model", name="best", retention_days=2)
    digest = hashlib.sha256(b"weights").hexdigest()
    uri = f"artifact://tenant/sha256/{digest}"
    assert saved == {"uri": uri, "digest": f"sha256:{digest}", "size": 7}
    (tmp_path / "work" / "again").write_bytes(b"weights")
    assert context.save_artifact(tmp_path / "work" / "again") == saved
    assert (tmp_path / "work" / "again").exists()
    assert list(context.artifacts.list()) == [f"tenant/sha256/{digest}"]
    told = {"content": "model", "name": "best", "retention_seconds": 172_800.0}
    assert context.records == [{"kind": "artifact", **saved, **told}]
    assert local_file(context, uri).read_bytes() == b"weights"
    assert [path.name for path in context.workdir.iterdir()] == ["again"]


@pytest.mark.parametrize("hours", [168, 13, 0.1])
def test_equal_content_is_written_again_so_that_the_rule_that_removes_objects_leaves_it(
    tmp_path: Path, hours: float
) -> None:
    context = make_context(tmp_path)
    uri = context.save_artifact(b"weights")["uri"]
    stored = tmp_path / "artifacts" / uri.removeprefix("artifact://")
    then = time.time() - hours * 3600
    os.utime(stored, (then, then))
    context.save_artifact(b"weights")
    assert context.artifacts.stat(uri).modified > then + hours * 1800


def test_what_a_mapped_task_leaves_lies_under_a_key_of_its_own(tmp_path: Path) -> None:
    context = make_context(tmp_path, task="folds[2].train", attempt_id="a")
    assert context.artifact_key("model.bin") == "tenant/run/folds@2.train/a/model.bin"
    assert context.artifacts.put_bytes(context.artifact_key("model.bin"), b"x").bytes == 1
