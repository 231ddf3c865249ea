"""``drift_check``: an operator of a third party, in one file. It fails a run whose new rows differ from the older ones.

Two ways to install it:

- Put this file into a folder and name the folder in ``OPERATORS_PATH``, for the API and for the workers.
- Or ship it in a package of yours, with an entry point. In its ``pyproject.toml``::

      [project.entry-points."pipeline_orchestrator.operators"]
      drift_check = "my_package.drift_check:DriftCheck"

Then ``"operator": "drift_check"`` works in pipelines, ``GET /api/v1/operators`` shows its parameters, and a wrong
parameter is refused when a pipeline is saved. It imports only ``orchestrator``; polars is imported inside ``run``, as
the API loads this file too. Test it as ``tests/contract/test_examples.py`` does, with ``orchestrator.testing``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from orchestrator.inputs import local_file
from orchestrator.operator import Input, Json, Operator, OperatorFailure, TaskContext

if TYPE_CHECKING:
    import polars as pl


class DriftCheck(Operator):
    """Splits the dataset into older and newer rows and compares each number column by its population stability index.

    Below 0.1 nothing has changed, above 0.25 much has: that is how the index is usually read.
    """

    name = "drift_check"
    summary = "Fails when the newer rows of a dataset are distributed otherwise than the older ones."
    inputs = (Input("input_path", "dataset"),)
    parameters_schema: ClassVar[Mapping[str, Json]] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "input_path": {"type": "string", "description": "Dataset (CSV or Parquet). Default: the ancestor's."},
            "reference_share": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1, "default": 0.5},
            "bins": {"type": "integer", "minimum": 2, "maximum": 100, "default": 10},
            "max_index": {"type": "number", "exclusiveMinimum": 0, "default": 0.25},
        },
    }
    outputs_schema: ClassVar[Mapping[str, Json]] = {
        "type": "object",
        "required": ["report"],
        "properties": {
            "report": {
                "type": "object",
                "required": ["uri", "worst_column", "worst_index"],
                "properties": {
                    "uri": {"type": "string"},
                    "worst_column": {"type": "string"},
                    "worst_index": {"type": "number"},
                },
            }
        },
    }

    @classmethod
    def produces(cls, parameters: Mapping[str, Json]) -> frozenset[str]:
        """Always a report."""
        return frozenset({"report"})

    def run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        """Compare, store the report, and fail on drift."""
        import polars as pl

        uri = parameters["input_path"]
        path = local_file(context, uri)
        frame = (pl.read_parquet if path.suffix == ".parquet" else pl.read_csv)(path)
        frame = frame.select(pl.selectors.numeric())
        older = int(frame.height * parameters.get("reference_share", 0.5))
        if not frame.columns or not 0 < older < frame.height:
            raise OperatorFailure("bad_data", f"{uri} has no number columns, or too few rows to compare.")
        bins = parameters.get("bins", 10)
        found = {column.name: _index(column[:older], column[older:], bins) for column in frame.iter_columns()}
        worst = max(found, key=lambda name: found[name])
        report = context.artifacts.put_bytes(context.artifact_key("drift.json"), json.dumps(found, indent=1).encode())
        context.log("Columns compared.", columns=len(found), worst=worst, index=round(found[worst], 4))
        limit = parameters.get("max_index", 0.25)
        if found[worst] > limit:
            raise OperatorFailure("drift", f"{worst} has drifted: its index is {found[worst]:.3f}, above {limit}.")
        return {"report": {"uri": report.uri, "worst_column": worst, "worst_index": found[worst]}}


def _index(older: pl.Series, newer: pl.Series, bins: int) -> float:
    """Return the population stability index over equal-width bins of the older values."""
    least, most = float(older.min() or 0), float(older.max() or 0)  # type: ignore[arg-type]
    edges = [least + (most - least) * step / bins for step in range(1, bins)]
    before, after = _shares(older, edges), _shares(newer, edges)
    return sum((new - old) * math.log(new / old) for old, new in zip(before, after, strict=True))


def _shares(values: pl.Series, edges: Sequence[float]) -> list[float]:
    """Return the share of the values in each bin; an empty bin counts as half a value, so that it has a logarithm."""
    counts = [0.0] * (len(edges) + 1)
    for value in values.drop_nulls():
        counts[sum(value > edge for edge in edges)] += 1
    return [max(count, 0.5) / max(len(values), 1) for count in counts]
