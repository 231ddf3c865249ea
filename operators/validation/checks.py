"""Reads ``validation_rules`` as users write them, in either shape, into a list of checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from operators.validation.port import Check, Rule
from operators.validation.registry import load_rules
from orchestrator.operator import Json

_COMMON = ("rule", "column", "columns", "severity", "name")


@dataclass(frozen=True, slots=True)
class _Written:
    """A rule as written, and where."""

    pointer: str
    entry: Mapping[str, Json]


def rule_schema() -> dict[str, Json]:
    """Return the JSON Schema of ``validation_rules``, with the settings of every rule that is installed."""
    rules = load_rules()
    settings: dict[str, Json] = {}
    for rule in rules.values():
        for name, schema in rule.properties.items():
            described = {**schema, "description": f"{rule.name}: {schema['description']}"}
            settings[name] = _either(settings[name], described) if name in settings else described
    severity = {
        "enum": ["error", "warning"],
        "description": "Whether a row that breaks the rule counts. Default: error.",
    }
    entry = {
        "type": "object",
        "additionalProperties": False,
        "required": ["rule"],
        "properties": {
            "rule": {"enum": list(rules), "description": " ".join(f"{r.name}: {r.summary}" for r in rules.values())},
            "column": {"type": "string", "minLength": 1, "description": "The column to check."},
            "columns": {
                "type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1,
                "description": "Several columns, each checked by itself.",
            },
            "severity": severity,
            "name": {"type": "string", "minLength": 1, "maxLength": 200, "description": "What the report calls it."},
            **settings,
        },
    }  # fmt: skip
    by_column = {name: _short_schema(rule) for name, rule in rules.items() if rule.needs_columns}
    by_table = {name: _short_schema(rule) for name, rule in rules.items() if not rule.needs_columns}
    return {
        "description": "What the data must keep: a list of rules, or an object of rules by column. Empty: no rules.",
        "anyOf": [
            {"type": "array", "maxItems": 1000, "items": entry},
            {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "columns": {
                        "type": "object",
                        "description": "Rules by column: {column: {rule: settings}}.",
                        "additionalProperties": {
                            "type": "object", "additionalProperties": False, "properties": by_column,
                        },
                    },
                    **by_table,
                },
            },
        ],
    }  # fmt: skip


def _either(one: Json, other: Json) -> Json:
    options = [*one.get("anyOf", [one]), other]
    return {"description": " ".join(option["description"] for option in options), "anyOf": options}


def _short_schema(rule: Rule) -> Json:
    return {"description": f"{rule.summary} `true`, its settings, or the value of its only required setting."}


def read_checks(written: Json) -> tuple[list[Check], list[tuple[str, str]]]:
    """Return the checks, and ``(pointer, sentence)`` for all that is wrong with them.

    The list shape is ``[{"rule": "range", "column": "age", "min": 0, "severity": "warning"}, …]``; the object shape
    ``{"columns": {"age": {"not_null": true, "type": "integer", "range": {"min": 0}}}, "row_count": {"min": 1}}``.
    """
    from jsonschema import Draft202012Validator

    checks: list[Check] = []
    problems: list[tuple[str, str]] = []
    rules = load_rules()
    for item in _entries(written, rules):
        rule = rules.get(str(item.entry.get("rule")))
        if rule is None:
            problems.append((f"{item.pointer}/rule", f"There is no such rule; use one of {', '.join(rules)}."))
            continue
        settings = {name: value for name, value in item.entry.items() if name not in _COMMON}
        schema = {
            "type": "object", "additionalProperties": False,
            "properties": dict(rule.properties), "required": list(rule.required),
        }  # fmt: skip
        faults = [
            ("".join(f"/{part}" for part in error.absolute_path), error.message)
            for error in Draft202012Validator(schema).iter_errors(settings)
        ]
        faults = faults or rule.problems(settings)
        columns, column_fault = _columns(item.entry, rule)
        faults += column_fault
        problems += [(f"{item.pointer}{pointer}", f"{rule.name}: {sentence}") for pointer, sentence in faults]
        if not faults:
            checks += _expanded(item.entry, rule, columns, settings)
    return _named_apart(checks), problems


def _entries(written: Json, rules: Mapping[str, Rule]) -> Iterator[_Written]:
    if isinstance(written, list):
        for index, entry in enumerate(written):
            if isinstance(entry, dict):
                yield _Written(f"/validation_rules/{index}", entry)
        return
    for name, value in (written or {}).items():
        if name != "columns":
            yield from _short(f"/validation_rules/{name}", name, value, rules, {})
    for column, by_rule in (written or {}).get("columns", {}).items():
        for name, value in by_rule.items():
            yield from _short(f"/validation_rules/columns/{column}/{name}", name, value, rules, {"column": column})


def _short(
    pointer: str, name: str, value: Any, rules: Mapping[str, Rule], extra: Mapping[str, Json]
) -> Iterator[_Written]:
    """Write ``{"type": "integer"}`` out as a full entry; ``false`` switches a rule off."""
    if value is False:
        return
    if value is True:
        value = {}
    elif not isinstance(value, dict):
        required = rules[name].required if name in rules else ()
        value = {required[0]: value} if len(required) == 1 else {"value": value}
    yield _Written(pointer, {**value, **extra, "rule": name})


def _columns(entry: Mapping[str, Json], rule: Rule) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    named = [*([entry["column"]] if "column" in entry else []), *entry.get("columns", [])]
    if rule.needs_columns and not named:
        return (), [("/column", "Say which column is checked.")]
    if named and not rule.needs_columns:
        return (), [("/column", "This rule is about the whole table; leave the column out.")]
    return tuple(dict.fromkeys(named)), []


def _expanded(
    entry: Mapping[str, Json], rule: Rule, columns: tuple[str, ...], settings: Mapping[str, Json]
) -> Iterator[Check]:
    severity = entry.get("severity", "error")
    groups: list[tuple[str, ...]] = [(column,) for column in columns] or [()]
    for group in groups:
        default = f"{rule.name}({group[0]})" if group else rule.name
        name = entry.get("name", default)
        yield Check(
            rule.name,
            f"{name}({group[0]})" if "name" in entry and len(columns) > 1 else name,
            group,
            severity,
            settings,
        )


def _named_apart(checks: list[Check]) -> list[Check]:
    seen: dict[str, int] = {}
    named = []
    for check in checks:
        seen[check.name] = seen.get(check.name, 0) + 1
        count = seen[check.name]
        named.append(replace(check, name=f"{check.name}#{count}") if count > 1 else check)
    return named
