"""The operator ``data_ingestion``: brings a dataset in from a file, bucket, database or API, or loads one out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from operators.ingestion.parameters import PARAMETERS, problems_of
from operators.ingestion.plan import Plan, find_connection, has_source, make_plan
from operators.tables.formats import DATASET_SCHEMA, describe_columns
from orchestrator import s3_objects
from orchestrator.inputs import fingerprint
from orchestrator.operator import Input, Json, Operator, TaskContext

if TYPE_CHECKING:
    from operators.ingestion.load import Destination
    from operators.tables.reading import Table

Look = Callable[[TaskContext, Plan], Mapping[str, Json]]
Fetch = Callable[[TaskContext, Plan, Path], None]


class DataIngestion(Operator):
    """Read from outside into an artifact (or ``output_path``); with ``destination``, load the dataset into it."""

    name: ClassVar[str] = "data_ingestion"
    summary: ClassVar[str] = (
        "Bring CSV, JSON or Parquet in from S3, a data root, a database or an API; or load a dataset into a connection."
    )
    parameters_schema: ClassVar[Mapping[str, Json]] = PARAMETERS
    outputs_schema: ClassVar[Mapping[str, Json]] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": False,
        "required": ["dataset"],
        "properties": {
            "dataset": DATASET_SCHEMA,
            "loaded": {
                "type": "object",
                "description": "What was written to the destination.",
                "additionalProperties": False,
                "required": ["connection", "rows", "mode"],
                "properties": {
                    "connection": {"type": "string", "description": "Name of the connection."},
                    "table": {"type": "string", "description": "Table that was loaded."},
                    "uri": {"type": "string", "description": "Object that was written."},
                    "rows": {"type": "integer", "description": "Rows written; 0 when an earlier attempt had done it."},
                    "mode": {"enum": ["replace", "append", "fail"], "description": "As `if_exists`."},
                },
            },
        },
    }
    inputs: ClassVar[Sequence[Input]] = (Input("input_path", "dataset"),)

    @classmethod
    def problems(cls, parameters: Mapping[str, Json]) -> list[tuple[str, str]]:
        """Return what contradicts or is missing whatever the site's connections are."""
        return problems_of(parameters)

    @classmethod
    def produces(cls, parameters: Mapping[str, Json]) -> frozenset[str]:
        """Return ``dataset``: what was read, or what was loaded and can be used further."""
        return frozenset({"dataset"})

    @classmethod
    def connection_names(cls, parameters: Mapping[str, Json]) -> frozenset[str]:
        """Return the names in ``source`` and ``destination``."""
        names = (parameters.get("source"), parameters.get("destination"))
        return frozenset(name for name in names if isinstance(name, str) and name)

    @classmethod
    def active_inputs(cls, parameters: Mapping[str, Json]) -> Sequence[Input]:
        """Return the dataset to load, when there is a destination and no source."""
        return cls.inputs if parameters.get("destination") and not has_source(parameters) else ()

    def run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        """Fetch, check, publish; then load."""
        from operators.tables.failures import explained

        with explained("The dataset"):
            if has_source(parameters):
                return _ingest(context, parameters)
            return _load_upstream(context, parameters)

    def dry_run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        """Check that the source answers and the destination is there; nothing is written."""
        from operators.tables.failures import explained
        from operators.tables.locate import locate_dataset

        found: dict[str, Json] = {}
        with explained("The source"):
            if has_source(parameters):
                plan = make_plan(context, parameters)
                found["source"] = {"type": plan.source_type, "format": plan.format, **_look(plan)(context, plan)}
                found["output_format"] = plan.output_format
                if parameters.get("output_path") and not s3_objects.is_s3(parameters["output_path"]):
                    context.roots.resolve(parameters["output_path"], for_writing=True)
            else:
                dataset = locate_dataset(context, parameters["input_path"], parameters.get("format"))
                found["source"] = {"type": "dataset", "format": dataset.format}
            destination = _destination(context, parameters)
            if destination is not None:
                from operators.ingestion.load import look_destination

                found["destination"] = look_destination(destination)
        return found


