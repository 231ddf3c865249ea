"""Which of PostgreSQL's errors mean "not now", and what a client is told of them; the others are faults of the call."""

from __future__ import annotations

from collections.abc import Mapping

import psycopg2

READ_ONLY = "25006"
DISK_FULL = "53100"

_PASSING_CLASSES = frozenset({"08", "40", "53", "57", "58"})
"""First two digits: connection, rollback by conflict, resources, operator intervention, system error."""
_PASSING = frozenset({READ_ONLY, "25P03", "25P04", "55P03"})
"""A server that only reads; transactions that idled or lasted too long; a lock that was not given in time."""

_OF_THE_SERVER = frozenset({READ_ONLY, DISK_FULL, "53300", "57P01", "57P02", "57P03"})
"""What no other call would have been spared: no room on its disk, no connection left, demoted, starting or stopping."""

_SENTENCES: Mapping[str, str] = {
    READ_ONLY: "The database only reads at the moment (a standby, or a failover is under way).",
    DISK_FULL: "The database's disk is full; what is not yet stored is refused until there is room.",
    "53200": "The database has run out of memory.",
    "53300": "The database takes no more connections.",
    "53400": "The database has reached a limit that is set on it.",
    "57P01": "The database is being stopped.",
    "57P02": "The database is starting again after a crash.",
    "57P03": "The database is starting or stopping.",
    "57014": "The database took too long over it.",
    "55P03": "Something else held the rows for too long.",
}


def sqlstate(error: BaseException | None) -> str:
    """Return the server's five-character code; empty when the error is the driver's own."""
    return str(getattr(error, "pgcode", None) or "")


def is_away(error: BaseException | None) -> bool:
    """Say whether the same call may succeed later: no answer, or one that speaks of the server and not of the call."""
    if code := sqlstate(error):
        return code in _PASSING or code[:2] in _PASSING_CLASSES
    return isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError))


def speaks_of_server(error: BaseException | None) -> bool:
    """Say whether a smaller call would have been refused too; all that took too long, or was too much, may not."""
    return sqlstate(error) in _OF_THE_SERVER


def explain(error: BaseException | None) -> str:
    """Return what a client may know of it; empty when that is nothing more than "no answer"."""
    return _SENTENCES.get(sqlstate(error), "")
