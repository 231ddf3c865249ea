"""Outputs are reused only while their artifacts are there: what has left the store without a rule of ours is seen by
who looks for it, the API before a rerun and a task in vain, and then nobody takes it for there."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import text

from api import reuse
from orchestrator.artifacts.presence import Presence
from orchestrator.effects import SaveOutcome
from orchestrator.records import Outcome
from orchestrator.states import AttemptState
from orchestrator.store.artifact_presence import NOT_IN_STORE
from orchestrator.store.artifact_queries import artifact_fates
from orchestrator.store.artifact_retention import removed_lately
from orchestrator.store.writer import write
from tests.integration.api_site import ApiSite
from tests.integration.waiting_site import SCRIPT, answer, commands, running, set_run, set_task

pytestmark = pytest.mark.timeout(60)
HOST = "host-of-this-folder"
TASKS: list[dict[str, Any]] = [
    {"name": "load", **SCRIPT},
    {"name": "prepare", "upstream_tasks": ["load"], **SCRIPT},
    {"name": "other", **SCRIPT},
    {"name": "train", "upstream_tasks": ["prepare"], **SCRIPT},
]


@pytest.fixture
def run(api: ApiSite) -> str:
    """A run that has failed at its last task; each of the others has left an artifact."""
    (api.settings.data_dir / "host-id").write_text(f"{HOST}\n")
    made = running(api, TASKS, "chain")
    for name in ("load", "prepare", "other"):
        leave(api, made, name)
    set_task(api, made, "train", "failed")
    set_run(api, made, "failed")
    return made


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "SECONDS", 10.0)


def uri_of(api: ApiSite, name: str) -> str:
    return f"artifact://{api.tenant_id}/{name}"


def leave(api: ApiSite, run: str, name: str) -> None:
    uri = uri_of(api, name)
    api.services.artifacts.put_bytes(f"{api.tenant_id}/{name}", b"rows")
    api.sql(
        "INSERT INTO artifacts (tenant_id, uri, digest, size, run_id, task) VALUES (:t, :uri, 'd', 4, :run, :name)",
        t=api.tenant_id, uri=uri, run=run, name=name,
    )  # fmt: skip
    set_task(api, run, name, "success", outputs={"dataset": {"uri": uri}})
    api.sql("UPDATE task_runs SET local_to = :host WHERE run_id = :run AND name = :name", host=HOST, run=run, name=name)


def remove(api: ApiSite, *names: str) -> None:
    """Remove objects as a bucket's lifecycle or a person would."""
    for name in names:
        api.services.artifacts.delete(uri_of(api, name))


def again(api: ApiSite, run: str, **body: Any) -> dict[str, str]:
    found = answer(api, "POST", f"/api/v1/runs/{run}/rerun/preview", body, status=200)
    return {item["task"]: item["why"] for item in found["run"]}


def rules(api: ApiSite) -> dict[str, str]:
    with api.engine.connect() as connection:
        rows = connection.execute(text("SELECT task, deleted_by FROM artifacts WHERE deleted_at IS NOT NULL")).all()
    return {row.task: row.deleted_by for row in rows}


def test_what_is_there_is_reused(api: ApiSite, run: str) -> None:
    assert again(api, run) == {"train": "chosen"}
    assert rules(api) == {}


@pytest.mark.parametrize("in_place", [True, False])
def test_a_task_whose_artifact_is_gone_joins_the_rerun_and_its_preview(api: ApiSite, run: str, in_place: bool) -> None:
    remove(api, "prepare", "other")
    assert again(api, run, in_place=in_place) == {"prepare": "gone", "train": "chosen"}
    assert rules(api) == {"prepare": NOT_IN_STORE}, "nobody reads the other"
    path = f"/api/v1/runs/{run}/rerun"
    if in_place:
        answer(api, "POST", path, {})
        assert [payload["from"] for _, _, _, payload in commands(api)] == [["train", "prepare"]]
    else:
        made = answer(api, "POST", path, {"in_place": False}, status=201)
        states = {task["name"]: task["state"] for task in made["tasks"]}
        assert states == {"load": "success", "prepare": "pending", "other": "success", "train": "pending"}


