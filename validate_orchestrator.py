"""Checks the architecture and the configuration of this checkout: ``python3 validate_orchestrator.py``.

The seed's command. It needs no service: the import contracts, the layout, the settings of the present environment, the
Celery settings that correctness rests on, the operators and the transition table. Exits 1 and names what is wrong.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
NEEDED = ("celery", "jsonschema", "click", "sqlalchemy")


def layout() -> Iterator[str]:
    """Every folder and file that DESIGN's layout names is there."""
    for name in (
        "setup.cfg",
        "Makefile",
        "README.md",
        "CHANGELOG.md",
        "celeryconfig.py",
        "main.py",
        "requirements.txt",
        "orchestrator",
        "api",
        "scheduler",
        "workers",
        "operators",
        "compose",
        "examples",
        "benchmarks",
        "docs/states.md",
        "docs/adr",
        "tests/unit",
        "tests/contract",
        "tests/integration",
        "tests/acceptance",
        "tests/architecture",
    ):
        if not (ROOT / name).exists():
            yield f"{name} is missing"


def imports() -> Iterator[str]:
    """The import contracts hold (import-linter); skipped with a word where it is not installed."""
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        print("  (import-linter is not installed here; `make check` runs the contracts)")
        return
    result = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        yield result.stdout.strip()[-2000:]


def settings() -> Iterator[str]:
    """The settings of the present environment can be read."""
    from orchestrator.config import load_settings
    from orchestrator.errors import ConfigurationError

    try:
        load_settings()
    except ConfigurationError as error:
        yield str(error)


def celery_settings() -> Iterator[str]:
    """The Celery settings that DESIGN measured are the ones in ``celeryconfig.py``."""
    import celeryconfig

    required = {
        "task_acks_late": False,
        "worker_disable_prefetch": True,
        "worker_prefetch_multiplier": 1,
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,
        "task_ignore_result": True,
        "task_create_missing_queues": False,
        "accept_content": ["json"],
        "task_serializer": "json",
    }
    for name, value in required.items():
        if getattr(celeryconfig, name, "(missing)") != value:
            yield f"celeryconfig.{name} must be {value!r}, is {getattr(celeryconfig, name, '(missing)')!r}"
    if celeryconfig.broker_transport_options.get("ack_emulation") is not False:
        yield "celeryconfig.broker_transport_options['ack_emulation'] must be False"
    if getattr(celeryconfig, "result_backend", None) is not None:
        yield "celeryconfig.result_backend must not be set"


def operators() -> Iterator[str]:
    """Every operator loads and states valid JSON Schemas."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    from orchestrator.registry import load_operators

    for name, operator in load_operators().items():
        for schema in (operator.parameters_schema, operator.outputs_schema):
            try:
                Draft202012Validator.check_schema(dict(schema))
            except SchemaError as error:
                yield f"operator {name}: {error.message}"


def transitions() -> Iterator[str]:
    """No terminal state has a way out, and every state can be reached."""
    from orchestrator import states

    terminal = {
        states.Entity.RUN: states.RUN_TERMINAL,
        states.Entity.TASK_RUN: states.TASK_TERMINAL,
        states.Entity.ATTEMPT: states.ATTEMPT_TERMINAL,
    }
    for entity, ends in terminal.items():
        for state in ends & set(states.TRANSITIONS[entity]):
            yield f"{entity} {state} is terminal but has transitions"


CHECKS: dict[str, Callable[[], Iterator[str]]] = {
    "layout": layout,
    "import contracts": imports,
    "settings": settings,
    "Celery settings": celery_settings,
    "operators": operators,
    "transition table": transitions,
}


def main() -> int:
    """Run every check, print a line for each, and return the number of those that failed (at most 1)."""
    failed = False
    for name, check in CHECKS.items():
        try:
            problems = list(check())
        except ImportError as error:
            problems = [f"{error}; run `make .venv` and then `.venv/bin/python validate_orchestrator.py`"]
        print(f"{'FAIL' if problems else 'ok  '} {name}")
        for problem in problems:
            print(f"       {problem}")
        failed = failed or bool(problems)
    return int(failed)


def _use_the_environment_of_make() -> None:
    """Start again with the Python that `make` has set up, where this one lacks the dependencies."""
    python = ROOT / ".venv" / "bin" / "python"
    if all(importlib.util.find_spec(name) for name in NEEDED):
        return
    if not python.exists() or Path(sys.prefix) == ROOT / ".venv":
        sys.exit("The dependencies are not installed for this Python; `make .venv` installs them, then run this again.")
    os.execv(python, [str(python), str(Path(__file__).resolve()), *sys.argv[1:]])


if __name__ == "__main__":
    _use_the_environment_of_make()
    sys.exit(main())
