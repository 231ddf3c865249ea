"""What a definition may say and most likely means otherwise is warned of, and saved all the same."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.compile import Site, compile_pipeline
from orchestrator.registry import load_operators

OPERATORS = load_operators([])


def warnings(parameters: dict[str, Any] | None = None, **fields: Any) -> dict[str, str]:
    given = {"script_content": "print(1)", **(parameters or {})}
    task = {"name": "t", "operator": "custom_script", "parameters": given, **fields}
    compiled = compile_pipeline({"name": "p", "tasks": [task]}, OPERATORS, Site())
    return {problem.pointer: problem.message for problem in compiled.warnings}


def test_a_template_in_a_script_is_told_to_stay_as_it_is_written() -> None:
    found = warnings({"script_type": "bash", "script_content": "echo {{ params.s }} {{ run.id }}"})
    assert list(found) == ["/tasks/0/parameters/script_content"]
    assert "{{ params.s }} stays as it is written" in found["/tasks/0/parameters/script_content"]
    assert "ORCHESTRATOR_PARAM_<NAME>" in found["/tasks/0/parameters/script_content"]
    for script in ("docker ps --format '{{.Names}}'", "print(f'{{{x}}}')", "{{ item }}", "{{ not closed", "print({})"):
        assert warnings({"script_content": script}) == {}, script


@pytest.mark.parametrize(
    ("match", "pointer", "words"),
    [
        ({"reason": "ooom"}, "reason", "Did you mean 'oom'?"),
        ({"reason": ["oom", "time_out"]}, "reason", "Did you mean 'timeout'?"),
        ({"exception": "ValueError"}, "exception", "match 'exit_code' or 'reason'"),
    ],
)
def test_a_retry_rule_that_will_never_fit_is_told(match: dict[str, Any], pointer: str, words: str) -> None:
    found = warnings(retry={"on": [{"match": match, "action": "retry"}]})
    assert list(found) == [f"/tasks/0/retry/on/0/match/{pointer}"]
    assert words in found[f"/tasks/0/retry/on/0/match/{pointer}"]


def test_a_reason_of_the_sites_own_is_no_mistake() -> None:
    for reason in ("oom", "weekend", "model_is_worse", "bad_outputs"):
        assert warnings(retry={"on": [{"match": {"reason": reason}, "action": "skip"}]}) == {}
