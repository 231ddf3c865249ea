"""``python -m benchmarks``: our tasks per second and milliseconds per hop beside Celery's own chain and chord.

Both sides run in one call, on one machine, on the same Redis, with the same number of slots, in turn: A B A B …. These
figures compare; they do not stand alone. Celery keeps its state in Redis only; ours commits every outcome to
PostgreSQL, shows it over HTTP, and gives every attempt a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.table import Table

from benchmarks.celery_side import celery_canvas
from benchmarks.our_side import our_system
from benchmarks.workloads import Workload, standard
from orchestrator.local.postgres import EmbeddedPostgres
from orchestrator.local.redis import EmbeddedRedis
from orchestrator.local.servers import start_server


class Side(Protocol):
    """One system under measurement."""

    system: str

    def run(self, workload: Workload) -> float:
        """Do the work once; returns seconds."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON line per system and workload")
    parser.add_argument("--repeats", type=int, default=5, help="counted repeats of each (default 5)")
    parser.add_argument("--slots", type=int, default=2, help="processes of each side (default 2)")
    parser.add_argument("--chain", type=int, default=50, help="length of the chain (default 50)")
    parser.add_argument("--fan", type=int, default=100, help="width of the fan (default 100)")
    arguments = parser.parse_args()
    workloads = standard(arguments.chain, arguments.fan)
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    calibration: list[float] = []
    with (
        _stores() as (folder, database_url, redis_url),
        celery_canvas(folder, redis_url, arguments.slots) as celery,
        our_system(folder, database_url, redis_url, arguments.slots) as ours,
    ):
        sides: tuple[Side, ...] = (ours, celery)
        for repeat in range(arguments.repeats + 1):  # the first warms up and is not counted
            for workload in workloads:
                for side in sides:
                    elapsed = side.run(workload)
                    if repeat:
                        seconds[side.system, workload.name].append(elapsed)
            calibration.append(_calibrate())
    rows = [
        _row(side.system, workload, seconds[side.system, workload.name]) for workload in workloads for side in sides
    ]
    if arguments.json:
        for row in rows:
            print(json.dumps(row))
    else:
        _print_table(rows, arguments.repeats, arguments.slots, calibration)


@contextmanager
def _stores() -> Iterator[tuple[Path, str, str]]:
    """Start PostgreSQL and Redis with the durability they have in the one-host command."""
    from orchestrator.store.migrate import upgrade

    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        redis, postgres = EmbeddedRedis(folder / "redis"), EmbeddedPostgres(folder / "postgres")
        children = [start_server(redis, folder), start_server(postgres, folder)]
        try:
            postgres.create_database("benchmark")
            database_url = postgres.url("benchmark")
            upgrade(database_url)
            yield folder, database_url, redis.url()
        finally:
            for child in reversed(children):
                child.stop()


def _row(system: str, workload: Workload, seconds: list[float]) -> dict[str, object]:
    median = statistics.median(seconds)
    return {
        "system": system,
        "workload": workload.name,
        "tasks": workload.tasks,
        "seconds": round(median, 4),
        "tasks_per_s": round(workload.tasks / median, 1),
        "ms_per_hop": round(1000 * median / workload.tasks, 2) if workload.name == "chain" else None,
        "all_seconds": [round(each, 4) for each in seconds],
    }


def _calibrate() -> float:
    """Return the milliseconds of a fixed piece of arithmetic: a noisy machine shows here first."""
    began = time.perf_counter()
    total = 0
    for i in range(1_000_000):
        total += i * i
    return 1000 * (time.perf_counter() - began)


def _print_table(rows: list[dict[str, object]], repeats: int, slots: int, calibration: list[float]) -> None:
    table = Table(title=f"median of {repeats} interleaved repeats, {slots} slots each")
    for heading in ("system", "workload", "tasks", "seconds", "tasks/s", "ms per hop"):
        table.add_column(heading, justify="left" if heading in ("system", "workload") else "right")
    for row in rows:
        hop = row["ms_per_hop"]
        table.add_row(
            str(row["system"]),
            str(row["workload"]),
            str(row["tasks"]),
            f"{row['seconds']:.3f}",
            f"{row['tasks_per_s']:.0f}",
            "" if hop is None else f"{hop:.1f}",
        )
    console = Console()
    console.print(table)
    for workload in dict.fromkeys(str(row["workload"]) for row in rows):
        ours, celery = (
            next(float(str(row["seconds"])) for row in rows if row["system"] == system and row["workload"] == workload)
            for system in ("ours", "celery-canvas")
        )
        console.print(f"{workload}: ours takes {ours / celery:.2f} × the time of Celery's own")
    console.print(f"calibration loop: {min(calibration):.0f}–{max(calibration):.0f} ms")


if __name__ == "__main__":
    main()
