"""The kernel's process controls that Python's standard library does not have: ``prctl``, and what builds on it."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}): {os.strerror(code)}")


def become_subreaper() -> None:
    """Make this process the parent of its descendants' orphans."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Be killed when the parent's *thread* that forked us ends; so only a single-threaded parent may fork us.

    :param parent: its pid; if it is gone already, we end at once.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def forbid_new_privileges() -> None:
    """Make setuid programs run without their privileges, for us and all our descendants."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def offer_to_the_oom_killer() -> None:
    """Let the kernel kill this tree before the worker, when the whole host is out of memory."""
    with suppress(OSError):  # a hardened container may refuse; the ceiling of the tree is watched anyway
        Path("/proc/self/oom_score_adj").write_text("800")


def leave_processes_to_others() -> None:
    """Keep a fork bomb from taking the last processes of this account, which the worker needs to end it.

    The kernel counts per account, and compares with the limit of whoever forks: a lower one for tasks leaves the rest
    to the worker. It holds for no privileged account.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NPROC, (task_processes(soft), hard))


def task_processes(limit: int) -> int:
    """Return how many of an account's processes its tasks may fill: all but a reserve."""
    return limit if limit == resource.RLIM_INFINITY else limit - min(256, limit // 4)


def close_all_but(keep: set[int]) -> None:
    """Close every file descriptor above 2 except these."""
    low = 3
    for fd in [*sorted(fd for fd in keep if fd > 2), os.sysconf("SC_OPEN_MAX")]:
        os.closerange(low, fd)
        low = fd + 1
