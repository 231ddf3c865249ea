"""Where users' paths may lead: inside the named data roots of the site, and nowhere else."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from orchestrator.config import Settings
from orchestrator.errors import ForbiddenPath

_ENCODED = re.compile(r"%(2e|2f|5c|00)", re.IGNORECASE)
_MAX_PATH = 4096


class DataRoots:
    """Resolves what a user wrote to a real path inside a root, or refuses with :class:`ForbiddenPath`.

    A user path is one of

    - ``sub/x.csv``: looked for in the roots in their order; what is in none, and what is to be written, belongs to
      the first root;
    - ``name:sub/x.csv``: in the root of that name;
    - ``/folder/sub/x.csv``: allowed when it lies in a root.

    Links are followed first, so a link that leads out of its root is refused.
    """

    def __init__(self, roots: Mapping[str, Path], scripts_root: Path | None = None) -> None:
        self._written = dict(roots)
        self._roots = {name: Path(os.path.realpath(folder)) for name, folder in roots.items()}
        self._scripts = Path(os.path.realpath(scripts_root)) if scripts_root is not None else None

    @classmethod
    def from_settings(cls, settings: Settings) -> DataRoots:
        """Take the roots of ``DATA_ROOTS`` and ``SCRIPTS_ROOT``."""
        return cls(settings.effective_data_roots, settings.scripts_root)

    @property
    def names(self) -> tuple[str, ...]:
        """The roots' names, in the order in which they are searched."""
        return tuple(self._roots)

    def resolve(self, user_path: str, for_writing: bool = False) -> Path:
        """Return the real path; it may not exist.

        :param for_writing: the path is to be created or replaced: relative ones go to the first root.
        :raises ForbiddenPath: it leaves the roots, or is no plain path.
        """
        _refuse_malformed(user_path)
        if not self._roots:
            raise ForbiddenPath(f"{user_path!r} can't be used: this site has no data roots; set DATA_ROOTS.")
        if user_path.startswith("/"):
            return self._absolute(user_path)
        name, colon, rest = user_path.partition(":")
        if colon:
            return self._named(user_path, name, rest)
        candidates = [_inside(root, user_path) for root in self._roots.values()]
        allowed = [path for path in candidates if path is not None]
        existing = [path for path in allowed if path.exists()]
        chosen = candidates[0] if for_writing else next(iter(existing or allowed), None)
        return self._regular(user_path, chosen)

    def uri(self, path: Path) -> str:
        """Return ``<root>:<relative path>`` of a resolved path: the same on every host that has the root.

        :raises ForbiddenPath: it lies in no root.
        """
        real = Path(os.path.realpath(path))
        for name, root in self._roots.items():
            if real.is_relative_to(root):
                return f"{name}:{real.relative_to(root).as_posix()}"
        raise ForbiddenPath(f"{path} lies in none of the data roots ({', '.join(self._roots)}).")

    def root_of(self, user_path: str) -> str:
        """Return the name of the root that this path names or lies in, as it is written; empty: any of them.

        Looks at no file.
        """
        if user_path.startswith("/"):
            folders = ((name, folder) for named in (self._written, self._roots) for name, folder in named.items())
            return next((name for name, folder in folders if Path(user_path).is_relative_to(folder)), "")
        name, colon, _ = user_path.partition(":")
        return name if colon and name in self._roots else ""

    def script(self, path: str) -> Path:
        """Return the real path of a script inside the scripts root.

        :raises ForbiddenPath: there is no scripts root, or the path leaves it.
        """
        _refuse_malformed(path)
        if self._scripts is None:
            raise ForbiddenPath(f"The script {path!r} can't be used: this site has no SCRIPTS_ROOT.")
        found = _inside(self._scripts, path)
        if found is None:
            raise ForbiddenPath(f"The script {path!r} leaves the scripts root; name a file inside it.")
        return self._regular(path, found)

    def _absolute(self, user_path: str) -> Path:
        real = Path(os.path.realpath(user_path))
        inside = real if any(real.is_relative_to(root) for root in self._roots.values()) else None
        return self._regular(user_path, inside)

    def _named(self, user_path: str, name: str, rest: str) -> Path:
        if name not in self._roots:
            raise ForbiddenPath(f"{user_path!r} names no data root; this site has {', '.join(self._roots)}.")
        if not rest or rest.startswith("/"):
            raise ForbiddenPath(f"{user_path!r}: after the root's name comes a path relative to it.")
        return self._regular(user_path, _inside(self._roots[name], rest))

    def _regular(self, user_path: str, path: Path | None) -> Path:
        """Refuse what is outside, and what is there but neither a file nor a folder (a pipe would block us)."""
        if path is None:
            raise ForbiddenPath(
                f"{user_path!r} leads out of the data roots ({', '.join(self._roots)}); put the file in one of them or "
                "add its folder to DATA_ROOTS."
            )
        try:
            mode = path.stat().st_mode
        except OSError:
            return path
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ForbiddenPath(f"{user_path!r} is neither a file nor a folder.")
        return path


def _refuse_malformed(user_path: str) -> None:
    """Refuse every spelling that some layer may read as another path than we do."""
    if not user_path.strip() or len(user_path) > _MAX_PATH:
        raise ForbiddenPath(f"A path must have between 1 and {_MAX_PATH} characters.")
    if any(ord(character) < 32 or ord(character) == 127 for character in user_path):
        raise ForbiddenPath(f"{user_path!r} holds control characters.")
    if "\\" in user_path or _ENCODED.search(user_path):
        raise ForbiddenPath(f"{user_path!r} holds a backslash or a percent-encoded dot or slash; write it plainly.")
    if user_path.startswith("~") or "://" in user_path:
        raise ForbiddenPath(f"{user_path!r} is no path inside a data root: neither '~' nor a URL is.")
    if any(segment == ".." for segment in re.split(r"[/:]", user_path)):
        raise ForbiddenPath(f"{user_path!r} holds '..'; write the path without it.")
    try:
        user_path.encode()
    except UnicodeEncodeError as error:
        raise ForbiddenPath("A path must be valid Unicode.") from error


def _inside(root: Path, relative: str) -> Path | None:
    real = Path(os.path.realpath(root / relative))
    return real if real.is_relative_to(root) else None
