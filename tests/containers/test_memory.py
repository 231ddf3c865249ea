"""Memory limits in containers: out of memory is told apart, and nobody else pays for it.

Two walls: what the task asked for (``memory_gb``), and what the container may have. The first is kept by the kernel
where the worker may make a cgroup for each attempt, else by the supervisor, who watches; the second by the kernel.
"""
# mypy: disable-error-code="import-untyped"

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.containers import site
from tests.containers.engine import Engine, execute, state
from tests.containers.site import ComposeSite, pipeline, script

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

SHARED = 56 * 2**20
FILLER = 384 * 2**20
"""With what the worker itself takes, more than the hog leaves free of its container."""
SHARED_PAGES = 64 * 2**20
"""Of the worker's own code, which a task forked from it shows as its own and no ceiling counts."""
RETRY = {"retries": 1, "retry_delay_seconds": 0.5}
LEVEL = """
from workers import cgroups
group = cgroups.open_group("probe", 2**26)
print("kernel" if group.oom_counter else "watch", *group.folders)
group.remove()
"""


TAKEN = """
import psutil
print(sum(one.memory_full_info().pss for one in psutil.process_iter()) // 2**20)
"""


@pytest.fixture(scope="module")
def compose_site(engine: Engine, images: None, folder: Path) -> Iterator[ComposeSite]:
    overrides = site.with_operators(read_only=True, tmpfs=["/tmp"])  # a worker may be hardened this far
    with ComposeSite(engine, folder, overrides, WORKER_MEMORY="1g") as running:
        running.up("api", "scheduler", "worker-cpu", workers=1)
        yield running


def in_a_script(gb: float, **settings: Any) -> dict[str, Any]:
    text = f"pieces = [b'1' * 2**24 for _ in range({int(gb * 64)})]\nimport time\ntime.sleep(3)\n"
    return script("hog", text, **settings, **RETRY)


def in_the_operator(gb: float, **settings: Any) -> dict[str, Any]:
    return {"name": "hog", "operator": "allocate", "parameters": {"gb": gb, "seconds": 3}, **settings, **RETRY}


HOGS = pytest.mark.parametrize("hog", [in_the_operator, in_a_script])


def steady(seconds: float) -> dict[str, Any]:
    """Return a task that takes little memory of its own, and some of its container's that is counted as nobody's."""
    text = f"""
import pathlib, time
file = pathlib.Path("/dev/shm/steady")
file.write_bytes(b"1" * {SHARED})
time.sleep({seconds})
file.unlink()
"""
    return script("steady", text)


def is_out_of_memory(site: ComposeSite, run_id: str) -> None:
    """Check that the hog was out of memory once and, after its one retry, twice, and that nobody else noticed."""
    site.wait_for_task(run_id, "steady", "success", "failed", "retry_wait", seconds=60)
    run = site.finish(run_id, 60)
    assert run["state"] == "failed"
    hog = site.task(run_id, "hog")
    assert (hog["state"], hog["reason"], hog["failures"], hog["losses"]) == ("failed", "oom", 2, 0), hog
    assert [(one["state"], one["reason"]) for one in site.attempts(run_id, "hog")] == [("failed", "oom")] * 2
    calm = site.task(run_id, "steady")
    assert (calm["state"], calm["attempt_number"], calm["losses"]) == ("success", 1, 0), calm
    for attempt in site.attempts(run_id, "hog"):
        print(
            f"peak {attempt['usage']['peak_memory_bytes'] / 2**20:.0f} MiB after {attempt['usage']['wall_seconds']} s"
        )


def test_the_worker_says_which_level_keeps_the_ceilings(compose_site: ComposeSite) -> None:
    (container,) = compose_site.containers("worker-cpu")
    told = execute(container, "python", "-c", LEVEL)
    print(told)
    print(f"the idle worker takes {execute(container, 'python', '-c', TAKEN).strip()} MiB of its container's limit")
    assert told.split()[0] == "watch", "a worker without privileges can make no cgroup; its supervisors watch"


@HOGS
def test_a_task_beyond_its_own_memory_is_out_of_memory_and_nobody_else_is(compose_site: ComposeSite, hog: Any) -> None:
    (container,) = compose_site.containers("worker-cpu")
    started, worker = state(container)["StartedAt"], compose_site.online_workers("cpu")[0]["id"]
    run_id = compose_site.start_run(pipeline("own-ceiling", hog(0.5, memory_gb=0.2), steady(8)))
    is_out_of_memory(compose_site, run_id)
    assert state(container)["StartedAt"] == started
    assert compose_site.online_workers("cpu")[0]["id"] == worker


@HOGS
def test_a_task_that_fills_its_container_is_killed_by_the_kernel_and_the_worker_is_not(
    compose_site: ComposeSite, hog: Any
) -> None:
    (container,) = compose_site.containers("worker-cpu")
    started, worker = state(container)["StartedAt"], compose_site.online_workers("cpu")[0]["id"]
    kills = kernel_kills(container)
    capacity = compose_site.online_workers("cpu")[0]["capacity"]["memory_bytes"] / 2**30
    assert capacity <= 0.75, "of the container's 1 GiB the worker keeps its own share"
    execute(container, "sh", "-c", f"head -c {FILLER} /dev/zero > /tmp/filler")  # a tmpfs, so memory of the container's
    run_id = compose_site.start_run(pipeline("container-limit", hog(2.0, memory_gb=capacity - 0.1), steady(8)))
    is_out_of_memory(compose_site, run_id)
    execute(container, "rm", "/tmp/filler")
    print(f"capacity {capacity:.2f} GiB, kernel kills {kernel_kills(container) - kills}")
    assert kernel_kills(container) - kills >= 2
    assert state(container)["StartedAt"] == started
    assert compose_site.online_workers("cpu")[0]["id"] == worker
    follow_up = compose_site.start_run(pipeline("after-it", steady(0)))
    compose_site.succeed(follow_up)


def test_a_worker_that_may_make_cgroups_has_the_kernel_keep_each_attempts_ceiling(
    compose_site: ComposeSite, engine: Engine
) -> None:
    settings = {**site.WORKER_SETTINGS, "OPERATORS_PATH": "/operators", "WORKER_LABELS": "cgroups=own"}
    volumes = {f"{compose_site.project}_artifacts": {"bind": "/artifacts"}, str(site.OPERATORS): {"bind": "/operators"}}
    container = engine.client.containers.run(
        site.image("worker-cpu"),
        detach=True,
        privileged=True,
        user="0",
        environment=settings,
        volumes=volumes,
        network=f"{compose_site.project}_cpu",
        mem_limit="1g",
    )
    try:
        compose_site.wait_until_online(2)
        level, *groups = execute(container, "python", "-c", LEVEL).split()
        print(level, *groups)
        labels = {"labels": {"cgroups": "own"}}
        tasks = (in_the_operator(0.5, memory_gb=0.2, **labels), {**steady(8), "memory_gb": 0.3, **labels})
        run_id = compose_site.start_run(pipeline("own-cgroup", *tasks))
        is_out_of_memory(compose_site, run_id)
        peak = max(one["usage"]["peak_memory_bytes"] for one in compose_site.attempts(run_id, "hog"))
        assert level == "watch" or peak <= 0.2 * 2**30 + SHARED_PAGES
    finally:
        container.remove(force=True, v=True)


def kernel_kills(container: Any) -> int:
    """Return how often the kernel's out-of-memory killer struck on the machine, as the container sees it."""
    words = execute(container, "cat", "/proc/vmstat").split()
    return int(words[words.index("oom_kill") + 1])