def _ingest(context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
    plan = make_plan(context, parameters)
    destination = _destination(context, parameters)
    context.log("reading", source=plan.source_type, location=plan.shown, format=plan.format)
    table, raw = _read(context, plan)
    if raw is not None and _is_canonical(plan, raw):
        file = raw
    else:
        from operators.tables.writing import write_table

        file = context.workdir / f"dataset.{plan.output_format}"
        write_table(table.frame, file, plan.output_format)
    loaded = None
    if destination is not None:
        from operators.ingestion.load import load_dataset

        loaded = load_dataset(context, destination, table, file, plan.output_format, fingerprint(file))
    dataset = _publish(context, file, plan.output_format, parameters.get("output_path"))
    dataset |= {"rows": table.rows, "columns": describe_columns(table.schema)}
    context.log("published", uri=dataset["uri"], rows=table.rows, bytes=dataset["bytes"])
    return {"dataset": dataset} if loaded is None else {"dataset": dataset, "loaded": loaded}


def _read(context: TaskContext, plan: Plan) -> tuple[Table, Path | None]:
    """Return the table, and the file it came in where the source is one."""
    from operators.tables.reading import Table, read_table
    from operators.tables.spool import Spool

    if plan.source_type == "database":
        from operators.ingestion.database import read_database

        spool = Spool(context.workdir / "rows")
        spool.extend(read_database(context, plan))
        frame = spool.table()
        return Table(frame, spool.rows, frame.collect_schema()), None
    raw = context.workdir / f"source.{plan.format}"
    _fetch(plan)(context, plan, raw)
    return read_table(raw, plan.format, context.workdir, plan.shown, plan.dialect), raw


def _is_canonical(plan: Plan, raw: Path) -> bool:
    """Say whether the source's own bytes are what a reader of our formats expects; they are then kept as they are."""
    from operators.tables.reading import CsvDialect

    if plan.format != plan.output_format or plan.dialect != CsvDialect():
        return False
    if plan.format != "json":
        return True
    with raw.open("rb") as source:
        return source.read(64).lstrip()[:1] == b"{"


def _load_upstream(context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
    from operators.ingestion.load import load_dataset
    from operators.tables.locate import locate_dataset
    from operators.tables.reading import read_table

    destination = _destination(context, parameters)
    assert destination is not None, "active_inputs asks for an input only when there is a destination"
    found = locate_dataset(context, parameters["input_path"], parameters.get("format"))
    table = read_table(found.path, found.format, context.workdir, found.uri)
    digest = str(found.output.get("fingerprint") or fingerprint(found.path))
    loaded = load_dataset(context, destination, table, found.path, found.format, digest)
    context.log("loaded", **loaded)
    dataset = {
        "uri": found.uri,
        "format": found.format,
        "rows": table.rows,
        "bytes": found.path.stat().st_size,
        "fingerprint": digest,
        "columns": describe_columns(table.schema),
    }
    return {"dataset": dataset, "loaded": loaded}


def _publish(context: TaskContext, file: Path, format: str, output_path: str | None) -> dict[str, Any]:
    from operators.tables.locate import publish_in_root

    name = f"dataset.{format}"
    if not output_path:
        artifact = context.artifacts.put_file(context.artifact_key(name), file, consume=True)
        return {"uri": artifact.uri, "format": format, "bytes": artifact.bytes, "fingerprint": artifact.fingerprint}
    size, digest = file.stat().st_size, fingerprint(file)
    if s3_objects.is_s3(output_path):
        uri = output_path + name if output_path.endswith("/") else output_path
        s3_objects.upload(context, file, uri)
    else:
        uri = publish_in_root(context, file, output_path, name)
    return {"uri": uri, "format": format, "bytes": size, "fingerprint": digest}


def _destination(context: TaskContext, parameters: Mapping[str, Json]) -> Destination | None:
    from operators.ingestion.load import choose_destination

    connection = find_connection(context, parameters.get("destination"))
    return choose_destination(connection, parameters) if connection is not None else None


def _fetch(plan: Plan) -> Fetch:
    from operators.ingestion import api, files

    return {"local": files.fetch_local, "s3": files.fetch_s3, "api": api.fetch_api}[plan.source_type]


def _look(plan: Plan) -> Look:
    from operators.ingestion import api, database, files

    looks: Mapping[str, Look] = {
        "local": files.look_local,
        "s3": files.look_s3,
        "api": api.look_api,
        "database": database.look_database,
    }
    return looks[plan.source_type]
