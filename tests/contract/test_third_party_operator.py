"""An operator that a third party installs: found by its entry point, planned, and run like one of ours."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPERATOR = """
from orchestrator.operator import Input, Operator


class CountRows(Operator):
    \"\"\"Counts the rows of a dataset.\"\"\"

    name = "acme_count_rows"
    summary = "Counts the rows of a dataset."
    inputs = (Input("input_path", "dataset"),)
    parameters_schema = {
        "type": "object", "additionalProperties": False,
        "properties": {"input_path": {"type": "string", "description": "The dataset."}},
    }
    outputs_schema = {"type": "object", "required": ["rows"], "properties": {"rows": {"type": "integer"}}}

    def run(self, context, parameters):
        from orchestrator.inputs import local_file

        return {"rows": local_file(context, parameters["input_path"]).read_text().count("\\n") - 1}


class NoOperator:
    pass
"""
USE = """
import sys
from pathlib import Path
from orchestrator.compile import Site, compile_pipeline
from orchestrator.registry import load_operators
from orchestrator.testing import make_context, run_operator

operators = load_operators()
tasks = [
    {"name": "read", "operator": "data_ingestion", "parameters": {"source_path": "x.csv"}},
    {"name": "count", "operator": "acme_count_rows", "upstream_tasks": ["read"]},
]
plan = compile_pipeline({"name": "p", "tasks": tasks}, operators, Site()).plan
print(plan.tasks[1].links[0].source, len(operators))
context = make_context(Path(sys.argv[1]))
(Path(sys.argv[1]) / "data" / "x.csv").write_text("a\\n1\\n2\\n")
print(run_operator(operators["acme_count_rows"], context, {"input_path": "x.csv"})["rows"])
"""


def installed(folder: Path, entry_point: str) -> dict[str, str]:
    """Lay out a distribution as pip would, and return an environment that finds it."""
    site = folder / "site"
    info = site / "acme_operators-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "acme_operators.py").write_text(textwrap.dedent(OPERATOR))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-operators\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[pipeline_orchestrator.operators]\nacme = {entry_point}\n")
    return {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}


def use(folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", USE, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)


def test_an_installed_operator_is_planned_and_run_like_one_of_ours(tmp_path: Path) -> None:
    done = use(tmp_path, installed(tmp_path, "acme_operators:CountRows"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["read", "8", "2"]


@pytest.mark.parametrize(
    "entry_point, words",
    [
        ("acme_operators:NoOperator", "not an Operator"),
        ("acme_operators:Missing", "can't be loaded"),
        ("acme_missing:X", "can't be loaded"),
    ],
)
def test_an_entry_point_that_is_no_operator_is_named(tmp_path: Path, entry_point: str, words: str) -> None:
    done = use(tmp_path, installed(tmp_path, entry_point))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "ConfigurationError" in last
    assert words in last
    assert entry_point in last
