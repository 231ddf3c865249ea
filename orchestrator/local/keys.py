"""The secrets of a one-host system: made once, kept in one file for its owner only, told apart from settings."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

from orchestrator.local.secret_file import write_secret

NAMES = ("SECRET_KEY", "ADMIN_KEY", "WORKER_KEY", "FLOWER_PASSWORD")
FILE_NAME = "keys.env"


def read_keys(data_dir: Path) -> Mapping[str, str]:
    """Return the keys kept in the data folder; empty when there are none."""
    try:
        lines = (data_dir / FILE_NAME).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def keep_keys(data_dir: Path, environment: Mapping[str, str]) -> Mapping[str, str]:
    """Return all keys: the environment's where it has one, else the kept one, else a new one, which is then kept."""
    kept = dict(read_keys(data_dir))
    missing = [name for name in NAMES if name not in kept and not environment.get(name, "").strip()]
    if missing:
        kept |= {name: secrets.token_urlsafe(32) for name in missing}
        header = "# Made by the one-host command; delete this file to have new keys made at the next start.\n"
        write_secret(data_dir / FILE_NAME, header + "".join(f"{name}={kept[name]}\n" for name in NAMES if name in kept))
    return {name: environment.get(name, "").strip() or kept[name] for name in NAMES}
