"""An operator's version: what makes a cached result one of other code."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from orchestrator.registry import built_in_operators, load_operators, operator_version

CODE = '''
from orchestrator.operator import Operator

class Mine(Operator):
    """Adds one."""

    name = "mine"
    summary = "Adds one."
    parameters_schema = {"type": "object"}
    outputs_schema = {"type": "object"}
    VERSION

    def run(self, context, parameters):
        return {"n": 1}
'''


def version_of(folder: Path, code: str) -> str:
    folder.mkdir()
    (folder / "mine.py").write_text(textwrap.dedent(code))
    return operator_version(load_operators([folder])["mine"])


def test_a_file_of_the_site_has_another_version_when_it_changes(tmp_path: Path) -> None:
    plain = CODE.replace("VERSION", "")
    first = version_of(tmp_path / "a", plain)
    assert first == version_of(tmp_path / "b", plain)
    assert first != version_of(tmp_path / "c", plain.replace('"n": 1', '"n": 2'))


def test_an_operator_may_say_its_version_itself(tmp_path: Path) -> None:
    assert version_of(tmp_path / "a", CODE.replace("VERSION", 'version = "2026.1"')) == "2026.1"


def test_the_built_in_operators_are_of_one_package_and_so_of_one_version() -> None:
    found = {operator_version(operator) for operator in built_in_operators()}
    assert len(found) == 1
    assert len(found.pop()) == 16


def test_an_operator_without_a_file_still_has_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    namespace: dict[str, object] = {"__name__": "made_up"}
    exec(CODE.replace("VERSION", ""), namespace)
    monkeypatch.delitem(sys.modules, "made_up", raising=False)
    made = namespace["Mine"]
    assert isinstance(made, type)
    assert operator_version(made)
