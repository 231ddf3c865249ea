"""Placement: the ledger of what is held where, the choice of a worker for a task, and why there is none."""

from orchestrator.placement.ask import Ask, Choice, Wait
from orchestrator.placement.ledger import Ledger
from orchestrator.placement.policy import choose, could_ever_fit, suits
from orchestrator.placement.why import explain

__all__ = ["Ask", "Choice", "Ledger", "Wait", "choose", "could_ever_fit", "explain", "suits"]
