"""The definition document as OpenAPI shows it; what is accepted is decided by the compiler alone."""

from __future__ import annotations

from typing import Any

from api.definition_fields import (
    APPROVAL,
    CACHE,
    CONCURRENCY,
    EVENT,
    JSON_SCHEMA,
    MAP,
    NAME,
    PIPELINE,
    RATE_LIMIT,
    REPEAT,
    RETRY,
    SECONDS,
    TASK_NAMES,
    TEARDOWN,
    TEMPLATE,
    WHEN,
    YEAR,
    number,
)

_DESCRIPTION = {"type": "string", "maxLength": 10_000, "description": "For people."}
_TASKS = {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/TaskDefinition"}}


TASK: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "oneOf": [
        {"required": ["operator"]},
        {"required": ["tasks"], "anyOf": [{"required": ["map"]}, {"required": ["repeat"]}]},
        {"required": ["pipeline"]},
        {"required": ["approval"]},
        {"required": ["event"]},
    ],
    "not": {"required": ["map", "repeat"]},
    "properties": {
        "name": NAME | {"description": "Unique in the pipeline."},
        "operator": {
            "type": "string",
            "maxLength": 128,
            "description": "One of GET /api/v1/operators.",
            "example": "model_training",
        },
        "tasks": {**_TASKS, "description": "A group: these, for each item or round. At most 4 groups deep."},
        "pipeline": PIPELINE,
        "approval": APPROVAL,
        "event": EVENT,
        "description": _DESCRIPTION,
        "upstream_tasks": {**TASK_NAMES, "description": "Tasks that come first."},
        "parameters": {
            "type": "object",
            "additionalProperties": True,
            "description": "As the operator's parameters_schema says. Inputs left out are taken from the "
            f"nearest ancestor that leaves their kind behind. {TEMPLATE}",
        },
        "cpu": number(0, 10_000, above=True, description="Cores."),
        "memory_gb": {
            "anyOf": [number(0, 100_000, above=True), {"type": "string", "enum": ["auto"]}],
            "description": "GiB, or `auto`: learned from earlier runs.",
        },
        "gpu": {"type": "integer", "minimum": 0, "maximum": 1024, "description": "Whole devices."},
        "gpu_memory_gb": number(0, 10_000, description="GiB that each GPU must have."),
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
            "default": "all_success",
            "description": "What of its upstreams it waits for; the reference tells each rule.",
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
        "retries": {
            "type": "integer",
            "minimum": 0,
            "maximum": 100,
            "description": "Failed attempts after which there is another; the site's number where it is left out.",
        },
        "retry_delay_seconds": number(0, YEAR, description="Before the first retry."),
        "retry_backoff_factor": number(1, 100, description="By which the delay grows from one retry to the next."),
        "retry_max_delay_seconds": number(0, YEAR, description="The longest delay."),
        "timeout_seconds": {**SECONDS, "description": "Of each attempt, from when its operator runs."},
        "grace_seconds": number(0, 86400, description="Between TERM and KILL."),
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
        "when": WHEN,
        "teardown": TEARDOWN,
        "map": MAP,
        "repeat": REPEAT,
        "retry": RETRY,
        "max_queued_seconds": {**SECONDS, "description": "How long it may wait to be claimed."},
        "progress_timeout_seconds": {**SECONDS, "description": "How long an attempt may show no sign of life."},
        "deadline_seconds": {**SECONDS, "description": "Over all attempts, from when it could first have run."},
        "outputs": {**JSON_SCHEMA, "description": "JSON schema that the outputs have to keep."},
        "cache": CACHE,
        "concurrency": CONCURRENCY,
        "rate_limit": RATE_LIMIT,
    },
}

DEFINITION: dict[str, Any] = {
    "type": "object",
    "required": ["name", "tasks"],
    "additionalProperties": False,
    "properties": {
        "name": NAME | {"description": "Unique in the tenant."},
        "description": _DESCRIPTION,
        "owner": {"type": "string", "maxLength": 200, "description": "For people; grants nothing."},
        "tags": {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": 100},
            "maxItems": 50,
            "description": "Words to find it by.",
        },
        "parameters": {"type": "object", "additionalProperties": True, "description": "Defaults of runs' parameters."},
        "priority": {"type": "integer", "minimum": -1000, "maximum": 1000, "description": "Higher goes first."},
        "deadline_seconds": {**SECONDS, "description": "From the start of a run; then it is cancelled and has failed."},
        "max_active_runs": {
            "type": "integer",
            "minimum": 1,
            "maximum": 100_000,
            "description": "Runs of it at once; one more waits.",
        },
        "concurrency": CONCURRENCY,
        "tasks": {**_TASKS, "description": "At most 10,000, those inside of groups too."},
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
