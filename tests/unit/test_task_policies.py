"""``on_drain`` and ``on_worker_loss``: what a definition may say, and how releases before and after them read plans."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.compile import Compiled, Site, compile_pipeline
from orchestrator.errors import InvalidDefinition, Problem
from orchestrator.plan_json import describe, plan_from_json, plan_to_json
from orchestrator.records import PlannedTask
from orchestrator.registry import load_operators

NEW = ("on_drain", "on_worker_loss")


def compiled(**fields: Any) -> Compiled:
    task = {
        "name": "train",
        "operator": "custom_script",
        "parameters": {"script_content": "print(1)", "script_type": "python"},
        **fields,
    }
    return compile_pipeline({"name": "p", "tasks": [task]}, load_operators(), Site())


def refused(**fields: Any) -> list[Problem]:
    with pytest.raises(InvalidDefinition) as caught:
        compiled(**fields)
    return list(caught.value.problems)


def test_a_task_says_what_a_drain_and_the_loss_of_its_worker_mean_to_it() -> None:
    made = compiled(on_drain="checkpoint", on_worker_loss="adopt")
    [planned] = made.plan.tasks
    assert (planned.on_drain, planned.on_worker_loss, planned.is_adoptable) == ("checkpoint", "adopt", True)
    [shown] = describe(made)["tasks"]
    assert (shown["on_drain"], shown["on_worker_loss"]) == ("checkpoint", "adopt")
    assert made.definition["tasks"][0]["on_drain"] == "checkpoint"


def test_a_task_that_says_nothing_waits_for_its_end_and_dies_with_its_worker() -> None:
    [planned] = compiled().plan.tasks
    assert (planned.on_drain, planned.on_worker_loss, planned.is_adoptable) == ("wait", "kill", False)


@pytest.mark.parametrize(("field", "value"), [("on_drain", "wait"), ("on_worker_loss", "kill")])
def test_a_default_that_is_written_out_changes_neither_document_nor_hash(field: str, value: str) -> None:
    plain = compiled()
    assert compiled(**{field: value}) == plain
    assert not {*NEW} & plain.definition["tasks"][0].keys()


def test_definitions_of_before_keep_their_content_hash() -> None:
    assert compiled().content_hash == "sha256:d976f54ffac74e3dd646052ecaec735a0e3115aa025331b03dbe1e5baf587064"
    assert compiled(on_worker_loss="adopt").content_hash != compiled().content_hash


@pytest.mark.parametrize(
    ("fields", "pointer", "sentence"),
    [
        ({"on_drain": "later"}, "/tasks/0/on_drain", "none of wait, checkpoint, kill"),
        ({"on_drain": 1}, "/tasks/0/on_drain", "must be a text"),
        ({"on_worker_loss": "adpot"}, "/tasks/0/on_worker_loss", "Did you mean 'adopt'?"),
        ({"on_worker_loss": "adopt", "exclusive": True}, "/tasks/0/on_worker_loss", "contradict each other"),
    ],
)
def test_what_makes_no_sense_is_refused_at_its_place(fields: dict[str, Any], pointer: str, sentence: str) -> None:
    [problem] = refused(**fields)
    assert problem.pointer == pointer
    assert sentence in problem.message


def test_a_plan_that_does_not_use_them_is_stored_as_the_release_before_wrote_it() -> None:
    stored = json.loads(json.dumps(plan_to_json(compiled().plan)))
    assert not {*NEW} & stored["tasks"][0].keys()
    assert plan_from_json(stored) == compiled().plan


def test_a_plan_that_uses_them_survives_its_json() -> None:
    plan = compiled(on_drain="kill", on_worker_loss="adopt").plan
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan


@pytest.mark.parametrize("place", [(), ("resources",), ("retry",)])
def test_a_field_of_a_newer_release_is_refused_with_a_sentence(place: tuple[str, ...]) -> None:
    stored = plan_to_json(compiled().plan)
    there = stored["tasks"][0]
    for name in place:
        there = there[name]
    there["on_full_moon"] = "howl"
    with pytest.raises(ValueError, match=r"'on_full_moon'.* run the newer release"):
        plan_from_json(stored)


@pytest.mark.parametrize("field", ["trigger_rule", "on_drain", "on_worker_loss"])
def test_a_word_of_a_newer_release_is_refused_with_a_sentence(field: str) -> None:
    stored = plan_to_json(compiled().plan)
    stored["tasks"][0][field] = "on_full_moon"
    with pytest.raises(ValueError, match=f"{field} 'on_full_moon'.* run the newer release"):
        plan_from_json(stored)


def test_a_plan_that_lacks_a_part_is_refused_with_a_sentence() -> None:
    stored = plan_to_json(compiled().plan)
    del stored["tasks"][0]["operator"]
    with pytest.raises(ValueError, match="lacks a part of a PlannedTask"):
        plan_from_json(stored)


def test_an_exclusive_task_is_not_adoptable_whatever_its_plan_says() -> None:
    assert not PlannedTask("a", "o", exclusive=True, on_worker_loss="adopt").is_adoptable


def test_the_example_of_the_how_to_compiles() -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "keep-long-tasks-alive.md"
    [example] = re.findall(r"```json\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    [planned] = compile_pipeline(json.loads(example), load_operators(), Site()).plan.tasks
    assert (planned.on_drain, planned.is_adoptable, planned.grace) == ("checkpoint", True, 120.0)
