"""What a task keeps from attempt to attempt: by whom it is seen, and what an attempt that was given up can't spoil."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifacts import LocalArtifacts, task_segment
from orchestrator.checkpoints import MAX_STATE_BYTES, Checkpoints
from orchestrator.errors import StoreUnavailable
from orchestrator.operator import OperatorFailure
from orchestrator.testing import make_context


@pytest.fixture
def store(tmp_path: Path) -> LocalArtifacts:
    return LocalArtifacts(tmp_path / "artifacts", scope="shared")


def attempt(store: LocalArtifacts, number: int, generation: int = 1, task: str = "train") -> Checkpoints:
    return Checkpoints(store, "tenant", "run", task, generation, number)


def loaded(checkpoints: Checkpoints, tmp_path: Path) -> bytes | None:
    found = checkpoints.load(tmp_path / "into")
    return None if found is None else found.read_bytes()


def test_the_next_attempt_finds_what_the_last_one_saved(store: LocalArtifacts, tmp_path: Path) -> None:
    first = attempt(store, 1)
    assert loaded(first, tmp_path) is None
    first.save(b"step 1")
    first.save(b"step 2")
    assert loaded(first, tmp_path) == loaded(attempt(store, 2), tmp_path) == b"step 2"
    assert loaded(attempt(store, 5), tmp_path) == b"step 2", "the attempts between saved nothing"


def test_an_attempt_that_was_given_up_overwrites_nothing_of_a_newer_one(store: LocalArtifacts, tmp_path: Path) -> None:
    old, new = attempt(store, 1), attempt(store, 2)
    old.save(b"old")
    new.save(b"new")
    old.save(b"old, and late")
    old.set_state({"step": 1})
    assert loaded(new, tmp_path) == loaded(attempt(store, 3), tmp_path) == b"new"
    assert loaded(old, tmp_path) == b"old, and late", "it does not go on from what comes after it"
    new.set_state({"step": 2})
    old.set_state({"step": 1})
    assert attempt(store, 3).state() == {"step": 2}


def test_what_earlier_attempts_saved_is_removed_when_it_is_replaced(store: LocalArtifacts) -> None:
    for number in (1, 2, 3):
        attempt(store, number).save(b"x")
    assert [key.rpartition("/")[2] for key in store.list()] == ["1.000003"]


def test_a_rerun_begins_anew_and_its_success_clears_all_generations(store: LocalArtifacts, tmp_path: Path) -> None:
    attempt(store, 1).save(b"of old inputs")
    attempt(store, 1).set_state({"a": 1})
    again = attempt(store, 2, generation=2)
    assert loaded(again, tmp_path) is None
    assert again.state() == {}
    attempt(store, 1, task="other").save(b"x")
    again.forget()
    assert [key.split("/")[3] for key in store.list()] == ["other"]


def test_a_first_attempt_that_saved_nothing_asks_the_store_for_nothing(tmp_path: Path) -> None:
    class Untouchable(LocalArtifacts):
        def delete(self, prefix: str) -> None:
            raise AssertionError(prefix)

    attempt(Untouchable(tmp_path, scope="shared"), 1).forget()
    with pytest.raises(AssertionError):
        attempt(Untouchable(tmp_path, scope="shared"), 2).forget()


def test_what_a_former_release_saved_is_gone_on_from(store: LocalArtifacts, tmp_path: Path) -> None:
    store.put_bytes("checkpoints/tenant/run/train/1", b"of the former release")
    assert loaded(attempt(store, 2), tmp_path) == b"of the former release"
    attempt(store, 2).save(b"ours")
    assert loaded(attempt(store, 3), tmp_path) == b"ours"


def test_the_task_runs_of_a_map_keep_apart(store: LocalArtifacts, tmp_path: Path) -> None:
    names = ["train", "train[0]", "train[10]", "folds[1].train", "folds[1].train[0]", "folds[11].train"]
    assert len({task_segment(name) for name in names}) == len(names)
    for name in names:
        attempt(store, 1, task=name).save(name.encode())
    for name in names:
        assert loaded(attempt(store, 2, task=name), tmp_path) == name.encode()
    longest = task_segment(f"{'a' * 128}[9999].{'b' * 128}[9999]")
    assert len(longest) == 200
    assert longest != task_segment(f"{'a' * 128}[9999].{'b' * 128}[9998]")


@pytest.mark.parametrize("values", [{"a": "x" * MAX_STATE_BYTES}, {"a": float("nan")}, {"a": b"bytes"}])
def test_values_that_are_too_many_or_no_json_change_nothing(tmp_path: Path, values: dict[str, Any]) -> None:
    context = make_context(tmp_path)
    context.state_set("kept", [1, 2])
    with pytest.raises(OperatorFailure) as caught:
        context.state_set("a", values["a"])
    assert (caught.value.reason, caught.value.retryable) == ("state_too_large", False)
    assert make_context(tmp_path, attempt_number=2).state_get("kept") == [1, 2]


def test_values_are_set_read_and_removed_one_by_one(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    context.state_set("step", 7)
    context.state_set("loss", {"best": 0.1})
    second = make_context(tmp_path, attempt_number=2)
    assert (second.state_get("step"), second.state_get("loss"), second.state_get("none", 0)) == (7, {"best": 0.1}, 0)
    second.state_set("step", None)
    third = make_context(tmp_path, attempt_number=3)
    assert (third.state_get("step"), third.state_get("loss")) == (None, {"best": 0.1})
    third.checkpoint_delete()
    assert list(context.artifacts.list("checkpoints")) == []


def test_values_that_can_not_be_read_are_none(store: LocalArtifacts) -> None:
    store.put_bytes("checkpoints/tenant/run/train/1.000001.state", b"{")
    assert attempt(store, 2).state() == {}
    assert json.loads(json.dumps(dict(attempt(store, 2).state()))) == {}


def test_a_folder_is_there_again_in_the_next_attempt_as_it_was_saved(tmp_path: Path) -> None:
    context = make_context(tmp_path / "one", artifacts=LocalArtifacts(tmp_path / "shared", scope="shared"))
    folder = context.checkpoint_folder()
    assert context.checkpoint_folder() == folder
    (folder / "deep").mkdir()
    (folder / "deep" / "weights").write_bytes(b"1")
    context.checkpoint_save()
    (folder / "deep" / "weights").write_bytes(b"later")
    again = make_context(tmp_path / "two", artifacts=context.artifacts, attempt_number=2)
    assert (again.checkpoint_folder() / "deep" / "weights").read_bytes() == b"1"
    context.checkpoint_keep()
    third = make_context(tmp_path / "three", artifacts=context.artifacts, attempt_number=3)
    assert (third.checkpoint_folder() / "deep" / "weights").read_bytes() == b"later"


def test_a_folder_that_has_not_changed_is_not_saved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context(tmp_path)
    context.checkpoint_keep()
    (context.checkpoint_folder() / "a").write_text("1")
    context.checkpoint_save()

    def refuse(source: object) -> None:
        raise StoreUnavailable("It was asked once more.")

    monkeypatch.setattr(context.checkpoints, "save", refuse)
    context.checkpoint_keep()
    (context.checkpoint_folder() / "a").write_text("22")
    with pytest.raises(StoreUnavailable):
        context.checkpoint_keep()
