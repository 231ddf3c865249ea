"""Runs between fork and exec of a supervised child: ties its life to the supervisor's and gives up root where asked.

A script of its own, run as ``python -I -S launch.py PARENT SIGNAL USER COMMAND…``, because ``Popen(preexec_fn=…)`` runs
Python in the forked child of a threaded process, and because changing the user clears the parent-death signal: the
order here matters. Costs about 15 ms per child. The signal follows the *thread* that started the child, so children
are started from a thread that lives as long as its process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Become the command in ``arguments``; leave with 127 when that is not possible."""
    parent, death_signal, user, *command = arguments
    if user != "-":
        _become(user)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != int(parent):  # it died before the signal was armed
        sys.exit(127)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        os.execve(command[0], command, os.environ)
    except OSError as error:
        print(f"{command[0]} can't be run: {error.strerror}.", file=sys.stderr)
        sys.exit(127)


def _become(user: str) -> None:
    import pwd

    account = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


if __name__ == "__main__":
    main(sys.argv[1:])
