"""Parts of the definition document as OpenAPI shows it: what a task is, how it runs many times, and its policies."""

from __future__ import annotations

from typing import Any

YEAR = 366 * 86400
NAME = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"}
TASK_NAMES = {
    "type": "array",
    "items": {"type": "string", "minLength": 1, "maxLength": 128},
    "maxItems": 1000,
    "uniqueItems": True,
}
PARAMETERS = {"type": "object", "additionalProperties": True}
TEMPLATE = "Texts may hold templates: `{{ params.x }}`, `{{ tasks.load.outputs.rows }}`, `{{ map.item }}`."
JSON_SCHEMA: dict[str, Any] = {"type": "object", "additionalProperties": True}


def number(low: float, high: float, *, above: bool = False, **more: Any) -> dict[str, Any]:
    # OpenAPI 3.0 says with a flag that the bound itself is outside.
    return {"type": "number", "minimum": low, **({"exclusiveMinimum": True} if above else {}), "maximum": high, **more}


def whole(low: int, high: int, **more: Any) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high, **more}


def text(longest: int, **more: Any) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": longest, **more}


def words(*allowed: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "enum": list(allowed), **more}


def closed(required: list[str], properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties, **more}
    return {**found, "required": required} if required else found


def one_or_more(item: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"anyOf": [item, {"type": "array", "items": item, "minItems": 1, "maxItems": 50}], **more}


