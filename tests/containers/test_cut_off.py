"""A worker's container is off its network for longer than its lease: the task runs elsewhere, its outcome is fenced."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.containers.engine import Engine, networks
from tests.containers.site import ComposeSite, example, pipeline, script

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]

LEASE_SECONDS = 30.0
SEEN_SECONDS = 32.0
ELSEWHERE_SECONDS = 45.0
ZOMBIE_SECONDS = 40.0
"""How long the first attempt takes: longer than the lease, and it ends while its worker is cut off."""

SLOW_THE_FIRST_TIME = f"""
import json, os, time
number = int(os.environ["ORCHESTRATOR_ATTEMPT_NUMBER"])
time.sleep({ZOMBIE_SECONDS} if number == 1 else 1)
json.dump({{"number": number}}, open(os.environ["ORCHESTRATOR_OUTPUT_FILE"], "w"))
"""


@pytest.fixture(scope="module")
def site(engine: Engine, images: None, folder: Path) -> Iterator[ComposeSite]:
    with ComposeSite(engine, folder) as running:
        running.up(workers=3, worker_cpu=2)
        yield running


@contextmanager
def cut_off(site: ComposeSite, container: Any, network: str) -> Iterator[None]:
    """Take the container off its only network."""
    link = site.network(network)
    link.disconnect(container)
    try:
        assert networks(container) == []
        yield
    finally:
        link.connect(container)


def test_a_worker_cut_off_beyond_its_lease_is_replaced_and_fenced_when_it_returns(site: ComposeSite) -> None:
    run_id = site.start_run(pipeline("cut-off", script("slow", SLOW_THE_FIRST_TIME, retries=0)))
    first = site.wait_for_task(run_id, "slow", "running")
    container = site.container_of(first["worker"])
    (attempt,) = site.attempts(run_id, "slow")
    incarnation = attempt["worker_id"]
    with cut_off(site, container, "cpu"):
        began = time.monotonic()
        meanwhile = site.start_run(example("ml-training-pipeline"))
        site.wait_until(lambda: site.attempts(run_id, "slow")[0]["state"] == "lost", "the attempt lost", 60)
        seen = time.monotonic() - began
        site.wait_until(lambda: len(site.attempts(run_id, "slow")) == 2, "the second attempt", 30)
        second = site.wait_until(
            lambda: next((one for one in site.attempts(run_id, "slow")[1:] if one["granted_at"]), None), "its start", 30
        )
        elsewhere = time.monotonic() - began
        assert second["worker_id"] != incarnation
        site.succeed(run_id, 60)
        site.succeed(meanwhile, 120)
        print(f"cut off: lost after {seen:.1f} s, running elsewhere after {elsewhere:.1f} s, the example run succeeded")
        time.sleep(max(0.0, began + ZOMBIE_SECONDS + 1 - time.monotonic()))  # the zombie ends before it is heard again
    back = time.monotonic()
    site.wait_until(lambda: '"fenced"' in told(container) or "verdict=fenced" in told(container), "fenced", 60)
    print(f"fenced {time.monotonic() - back:.1f} s after the network was back")
    site.wait_until(lambda: any(one["id"] == incarnation for one in site.online_workers("cpu")), "online again", 60)
    assert [one["state"] for one in site.attempts(run_id, "slow")] == ["lost", "succeeded"]
    assert site.task(run_id, "slow")["outputs"]["number"] == 2
    assert container_started_once(container)
    assert LEASE_SECONDS - 6 <= seen <= SEEN_SECONDS + 3  # the disconnect itself takes the engine a moment
    assert elsewhere <= ELSEWHERE_SECONDS
    site.succeed(site.start_run(pipeline("after-it", script("quick", "pass\n"))))


def told(container: Any) -> str:
    """Return what the worker logged about answers to its outcomes."""
    lines = container.logs(tail=400).decode(errors="replace").splitlines()
    return "\n".join(line for line in lines if "outcome_answered" in line)


def container_started_once(container: Any) -> bool:
    """Say whether the engine never had to start it again."""
    container.reload()
    return not container.attrs.get("RestartCount")
