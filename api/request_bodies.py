"""What may be said with a request to the leader: how to cancel, why, and where to run again from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from orchestrator.states import MARKS
from orchestrator.store.command_requests import FORCE, GRACEFUL
from orchestrator.store.linked_reruns import LATEST, PINNED

LONGEST_GRACE = 86_400.0
_LONGEST_REASON = 1000
_PINNED_OR_LATEST = (PINNED, LATEST)
_NO_VERSION = f"This is no version: give its number, `{LATEST}`, or `{PINNED}` (the one that the run has)."


def reason_field() -> fields.String:
    """Return the field for why it is asked for, in the caller's words."""
    return fields.String(
        load_default="",
        validate=validate.Length(0, _LONGEST_REASON),
        metadata={"description": "Why; kept in the audit.", "example": "wrong data"},
    )


class ReasonSchema(Schema):
    reason = reason_field()


class CancelRequestSchema(Schema):
    mode = fields.String(
        load_default=GRACEFUL,
        validate=validate.OneOf([GRACEFUL, FORCE]),
        metadata={
            "description": "graceful: TERM, then KILL after the grace, and teardown tasks run. force: KILL at once, "
            "and they do not; it shortens a graceful cancel."
        },
    )
    grace_seconds = fields.Float(
        load_default=None,
        allow_none=True,
        validate=validate.Range(0, LONGEST_GRACE),
        metadata={"description": "Between TERM and KILL; each task's own when left out."},
    )
    reason = reason_field()

    @validates_schema(skip_on_field_errors=True)
    def _force_leaves_no_grace(self, data: Mapping[str, Any], **_: Any) -> None:
        if data.get("mode") == FORCE and data.get("grace_seconds"):
            raise ValidationError("`force` leaves no grace; leave one of the two out.", "grace_seconds")


class MarkRequestSchema(Schema):
    state = fields.String(required=True, validate=validate.OneOf(sorted(MARKS)))
    reason = reason_field()
    outputs = fields.Dict(
        keys=fields.String(),
        load_default=None,
        allow_none=True,
        metadata={"description": "Of a success: what the tasks downstream are to find."},
    )


class DecisionRequestSchema(Schema):
    input = fields.Dict(
        keys=fields.String(),
        load_default=None,
        allow_none=True,
        metadata={"description": "What the task asks for; checked against its `input` schema."},
    )
    reason = reason_field()


class ChosenTasks(fields.Field[Any]):
    """``failed``, ``all``, or a list of names of task runs."""

    _names = fields.List(fields.String(validate=validate.Length(1, 500)), validate=validate.Length(1, 1000))

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **_: Any) -> Any:
        if isinstance(value, str):
            return validate.OneOf(["failed", "all"])(value)
        return self._names.deserialize(value, attr, data)


class ChosenVersion(fields.Field[Any]):
    """``pinned``, ``latest``, or a number."""

    _number = fields.Integer(strict=True, validate=validate.Range(1, 2**31 - 1))

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **_: Any) -> Any:
        if isinstance(value, str):
            return validate.OneOf(_PINNED_OR_LATEST, error=_NO_VERSION)(value)
        return self._number.deserialize(value, attr, data)


class RerunRequestSchema(Schema):
    chosen = ChosenTasks(
        data_key="from",
        load_default="failed",
        metadata={
            "description": "Where to start from; everything downstream is run again too. `failed`: the tasks that are "
            "failed, upstream_failed or cancelled. Names may be those of indices (`train[3]`, by its key "
            "`train[lr=0.1]`), of all in an index (`folds[2]`), and of tasks in it (`folds[2].train`).",
            "oneOf": [
                {"type": "string", "enum": ["failed", "all"]},
                {
                    "type": "array",
                    "items": {"type": "string", "minLength": 1, "maxLength": 500},
                    "minItems": 1,
                    "maxItems": 1000,
                },
            ],
        },
    )
    version = ChosenVersion(
        load_default=PINNED,
        metadata={
            "description": "`pinned`: the one the run has. Another one makes a new run.",
            "oneOf": [
                {"type": "string", "enum": list(_PINNED_OR_LATEST)},
                {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
            ],
        },
    )
    parameters = fields.Dict(
        keys=fields.String(),
        load_default=dict,
        metadata={
            "description": "Put over those of the run, in a new run; the tasks that read them are run again too."
        },
    )
    in_place = fields.Boolean(
        load_default=None,
        allow_none=True,
        metadata={
            "description": "true: this run, as its next generation. false: a new run, linked to this one, that takes "
            "over what is kept of it. Left out: in place, unless another version or parameters are given."
        },
    )

    @validates_schema(skip_on_field_errors=True)
    def _a_run_keeps_what_it_began_with(self, data: Mapping[str, Any], **_: Any) -> None:
        if data.get("in_place") and (data.get("version", PINNED) != PINNED or data.get("parameters")):
            raise ValidationError(
                "A run keeps the version and the parameters that it began with; send false, or leave it out, to run "
                "again by others as a new run.",
                "in_place",
            )
