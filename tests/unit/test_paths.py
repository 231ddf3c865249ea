"""User paths stay inside the data roots, however they are spelled."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.errors import ForbiddenPath
from orchestrator.paths import DataRoots


@pytest.fixture
def roots(tmp_path: Path) -> DataRoots:
    for folder in ("first", "second", "scripts", "outside"):
        (tmp_path / folder).mkdir()
    (tmp_path / "outside" / "secret.csv").write_text("secret")
    return DataRoots({"first": tmp_path / "first", "second": tmp_path / "second"}, tmp_path / "scripts")


@pytest.mark.parametrize(
    "path",
    [
        "../outside/secret.csv", "a/../../outside/secret.csv", "..", "first:../outside/secret.csv", "first:..", "a/..",
        "%2e%2e/outside/secret.csv", "..%2foutside/secret.csv", "%2E%2E%2Foutside", "a%00b", "a\x00b", "a\nb", "a\x7fb",
        "/etc/passwd", "//etc/passwd", "/", "C:\\windows\\win.ini", "C:/windows/win.ini", "c:x.csv", "\\\\host\\share",
        "..\\outside\\secret.csv", "a\\b.csv", "~/secret.csv", "~root/x", "file:///etc/passwd", "http://x/y.csv",
        "s3://bucket/key", "nobody:x.csv", "first:/etc/passwd", "first:", "", "   ", "x" * 5000, "\udc80.csv",
        "/proc/self/environ", "/dev/stdin", "first:second:../x",
    ],
)  # fmt: skip
def test_a_path_that_could_leave_the_roots_is_refused(roots: DataRoots, path: str) -> None:
    for for_writing in (False, True):
        with pytest.raises(ForbiddenPath):
            roots.resolve(path, for_writing)
    if ":" not in path:  # the scripts root has no names, so a colon is a character like others there
        with pytest.raises(ForbiddenPath):
            roots.script(path)


def test_a_relative_path_is_searched_in_the_roots_in_order(roots: DataRoots, tmp_path: Path) -> None:
    (tmp_path / "second" / "x.csv").write_text("2")
    assert roots.resolve("x.csv") == tmp_path / "second" / "x.csv"
    (tmp_path / "first" / "x.csv").write_text("1")
    assert roots.resolve("x.csv") == tmp_path / "first" / "x.csv"
    assert roots.resolve("second:x.csv") == tmp_path / "second" / "x.csv"


def test_what_is_nowhere_and_what_is_written_belongs_to_the_first_root(roots: DataRoots, tmp_path: Path) -> None:
    (tmp_path / "second" / "x.csv").write_text("2")
    assert roots.resolve("sub/new.csv") == tmp_path / "first" / "sub" / "new.csv"
    assert roots.resolve("x.csv", for_writing=True) == tmp_path / "first" / "x.csv"


def test_an_absolute_path_inside_a_root_is_allowed(roots: DataRoots, tmp_path: Path) -> None:
    assert roots.resolve(str(tmp_path / "second" / "x.csv")) == tmp_path / "second" / "x.csv"


def test_a_root_whose_name_begins_like_another_folder_does_not_open_it(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data-private").mkdir()
    with pytest.raises(ForbiddenPath):
        DataRoots({"data": tmp_path / "data"}).resolve(str(tmp_path / "data-private" / "x"))


@pytest.mark.parametrize("for_writing", [False, True])
def test_a_link_that_leads_out_of_its_root_is_refused(roots: DataRoots, tmp_path: Path, for_writing: bool) -> None:
    (tmp_path / "first" / "file.csv").symlink_to(tmp_path / "outside" / "secret.csv")
    (tmp_path / "first" / "folder").symlink_to(tmp_path / "outside")
    for path in ("first:file.csv", "first:folder/secret.csv", "first:folder/new.csv", str(tmp_path / "first/file.csv")):
        with pytest.raises(ForbiddenPath):
            roots.resolve(path, for_writing)


def test_a_link_inside_its_root_is_followed(roots: DataRoots, tmp_path: Path) -> None:
    (tmp_path / "first" / "real.csv").write_text("1")
    (tmp_path / "first" / "link.csv").symlink_to("real.csv")
    assert roots.resolve("link.csv") == tmp_path / "first" / "real.csv"


def test_a_pipe_in_a_root_is_refused_because_reading_it_would_block(roots: DataRoots, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "first" / "pipe")
    with pytest.raises(ForbiddenPath, match="neither a file nor a folder"):
        roots.resolve("pipe")


def test_scripts_come_from_the_scripts_root_only(roots: DataRoots, tmp_path: Path) -> None:
    (tmp_path / "scripts" / "train.py").write_text("")
    (tmp_path / "scripts" / "link.py").symlink_to(tmp_path / "outside" / "secret.csv")
    assert roots.script("train.py") == tmp_path / "scripts" / "train.py"
    with pytest.raises(ForbiddenPath):
        roots.script("link.py")
    with pytest.raises(ForbiddenPath, match="SCRIPTS_ROOT"):
        DataRoots({"first": tmp_path / "first"}).script("train.py")


def test_a_resolved_path_has_a_uri_that_resolves_to_it_again(roots: DataRoots, tmp_path: Path) -> None:
    path = roots.resolve("second:sub/x.csv")
    assert roots.uri(path) == "second:sub/x.csv"
    assert roots.resolve(roots.uri(path)) == path
    with pytest.raises(ForbiddenPath):
        roots.uri(tmp_path / "outside" / "secret.csv")