def test_what_a_joining_task_reads_is_looked_for_too(api: ApiSite, run: str) -> None:
    remove(api, "load", "prepare")
    assert set(again(api, run)) == {"load", "prepare", "train"}


def test_what_runs_for_another_cause_than_a_failure_reads_too(api: ApiSite, run: str) -> None:
    set_task(api, run, "train", "success")
    api.sql("UPDATE task_runs SET operator = 'model_training'")
    remove(api, "prepare")
    assert again(api, run, **{"in_place": False, "from": ["train"]}) == {"prepare": "gone", "train": "chosen"}


def test_what_is_back_is_reused_again_and_is_never_deleted_for_having_been_away(api: ApiSite, run: str) -> None:
    remove(api, "prepare")
    assert set(again(api, run)) == {"prepare", "train"}
    with api.engine.connect() as connection:
        assert removed_lately(connection) == []
    api.services.artifacts.put_bytes(f"{api.tenant_id}/prepare", b"rows")
    assert set(again(api, run)) == {"train"}
    assert rules(api) == {}


def test_what_lies_on_another_host_is_not_judged_from_here(api: ApiSite, run: str) -> None:
    remove(api, "prepare")
    api.sql("UPDATE task_runs SET local_to = 'another'")
    assert again(api, run) == {"train": "chosen"}
    (api.settings.data_dir / "host-id").unlink()
    api.sql("UPDATE task_runs SET local_to = :host", host=HOST)
    assert again(api, run) == {"train": "chosen"}


def test_a_store_that_hangs_delays_no_answer(api: ApiSite, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    remove(api, "prepare")
    monkeypatch.setattr(reuse, "SECONDS", 0.2)
    held = threading.Event()

    def exists(uri: str) -> bool:
        held.wait(30)
        return False

    monkeypatch.setattr(api.services.artifacts, "exists", exists)
    try:
        assert again(api, run) == {"train": "chosen"}
    finally:
        held.set()
    assert rules(api) == {}


def test_threads_that_a_store_keeps_are_bounded() -> None:
    held = threading.Event()

    class Hung:
        def exists(self, uri: str) -> bool:
            return held.wait(30)

    presence = Presence(Hung())  # type: ignore[arg-type]
    before = threading.active_count()
    try:
        for number in range(10):
            assert presence.look([f"{number}/{n}" for n in range(20)], 0.01) == {}
        assert threading.active_count() - before <= 32
    finally:
        held.set()


@pytest.mark.parametrize(
    ("since", "is_noted"), [("interval '1 min'", True), ("interval '-1 min'", False)], ids=["before", "made meanwhile"]
)
def test_what_a_task_has_missed_is_noted_with_its_outcome(api: ApiSite, run: str, since: str, is_noted: bool) -> None:
    attempt = api.add_attempt(run, "train")
    maker = api.add_attempt(run, "prepare", "succeeded")
    api.sql(f"UPDATE artifacts SET attempt_id = :maker, created_at = now() - {since}", maker=maker)
    api.sql("UPDATE attempts SET granted_at = now()")
    missed = {"kind": "missing_artifact", "uri": uri_of(api, "prepare")}
    foreign = {"kind": "missing_artifact", "uri": "artifact://another/x"}
    outcome = Outcome(AttemptState.FAILED, "artifact_missing", "Gone.", records=(missed, foreign, {"kind": "new"}))
    with api.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO leases (role, holder, epoch, expires_at) VALUES ('scheduler', 'x', 7, now())")
        )
        task_run = connection.execute(text("SELECT task_run_id FROM attempts WHERE id = :id"), {"id": attempt}).scalar()
        write(connection, [SaveOutcome(attempt, str(task_run), outcome, publish=False)], 7)
    assert rules(api) == ({"prepare": NOT_IN_STORE} if is_noted else {})
    with api.engine.connect() as connection:
        [fate] = artifact_fates(connection, [(api.tenant_id, uri_of(api, "prepare"))]).values() or [None]
    assert ("no rule of ours has removed it" in fate) if is_noted and fate else fate is None
