"""What users may write for ``data_ingestion``: the JSON Schema, and the contradictions it can't express."""

from __future__ import annotations

from collections.abc import Mapping

from operators.ingestion.plan import SOURCE_TYPES, has_source, scheme_type
from operators.tables.formats import FORMATS, format_of_path
from orchestrator.operator import Json

PAGINATION: Mapping[str, Json] = {
    "type": "object",
    "description": "How an API is asked for the next page. Without it one answer is read.",
    "additionalProperties": False,
    "required": ["type"],
    "properties": {
        "type": {
            "enum": ["page", "offset", "cursor", "link"],
            "description": "By page number, by offset, by a cursor in the answer, or by the Link header (rel=next).",
        },
        "page_param": {"type": "string", "description": "Query parameter of the page number. Default: page."},
        "offset_param": {"type": "string", "description": "Query parameter of the offset. Default: offset."},
        "cursor_param": {"type": "string", "description": "Query parameter of the cursor. Default: cursor."},
        "cursor_path": {
            "type": "string",
            "description": "Dotted path of the next cursor in the answer. Default: next_cursor.",
        },
        "size_param": {
            "type": "string",
            "description": "Query parameter of the page size. Default: page_size, or limit for offset.",
        },
        "page_size": {
            "type": "integer",
            "minimum": 1,
            "description": "Records per page to ask for; a shorter page is then the last.",
        },
        "start": {
            "type": "integer",
            "minimum": 0,
            "description": "First page number (default 1) or offset (default 0).",
        },
        "max_pages": {
            "type": "integer",
            "minimum": 1,
            "description": "More pages than this fail the task. Default: 10000.",
        },
    },
}

PARAMETERS: Mapping[str, Json] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "source_type": {
            "enum": list(SOURCE_TYPES),
            "description": "Kind of source. Default: what the scheme of source_path or of the connection's URL says.",
        },
        "source_path": {
            "type": "string",
            "minLength": 1,
            "description": "s3://bucket/key, an http(s) URL, or a data-root path; with source a path or URL below the "
            "connection's URL.",
        },
        "source": {"type": "string", "minLength": 1, "description": "Named connection to read from."},
        "format": {
            "enum": list(FORMATS),
            "description": "Format of the source (json: an array or one object per line). Default: by suffix; for an "
            "API json; for a database the format of the output, parquet.",
        },
        "output_format": {"enum": list(FORMATS), "description": "Format of the dataset. Default: that of the source."},
        "output_path": {
            "type": "string",
            "minLength": 1,
            "description": "Where the dataset goes: a data-root path or s3://bucket/key. Default: the artifact store.",
        },
        "table": {"type": "string", "minLength": 1, "description": "Table to read: table or schema.table."},
        "query": {"type": "string", "minLength": 1, "description": "SQL query to read; values come as :name."},
        "query_parameters": {
            "type": "object",
            "description": "Values for the :name placeholders of the query.",
            "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
        },
        "headers": {
            "type": "object",
            "description": "Request headers for an API. Secrets belong into the connection.",
            "additionalProperties": {"type": "string"},
        },
        "params": {
            "type": "object",
            "description": "Query parameters for an API.",
            "additionalProperties": {"type": ["string", "number", "boolean"]},
        },
        "items_path": {
            "type": "string",
            "minLength": 1,
            "description": "Dotted path of the list of records in an answer. Default: the answer itself, or its items, "
            "data, results or records; an object without these is one record.",
        },
        "pagination": PAGINATION,
        "timeout_seconds": {"type": "number", "exclusiveMinimum": 0, "description": "Wait for an API. Default: 30."},
        "max_bytes": {
            "type": "integer",
            "minimum": 1,
            "description": "A source with more bytes fails the task. Default: 1 GiB for an API, none otherwise.",
        },
        "csv": {
            "type": "object",
            "description": "How a CSV source is written.",
            "additionalProperties": False,
            "properties": {
                "separator": {
                    "type": "string",
                    "pattern": "^[\\x00-\\x7f]$",
                    "description": "Separator. Default: comma.",
                },
                "has_header": {
                    "type": "boolean",
                    "description": "Whether the first line names the columns. Default: true.",
                },
                "null_values": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "Texts that mean: no value. The empty text always does.",
                },
            },
        },
        "destination": {
            "type": "string",
            "minLength": 1,
            "description": "Named connection (database or s3://) to load the dataset into.",
        },
        "destination_table": {
            "type": "string",
            "minLength": 1,
            "description": "Table (or name of the object) to load into. Default: the option table of the connection.",
        },
        "if_exists": {
            "enum": ["replace", "append", "fail"],
            "description": "What to do with rows that a destination table has. Default: replace, in one transaction.",
        },
        "input_path": {
            "type": "string",
            "minLength": 1,
            "description": "Dataset to load when there is no source. Default: that of the nearest upstream task.",
        },
    },
}

_ONLY_FOR = {
    "pagination": "api",
    "items_path": "api",
    "headers": "api",
    "params": "api",
    "table": "database",
    "query": "database",
}


def problems_of(parameters: Mapping[str, Json]) -> list[tuple[str, str]]:
    """Return ``(pointer, sentence)`` for what the schema can't say."""
    if not has_source(parameters) and not parameters.get("destination"):
        return [("", "Say what to read: source_path or source; or set destination to load an upstream dataset.")]
    path = parameters.get("source_path")
    spelled = scheme_type(path) if isinstance(path, str) else None
    known = parameters.get("source_type") or spelled
    return [*_of_the_source(parameters, spelled), *_of_its_options(parameters, known)]


def _of_the_source(parameters: Mapping[str, Json], spelled: str | None) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    kind, path, source = (parameters.get(name) for name in ("source_type", "source_path", "source"))
    if kind and spelled and spelled != kind:
        found.append(("/source_path", f"This path is no {kind} source; mend source_type or the path."))
    if spelled == "database":
        found.append(("/source_path", "A database is read through a named connection: set source, not its URL."))
    if kind == "database" and not source:
        found.append(("/source", "A database is read through a named connection: name it here."))
    elif has_source(parameters) and not path and not source:
        found.append(("/source_path", "Say where to read from: a path or URL, or a connection in source."))
    if kind in ("s3", "api") and path and not spelled and not source:
        found.append(("/source_path", f"A {kind} source needs a full URL, or a connection in source."))
    return found


def _of_its_options(parameters: Mapping[str, Json], known: str | None) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    path = parameters.get("source_path")
    if parameters.get("table") and parameters.get("query"):
        found.append(("/query", "Set table or query, not both."))
    wrong = [name for name, only in _ONLY_FOR.items() if name in parameters and known not in (None, only)]
    found += [(f"/{name}", f"Only {_ONLY_FOR[name]} sources use this.") for name in wrong]
    if known in ("s3", "local") and path and not parameters.get("format") and format_of_path(path) is None:
        found.append(("/format", f"The format can't be told from {path!r}; set it to csv, json or parquet."))
    if parameters.get("destination") and parameters.get("input_path") and has_source(parameters):
        found.append(("/input_path", "With a source, the dataset to load is the one that is read; leave this out."))
    return found
