"""``best_of``: of several results, mostly those of a mapped task, the one whose metric is largest or smallest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from operators.ingestion.pagination import value_at
from orchestrator.operator import Json, Operator, OperatorFailure, TaskContext

KINDS = ("dataset", "model", "report")


class BestOf(Operator):
    """Compares by one number and hands on the whole result that has the best; of equals, the first."""

    name = "best_of"
    summary = "Picks the best of several results, such as those of a mapped task, by one of their numbers."
    parameters_schema: ClassVar[Mapping[str, Json]] = {
        "type": "object",
        "additionalProperties": False,
        "required": ["results", "metric"],
        "properties": {
            "results": {
                "type": "array", "maxItems": 10_000,
                "description": "What to choose from, mostly {{ tasks.train.outputs }} of a mapped task. Null is passed "
                "over.",
            },
            "metric": {
                "type": "string", "minLength": 1, "maxLength": 500,
                "description": "Where the number stands in each result: names and positions joined by dots, such as "
                "model.metrics.accuracy. A result without it is passed over.",
            },
            "mode": {"enum": ["max", "min"], "default": "max", "description": "Which of the numbers is best."},
            "produces": {
                "type": "array", "uniqueItems": True, "items": {"enum": list(KINDS)}, "default": [],
                "description": "Kinds that the best result holds and hands on, for tasks downstream that need one.",
            },
        },
    }  # fmt: skip
    outputs_schema: ClassVar[Mapping[str, Json]] = {
        "type": "object",
        "additionalProperties": False,
        "required": ["index", "value", "result"],
        "properties": {
            "index": {"type": "integer", "description": "Position of the best in `results`."},
            "value": {"type": "number", "description": "Its number."},
            "result": {"type": "object", "description": "The whole result."},
            **{kind: {"type": "object", "description": f"Its {kind}, for tasks downstream."} for kind in KINDS},
        },
    }

    @classmethod
    def produces(cls, parameters: Mapping[str, Json]) -> frozenset[str]:
        """Return what the definition promises in ``produces``."""
        promised = parameters.get("produces")
        return frozenset(kind for kind in KINDS if isinstance(promised, list) and kind in promised)

    def run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        """Compare all numbers that there are."""
        results, metric = parameters["results"], parameters["metric"]
        numbers = {index: number_at(result, metric) for index, result in enumerate(results)}
        values = {index: number for index, number in numbers.items() if number is not None}
        context.log("Compared.", results=len(results), with_a_number=len(values))
        if not values:
            raise OperatorFailure(
                "no_result", f"None of the {len(results)} results has a number at {metric!r}; check the tasks that "
                "made them, and `metric`."
            )  # fmt: skip
        choose = max if parameters.get("mode", "max") == "max" else min
        best = choose(values, key=values.__getitem__)
        result = results[best]
        context.log("Chosen.", index=best, value=values[best])
        return {"index": best, "value": values[best], "result": result, **_handed_on(result, self.produces(parameters))}


def number_at(result: Json, metric: str) -> float | None:
    """Return the number at this place of a result, if there is one."""
    found = value_at(result, metric)
    return found if isinstance(found, (int, float)) and not isinstance(found, bool) else None


def _handed_on(result: Json, promised: frozenset[str]) -> dict[str, Json]:
    missing = [
        kind for kind in sorted(promised) if not isinstance(result.get(kind), Mapping) or "uri" not in result[kind]
    ]
    if missing:
        raise OperatorFailure(
            "no_result", f"The best result holds no {' and no '.join(missing)} (produces); its task left none."
        )
    return {kind: result[kind] for kind in promised}
