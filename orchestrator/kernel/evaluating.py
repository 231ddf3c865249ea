"""How many conditions are worked out in one round of the leader: as many as take a part of a second, by what they read.

Those that are over wait for the next round, the first one first, and the leader does what else there is in between. A
condition whose values are those of the time before, as that of ten thousand indices over one parameter, is worked out
once in a round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ExpressionError
from orchestrator.expressions import Expression, Missing, compile_expression, value_at
from orchestrator.expressions.effort import STEP, Effort
from orchestrator.kernel.leftovers import LeftOver
from orchestrator.states import TaskState

if TYPE_CHECKING:
    from orchestrator.kernel.changes import Changes
    from orchestrator.kernel.nodes import TaskNode

CONDITIONS = "conditions"
"""Reason of a task run whose condition is worked out in the next round."""
CONDITION_ERROR = "condition_error"
"""Reason of what has failed because a condition of it can't be worked out."""
MOST_IN_ROUND = 20_000_000
"""Units that one round may spend (:mod:`orchestrator.expressions.effort`): some 0.2 s."""
_READ, _READ_A_CHARACTER = 3_000, 100
"""What it costs to read an expression that may have been forgotten, and for each of its characters."""
_KNOWN = 1_000
"""Expressions whose latest values are remembered until the round ends."""
_NOWHERE = object()
_PLAIN, _SHORT = (int, bool), 100


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What an expression has come to with these values."""

    expression: Expression
    read: tuple[Any, ...]
    """What stands at each of its references."""
    is_met: bool
    fault: str


class Evaluating(LeftOver):
    """What this round may still spend, and the task runs whose conditions are left over, the first one first."""

    __slots__ = ("_at", "_known", "_left", "_turn")

    def __init__(self) -> None:
        super().__init__()
        self._at = float("-inf")
        self._left = 0
        self._known: dict[str, _Outcome] = {}
        self._turn: TaskNode | None = None

    def may_begin(self, node: TaskNode, now: float) -> bool:
        """Return whether its condition may be worked out in this round; else it waits, behind those that do already.

        All that is decided in a round is decided at the same moment. What is begun is ended, whatever it comes to.
        """
        self._begin(now)
        if self._left > 0 and (node is self._turn or not self._waiting):
            return True
        self.wait(node)
        return False

    def next(self, now: float) -> TaskNode | None:
        """Return who has waited longest, if this round may go on."""
        self._begin(now)
        if self._left <= 0 or not self._waiting:
            return None
        self._turn = self._waiting.pop(next(iter(self._waiting)))
        return self._turn

    def is_met(self, text: str, values: Mapping[str, Any]) -> bool:
        """Work a condition out, and charge the round for it.

        :raises ExpressionError: it can't be read, or worked out.
        """
        known = self._known.get(text)
        if known is None:
            self._left -= _READ + _READ_A_CHARACTER * len(text)
        expression = compile_expression(text) if known is None else known.expression
        self._left -= STEP * len(expression.references)
        read = tuple(_found(values, path) for path in expression.references)
        if known is None or not all(map(_is_same, known.read, read)):
            known = self._worked_out(expression, read, values)
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[text] = known
        if known.fault:
            raise ExpressionError(known.fault)
        return known.is_met

    def _worked_out(self, expression: Expression, read: tuple[Any, ...], values: Mapping[str, Any]) -> _Outcome:
        effort = Effort()
        try:
            return _Outcome(expression, read, bool(expression.evaluate(values, effort)), "")
        except ExpressionError as error:
            return _Outcome(expression, read, False, str(error))
        finally:
            self._left -= effort.spent

    def _begin(self, now: float) -> None:
        if now != self._at:
            self._at, self._left, self._turn = now, MOST_IN_ROUND, None
            self._known.clear()


def may_begin(changes: Changes, node: TaskNode) -> bool:
    """Say whether the condition of a task run may be worked out now; else its turn comes in the next round."""
    if changes.kernel.evaluating.may_begin(node, changes.now):
        return True
    changes.explain(node, CONDITIONS, "The conditions of others come first; its turn is the next.")
    return False


def take_turn(changes: Changes) -> bool:
    """Look again at the one that has waited longest for its condition; says whether there was one."""
    kernel = changes.kernel
    node = kernel.evaluating.next(changes.now)
    if node is None:
        return False
    if kernel.tasks.get(node.id) is not node:
        return True
    if node.state is TaskState.PENDING:
        kernel.unsettled.append(node)
    elif node.inside is not None:
        kernel.advancing[node.id] = node
    return True


def _found(values: Mapping[str, Any], path: tuple[str | int, ...]) -> Any:
    try:
        return value_at(values, path)
    except Missing:
        return _NOWHERE


def _is_same(before: Any, now: Any) -> bool:
    """Say whether it is the same value, in no time: a copy of a large one is another one."""
    if before is now:
        return True
    kind = type(before)
    return kind is type(now) and (kind in _PLAIN or (kind is str and len(before) <= _SHORT)) and bool(before == now)
