"""Decides, from the parameters and the connection, what an attempt is to read and in which formats."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from operators.tables.formats import FORMATS, format_of_path
from operators.tables.reading import CsvDialect
from orchestrator.operator import Connection, Json, OperatorFailure, TaskContext
from orchestrator.reach import is_below

SOURCE_TYPES = ("s3", "local", "database", "api")
DEFAULT_MAX_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Plan:
    """One source, resolved."""

    source_type: str
    location: str
    """Path, s3:// URI or http(s):// URL; of a database the connection's name. Holds no credentials of a connection."""
    format: str
    """Of the source; of a database that of the output."""
    output_format: str
    dialect: CsvDialect
    parameters: Mapping[str, Json]
    connection: Connection | None = field(default=None, repr=False)
    max_bytes: int | None = None

    @property
    def shown(self) -> str:
        """The location for messages: without a URL's query, in which users put keys."""
        return self.location.partition("?")[0] if self.source_type == "api" else self.location

    def option(self, name: str) -> Json:
        """Return a parameter, or the connection's option of that name."""
        value = self.parameters.get(name)
        if value is None and self.connection is not None:
            value = self.connection.options.get(name)
        return value


def has_source(parameters: Mapping[str, Json]) -> bool:
    """Say whether the task reads from outside (and not only loads an upstream dataset)."""
    return any(parameters.get(name) for name in ("source", "source_path", "source_type", "query"))


def scheme_type(url: str) -> str | None:
    """Return the source type that a URL's scheme says; ``None`` for a plain path."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        return None
    return {"s3": "s3", "http": "api", "https": "api", "file": "local", "artifact": "local"}.get(
        scheme.lower(), "database"
    )


def make_plan(context: TaskContext, parameters: Mapping[str, Json]) -> Plan:
    """Resolve the source.

    :raises OperatorFailure: reason ``bad_parameters``, naming what is missing or contradicts.
    """
    connection = find_connection(context, parameters.get("source"))
    path = parameters.get("source_path") or ""
    kind = parameters.get("source_type") or scheme_type(path)
    kind = kind or (scheme_type(connection.url) or "local" if connection is not None else "local")
    if kind == "database" and connection is None:
        raise OperatorFailure(
            "bad_parameters", "A database is read through a named connection: set `source` to its name."
        )
    location = _location(kind, path, connection)
    found = _format(kind, location, parameters, connection)
    return Plan(
        source_type=kind,
        location=location,
        format=found,
        output_format=parameters.get("output_format") or found,
        dialect=CsvDialect.of(parameters.get("csv")),
        parameters=parameters,
        connection=connection,
        max_bytes=parameters.get("max_bytes") or (DEFAULT_MAX_BYTES if kind == "api" else None),
    )


def _format(kind: str, location: str, parameters: Mapping[str, Json], connection: Connection | None) -> str:
    given = parameters.get("format") or (connection.options.get("format") if connection else None)
    if kind == "database":
        return str(parameters.get("output_format") or given or "parquet")
    found = given or format_of_path(location) or ("json" if kind == "api" else None)
    if found not in FORMATS:
        shown = location.partition("?")[0]
        raise OperatorFailure(
            "bad_parameters",
            f"The format of {shown} can't be told from its name; set `format` to csv, json or parquet.",
        )
    return str(found)


def find_connection(context: TaskContext, name: str | None) -> Connection | None:
    """Return the named connection of the site.

    :raises OperatorFailure: the site has none of that name.
    """
    if not name:
        return None
    if name not in context.connections:
        raise OperatorFailure(
            "unknown_connection",
            f"This site has no connection named {name!r}; add it to CONNECTIONS, or mend the name.",
        )
    return context.connections[name]


def _location(kind: str, path: str, connection: Connection | None) -> str:
    if kind == "database":
        assert connection is not None
        return connection.name
    found = scheme_type(path)
    if found is not None and found != kind:
        raise OperatorFailure("bad_parameters", f"`source_path` {path!r} is no {kind} source; mend `source_type`.")
    if kind == "local":
        if connection is not None and scheme_type(connection.url) not in (None, "local"):
            raise OperatorFailure("bad_parameters", f"Connection {connection.name!r} is no local source.")
        folder = _file_path(connection.url) if connection is not None else ""
        joined = posixpath.join(folder, _file_path(path)) if path else folder
    elif found is None:
        joined = _below(kind, path, connection)
    else:
        if connection is not None:
            _require_below(path, connection)
        joined = path
    if not joined:
        raise OperatorFailure("bad_parameters", f"A {kind} source needs `source_path`, or `source` with a connection.")
    return joined


def _below(kind: str, path: str, connection: Connection | None) -> str:
    """Return a relative path below the connection's URL, without the credentials that URL may hold."""
    if connection is None or scheme_type(connection.url) != kind:
        expected = "s3://bucket/key" if kind == "s3" else "an http(s) URL"
        raise OperatorFailure(
            "bad_parameters", f"`source_path` is {path!r}; a {kind} source needs {expected}, or a {kind} connection."
        )
    parts = urlsplit(connection.url)
    whole = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    if not path:
        return whole
    joined = f"{whole.rstrip('/')}/{path.lstrip('/')}"
    _require_below(joined, connection)
    return joined


def _require_below(url: str, connection: Connection) -> None:
    """Keep the connection's credentials to the place they are for; elsewhere they would be given away.

    :raises OperatorFailure: ``forbidden_address``.
    """
    if not is_below(url, connection.url):
        raise OperatorFailure(
            "forbidden_address",
            f"`source_path` does not lie below the URL of connection {connection.name!r}, whose credentials go nowhere "
            "else; give a path relative to that URL, or leave `source` out.",
        )


def _file_path(text: str) -> str:
    return text.removeprefix("file://") if text.startswith("file:///") else text
