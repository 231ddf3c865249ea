"""What the key of the cache says of files: a change is seen, and what can't be seen is not taken for unchanged."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cache_files import MOST_READ, MOST_TEXTS, WHOLE, SeenFiles, component_of, wanted_files
from orchestrator.errors import ForbiddenPath
from orchestrator.paths import DataRoots
from orchestrator.records import InputLink, PlannedTask

READERS = [
    ("data_ingestion", "source_path"),
    ("data_ingestion", "input_path"),
    ("data_validation", "input_path"),
    ("model_training", "training_data_path"),
    ("model_registration", "model_uri"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    (made / "more").mkdir(parents=True)
    (made / "sales.csv").write_text("a\n1\n")
    return made


def digests(
    folder: Path | None,
    parameters: Mapping[str, Any],
    *,
    operator: str = "custom_script",
    told: Any = (),
    contents: Mapping[str, str] | None = None,
    links: tuple[InputLink, ...] = (),
) -> dict[str, str]:
    roots = DataRoots({} if folder is None else {"data": folder})
    task = PlannedTask("t", operator, (), links=links)
    return dict(SeenFiles(roots).look(wanted_files(task, parameters, told, contents or {})).digests)


@pytest.mark.parametrize(("operator", "parameter"), READERS)
def test_a_changed_file_under_the_same_path_is_another_input(folder: Path, operator: str, parameter: str) -> None:
    def now() -> dict[str, str]:
        return digests(folder, {parameter: "sales.csv"}, operator=operator)

    before = now()
    assert list(before) == ["sales.csv"]
    assert now() == before
    (folder / "sales.csv").write_text("a\n2\n")
    assert now() != before


def test_a_file_that_is_written_anew_with_the_same_content_is_the_same_input(folder: Path) -> None:
    before = digests(folder, {"input_path": "sales.csv"}, operator="data_validation")
    (folder / "sales.csv").unlink()
    (folder / "sales.csv").write_text("a\n1\n")
    os.utime(folder / "sales.csv", (1, 1))
    assert digests(folder, {"input_path": "sales.csv"}, operator="data_validation") == before


@pytest.mark.parametrize("at", [0, WHOLE, 2 * WHOLE - 1])
def test_a_change_anywhere_in_a_large_file_is_seen_though_its_date_is_set_back(folder: Path, at: int) -> None:
    large = folder / "large.bin"
    large.write_bytes(bytes(2 * WHOLE))
    kept = large.stat()
    before = digests(folder, {"input_path": "large.bin"}, operator="data_validation")
    with large.open("r+b") as file:
        file.seek(at)
        file.write(b"1")
    os.utime(large, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert digests(folder, {"input_path": "large.bin"}, operator="data_validation") != before


@pytest.mark.parametrize(("operator", "parameter"), READERS)
@pytest.mark.parametrize("text", ["s3://bucket/key.csv", "https://host/x.csv", "away.csv", "more", "../sales.csv"])
def test_an_input_that_can_t_be_looked_at_gives_no_key(folder: Path, operator: str, parameter: str, text: str) -> None:
    with pytest.raises(ForbiddenPath, match="give the cache a key") as found:
        digests(folder, {parameter: text}, operator=operator)
    assert str(found.value).startswith(text)


def test_a_site_without_data_roots_sees_no_input(folder: Path) -> None:
    with pytest.raises(ForbiddenPath, match="give the cache a key"):
        digests(None, {"input_path": "sales.csv"}, operator="data_validation")


@pytest.mark.parametrize("parameters", [{"source": "warehouse", "table": "t"}, {"source_type": "api"}])
def test_what_a_connection_leads_to_can_t_be_looked_at(folder: Path, parameters: Mapping[str, Any]) -> None:
    with pytest.raises(ForbiddenPath, match="give the cache a key"):
        digests(folder, parameters, operator="data_ingestion")


def test_content_that_is_told_need_not_be_looked_at(folder: Path) -> None:
    link = (InputLink("input_path", "dataset", "load"),)
    for uri in ("s3://bucket/key.csv", "data:away.csv"):
        found = digests(folder, {"input_path": uri}, operator="data_validation", contents={uri: "sha256:1"}, links=link)
        assert found == {}
    assert digests(folder, {"input_path": "artifact://t/r/load/1/x"}, operator="data_validation", links=link) == {}


def test_a_script_s_files_are_found_wherever_it_is_told_of_them(folder: Path) -> None:
    parameters = {"script_content": "print('sales.csv')\n", "arguments": {"from": ["sales.csv", "plain", "not.there"]}}
    assert list(digests(folder, parameters)) == ["sales.csv"]
    for told in ({"file": "data:sales.csv"}, {"deep": [{"file": "data:sales.csv"}]}):
        assert list(digests(folder, {"arguments": {"n": 1}}, told=[told])) == ["data:sales.csv"]
    absolute = str(folder / "sales.csv")
    assert list(digests(folder, {"arguments": [absolute]})) == [absolute]


@pytest.mark.parametrize("argument", ["s3://bucket/key.csv", "postgresql://host/base", "more/", "data:more"])
def test_a_script_that_is_given_an_address_or_a_folder_has_no_key(folder: Path, argument: str) -> None:
    with pytest.raises(ForbiddenPath, match="give the cache a key"):
        digests(folder, {"arguments": {"from": argument}})


@pytest.mark.parametrize("argument", ["more", "see https://host for more", "a://", "://b", "x" * 5000, "\x00", "~", ""])
def test_a_text_that_is_no_address_is_a_text(folder: Path, argument: str) -> None:
    assert digests(folder, {"arguments": {"from": argument}}) == {}


def test_where_there_are_many_texts_no_file_is_read_and_a_change_is_seen_all_the_same(folder: Path) -> None:
    many = [*(f"{n}.csv" for n in range(MOST_READ)), "sales.csv"]
    before = digests(folder, {"arguments": many})
    assert before["sales.csv"].startswith("large:")
    kept = (folder / "sales.csv").stat()
    (folder / "sales.csv").write_text("a\n2\n")
    os.utime(folder / "sales.csv", ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert digests(folder, {"arguments": many}) != before


def test_so_many_texts_are_looked_at_and_no_more(folder: Path) -> None:
    many = [f"{n}.csv" for n in range(MOST_TEXTS)]
    assert digests(folder, {"arguments": many}) == {}
    with pytest.raises(ForbiddenPath, match="at most 2000 are looked at"):
        digests(folder, {"arguments": [*many, "one.more"]})


def test_a_file_of_any_name_is_a_component_of_its_own() -> None:
    first, second = (component_of("a" * 4000 + end) for end in "xy")
    assert first != second
    assert len(first) < 300
