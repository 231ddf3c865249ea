"""The compose file as a user starts it: it comes up, runs the example, scales, fails over, comes back, drains."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import OrchestratorError
from tests.containers.engine import Engine, execute, kill_like_a_host, networks, state, wait_until
from tests.containers.site import WORKER_SETTINGS, ComposeSite, example, image, pipeline, script

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

DRAIN_SECONDS = 12
TAKEOVER_SECONDS = 15.0
BEFORE_THE_LEASE = 28.0
"""Seconds; the lease of a silent worker is 30."""
RESOLVES = "import socket, sys; socket.getaddrinfo(sys.argv[1], 80)"


@pytest.fixture(scope="module")
def site(engine: Engine, images: None, folder: Path) -> Iterator[ComposeSite]:
    began = time.monotonic()
    with ComposeSite(engine, folder, DRAIN_SECONDS=str(DRAIN_SECONDS)) as running:
        up = running.up(workers=3, worker_cpu=2)
        running.succeed(running.start_run(example("ml-training-pipeline")), 120)
        print(f"up: {up:.1f} s; first run done {time.monotonic() - began:.1f} s after `up`")
        yield running


def test_the_example_run_succeeds_and_the_model_is_registered(site: ComposeSite) -> None:
    run_id = site.start_run(example("ml-training-pipeline"))
    site.succeed(run_id, 120)
    assert site.task(run_id, "register-model")["outputs"]["registration"]["name"] == "breast-cancer-diagnosis"


def test_every_service_that_checks_its_health_is_healthy(site: ComposeSite) -> None:
    for service in ("postgres", "redis", "api"):
        (container,) = site.containers(service)
        wait_until(partial(_is_healthy, container), f"{service} healthy", 30)


def _is_healthy(container: Any) -> bool:
    return bool(state(container)["Health"]["Status"] == "healthy")


def test_only_the_api_is_published_and_on_loopback(site: ComposeSite) -> None:
    published = {}
    for container in site.engine.containers(site.project):
        bindings = container.attrs["NetworkSettings"]["Ports"] or {}
        for bound in filter(None, bindings.values()):
            published[container.labels["com.docker.compose.service"]] = [
                (one["HostIp"], one["HostPort"]) for one in bound
            ]
    assert published == {"api": [("127.0.0.1", str(site.port))]}
    for port in (5432, 6379):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
            # Whatever listens there is not of this project.
            assert connection.getpeername()[1] not in {int(found[1]) for found in published["api"]}


def test_each_kind_of_worker_meets_redis_on_its_own_network_and_can_not_name_the_database(site: ComposeSite) -> None:
    for service, network in (("worker-cpu", "cpu"), ("worker-highmem", "highmem")):
        for container in site.containers(service):
            assert networks(container) == [f"{site.project}_{network}"]
            execute(container, "python", "-c", RESOLVES, "redis")
            assert container.exec_run(["python", "-c", RESOLVES, "postgres"]).exit_code != 0


def test_scaled_workers_are_hosts_of_their_own_and_offer_what_their_limits_allow(site: ComposeSite) -> None:
    workers = site.online_workers("cpu")
    assert len({one["host_id"] for one in workers}) == 2
    for worker in workers:
        assert (worker["capacity"]["cpu"], worker["slots"]) == (1.0, 4)
        assert worker["capacity"]["memory_bytes"] <= 2 * 2**30


def test_the_leaders_container_killed_the_standby_leads_and_the_killed_one_comes_back(site: ComposeSite) -> None:
    holder, epoch = site.leader()
    leading = next(one for one in site.containers("scheduler") if one.id[:12] in holder)
    began = time.monotonic()
    was_host = kill_like_a_host(leading)
    if not was_host:
        leading.kill()
    run_id = site.start_run(pipeline("after-takeover", script("quick", "print('here')\n")))
    site.wait_until(lambda: site.leader()[1] > epoch and site.leader()[0] != holder, "another leader", 30)
    led = time.monotonic() - began
    site.succeed(run_id)
    took = time.monotonic() - began
    print(f"another leads after {led:.1f} s; a run posted at the kill has ended after {took:.1f} s")
    assert led <= TAKEOVER_SECONDS
    if was_host:
        wait_until(lambda: state(leading)["Running"], "the killed scheduler running again", 30)
    else:
        leading.start()


@pytest.mark.parametrize("service", ["worker-highmem", "api", "redis", "postgres"])
def test_a_killed_container_comes_back_by_itself_and_the_system_goes_on(site: ComposeSite, service: str) -> None:
    (container,) = site.containers(service)
    if not kill_like_a_host(container):
        pytest.skip("only where the engine's processes are this machine's can one be killed behind its back")
    wait_until(lambda: state(container)["Running"], f"{service} running again", 30)
    site.wait_until_online(3, 60.0)
    run_id = site.start_run(pipeline("after-restart", script("quick", "print('here')\n")))
    site.wait_until(lambda: _has_ended(site, run_id), "a run after the restart", 90)
    site.succeed(run_id)


def _has_ended(site: ComposeSite, run_id: str) -> Any:
    with suppress(OrchestratorError):
        return site.client.get_run(run_id)["state"] in {"success", "failed", "cancelled"}


def test_a_worker_that_is_stopped_waits_for_what_ends_in_time_and_hands_back_what_does_not(site: ComposeSite) -> None:
    sentence = "import time, os\ntime.sleep({} if os.environ['ORCHESTRATOR_ATTEMPT_NUMBER'] == '1' else 0)\n"
    waited = script("waited-for", sentence.format(DRAIN_SECONDS / 2))
    handed = script("handed-back", sentence.format(DRAIN_SECONDS * 20))
    run_id = site.start_run(pipeline("drain", waited, handed))
    for name in ("waited-for", "handed-back"):
        site.wait_for_task(run_id, name, "running")
    stopped = {site.task(run_id, name)["worker"] for name in ("waited-for", "handed-back")}
    containers = [site.container_of(name) for name in stopped]
    began = time.monotonic()
    with ThreadPoolExecutor() as all_at_once:  # as `docker compose stop` does
        list(all_at_once.map(lambda container: site.engine.stop(container, 115), containers))
    ends = [state(container)["ExitCode"] for container in containers]
    print(f"drained in {time.monotonic() - began:.1f} s, DRAIN_SECONDS={DRAIN_SECONDS}; exits {ends}")
    assert ends == [0] * len(ends)
    for container in containers:
        container.start()
    site.succeed(run_id)
    told = {name: [one["state"] for one in site.attempts(run_id, name)] for name in ("waited-for", "handed-back")}
    assert told == {"waited-for": ["succeeded"], "handed-back": ["preempted", "succeeded"]}
    assert (site.task(run_id, "handed-back")["failures"], site.task(run_id, "handed-back")["losses"]) == (0, 0)


@pytest.mark.parametrize("on_worker_loss", ["kill", "adopt"])
def test_a_workers_container_killed_its_next_start_reports_what_it_ran_as_lost_and_it_runs_again(
    site: ComposeSite, on_worker_loss: str
) -> None:
    """A container ends with its first process and all others with it, so nothing is left to adopt."""
    text = "import time, os\ntime.sleep(600 if os.environ['ORCHESTRATOR_ATTEMPT_NUMBER'] == '1' else 0)\n"
    run_id = site.start_run(pipeline("killed-worker", script("long", text, on_worker_loss=on_worker_loss)))
    container = site.container_of(site.wait_for_task(run_id, "long", "running")["worker"])
    began = time.monotonic()
    if not kill_like_a_host(container):
        pytest.skip("only where the engine's processes are this machine's can one be killed behind its back")
    site.wait_until(lambda: site.attempts(run_id, "long")[0]["state"] == "lost", "the attempt lost", BEFORE_THE_LEASE)
    print(
        f"{on_worker_loss}: lost {time.monotonic() - began:.1f} s after the kill, by its host's word, before its lease"
    )
    site.succeed(run_id)
    told = [(one["state"], one["reason"]) for one in site.attempts(run_id, "long")]
    assert told == [("lost", "worker_lost"), ("succeeded", "")]
    assert site.task(run_id, "long")["losses"] == 1


def test_the_gpu_workers_image_enrols_for_its_queue_and_leaves_when_it_is_stopped(
    site: ComposeSite, engine: Engine
) -> None:
    """Compose starts it only where the engine has a GPU to give; by hand it comes up without one."""
    container = engine.client.containers.run(
        image("worker-gpu"), detach=True, environment=WORKER_SETTINGS, network=f"{site.project}_gpu"
    )
    try:
        (worker,) = site.wait_until(lambda: site.online_workers("gpu"), "the GPU worker online", 60)
        assert (worker["queues"][0], worker["slots"], worker["capacity"]["gpus"]) == ("gpu", 2, [])
        engine.stop(container, 30)
        assert state(container)["ExitCode"] == 0
        site.wait_until(lambda: not site.online_workers("gpu"), "its goodbye heard", 10)
    finally:
        container.remove(force=True, v=True)
