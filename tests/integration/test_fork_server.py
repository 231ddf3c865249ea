"""The fork server and its supervisors on real processes: starts, ends, stops, escapes, deaths."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from orchestrator.records import Resources
from orchestrator.states import AttemptState
from tests.chaos.memory_group import MemoryGroup, why_no_memory_group
from tests.integration.fork_server_site import ForkSite, is_alive, wait_for
from workers import cgroups
from workers.identity import has_ended

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ForkSite]:
    made = ForkSite(tmp_path)
    yield made
    made.close()


def pids_in(notes: Path) -> list[int]:
    return [int(line) for line in notes.read_text().split()] if notes.exists() else []


def test_an_attempt_runs_in_its_own_session_with_a_scrubbed_environment(site: ForkSite) -> None:
    attempt = site.start("echo", connections={"warehouse": {"url": "postgresql://secret"}})
    outcome = site.outcome(attempt)
    assert outcome.state is AttemptState.SUCCEEDED, outcome
    seen = outcome.outputs
    assert seen["session"] == seen["pid"]
    assert "not-for-tasks" not in str(seen)
    assert seen["environment"]["CUDA_VISIBLE_DEVICES"] == ""
    assert seen["environment"]["ORCHESTRATOR_ATTEMPT"] == attempt
    assert seen["threads"] == "2"
    assert "NoNewPrivs:\t1" in seen["status"]
    assert seen["core"] == [0, 0]
    assert seen["connections"] == ["warehouse"]
    assert len(seen["descriptors"]) <= 4, "stdin, stdout, stderr, and the listing itself"
    assert outcome.local_to == "host-1"
    assert "hello from task-1" in site.log(attempt)
    assert not site.folder(attempt).work.exists()
    assert outcome.usage.peak_memory > 2**20
    assert outcome.usage.wall_seconds > 0


@pytest.mark.parametrize("deep", [False, True])
def test_what_a_killed_task_left_in_its_temporary_folder_is_gone_with_it(tmp_path: Path, deep: bool) -> None:
    notes = tmp_path / "left"
    with TemporaryDirectory(prefix="o-") as near:
        site = ForkSite(tmp_path, data_dir=Path(near, "d" * 80 if deep else "d"))
        try:
            attempt = site.start("scatter", parameters={"notes": str(notes)})
            assert site.outcome(attempt).reason == "signal", site.log(attempt)
            *left, scratch = map(Path, notes.read_text().split("\n"))
            assert len(left) == 2
            assert all(path.parent == scratch for path in left)
            assert (scratch != site.folder(attempt).scratch) == deep, "deep, no socket could be bound there"
            assert not any(os.path.lexists(path) for path in (*left, scratch, site.folder(attempt).work))
        finally:
            site.close()


def test_the_environment_block_in_proc_holds_no_secret(site: ForkSite) -> None:
    attempt = site.start("sleep")
    site.wait_for_log(attempt, "sleeping")
    supervisor = site.folder(attempt).read("state")["pid"]
    for pid in (supervisor, site.client.process.pid):
        assert b"not-for-tasks" not in Path(f"/proc/{pid}/environ").read_bytes()
    site.client.stop(attempt, "cancelled", 0.0)
    site.outcome(attempt)


@pytest.mark.parametrize(
    ("do", "reason", "retryable"),
    [
        ("fail", "bad_data", True),
        ("crash", "exception", True),
        ("die", "signal", True),
        ("leave", "exit", True),
        ("huge", "outputs_too_large", False),
        ("nan", "bad_outputs", False),
    ],
)
def test_every_way_to_fail_has_its_reason(site: ForkSite, do: str, reason: str, retryable: bool) -> None:
    outcome = site.outcome(site.start(do))
    assert (outcome.state, outcome.reason) == (AttemptState.FAILED, reason), outcome
    assert outcome.retryable is retryable
    assert not outcome.infrastructure
    assert outcome.retry_after == (7.0 if do == "fail" else None)


def test_what_is_saved_lasts_until_the_task_has_succeeded_and_never_into_a_rerun(site: ForkSite) -> None:
    def run(then: str, generation: int) -> tuple[str, str]:
        attempt = site.start("save", generation=generation, parameters={"then": then})
        outcome = site.outcome(attempt)
        return attempt, outcome.outputs.get("found", outcome.message)

    saved = site.settings.data_dir / "artifacts" / "checkpoints" / "tenant-1" / "run-1"
    first, _ = run("fail", 1)
    assert run("fail", 2)[1] == "", "a rerun begins anew"
    second, found = run("fail", 1)
    assert found == first
    assert (saved / "task-1" / "1.000001").read_text() == second
    assert run("succeed", 1)[1] == second
    assert not (saved / "task-1").exists(), "it would be left there for ever"
    for generation in (1, 2):
        run("skip", generation)
        assert not (saved / "task-1").exists()


def test_a_task_whose_checkpoint_can_not_be_deleted_has_succeeded_all_the_same(site: ForkSite) -> None:
    attempt = site.start("lock_away")
    assert site.outcome(attempt).state is AttemptState.SUCCEEDED
    assert "is left in the artifact store" in site.log(attempt)


def test_a_store_that_does_not_answer_holds_up_a_task_that_has_succeeded_for_a_moment_only(site: ForkSite) -> None:
    attempt = site.start("outlast", parameters={"patience": 0.3})
    assert site.outcome(attempt).state is AttemptState.SUCCEEDED
    assert "is left in the artifact store" in site.log(attempt)


@pytest.mark.parametrize(
    ("why", "state"),
    [
        ("timeout", AttemptState.SUCCEEDED),
        ("cut_off", AttemptState.SUCCEEDED),
        ("oom", AttemptState.SUCCEEDED),
        ("preempted", AttemptState.SUCCEEDED),
        ("killed", AttemptState.SUCCEEDED),
        ("cancelled", AttemptState.CANCELLED),
    ],
)
def test_a_task_that_is_stopped_while_the_store_does_not_answer_had_succeeded_before(
    site: ForkSite, why: str, state: AttemptState
) -> None:
    attempt = site.start("outlast", parameters={"patience": 600}, grace=0.2, timeout=5.0 if why == "timeout" else None)
    wait_for(site.folder(attempt).result.exists, what="result")
    if why == "killed":
        (task,) = psutil.Process(site.pids[attempt]).children()
        task.kill()
    elif why != "timeout":
        site.client.stop(attempt, why, 0.2)
    outcome = site.outcome(attempt)
    assert outcome.state is state, outcome
    if state is AttemptState.SUCCEEDED:
        assert outcome.outputs == {"rows": 1}


def test_a_result_for_which_the_disk_has_no_room_is_no_fault_of_the_task(site: ForkSite) -> None:
    attempt = site.start("find_the_disk_full")
    outcome = site.outcome(attempt)
    assert (outcome.state, outcome.reason, outcome.infrastructure) == (AttemptState.LOST, "disk_full", True), outcome
    assert "disk" in outcome.message
    assert str(site.folder(attempt).path) in outcome.message
    assert "File too large" in site.log(attempt), "what the system said"
    saved = site.settings.data_dir / "artifacts" / "checkpoints" / "tenant-1" / "run-1" / "task-1" / "1.000001"
    assert saved.read_bytes() == b"state", "it will run again, and go on from there"


def test_a_process_that_the_task_forked_and_that_returns_is_not_the_task(site: ForkSite) -> None:
    attempt = site.start("split", grace=0.2, timeout=3.0)
    site.wait_for_log(attempt, "alone again")
    assert not site.folder(attempt).result.exists()
    assert site.outcome(attempt).state is AttemptState.TIMED_OUT
    saved = site.settings.data_dir / "artifacts" / "checkpoints" / "tenant-1" / "run-1" / "task-1" / "1.000001"
    assert saved.read_bytes() == b"state"


def test_a_stop_without_grace_kills_before_the_task_can_answer(site: ForkSite) -> None:
    attempt = site.start("note_term", parameters={"notes": str(site.tmp_path / "notes")})
    site.wait_for_log(attempt, "ready")
    site.client.stop(attempt, "preempted", 0.0)
    assert site.outcome(attempt).state is AttemptState.PREEMPTED
    assert not (site.tmp_path / "notes").exists(), "it was sent TERM, which it may answer before KILL comes"
    assert "KILL now" in site.log(attempt)


def test_an_operator_may_skip(site: ForkSite) -> None:
    outcome = site.outcome(site.start("skip"))
    assert outcome.state is AttemptState.SUCCEEDED
    assert outcome.skipped
    assert outcome.reason == "nothing_new"


def test_an_unknown_operator_is_a_failure_that_names_what_there_is(site: ForkSite) -> None:
    outcome = site.outcome(site.start("echo", operator="no_such"))
    assert outcome.reason == "unknown_operator"
    assert "probe" in outcome.message


def test_a_timeout_stops_the_attempt(site: ForkSite) -> None:
    outcome = site.outcome(site.start("sleep", timeout=0.5, grace=1.0))
    assert outcome.state is AttemptState.TIMED_OUT
    assert outcome.usage.wall_seconds < 20, "the task sleeps for ten minutes"


def test_a_cancel_kills_a_tree_that_escapes_and_ignores_term(site: ForkSite, tmp_path: Path) -> None:
    notes = tmp_path / "pids"
    attempt = site.start("escape", parameters={"notes": str(notes)})
    wait_for(lambda: len(pids_in(notes)) == 4)
    began = time.monotonic()
    site.client.stop(attempt, "cancelled", 1.0)
    outcome = site.outcome(attempt)
    assert outcome.state is AttemptState.CANCELLED
    assert not any(map(is_alive, pids_in(notes)))
    assert 0.9 <= time.monotonic() - began <= 15.0


def test_a_chain_of_forks_that_never_rests_is_killed(site: ForkSite, tmp_path: Path) -> None:
    group = cgroups.open_group("probe", 0)
    group.remove()
    if not group.folders:
        pytest.skip("this account can't make v2 cgroups here")
    counter = tmp_path / "counter"
    attempt = site.start("run_away", parameters={"counter": str(counter)})
    wait_for(lambda: counter.exists() and counter.stat().st_size > 50)
    site.client.stop(attempt, "cancelled", 0.3)
    assert site.outcome(attempt).state is AttemptState.CANCELLED
    size = counter.stat().st_size
    time.sleep(0.3)  # whatever still ran would write every millisecond or so
    assert counter.stat().st_size == size


def test_what_a_finished_task_leaves_behind_is_killed_before_its_success_is_told(
    site: ForkSite, tmp_path: Path
) -> None:
    notes = tmp_path / "pids"
    outcome = site.outcome(site.start("escape", parameters={"notes": str(notes), "return": True}))
    assert outcome.state is AttemptState.SUCCEEDED
    assert len(pids_in(notes)) == 4
    assert not any(map(is_alive, pids_in(notes)))


def test_a_preempted_task_that_finishes_within_its_grace_has_succeeded(site: ForkSite) -> None:
    attempt = site.start("finish_on_term")
    site.wait_for_log(attempt, "ready")
    site.client.stop(attempt, "preempted", 5.0)
    outcome = site.outcome(attempt)
    assert outcome.state is AttemptState.SUCCEEDED
    assert outcome.outputs == {"saved": True}


def test_a_cancelled_task_that_finishes_within_its_grace_is_cancelled_all_the_same(site: ForkSite) -> None:
    attempt = site.start("finish_on_term")
    site.wait_for_log(attempt, "ready")
    site.client.stop(attempt, "cancelled", 5.0)
    assert site.outcome(attempt).state is AttemptState.CANCELLED


def test_preemption_is_no_fault_of_the_task(site: ForkSite) -> None:
    attempt = site.start("sleep")
    site.wait_for_log(attempt, "sleeping")
    site.client.stop(attempt, "preempted", 5.0)
    outcome = site.outcome(attempt)
    assert outcome.state is AttemptState.PREEMPTED
    assert outcome.infrastructure


@pytest.mark.parametrize("kernel_keeps_it", [True, False])
def test_memory_above_the_ceiling_is_told_apart_as_oom(tmp_path: Path, kernel_keeps_it: bool) -> None:
    group = cgroups.open_group("probe", 2**28)
    group.remove()
    if kernel_keeps_it and group.oom_counter is None:
        pytest.skip("this account can't make cgroups with a memory ceiling here")
    site = ForkSite(tmp_path, use_cgroups=kernel_keeps_it)
    try:
        attempt = site.start("eat", parameters={"mebibytes": 400}, resources=Resources(cpu=1000, memory=150 * 2**20))
        outcome = site.outcome(attempt)
        assert (outcome.state, outcome.reason) == (AttemptState.FAILED, "oom"), (outcome, site.log(attempt))
        assert not outcome.infrastructure
    finally:
        site.close()


@pytest.mark.skipif(bool(why_no_memory_group()), reason=why_no_memory_group())
@pytest.mark.parametrize("quietly", [False, True])
def test_a_child_that_the_kernel_kills_for_the_memory_of_the_container_is_told_as_oom(
    tmp_path: Path, quietly: bool
) -> None:
    with MemoryGroup(400 << 20) as group:
        site = ForkSite(tmp_path, use_cgroups=False)
        group.take_in(site.client.process.pid)
        try:
            end = tmp_path / "end"
            beside = site.start("wait_and_crash", parameters={"end": str(end)})
            meal = {"mebibytes": 2000, "quietly": quietly}
            hungry = site.start("feed_a_child", parameters=meal, resources=Resources(1000, 2**32))
            outcome = site.outcome(hungry)
            assert (outcome.state, outcome.reason) == (AttemptState.FAILED, "oom"), (outcome, site.log(hungry))
            assert ("no rows" if quietly else "SIGKILL") in outcome.message
            end.touch()
            assert site.outcome(beside).reason == "exception", "it was killed in the same container, but another's"
        finally:
            site.close()


def test_an_exclusive_attempt_stops_itself_when_it_is_cut_off(site: ForkSite) -> None:
    attempt = site.start("sleep", exclusive=True, fresh_until=time.monotonic() + 1.0)
    site.wait_for_log(attempt, "sleeping")
    site.client.refresh(time.monotonic() + 1.5)
    outcome = site.outcome(attempt)
    assert (outcome.state, outcome.reason) == (AttemptState.LOST, "cut_off")
    assert outcome.infrastructure


def test_a_long_log_keeps_its_head_and_its_tail(site: ForkSite) -> None:
    attempt = site.start("chatter")
    assert site.outcome(attempt).state is AttemptState.SUCCEEDED
    text = site.log(attempt)
    assert len(text) < 17 * 2**20
    assert "bytes of output were left out here" in text
    assert text.rstrip().endswith("the last line")


def test_killing_the_supervisor_kills_the_tree_and_is_an_infrastructure_loss(site: ForkSite, tmp_path: Path) -> None:
    notes = tmp_path / "pids"
    outcome = site.outcome(site.start("kill_supervisor", parameters={"notes": str(notes)}))
    assert (outcome.state, outcome.reason) == (AttemptState.LOST, "supervisor_lost")
    assert outcome.infrastructure
    assert len(pids_in(notes)) == 1
    assert not any(map(is_alive, pids_in(notes)))


def test_an_attempt_beside_a_killed_supervisor_goes_on(site: ForkSite, tmp_path: Path) -> None:
    other = site.start("finish_on_term")
    site.wait_for_log(other, "ready")
    site.outcome(site.start("kill_supervisor", parameters={"notes": str(tmp_path / "pids")}))
    site.client.stop(other, "preempted", 5.0)
    assert site.outcome(other).state is AttemptState.SUCCEEDED


def test_an_attempt_that_can_not_be_forked_costs_no_other(site: ForkSite) -> None:
    assert site.ready.wait(20)
    other = site.start("finish_on_term")
    site.wait_for_log(other, "ready")
    server = psutil.Process(site.client.process.pid)
    former = server.rlimit(psutil.RLIMIT_NOFILE)
    server.rlimit(psutil.RLIMIT_NOFILE, (3, former[1]))
    attempt = site.start("skip")
    wait_for(lambda: attempt in site.refused, what="refusal")
    assert "Too many open files" in site.refused[attempt]
    server.rlimit(psutil.RLIMIT_NOFILE, former)
    assert site.outcome(site.start("skip")).state is AttemptState.SUCCEEDED
    site.client.stop(other, "preempted", 5.0)
    assert site.outcome(other).state is AttemptState.SUCCEEDED


def test_the_death_of_the_fork_server_ends_the_trees_and_leaves_their_outcomes(site: ForkSite, tmp_path: Path) -> None:
    notes = tmp_path / "pids"
    attempt = site.start("escape", parameters={"notes": str(notes)})
    wait_for(lambda: len(pids_in(notes)) == 4)
    os.kill(site.client.process.pid, signal.SIGKILL)
    assert site.died.wait(10)
    wait_for(lambda: site.spool.has(attempt), what="outcome written by the supervisor itself")
    spooled = site.spool.read(attempt)
    assert spooled is not None
    assert (spooled.outcome.state, spooled.outcome.reason) == (AttemptState.LOST, "worker_lost")
    assert not any(map(is_alive, pids_in(notes)))


def test_the_end_of_the_worker_ends_the_trees_and_then_frees_its_lock(tmp_path: Path) -> None:
    site = ForkSite(tmp_path)
    notes = tmp_path / "pids"
    attempt = site.start("escape", parameters={"notes": str(notes)})
    wait_for(lambda: len(pids_in(notes)) == 4)
    assert not has_ended(site.folders, site.incarnation)
    site.close()
    wait_for(lambda: has_ended(site.folders, site.incarnation))
    spooled = site.spool.read(attempt)
    assert spooled is not None
    assert (spooled.outcome.state, spooled.outcome.reason) == (AttemptState.LOST, "worker_lost")
    assert not any(map(is_alive, pids_in(notes)))


def test_the_fork_server_is_lean_and_quick(site: ForkSite) -> None:
    site.outcome(site.start("echo"))
    status = Path(f"/proc/{site.client.process.pid}/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0]) / 1024
    threads = int(status.split("Threads:")[1].split()[0])
    assert threads == 1
    mapped = Path(f"/proc/{site.client.process.pid}/maps").read_text()
    assert [name for name in ("numpy", "sklearn", "polars") if name in mapped] == []
    # How much a Python takes depends on its build; numpy alone would add more than the difference.
    assert resident < 60, f"{resident:.0f} MiB; the fork server has learnt to import something heavy"


@pytest.mark.parametrize("kernel_keeps_it", [True, False])
def test_a_tree_of_too_many_processes_is_stopped_by_that_name(tmp_path: Path, kernel_keeps_it: bool) -> None:
    group = cgroups.open_group("probe", 0, 50)
    group.remove()
    if kernel_keeps_it and group.fork_counter is None:
        pytest.skip("this account can't make cgroups with a ceiling of processes here")
    site = ForkSite(tmp_path, use_cgroups=kernel_keeps_it, max_processes=50)
    try:
        attempt = site.start("bomb", parameters={"processes": 200})
        outcome = site.outcome(attempt)
        assert (outcome.state, outcome.reason) == (AttemptState.FAILED, "too_many_processes"), site.log(attempt)
        assert ("no more" in site.log(attempt)) is kernel_keeps_it
        assert not outcome.infrastructure
        assert site.outcome(site.start("skip")).skipped
    finally:
        site.close()


def test_a_script_that_is_preempted_goes_on_where_it_was(site: ForkSite) -> None:
    script = (
        'file="$ORCHESTRATOR_CHECKPOINT_DIR/step"\n'
        "trap 'printf 40 > \"$file\"; exit 75' TERM\n"
        'if [ -f "$file" ]; then printf \'{"from": "%s"}\' "$(cat "$file")" > "$ORCHESTRATOR_OUTPUT_FILE"; exit 0; fi\n'
        "echo started; while true; do sleep 0.05; done"
    )
    parameters = {"script_type": "bash", "script_content": script}
    attempt = site.start("", operator="custom_script", parameters=parameters)
    site.wait_for_log(attempt, "started")
    site.client.stop(attempt, "preempted", 20.0)
    assert site.outcome(attempt).state is AttemptState.PREEMPTED
    outcome = site.outcome(site.start("", operator="custom_script", parameters=parameters))
    assert outcome.outputs == {"from": "40"}, outcome
