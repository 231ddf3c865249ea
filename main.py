"""Starts the whole system on this host: the seed's ``python3 main.py``, the same as ``make up``."""

from __future__ import annotations

import importlib.util
import os
import sys

NEEDED = ("click", "psycopg2", "celery", "flask", "sqlalchemy", "orchestrator")
HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - readable by the oldest Python 3 as well


def main() -> None:
    """Hand over to the one-host command, or say in one sentence why that can't be."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this line is for those who have an older one
        sys.exit(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}. Run it with a newer python3.")
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        _use_the_environment_of_make()
    from orchestrator.local.command import main as command

    command([*(sys.argv[1:] or ["up"])], prog_name="main.py")


def _use_the_environment_of_make() -> None:
    """Start again with the Python that `make` has set up; a sentence if it has not."""
    python = os.path.join(HERE, ".venv", "bin", "python")  # noqa: PTH118
    if not os.path.exists(python) or sys.prefix == os.path.join(HERE, ".venv"):  # noqa: PTH110, PTH118
        sys.exit("The dependencies are not installed for this Python; `make up` installs them in .venv and starts all.")
    os.execv(python, [python, os.path.abspath(__file__), *sys.argv[1:]])  # noqa: PTH100


if __name__ == "__main__":
    main()
