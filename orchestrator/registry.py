"""Finds operators: the built-in package, entry points, and files in the folders of ``OPERATORS_PATH``.

Names come from this static registry only; nothing is ever imported by a name found in data.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from orchestrator.errors import ConfigurationError
from orchestrator.operator import Operator

ENTRY_POINT_GROUP = "pipeline_orchestrator.operators"
BUILT_IN_PACKAGE = "operators"


def load_operators(folders: Sequence[Path] = ()) -> Mapping[str, type[Operator]]:
    """Return every operator class by name.

    :param folders: folders whose ``*.py`` files hold operators of the site (``OPERATORS_PATH``).
    :raises ConfigurationError: two classes claim one name, or a file can't be imported.
    """
    found: dict[str, type[Operator]] = {}
    for operator in [*built_in_operators(), *_from_entry_points(), *_from_folders(folders)]:
        known = found.setdefault(operator.name, operator)
        if known is not operator:
            raise ConfigurationError(
                f"Two operators are named {operator.name!r}: {known.__module__} and {operator.__module__}; rename one."
            )
    return dict(sorted(found.items()))


def built_in_operators() -> Iterator[type[Operator]]:
    """Yield the operators of the built-in package."""
    package = importlib.import_module(BUILT_IN_PACKAGE)
    for module in pkgutil.iter_modules(package.__path__):
        if not module.ispkg and not module.name.startswith("_"):
            yield from _operators_in(importlib.import_module(f"{BUILT_IN_PACKAGE}.{module.name}"))


def _from_entry_points() -> Iterator[type[Operator]]:
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            loaded = point.load()
        except Exception as error:
            raise ConfigurationError(
                f"Entry point {point.name!r} ({point.value}) can't be loaded: {error!r}."
            ) from error
        if not (inspect.isclass(loaded) and issubclass(loaded, Operator)):
            raise ConfigurationError(f"Entry point {point.name!r} ({point.value}) is not an Operator class.")
        yield loaded


def _from_folders(folders: Sequence[Path]) -> Iterator[type[Operator]]:
    for folder in folders:
        if not folder.is_dir():
            raise ConfigurationError(f"OPERATORS_PATH names {folder}, which is not a folder; create it or unset it.")
        for file in sorted(folder.glob("*.py")):
            spec = importlib.util.spec_from_file_location(f"site_operators.{file.stem}", file)
            if spec is None or spec.loader is None:
                raise ConfigurationError(f"{file} can't be imported as a Python module.")
            module = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except Exception as error:
                raise ConfigurationError(f"The operator file {file} failed to import: {error!r}.") from error
            yield from _operators_in(module)


def _operators_in(module: ModuleType) -> Iterator[type[Operator]]:
    for _, value in inspect.getmembers(module, inspect.isclass):
        if issubclass(value, Operator) and not inspect.isabstract(value) and value.__module__ == module.__name__:
            yield value


@lru_cache(maxsize=512)
def operator_version(operator: type[Operator]) -> str:
    """Return what differs when the operator may compute another result: part of the key of cached results.

    Its own ``version``, if it says one; else a digest of its code: of the whole package that it lies in, or of its one
    file. Libraries that it imports from elsewhere are not in it: an operator for which they count says a ``version``.
    """
    if operator.version:
        return str(operator.version)
    digest = hashlib.sha256()
    for file in _code_of(operator):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _code_of(operator: type[Operator]) -> list[Path]:
    # By its code: a file of OPERATORS_PATH is no module that could be found by its name.
    own = Path(inspect.unwrap(operator.run).__code__.co_filename)
    if not own.is_file():
        return []
    package = operator.__module__.partition(".")[0]
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        found = None
    folders = [Path(place) for place in (found.submodule_search_locations or ())] if found is not None else []
    inside = next((folder for folder in folders if own.is_relative_to(folder)), None)
    return [own] if inside is None else sorted(inside.rglob("*.py"))
