"""What users may write for ``model_training`` and what it leaves behind, as JSON Schemas."""

from __future__ import annotations

from collections.abc import Mapping

from operators.tables.formats import FORMATS
from operators.training.evaluation import METRICS
from operators.training.framework import load_frameworks
from orchestrator.operator import Json

FRAMEWORKS = load_frameworks()
DEFAULT_FRAMEWORK = "scikit_learn"
MODEL_TYPES = ("classification", "regression", "clustering")
DEFAULT_TEST_SIZE = 0.2
DEFAULT_CHECKPOINT_SECONDS = 60.0

_ALGORITHMS = sorted({name for one in FRAMEWORKS.values() for names in one.algorithms.values() for name in names})
_NAME_AND_TYPE: Mapping[str, Json] = {
    "name": {"type": "string", "description": "Name of the column."},
    "type": {"enum": ["number", "boolean", "string", "integer"], "description": "Type of its values."},
}

PARAMETERS: Mapping[str, Json] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "training_data_path": {
            "type": "string", "minLength": 1,
            "description": "Dataset: artifact://…, s3://bucket/key or a path in a data root. Default: the nearest "
            "ancestor's dataset.",
        },
        "format": {"enum": list(FORMATS), "description": "Its format. Default: as its task or its suffix says."},
        "model_type": {
            "enum": list(MODEL_TYPES), "default": "classification", "description": "What the model is to tell.",
        },
        "algorithm": {"enum": _ALGORITHMS, "description": "Default: random_forest; for clustering kmeans."},
        "framework": {
            "enum": list(FRAMEWORKS), "default": DEFAULT_FRAMEWORK, "description": "The library that trains.",
        },
        "hyperparameters": {
            "type": "object", "default": {},
            "description": "The estimator's own names and values; checked when the pipeline is saved.",
        },
        "target": {
            "type": "string", "minLength": 1,
            "description": "Column to predict. Default: the column named target, else label.",
        },
        "features": {
            "type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True,
            "description": "Columns to learn from. Default: all of numbers, booleans or text, save identifiers.",
        },
        "split": {
            "type": "object", "additionalProperties": False, "default": {},
            "description": "Which rows are kept back to measure on.",
            "properties": {
                "test_size": {
                    "type": "number", "minimum": 0, "exclusiveMaximum": 1, "default": DEFAULT_TEST_SIZE,
                    "description": "Their share; with 0 all rows are trained on.",
                },
                "stratify": {
                    "type": "boolean",
                    "description": "Keep the classes' shares in both parts. Default: true for classification.",
                },
            },
        },
        "seed": {
            "type": "integer", "minimum": 0, "maximum": 2**32 - 1, "default": 0,
            "description": "The same data, parameters and seed give the same model, byte by byte.",
        },
        "cross_validation": {
            "type": "integer", "minimum": 2, "maximum": 50, "description": "Number of folds. Default: none.",
        },
        "metrics": {
            "type": "array", "minItems": 1, "uniqueItems": True,
            "items": {"enum": [name for names in METRICS.values() for name in names]},
            "description": "What to measure. Default: all that fit the model type.",
        },
        "checkpoint_seconds": {
            "type": "number", "minimum": 0, "default": DEFAULT_CHECKPOINT_SECONDS,
            "description": "How often what is done so far (trees of a forest, folds) is kept: another attempt of the "
            "task goes on from there, to the same model. 0: after each step.",
        },
        "min_accuracy": {
            "type": "number", "maximum": 1,
            "description": "Below it the task fails with quality_gate and nothing is stored. Compared with accuracy, "
            "for regression with R², on the test rows (without test rows: the cross-validated mean).",
        },
    },
}  # fmt: skip

_MODEL: Mapping[str, Json] = {
    "type": "object",
    "description": "The model that downstream tasks take as their input.",
    "additionalProperties": False,
    "required": ["uri", "digest", "framework", "algorithm", "model_type", "metrics", "signature", "data_fingerprint"],
    "properties": {
        "uri": {"type": "string", "description": "artifact://… of the model's file."},
        "digest": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$", "description": "Of the file."},
        "bytes": {"type": "integer", "description": "Size of the file."},
        "framework": {"type": "string", "description": "The library that trained it."},
        "algorithm": {"type": "string", "description": "As asked for."},
        "model_type": {"enum": list(MODEL_TYPES), "description": "What it tells."},
        "hyperparameters": {"type": "object", "description": "As asked for."},
        "seed": {"type": "integer", "description": "As asked for."},
        "metrics": {
            "type": "object", "additionalProperties": {"type": "number"},
            "description": "Measured on the test rows; for clustering on all rows.",
        },
        "signature": {
            "type": "object", "required": ["inputs", "output"], "additionalProperties": False,
            "description": "What it takes and what it gives.",
            "properties": {
                "inputs": {
                    "type": "array", "description": "The columns it takes, in order.",
                    "items": {"type": "object", "additionalProperties": False, "properties": _NAME_AND_TYPE},
                },
                "output": {
                    "type": "object", "description": "What it predicts.", "additionalProperties": False,
                    "properties": {
                        **_NAME_AND_TYPE,
                        "classes": {"type": "array", "description": "The labels, where there are at most 100."},
                    },
                },
            },
        },
        "data_fingerprint": {"type": "string", "description": "sha256:<hex> of the dataset it was trained on."},
    },
}  # fmt: skip

OUTPUTS: Mapping[str, Json] = {
    "type": "object",
    "required": ["model", "rows_trained", "rows_tested", "seconds"],
    "additionalProperties": False,
    "properties": {
        "model": _MODEL,
        "cross_validation": {"type": "object", "description": "Mean and deviation of each metric over the folds."},
        "rows_trained": {"type": "integer", "description": "Rows the model was fitted on."},
        "rows_tested": {"type": "integer", "description": "Rows it was measured on."},
        "seconds": {"type": "number", "description": "Spent fitting and measuring, with loading the framework."},
        "notes": {
            "type": "array", "items": {"type": "string"}, "description": "Sentences about what was left out.",
        },
    },
}  # fmt: skip
