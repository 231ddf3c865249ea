"""The operator ``data_ingestion`` on real databases: SQLite files and PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa

from operators.data_ingestion import DataIngestion
from orchestrator.operator import Connection
from orchestrator.testing import make_context, run_operator
from tests.contract.ingestion import CSV, ROWS, content, failure

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Connection]:
    url = f"sqlite:///{tmp_path}/user.db"
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE customers (id INTEGER, name TEXT, score REAL)"))
        connection.execute(sa.text("INSERT INTO customers VALUES (:id, :name, :score)"), ROWS)
    yield Connection("database", url, {"table": "customers"})
    engine.dispose()


def rows_of(connection: Connection, query: str) -> list[tuple[Any, ...]]:
    engine = sa.create_engine(connection.url, poolclass=sa.NullPool)
    with engine.connect() as opened:
        return [tuple(row) for row in opened.execute(sa.text(query))]


def test_a_table_of_a_connection_becomes_a_dataset(tmp_path: Path, database: Connection) -> None:
    context = make_context(tmp_path, connections={"database": database})
    dataset = run_operator(DataIngestion, context, {"source": "database"})["dataset"]
    assert (dataset["format"], dataset["rows"]) == ("parquet", 3)
    frame = pl.read_parquet(context.artifacts.local_path(dataset["uri"], tmp_path))
    assert frame.to_dicts() == ROWS


def test_a_query_takes_its_values_as_parameters(tmp_path: Path, database: Connection) -> None:
    context = make_context(tmp_path, connections={"database": database})
    parameters = {
        "source": "database", "query": "SELECT id FROM customers WHERE name = :name",
        "query_parameters": {"name": "Ada' OR '1'='1"}, "output_format": "csv",
    }  # fmt: skip
    dataset = run_operator(DataIngestion, context, parameters)["dataset"]
    assert dataset["rows"] == 0
    assert content(context, dataset["uri"]) == b"id\n"


def test_values_that_first_come_late_decide_the_type_of_a_column(tmp_path: Path, database: Connection) -> None:
    query = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 45000) "
        "SELECT i, CASE WHEN i > 44000 THEN i * 0.5 END AS late FROM n"
    )
    context = make_context(tmp_path, connections={"database": database})
    dataset = run_operator(DataIngestion, context, {"source": "database", "query": query})["dataset"]
    assert dataset["rows"] == 45_000
    assert dataset["columns"] == [{"name": "i", "type": "integer"}, {"name": "late", "type": "float"}]
    assert len(list((context.workdir / "rows").iterdir())) == 4, "rows are spooled in large batches"


@pytest.mark.parametrize(
    "parameters, reason",
    [
        ({"query": "SELECT * FROM nothing"}, "bad_query"),
        ({"query": "SELEC 1"}, "bad_query"),
        ({"query": "DELETE FROM customers"}, "bad_query"),
        ({"query": "SELECT id, id FROM customers"}, "bad_query"),
        ({"query": "SELECT :x"}, "bad_query"),
        ({"table": "nothing"}, "bad_query"),
        ({"table": 'customers"; DROP TABLE customers; --'}, "bad_query"),
    ],
)
def test_a_query_that_can_not_work_is_refused(
    tmp_path: Path, database: Connection, parameters: dict[str, Any], reason: str
) -> None:
    context = make_context(tmp_path, connections={"database": database})
    found = failure(context, {"source": "database", **parameters})
    assert (found.reason, found.retryable) == (reason, False)
    assert rows_of(database, "SELECT count(*) FROM customers") == [(3,)]


def test_a_connection_that_can_not_be_used_is_explained_without_its_password(tmp_path: Path) -> None:
    wrong = Connection("wrong", "nosuchdialect://user:geheim@host/db", {"table": "t"})
    away = Connection("away", "postgresql://user:geheim@127.0.0.1:9/db", {"table": "t"})
    context = make_context(tmp_path, connections={"wrong": wrong, "away": away})
    found = failure(context, {"source": "wrong"})
    assert found.reason == "bad_connection"
    unreachable = failure(context, {"source": "away"})
    assert (unreachable.reason, unreachable.retryable) == ("unreachable", True)
    for one in (found, unreachable):
        assert "geheim" not in one.message


def test_a_dataset_is_loaded_into_a_table_and_a_second_attempt_doubles_nothing(
    tmp_path: Path, database: Connection
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.csv").write_bytes(CSV)
    warehouse = Connection("warehouse", database.url, {"table": "target"})
    context = make_context(tmp_path, connections={"warehouse": warehouse})
    for mode in ("replace", "replace"):
        parameters = {"destination": "warehouse", "input_path": "x.csv", "if_exists": mode}
        outputs = run_operator(DataIngestion, context, parameters)
        assert outputs["loaded"] == {"connection": "warehouse", "table": "target", "rows": 3, "mode": mode}
        assert outputs["dataset"]["uri"] == "x.csv"
    query = "SELECT id, name, score FROM target ORDER BY id"
    assert rows_of(database, query) == [(1, "Ada", 1.5), (2, "Bö", None), (3, "Eve", 3.0)]
    appending = {"destination": "warehouse", "input_path": "x.csv", "if_exists": "append"}
    assert run_operator(DataIngestion, context, appending)["loaded"]["rows"] == 3
    assert run_operator(DataIngestion, context, appending)["loaded"]["rows"] == 0
    context.run_id = "another"
    assert run_operator(DataIngestion, context, appending)["loaded"]["rows"] == 3
    assert rows_of(database, "SELECT count(*) FROM target") == [(9,)]


def test_a_load_that_fails_leaves_the_table_as_it_was(tmp_path: Path, database: Connection) -> None:
    context = make_context(tmp_path, connections={"warehouse": database})
    (tmp_path / "data" / "x.csv").write_text("id,other\n1,2\n")
    found = failure(context, {"destination": "warehouse", "input_path": "x.csv"})
    assert (found.reason, "other" in found.message) == ("bad_data", True)
    conflict = failure(context, {"destination": "warehouse", "input_path": "x.csv", "if_exists": "fail"})
    assert conflict.reason == "conflict"
    assert rows_of(database, "SELECT count(*) FROM customers") == [(3,)]
    nameless = make_context(tmp_path, connections={"warehouse": Connection("warehouse", database.url)})
    assert "destination_table" in failure(nameless, {"destination": "warehouse", "input_path": "x.csv"}).message


def test_a_dataset_is_loaded_into_a_bucket(tmp_path: Path, s3_server: dict[str, str], bucket: str) -> None:
    lake = Connection("lake", f"s3://{bucket}/in")
    context = make_context(tmp_path, connections={"lake": lake}, s3_options=s3_server)
    (tmp_path / "data" / "x.csv").write_bytes(CSV)
    loaded = run_operator(DataIngestion, context, {"source_path": "x.csv", "destination": "lake"})["loaded"]
    assert loaded["uri"] == f"s3://{bucket}/in/run/task.csv"
    assert run_operator(DataIngestion, context, {"source_path": loaded["uri"]})["dataset"]["rows"] == 3


def test_postgresql_types_arrive_and_go_back(tmp_path: Path, postgres_url: str) -> None:
    source = Connection("pg", postgres_url.replace("postgresql+psycopg2://", "postgresql://"))
    context = make_context(tmp_path, connections={"pg": source})
    query = (
        "SELECT 1::bigint AS i, 1.5::float8 AS f, 2.25::numeric AS d, true AS b, 'x'::text AS t, "
        "DATE '2026-01-02' AS day, TIMESTAMPTZ '2026-01-02 03:04:05+00' AS at, '{\"a\": 1}'::jsonb AS j, "
        "ARRAY[1, 2] AS l, 'ab'::bytea AS raw, '00000000-0000-0000-0000-000000000001'::uuid AS u, NULL::int AS n"
    )
    dataset = run_operator(DataIngestion, context, {"source": "pg", "query": query})["dataset"]
    row = pl.read_parquet(context.artifacts.local_path(dataset["uri"], tmp_path)).to_dicts()[0]
    assert (row["i"], row["f"], row["d"], row["b"], row["t"]) == (1, 1.5, Decimal("2.25"), True, "x")
    assert row["day"] == date(2026, 1, 2)
    assert row["at"] == datetime.fromisoformat("2026-01-02T03:04:05+00:00")
    assert (json.loads(row["j"]), json.loads(row["l"]), row["raw"]) == ({"a": 1}, [1, 2], b"ab")
    assert (row["u"], row["n"]) == ("00000000-0000-0000-0000-000000000001", None)
    back = {"destination": "pg", "input_path": dataset["uri"], "destination_table": "ingested"}
    assert run_operator(DataIngestion, context, back)["loaded"]["rows"] == 1
    assert rows_of(Connection("pg", postgres_url), "SELECT i, d, day FROM ingested") == [
        (1, Decimal("2.25"), date(2026, 1, 2))
    ]
    engine = sa.create_engine(postgres_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE ingested"))
        connection.execute(sa.text("CREATE SEQUENCE counter"))
    refused = failure(context, {"source": "pg", "query": "SELECT nextval('counter')"})
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SEQUENCE counter"))
    assert "read-only" in refused.message
    assert refused.retryable is False
