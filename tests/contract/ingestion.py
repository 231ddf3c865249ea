"""What the suites of ``data_ingestion`` share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from operators.data_ingestion import DataIngestion
from orchestrator.operator import OperatorFailure, TaskContext
from orchestrator.testing import run_operator

ROWS = [
    {"id": 1, "name": "Ada", "score": 1.5},
    {"id": 2, "name": "Bö", "score": None},
    {"id": 3, "name": "", "score": 3.0},
]
CSV = b"id,name,score\n1,Ada,1.5\n2,B\xc3\xb6,\n3,Eve,3.0\n"


def content(context: TaskContext, uri: str) -> bytes:
    return context.artifacts.get_bytes(uri, 10**8)


def failure(context: TaskContext, parameters: Mapping[str, Any]) -> OperatorFailure:
    with pytest.raises(OperatorFailure) as caught:
        run_operator(DataIngestion, context, parameters)
    return caught.value


def everything_in(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
