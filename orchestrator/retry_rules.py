"""The rules of a retry policy: which of them fits how a try ended, and how much memory its next try asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.records import Outcome, RetryPolicy, RetryRule
from orchestrator.states import AttemptState

MIB = 2**20
GIB = 2**30

MORE_MEMORY = RetryRule("retry", reasons=("oom",), memory_factor=1.5)
"""What stands behind the rules of a task whose request is learned (``memory_gb: "auto"``)."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the try asked for, and the most that a host of this site has."""

    memory: int = 0
    """Bytes."""
    auto: bool = False
    """``memory_gb: "auto"``: out of memory asks for more by itself."""
    largest: int = 0
    """Bytes of the largest host; 0: no host is known, so nothing is too much."""
    where: str = ""
    """Its name."""


def reason_of(outcome: Outcome) -> str:
    """Return the word by which a try that did not succeed is known: its own, else what its state says."""
    if outcome.reason:
        return outcome.reason
    if outcome.state is AttemptState.TIMED_OUT:
        return "timeout"
    return "failed" if outcome.state is AttemptState.FAILED else str(outcome.state)


def rule_for(policy: RetryPolicy, outcome: Outcome, asked: Asked) -> RetryRule | None:
    """Return the first rule that fits how the try ended, or ``None``: then it goes as without rules."""
    for rule in policy.rules:
        if fits(rule, outcome):
            return rule
    return MORE_MEMORY if asked.auto and fits(MORE_MEMORY, outcome) else None


def fits(rule: RetryRule, outcome: Outcome) -> bool:
    """Say whether all conditions that the rule names hold; each is met by any one of its values."""
    if rule.reasons and reason_of(outcome) not in rule.reasons:
        return False
    if rule.exit_codes and outcome.exit_code not in rule.exit_codes:
        return False
    if rule.exceptions and not any(_is_named(outcome.exception, name) for name in rule.exceptions):
        return False
    message = outcome.message.casefold()
    return not rule.messages or any(text.casefold() in message for text in rule.messages)


def _is_named(exception: str, name: str) -> bool:
    """Say whether the class is called so, with its module or without."""
    return bool(exception) and name in {exception, exception.rpartition(".")[2]}


def next_memory(rule: RetryRule, asked: Asked) -> int | None:
    """Return the bytes that the next try asks for by this rule, ``None`` for what it asked before.

    - Never less than before, and never more than the rule's own limit.
    - A learned request stops at the largest host, as long as that is more than before.
    """
    if rule.memory is not None:
        wanted = rule.memory
    elif rule.memory_factor is not None:
        wanted = math.ceil(asked.memory * rule.memory_factor / MIB) * MIB
    else:
        return None
    if rule.memory_max is not None:
        wanted = min(wanted, rule.memory_max)
    if rule is MORE_MEMORY and asked.memory < asked.largest:
        wanted = min(wanted, asked.largest)
    return max(wanted, asked.memory)


def too_much(memory: int, asked: Asked) -> str:
    """Return why no host can serve a try that asks for so many bytes, or nothing."""
    if not asked.largest or memory <= asked.largest:
        return ""
    return (
        f"It asked for {asked.memory / GIB:.4g} GiB of memory and the next try would ask for {memory / GIB:.4g} GiB; "
        f"the largest host, {asked.where}, has {asked.largest / GIB:.4g} GiB. Make the task smaller, or add a larger "
        "host."
    )
