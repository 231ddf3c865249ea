"""Where the one-host system's API listens, kept in the data folder for the command line."""

from __future__ import annotations

from pathlib import Path

DEFAULT = "http://127.0.0.1:8001"
FILE_NAME = "address"


def keep_address(data_dir: Path, url: str) -> None:
    """Remember the address of the API."""
    (data_dir / FILE_NAME).write_text(f"{url}\n", encoding="utf-8")


def read_address(data_dir: Path) -> str:
    """Return the remembered address, or the default one."""
    try:
        return (data_dir / FILE_NAME).read_text(encoding="utf-8").strip() or DEFAULT
    except OSError:
        return DEFAULT
