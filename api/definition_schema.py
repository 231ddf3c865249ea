"""The definition document as OpenAPI shows it; what is accepted is decided by the compiler alone."""

from __future__ import annotations

from typing import Any

_NAME = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"}

TASK: dict[str, Any] = {
    "type": "object",
    "required": ["name", "operator"],
    "additionalProperties": False,
    "properties": {
        "name": _NAME | {"description": "Unique in the pipeline."},
        "operator": {"type": "string", "description": "One of GET /api/v1/operators.", "example": "model_training"},
        "description": {"type": "string"},
        "upstream_tasks": {"type": "array", "items": {"type": "string"}, "description": "Tasks that come first."},
        "parameters": {
            "type": "object",
            "additionalProperties": True,
            "description": "As the operator's parameters_schema says. Inputs left out are taken from the "
            "nearest ancestor that leaves their kind behind.",
        },
        "cpu": {"type": "number", "description": "Cores, above 0."},
        "memory_gb": {"type": "number", "description": "GiB, above 0."},
        "gpu": {"type": "integer", "minimum": 0},
        "gpu_memory_gb": {"type": "number", "minimum": 0, "description": "GiB that each GPU must have."},
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
        "queue": {"type": "string", "description": "Overrides the queue that follows from the resources."},
        "labels": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "Labels a worker's host must carry.",
        },
        "retries": {"type": "integer", "minimum": 0},
        "retry_delay_seconds": {"type": "number", "minimum": 0},
        "retry_backoff_factor": {"type": "number", "minimum": 1},
        "retry_max_delay_seconds": {"type": "number", "minimum": 0},
        "timeout_seconds": {"type": "number", "description": "Above 0."},
        "grace_seconds": {"type": "number", "minimum": 0, "description": "Between TERM and KILL."},
        "exclusive": {"type": "boolean", "description": "Stops itself when cut off from the scheduler."},
        "critical": {"type": "boolean", "description": "Whether the run fails with this task."},
    },
}

DEFINITION: dict[str, Any] = {
    "type": "object",
    "required": ["name", "tasks"],
    "additionalProperties": False,
    "properties": {
        "name": _NAME,
        "description": {"type": "string"},
        "owner": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "parameters": {"type": "object", "additionalProperties": True, "description": "Defaults of runs' parameters."},
        "priority": {"type": "integer", "description": "Higher goes first."},
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