SECONDS = number(0, YEAR, above=True)
WHEN = text(
    500,
    description="An expression over params, tasks.<name>.outputs, tasks.<name>.state, run, map and repeat; asked when "
    "the trigger rule is met. False: skipped.",
    example="tasks.validate.outputs.report.error_rate < 0.1",
)
TEARDOWN: dict[str, Any] = {
    "anyOf": [{"type": "boolean"}, {**TASK_NAMES, "minItems": 1}],
    "description": "Runs when its upstreams are done, also on cancel; with names: if one of these has started.",
}
MAP = closed(
    ["over"],
    {
        "over": {
            "anyOf": [
                {"type": "string", "description": "A template that gives a list."},
                {"type": "array", "items": {}},
                {"type": "object", "additionalProperties": True},
            ],
            "description": 'What there is an index for each item of: a list, a template that gives one, {"range": n or '
            '[start, stop, step]}, {"grid": {name: list}}, {"zip": {name: list}}, or {"random": {name: list or {low, '
            'high, log, integer}}, "samples": n, "seed": n}.',
        },
        "max_parallel": whole(1, 10_000, description="Indices at work at once."),
        "max_size": whole(1, 10_000, default=1000, description="More items than this fail the task."),
        "success": {
            "anyOf": [
                words("all", "any"),
                {**closed([], {"min_count": whole(1, 10_000, description="So many items at least."),
                               "min_ratio": number(0, 1, above=True, description="This share of them at least.")}),
                 "minProperties": 1, "maxProperties": 1},
            ],
            "description": "When the map as a whole has succeeded.",
        },
        "fail_fast": {"type": "boolean", "description": "Cancel what is left as soon as the result is certain."},
        "key": text(500, description="A template that names each item, such as `{{ map.item.country }}`."),
    },
    description="Run the task, or the group, once for each item.",
)  # fmt: skip
REPEAT = closed(
    ["until", "max"],
    {
        "until": text(
            500, description="An expression over `outputs` (of a group: tasks.<name>.outputs), params, repeat.index."
        ),
        "max": whole(1, 1000, description="Rounds at most."),
        "delay_seconds": number(0, YEAR, default=0, description="Between two rounds."),
        "on_max": words(
            "fail", "succeed", default="fail", description="How it ends when the expression was never true."
        ),
    },
    description="Run the task, or the group, in rounds until the expression is true.",
)
PIPELINE = closed(
    ["name"],
    {
        "name": NAME | {"description": "Of the other pipeline; looked up when the task starts."},
        "version": whole(1, 2**31 - 1, description="Without it, the current one when the run starts."),
        "parameters": {**PARAMETERS, "description": TEMPLATE},
        "wait": {
            "type": "boolean",
            "default": True,
            "description": "The task ends as that run does. False: it has succeeded as soon as the run is made.",
        },
        "inherit": {"type": "boolean", "default": True, "description": "Put the run's own parameters under them."},
    },
    description="The task is a run of another pipeline.",
)
APPROVAL = closed(
    ["message"],
    {
        "message": {"type": "string", "maxLength": 10_000, "description": TEMPLATE},
        "input": {**JSON_SCHEMA, "description": "JSON schema of what the person has to give."},
        "timeout_seconds": {**SECONDS, "description": "How long it waits; without it, for ever."},
        "on_timeout": words("fail", "approve", "reject", default="fail", description="What the time limit decides."),
        "on_reject": words("fail", "skip", default="fail", description="How the task ends when a person says no."),
    },
    description="The task waits for a person.",
)
EVENT = closed(
    [],
    {
        "timeout_seconds": {**SECONDS, "description": "How long it waits; without it, for ever."},
        "on_timeout": words("fail", "skip", default="fail", description="How the task ends at the time limit."),
        "payload": {**JSON_SCHEMA, "description": "JSON schema of what is reported."},
    },
    description="The task waits until something outside reports by its token.",
)
RETRY = closed(
    [],
    {
        "on": {
            "type": "array",
            "maxItems": 50,
            "description": "The first rule whose conditions all fit decides; where none fits, the flat fields do.",
            "items": closed(
                ["match", "action"],
                {
                    "match": closed(
                        [],
                        {
                            "reason": one_or_more(text(100), description="Such as `oom` or `timeout`."),
                            "exit_code": one_or_more(whole(-255, 255), description="Signals are below 0."),
                            "exception": one_or_more(text(200), description="Class, with or without its module."),
                            "message": one_or_more(text(500), description="A part of it, in whatever case."),
                        },
                        minProperties=1,
                        description="How the attempt ended; all that is named has to fit, each by one of its values.",
                    ),
                    "action": words(
                        "retry", "fail", "skip",
                        description="Try again while `retries` are left, also what is not retryable by itself; fail or "
                        "skip at once.",
                    ),
                    "delay_seconds": number(0, YEAR, description="Before the next try, in place of the usual delay."),
                    "resources": closed(
                        [],
                        {
                            "memory_gb": {"anyOf": [number(0, 100_000, above=True), {"type": "string"}],
                                          "description": 'GiB, or how many times more: "x1.5".'},
                            "max_memory_gb": number(0, 100_000, above=True, description="It grows no further."),
                            "queue": text(128, description="Where the tries from then on go."),
                        },
                        description="What the tries from then on ask for.",
                    ),
                },
            ),
        },
        "jitter": number(0, 1, description="Share of the delay that may be added."),
        "infrastructure": whole(0, 100, description="Losses to infrastructure before it fails."),
    },
    description="What follows a failure, beside the flat fields `retries`, `retry_delay_seconds` …",
)  # fmt: skip
CACHE: dict[str, Any] = {
    "anyOf": [
        {"type": "boolean"},
        closed(
            [],
            {
                "mode": words(
                    "read_write",
                    "read",
                    "write",
                    default="read_write",
                    description="Take results, leave some, or both.",
                ),
                "key": {
                    "anyOf": [text(500), {"type": "array", "items": text(500), "minItems": 1, "maxItems": 20}],
                    "description": "Templates that make two tasks equal; without them, all that goes into the attempt.",
                },
                "ttl_seconds": number(0, 100 * YEAR, above=True, description="How old a result may be."),
                "scope": words("pipeline", "tenant", default="pipeline", description="Whose results may be taken."),
                "single_flight": {
                    "type": "boolean",
                    "default": True,
                    "description": "Of several equal tasks at once one runs, and the others wait for its result.",
                },
            },
        ),
    ],
    "description": "Take the outputs of an equal earlier task in place of running.",
}
CONCURRENCY: dict[str, Any] = {
    "type": "array",
    "maxItems": 20,
    "items": closed(
        ["key", "limit"],
        {
            "key": text(500, description="A template over params, run and map; null is not limited."),
            "limit": whole(1, 100_000, description="So many at once."),
            "on_limit": words(
                "queue", "cancel_new", "cancel_running", "fail", default="queue",
                description="What happens to one more: wait, be cancelled, cancel the oldest, or fail.",
            ),
        },
    ),
    "description": "At most so many at once with the same key.",
}  # fmt: skip
RATE_LIMIT = closed(
    ["key", "units", "per_seconds"],
    {
        "key": text(500, description="A template over params, run and map."),
        "units": whole(1, 10_000, description="So many dispatches."),
        "per_seconds": number(0, 86_400, above=True, description="In so many seconds."),
    },
    description="At most so many dispatches in that time among tasks with the same key.",
)
