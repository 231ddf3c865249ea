"""The contract of the artifact port, run on every adapter."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifacts import (
    ArtifactStore,
    LocalArtifacts,
    ObjectArtifacts,
    RecordedArtifacts,
    is_artifact,
    key_of,
    open_artifacts,
    s3_options,
    uri_of,
)
from orchestrator.config import load_settings
from orchestrator.errors import ConfigurationError, ForbiddenPath, NotFound, StoreUnavailable, TooLarge

pytestmark = pytest.mark.timeout(120)

BAD_KEYS = [
    "", "/", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", ".", "..", ".hidden", "a/.part-1", "a b", "a\x00b", "a\nb",
    "a\\b", "a%2e%2e/b", "ä", "a?b", "a#b", "x" * 1000, "a/" + "y" * 300, "~a", "-a",
]  # fmt: skip


@pytest.fixture(params=["local", "s3", "recorded"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    local = LocalArtifacts(tmp_path / "artifacts", scope="local:host")
    if request.param == "local":
        return local
    if request.param == "recorded":
        return RecordedArtifacts(local, [], "t")
    options = request.getfixturevalue("s3_server")
    return ObjectArtifacts.s3(request.getfixturevalue("bucket"), "some/prefix", options)


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_bytes_come_back_as_they_were_put(store: ArtifactStore) -> None:
    for content in (b"", b"hello", bytes(range(256)) * 100):
        stored = store.put_bytes("t/run/task/0/report.json", content)
        assert stored.uri == "artifact://t/run/task/0/report.json"
        assert (stored.bytes, stored.fingerprint) == (len(content), sha256(content))
        assert store.get_bytes(stored.uri, limit=len(content)) == content


@pytest.mark.parametrize("size", [0, 1, 3_000_000, 20_000_000])
def test_a_file_comes_back_as_it_was_put(store: ArtifactStore, tmp_path: Path, size: int) -> None:
    source = tmp_path / "source"
    content = os.urandom(1000) * (size // 1000) if size > 1000 else b"x" * size
    source.write_bytes(content)
    stored = store.put_file("t/model", source)
    assert (stored.bytes, stored.fingerprint) == (len(content), sha256(content))
    assert store.local_path(stored.uri, tmp_path / "into").read_bytes() == content
    assert source.exists()


def test_a_consumed_file_is_gone_afterwards(store: ArtifactStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    stored = store.put_file("t/model", source, consume=True)
    assert not source.exists()
    assert store.get_bytes(stored.uri, 100) == b"content"


def test_writing_a_key_again_replaces_it(store: ArtifactStore) -> None:
    store.put_bytes("t/a", b"first and longer")
    assert store.get_bytes(store.put_bytes("t/a", b"second").uri, 100) == b"second"
    assert list(store.list()) == ["t/a"]


def test_what_is_missing_is_not_found(store: ArtifactStore, tmp_path: Path) -> None:
    store.put_bytes("t/folder/a", b"x")
    for key in ("t/nothing", "t/folder", "t/folder/a/b"):
        uri = uri_of(key)
        assert not store.exists(uri)
        for read in (lambda u: store.get_bytes(u, 10), lambda u: store.local_path(u, tmp_path / "into")):
            with pytest.raises(NotFound):
                read(uri)
    assert store.exists("artifact://t/folder/a")


def test_more_than_the_limit_is_refused(store: ArtifactStore) -> None:
    uri = store.put_bytes("t/a", b"0123456789").uri
    assert store.get_bytes(uri, 10) == b"0123456789"
    with pytest.raises(TooLarge):
        store.get_bytes(uri, 9)


def test_keys_are_listed_sorted_and_by_whole_segments(store: ArtifactStore) -> None:
    keys = ["logs/a/000", "logs/a/001", "logs/a.b/0", "logs/ab/0", "logs/a", "other/x", "logs/a/sub/0"]
    keys = [key for key in keys if key != "logs/a"]  # a folder and an object of one name: not on a file system
    for key in keys:
        store.put_bytes(key, b"x")
    assert list(store.list()) == sorted(keys)
    assert list(store.list("logs/a")) == ["logs/a/000", "logs/a/001", "logs/a/sub/0"]
    assert list(store.list("logs/a/")) == list(store.list("logs/a"))
    assert list(store.list("logs/a/000")) == []
    assert list(store.list("nothing")) == []


def test_many_keys_are_listed_and_deleted(store: ArtifactStore) -> None:
    many = 60
    for number in range(many):
        store.put_bytes(f"logs/run/{number:015d}", b"x")
    assert list(store.list("logs/run")) == [f"logs/run/{number:015d}" for number in range(many)]
    store.delete("logs")
    assert list(store.list()) == []


def test_delete_takes_an_object_or_a_folder_and_nothing_beside_it(store: ArtifactStore) -> None:
    for key in ("a/b/c", "a/b/d", "a/bc", "a/e"):
        store.put_bytes(key, b"x")
    store.delete("a/b")
    assert list(store.list()) == ["a/bc", "a/e"]
    store.delete("a/e")
    assert list(store.list()) == ["a/bc"]
    store.delete("a/e")
    store.delete("nothing/at/all")


def test_a_uri_names_one_object_to_delete_and_no_folder(store: ArtifactStore) -> None:
    for key in ("a/b", "a/c/d"):
        store.put_bytes(key, b"x")
    for uri in ("artifact://a", "artifact://a/c", "artifact://a/none", "artifact://a/b/none"):
        store.delete(uri)
    assert list(store.list()) == ["a/b", "a/c/d"]
    store.delete("artifact://a/b")
    store.delete("artifact://a/b")
    assert list(store.list()) == ["a/c/d"]


def test_size_and_age_of_an_object_are_known_without_reading_it(store: ArtifactStore) -> None:
    began = time.time()
    stored = store.stat(store.put_bytes("t/a", b"12345").uri)
    assert stored.bytes == 5
    # An object store tells whole seconds.
    assert began - 2 <= stored.modified <= time.time() + 2
    for key in ("t", "t/none", "t/a/none"):
        with pytest.raises(NotFound):
            store.stat(uri_of(key))


def test_what_a_task_leaves_is_noted_once_and_what_it_takes_back_is_not(tmp_path: Path) -> None:
    records: list[Mapping[str, Any]] = [{"kind": "model", "uri": "artifact://t/a"}]
    store = RecordedArtifacts(LocalArtifacts(tmp_path, scope="shared"), records, "t")
    store.put_bytes("t/a", b"first")
    kept = store.put_bytes("t/a", b"second")
    store.put_bytes("checkpoints/t/run/task/1.000001", b"x")
    store.put_bytes("tt/a", b"x")
    store.delete(store.put_bytes("t/b", b"x").uri)
    expected = {"kind": "artifact", "uri": kept.uri, "digest": kept.fingerprint, "size": 6}
    assert records == [{"kind": "model", "uri": "artifact://t/a"}, expected]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_is_none_is_refused_everywhere(store: ArtifactStore, tmp_path: Path, key: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    uses: list[Callable[[], object]] = [
        lambda: store.put_bytes(key, b""),
        lambda: store.put_file(key, source),
        lambda: store.get_bytes(f"artifact://{key}", 1),
        lambda: store.local_path(f"artifact://{key}", tmp_path / "into"),
        lambda: store.exists(f"artifact://{key}"),
        lambda: store.stat(f"artifact://{key}"),
        lambda: store.delete(f"artifact://{key}"),
    ]
    if key.strip("/"):
        trimmed_is_none = key.strip("/") == key
        uses += [lambda: list(store.list(key)), lambda: store.delete(key)] if trimmed_is_none else []
    for use in uses:
        with pytest.raises(ForbiddenPath):
            use()


@pytest.mark.parametrize("uri", ["", "t/a", "/etc/passwd", "file:///etc/passwd", "s3://bucket/a", "ARTIFACT://a"])
def test_another_uri_is_no_artifact(store: ArtifactStore, uri: str) -> None:
    assert not is_artifact(uri)
    with pytest.raises(ForbiddenPath):
        store.get_bytes(uri, 1)


def test_a_reader_never_sees_a_part_of_a_write(store: ArtifactStore) -> None:
    contents = [bytes([number]) * 200_000 for number in range(8)]
    uri = store.put_bytes("t/a", contents[0]).uri
    writer = threading.Thread(target=lambda: [store.put_bytes("t/a", content) for content in contents])
    writer.start()
    while writer.is_alive():
        assert store.get_bytes(uri, 1_000_000) in contents
    writer.join()


def test_a_failed_write_leaves_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises((NotFound, StoreUnavailable, FileNotFoundError)):
        store.put_file("t/a", tmp_path / "nothing")
    assert list(store.list()) == []


def test_two_artifacts_of_one_name_do_not_meet_in_the_work_directory(store: ArtifactStore, tmp_path: Path) -> None:
    one, two = store.put_bytes("t/1/dataset.csv", b"1").uri, store.put_bytes("t/2/dataset.csv", b"2").uri
    paths = [store.local_path(uri, tmp_path / "into") for uri in (one, two, one)]
    assert [path.read_bytes() for path in paths] == [b"1", b"2", b"1"]
    assert {path.suffix for path in paths} == {".csv"}


def test_stored_files_are_read_only_and_no_part_stays(tmp_path: Path) -> None:
    store = LocalArtifacts(tmp_path / "artifacts", scope="shared")
    store.put_bytes("t/a", b"x")
    files = [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["a"]
    assert files[0].stat().st_mode & 0o222 == 0


def test_a_link_out_of_the_artifact_folder_is_refused(tmp_path: Path) -> None:
    store = LocalArtifacts(tmp_path / "artifacts", scope="shared")
    store.put_bytes("t/a", b"x")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "artifacts" / "t" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ForbiddenPath):
        store.get_bytes("artifact://t/link", 100)


def test_a_store_that_does_not_answer_is_unavailable() -> None:
    options = {
        "aws_endpoint_url": "http://127.0.0.1:9", "aws_access_key_id": "a", "aws_secret_access_key": "b",
        "aws_region": "us-east-1", "aws_allow_http": "true",
    }  # fmt: skip
    store = ObjectArtifacts.s3("bucket", "", options)
    with pytest.raises(StoreUnavailable, match="s3://bucket"):
        store.get_bytes("artifact://t/a", 1)


def test_the_artifact_url_chooses_adapter_and_scope(tmp_path: Path) -> None:
    shared = open_artifacts(load_settings({"ARTIFACT_URL": f"file://{tmp_path}/my%20folder"}))
    assert shared.scope == "shared"
    shared.put_bytes("t/a", b"x")
    assert (tmp_path / "my folder" / "t" / "a").exists()
    assert open_artifacts(load_settings({"DATA_DIR": str(tmp_path)}), host_id="h1").scope == "local:h1"
    assert open_artifacts(load_settings({"DATA_DIR": str(tmp_path), "HOST_ID": "h2"})).scope == "local:h2"
    assert open_artifacts(load_settings({"ARTIFACT_URL": "s3://bucket/prefix"})).scope == "shared"
    for wrong in ("s3://", "file://host/folder", "file:relative"):
        with pytest.raises(ConfigurationError, match="ARTIFACT_URL"):
            open_artifacts(load_settings({"ARTIFACT_URL": wrong}))


def test_s3_options_come_from_minio_and_else_from_aws() -> None:
    minio = load_settings({"MINIO_ENDPOINT": "minio:9000", "MINIO_ACCESS_KEY": "a", "MINIO_SECRET_KEY": "b"})
    assert s3_options(minio, {"AWS_ACCESS_KEY_ID": "other"}) == {
        "aws_endpoint_url": "http://minio:9000", "aws_access_key_id": "a", "aws_secret_access_key": "b",
        "aws_region": "us-east-1", "aws_allow_http": "true",
    }  # fmt: skip
    aws = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "c", "AWS_REGION": "eu-west-1"}
    assert s3_options(load_settings({}), aws) == {
        "aws_access_key_id": "a", "aws_secret_access_key": "b", "aws_session_token": "c", "aws_region": "eu-west-1",
    }  # fmt: skip


def test_a_key_and_its_uri_are_two_spellings_of_one_name() -> None:
    assert key_of(uri_of("t/run/task@1/a=b:c+d")) == "t/run/task@1/a=b:c+d"
