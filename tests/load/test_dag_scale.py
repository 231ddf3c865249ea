"""How wide a map may be for one leader: its expansion, its memory, and a take-over in the middle of it.

Run with ``pytest tests/load/test_dag_scale.py -m load -s`` on a machine that is idle; each test prints its figures.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.events import ReconcileDue
from orchestrator.kernel import Kernel, KernelSettings
from orchestrator.store.loader import load_snapshot
from orchestrator.store.plans import PlanCache
from scheduler.transaction import Leader, Round
from tests.integration.dag_site import DagSite, Played, goes_on, left, open_site, script, until

pytestmark = [pytest.mark.load, pytest.mark.timeout(300)]

WIDE = 10_000
MAP: dict[str, Any] = {"over": "{{ tasks.list.outputs.found }}", "max_size": WIDE}
INSIDE = "SELECT count(*) FROM task_runs WHERE parent_id IS NOT NULL AND run_id = :run"
FIRST = "SELECT 1 FROM task_runs WHERE parent_id IS NOT NULL AND run_id = :run LIMIT 1"


@pytest.fixture
def site(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[DagSite]:
    # As in production: what is measured is not to be a check that a test makes every second.
    made = open_site(database_url, redis_url, tmp_path, reconcile_seconds=30.0, redispatch_seconds=20.0)
    yield made
    made.close()


def wide_pipeline(site: DagSite) -> str:
    mapped = script("t", "list", map=MAP, arguments={"n": "{{ map.item }}"})
    site.save("wide", script("list"), mapped, script("next", "t"), parameters={"width": WIDE})
    return "wide"


def wide(site: DagSite) -> str:
    return site.start(wide_pipeline(site))


def test_ten_thousand_indices_are_there_in_two_seconds(site: DagSite) -> None:
    site.spawn()
    took = []
    for at in range(3):
        with site.worker(Played(list=goes_on, t=goes_on)) as fake:
            run = wide(site)
            until(lambda fake=fake: fake.running)  # type: ignore[misc]
            (attempt,) = fake.running
            began = time.monotonic()
            fake.finish(attempt, left(found=list(range(WIDE))))
            until(lambda run=run: site.rows(FIRST, run=run), 30)  # type: ignore[misc]
            took.append(time.monotonic() - began)
            assert site.rows(INSIDE, run=run) == [(WIDE,)], "all of them in one transaction"
            until(lambda fake=fake: len(fake.granted) > 1, 30)  # type: ignore[misc]
            print(
                f"\n{WIDE:,} rows {took[at]:.2f} s after the outcome; granted {time.monotonic() - began:.2f} s after it"
            )
            began = time.monotonic()
            site.cancel(run, mode="force")
            site.ended(run, "cancelled", 60)
            print(f"all of them are cancelled {time.monotonic() - began:.2f} s after it was asked for")
    assert min(took) < 2


def test_indices_that_wait_in_line_do_not_slow_down_those_that_run(site: DagSite) -> None:
    site.spawn()
    rates = {}
    with site.worker(Played(list=lambda spec: left(found=list(range(spec.run_parameters["width"]))))) as fake:
        for width in (200, WIDE):
            run = site.start(wide_pipeline(site), width=width)
            until(lambda run=run: site.rows(FIRST, run=run), 30)  # type: ignore[misc]
            before, begun = len(fake.granted), time.monotonic()
            until(lambda before=before: len(fake.granted) >= before + 150, 60)  # type: ignore[misc]
            rates[width] = 150 / (time.monotonic() - begun)
            site.cancel(run, mode="force")
            site.ended(run, "cancelled", 60)
    print(f"\nindices a second through 4 slots, by the width of the map: {rates}")
    assert rates[WIDE] > rates[200] / 3


def test_what_a_leader_keeps_of_an_index_and_how_long_another_needs_to_take_over(site: DagSite) -> None:
    end = site.lead()
    with site.worker(Played(list=left(found=list(range(WIDE))), t=goes_on)) as fake:
        run = wide(site)
        until(lambda: len(fake.running) == 4, 30)
        end()
        began = time.monotonic()
        site.lead()
        until(lambda: site.rows("SELECT 1 FROM leases WHERE epoch = 2"))
        fake.finish(next(iter(fake.running)), left(ok=1))
        until(lambda: len(fake.granted) == 6, 30)
        print(f"\nthe next leader grants an index {time.monotonic() - began:.2f} s after the last one stepped down")
        assert time.monotonic() - began < 10
        site.stop()
    read, loaded, first = take_over(site)
    print(f"of this {read:.2f} s read the rows, {loaded:.2f} s make the index, {first:.2f} s are the first round")
    assert read + loaded + first < 5
    print(f"{memory_of(site) / 1024:.2f} KiB are kept of each task run")
    assert memory_of(site) < 8 * 1024
    assert site.state(run) == "running"


def kernel_of(site: DagSite, now: float) -> tuple[Kernel, float, float]:
    kernel = Kernel(KernelSettings(new_id=lambda: str(uuid.uuid4())), now)
    began = time.monotonic()
    with site.engine.connect() as connection:
        snapshot = load_snapshot(connection, PlanCache(), now)
    read = time.monotonic()
    kernel.load(snapshot, now)
    return kernel, read - began, time.monotonic() - read


def take_over(site: DagSite) -> tuple[float, float, float]:
    [(epoch,)] = site.rows("SELECT epoch FROM leases")
    kernel, read, loaded = kernel_of(site, 100.0)
    leader = Leader(site.engine, epoch, connections={}, registry_url=None)
    began = time.monotonic()
    leader.take_in(kernel, Round(100.1, [ReconcileDue()], poll=True))
    return read, loaded, time.monotonic() - began


def memory_of(site: DagSite) -> float:
    """Return the bytes that the index takes for each task run, the rows it was made from left out."""
    gc.collect()
    tracemalloc.start()
    try:
        kernel, _, _ = kernel_of(site, 100.0)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / len(kernel.tasks)
    finally:
        tracemalloc.stop()
