"""The definition document as OpenAPI shows it; what is accepted is decided by the compiler alone."""

from __future__ import annotations

from typing import Any

_NAME = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"}
_DESCRIPTION = {"type": "string", "maxLength": 10_000}
_YEAR = 366 * 86400


def _number(low: float, high: float, *, above: bool = False, **more: Any) -> dict[str, Any]:
    # OpenAPI 3.0 says with a flag that the bound itself is outside.
    return {"type": "number", "minimum": low, **({"exclusiveMinimum": True} if above else {}), "maximum": high, **more}


TASK: dict[str, Any] = {
    "type": "object",
    "required": ["name", "operator"],
    "additionalProperties": False,
    "properties": {
        "name": _NAME | {"description": "Unique in the pipeline."},
        "operator": {
            "type": "string",
            "maxLength": 128,
            "description": "One of GET /api/v1/operators.",
            "example": "model_training",
        },
        "description": _DESCRIPTION,
        "upstream_tasks": {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": 128},
            "maxItems": 1000,
            "uniqueItems": True,
            "description": "Tasks that come first.",
        },
        "parameters": {
            "type": "object",
            "additionalProperties": True,
            "description": "As the operator's parameters_schema says. Inputs left out are taken from the "
            "nearest ancestor that leaves their kind behind.",
        },
        "cpu": _number(0, 10_000, above=True, description="Cores."),
        "memory_gb": _number(0, 100_000, above=True, description="GiB."),
        "gpu": {"type": "integer", "minimum": 0, "maximum": 1024},
        "gpu_memory_gb": _number(0, 10_000, description="GiB that each GPU must have."),
        "trigger_rule": {
            "type": "string",
            "enum": [
                "all_success",
                "all_failed",
                "all_done",
                "all_done_min_one_success",
                "all_skipped",
                "one_success",
                "one_failed",
                "one_done",
                "none_failed",
                "none_failed_min_one_success",
                "none_skipped",
                "always",
            ],
        },
        "queue": {
            "type": "string",
            "maxLength": 128,
            "description": "Overrides the queue that follows from the resources.",
        },
        "labels": {
            "type": "object",
            "additionalProperties": {"type": "string", "maxLength": 128},
            "maxProperties": 50,
            "description": "Labels a worker's host must carry.",
        },
        "retries": {"type": "integer", "minimum": 0, "maximum": 100},
        "retry_delay_seconds": _number(0, _YEAR),
        "retry_backoff_factor": _number(1, 100),
        "retry_max_delay_seconds": _number(0, _YEAR),
        "timeout_seconds": _number(0, _YEAR, above=True),
        "grace_seconds": _number(0, 86400, description="Between TERM and KILL."),
        "exclusive": {"type": "boolean", "description": "Stops itself when cut off from the scheduler."},
        "on_drain": {
            "type": "string",
            "enum": ["wait", "checkpoint", "kill"],
            "description": "When its worker drains: wait until it ends (or the drain's deadline), stop it at once with "
            "its grace so that it can save what it has, or kill it. It goes again elsewhere, at no cost to retries.",
        },
        "on_worker_loss": {
            "type": "string",
            "enum": ["kill", "adopt"],
            "description": "When its worker's process dies: die with it, or go on and be adopted by the host's next "
            "worker. Not together with exclusive.",
        },
        "critical": {"type": "boolean", "description": "Whether the run fails with this task."},
    },
}

DEFINITION: dict[str, Any] = {
    "type": "object",
    "required": ["name", "tasks"],
    "additionalProperties": False,
    "properties": {
        "name": _NAME,
        "description": _DESCRIPTION,
        "owner": {"type": "string", "maxLength": 200},
        "tags": {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 100}, "maxItems": 50},
        "parameters": {"type": "object", "additionalProperties": True, "description": "Defaults of runs' parameters."},
        "priority": {"type": "integer", "minimum": -1000, "maximum": 1000, "description": "Higher goes first."},
        "tasks": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/TaskDefinition"}},
    },
}

EXAMPLE: dict[str, Any] = {
    "name": "ml-training-pipeline",
    "description": "End-to-end ML training workflow",
    "owner": "data-science-team",
    "tasks": [
        {
            "name": "ingest-data",
            "operator": "data_ingestion",
            "parameters": {"source_type": "s3", "source_path": "s3://data/training-data.csv"},
            "cpu": 1.0,
            "memory_gb": 2.0,
        },
        {
            "name": "validate-data",
            "operator": "data_validation",
            "upstream_tasks": ["ingest-data"],
            "parameters": {"max_error_rate": 0.05},
            "cpu": 0.5,
            "memory_gb": 1.0,
        },
        {
            "name": "train-model",
            "operator": "model_training",
            "upstream_tasks": ["validate-data"],
            "parameters": {
                "model_type": "classification",
                "algorithm": "random_forest",
                "hyperparameters": {"n_estimators": 100, "max_depth": 10},
            },
            "cpu": 4.0,
            "memory_gb": 8.0,
            "gpu": 1,
        },
    ],
}

DEFINITION_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/PipelineDefinition"},
            "example": EXAMPLE,
        }
    },
}
