"""The house rules that a linter does not know: layout, sizes, first lines, and who may change a state."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import validate_orchestrator

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("orchestrator", "api", "scheduler", "workers", "operators")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("check", validate_orchestrator.CHECKS)
def test_the_seeds_architecture_command_finds_nothing(check: str) -> None:
    assert list(validate_orchestrator.CHECKS[check]()) == []


def test_nearly_all_files_fit_on_a_few_screens() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in SOURCES}
    long = [str(path.relative_to(ROOT)) for path, lines in lengths.items() if lines > 500]
    assert len(long) <= 0.05 * len(lengths), f"over 500 lines: {long}"


def test_every_module_says_in_its_first_line_why_it_exists() -> None:
    silent = [str(path.relative_to(ROOT)) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    vague = {"utils", "util", "common", "helpers", "helper", "misc", "manager", "base", "tools"}
    assert [str(path) for path in SOURCES if path.stem in vague] == []


def test_no_code_outside_the_store_assigns_a_state() -> None:
    """DESIGN: no ``x.state =`` anywhere; transitions are effects that the store's writer applies."""
    assignment = re.compile(r"^\s*\w[\w.\[\]]*\.state\s*=(?!=)", re.MULTILINE)
    guilty = [str(path.relative_to(ROOT)) for path in SOURCES if assignment.search(path.read_text())]
    assert guilty == []


def test_nothing_unsafe_is_used_to_read_what_users_send() -> None:
    """No pickle, joblib, marshal, eval, exec or unsafe YAML in the product (DESIGN §8)."""
    banned_imports = {"pickle", "joblib", "marshal", "shelve", "dill", "cloudpickle"}
    guilty = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "").split(".")[0]]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec"}:
                guilty.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.func.id}")
            guilty += [f"{path.relative_to(ROOT)}: {name}" for name in names if name in banned_imports]
    assert guilty == []
