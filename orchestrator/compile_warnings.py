"""Finds what is allowed in a definition and most likely meant otherwise; told beside a save, which goes on."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from orchestrator.compile_graph import Placed
from orchestrator.compile_names import ROOTS
from orchestrator.documents import escaped
from orchestrator.errors import ExpressionError, Problem
from orchestrator.expressions import path_text
from orchestrator.expressions.templates import pieces

REASONS = frozenset({
    "artifact_missing", "bad_data", "bad_model", "bad_outputs", "bad_parameters", "bad_query", "bad_script",
    "cancelled", "disk_full", "exception", "exit_code", "failed", "forbidden_address", "forbidden_path",
    "fork_server_lost", "grant", "killed", "lost", "max_queued", "no_interpreter", "no_progress", "not_found", "oom",
    "outputs_too_large", "preempted", "quality_gate", "rate_limited", "registry_refused", "registry_unavailable",
    "silent", "state_too_large", "store_unavailable", "template", "timeout", "too_large", "too_many_processes",
    "unauthorised", "unavailable", "unknown_connection", "unreachable", "unusable_report", "validation_failed",
    "wait_timeout", "worker_lost",
})  # fmt: skip
"""With which attempts end by our own operators and rules; a site's operators and scripts may have others."""
_NEAR = 0.75
"""Alike enough to be the same word mistyped: what differs more is a word of the site's own."""


def task_warnings(tasks: Sequence[Placed], verbatim: Mapping[str, frozenset[str]]) -> Iterator[Problem]:
    """Yield the warnings of all tasks.

    :param verbatim: by task, the parameters in which ``{{`` means nothing.
    """
    for task in tasks:
        for name in sorted(verbatim.get(task.spec.name, ())):
            here = f"{task.pointer}/parameters/{escaped(name)}"
            yield from _left_as_written(task.spec.parameters.get(name), here)
        for at, rule in enumerate((task.spec.retry or {}).get("on", ())):
            yield from _match_warnings(task, rule.get("match", {}), at)


def _left_as_written(text: Any, here: str) -> Iterator[Problem]:
    """Yield the first template of a script that would be one elsewhere: here nothing is put in."""
    try:
        found = pieces(text) if isinstance(text, str) else ()
    except ExpressionError:
        return  # whatever it is, it is no template of ours
    path = next((part for part in found if isinstance(part, tuple) and part[0] in ROOTS and len(part) > 1), None)
    if path is not None:
        yield Problem(
            here,
            f"{{{{ {path_text(path)} }}}} stays as it is written: nothing is put into a script's text. Give it in "
            "'arguments'; the script finds it in ORCHESTRATOR_PARAM_<NAME>, or in the file ORCHESTRATOR_INPUT_FILE.",
        )


def _match_warnings(task: Placed, match: Mapping[str, Any], at: int) -> Iterator[Problem]:
    said = match.get("reason", ())
    for reason in [said] if isinstance(said, str) else said:
        if near := _meant(reason):
            message = f"Nothing of ours ends with the reason {reason!r}. Did you mean {near!r}?"
            yield Problem(f"{task.pointer}/retry/on/{at}/match/reason", message)
    if "exception" in match and task.spec.operator == "custom_script":
        message = "A script's exceptions are not seen from outside, only its exit code; match 'exit_code' or 'reason'."
        yield Problem(f"{task.pointer}/retry/on/{at}/match/exception", message)


@lru_cache(maxsize=1024)
def _meant(reason: str) -> str:
    """Return the reason of ours that is nearly this one; none where it is one itself, or quite another."""
    if reason in REASONS:
        return ""
    return next(iter(difflib.get_close_matches(reason, REASONS, n=1, cutoff=_NEAR)), "")
