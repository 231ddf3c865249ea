"""Writes ``fan-out.yaml`` with the Python builder: ``python examples/dag/fan_out.py | orchestrator apply -f -``."""

from orchestrator import Pipeline, task

TRAIN = """\
import json, os, sys

point = json.load(open(os.environ["ORCHESTRATOR_INPUT_FILE"]))["arguments"]["point"]
if point == {"depth": 8, "rate": 0.5}:
    sys.exit(64)  # diverged: failed, and not to be tried again
accuracy = 0.8 + point["depth"] / 100 - point["rate"] / 10
json.dump({"accuracy": accuracy, **point}, open(os.environ["ORCHESTRATOR_OUTPUT_FILE"], "w"))
"""

with Pipeline("fan-out", parameters={"depths": [2, 4, 8]}) as pipeline:
    train = task(
        "train",
        operator="custom_script",
        map={
            "over": {"grid": {"depth": pipeline.param("depths"), "rate": [0.1, 0.5]}},
            "key": "depth-{{ map.item.depth }}-rate-{{ map.item.rate }}",
            "max_parallel": 2,
            "success": {"min_ratio": 0.8},
        },
        parameters={"arguments": {"point": "{{ map.item }}"}, "script_content": TRAIN},
    )
    choose = task("choose", operator="best_of", parameters={"results": train.output(), "metric": "accuracy"})
    train >> choose

if __name__ == "__main__":
    print(pipeline.to_yaml())
