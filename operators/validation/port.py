"""The port of a validation rule: how it is written, and what it asks of a table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from orchestrator.operator import Json

if TYPE_CHECKING:
    import polars as pl

Schema = Mapping[str, "pl.DataType"]


@dataclass(frozen=True, slots=True)
class Check:
    """One use of a rule."""

    rule: str
    name: str
    """What the report calls it; unique among the checks of a task."""
    columns: tuple[str, ...]
    severity: str
    """``error`` or ``warning``."""
    settings: Mapping[str, Json] = field(default_factory=dict)
    """The rule's own properties."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a table rule found."""

    passed: bool
    observed: Json
    message: str


class Rule(ABC):
    """Something a dataset can break. Stateless; one file in ``operators/validation/rules`` or an entry point."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """A sentence for the reference: what breaks the rule."""
    properties: ClassVar[Mapping[str, Json]] = {}
    """JSON Schema of each setting, with a description."""
    required: ClassVar[Sequence[str]] = ()
    needs_columns: ClassVar[bool] = True

    @classmethod
    def problems(cls, settings: Mapping[str, Json]) -> list[tuple[str, str]]:
        """Return what JSON Schema can't say: ``(pointer inside the rule, sentence)``."""
        return []


class RowRule(Rule):
    """A rule that single rows break."""

    @abstractmethod
    def broken(self, check: Check, column: str, schema: Schema) -> pl.Expr:
        """Return an expression that is true in the rows whose value in ``column`` breaks the rule; null means no."""


class TableRule(Rule):
    """A rule about the table as a whole. Broken with severity ``error`` it fails the task whatever the error rate."""

    @abstractmethod
    def measures(self, check: Check, schema: Schema) -> Mapping[str, pl.Expr]:
        """Return aggregates to compute in the same pass, by name; none when the schema alone decides."""

    @abstractmethod
    def judge(self, check: Check, schema: Schema, measured: Mapping[str, Json]) -> Verdict:
        """Say whether the table passes, from the values of :meth:`measures`."""
