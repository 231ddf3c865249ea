"""Finds the rules: the files of ``operators/validation/rules``, and entry points of other packages."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import pkgutil
from collections.abc import Iterator, Mapping

from operators.validation import rules
from operators.validation.port import Rule
from orchestrator.errors import ConfigurationError

ENTRY_POINT_GROUP = "pipeline_orchestrator.validation_rules"


@functools.cache
def load_rules() -> Mapping[str, Rule]:
    """Return one instance of every rule by name.

    :raises ConfigurationError: two rules claim one name, or an entry point is no rule.
    """
    found: dict[str, Rule] = {}
    for kind in [*_built_in(), *_from_entry_points()]:
        if kind.name in found:
            raise ConfigurationError(f"Two validation rules are named {kind.name!r}; rename {kind.__module__}.")
        found[kind.name] = kind()
    return dict(sorted(found.items()))


def _built_in() -> Iterator[type[Rule]]:
    for module in pkgutil.iter_modules(rules.__path__):
        loaded = importlib.import_module(f"{rules.__name__}.{module.name}")
        for _, value in inspect.getmembers(loaded, inspect.isclass):
            if issubclass(value, Rule) and not inspect.isabstract(value) and value.__module__ == loaded.__name__:
                yield value


def _from_entry_points() -> Iterator[type[Rule]]:
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        loaded = point.load()
        if not (inspect.isclass(loaded) and issubclass(loaded, Rule)):
            raise ConfigurationError(f"Entry point {point.name!r} ({point.value}) is not a validation rule.")
        yield loaded
