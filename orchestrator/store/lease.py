"""Leadership: one row, one holder, an epoch that rises at every take-over (DESIGN §4).

Why it is safe: every writing transaction first locks the lease row at its own epoch ``FOR KEY SHARE``. The epoch is
part of a unique key, so a take-over (which changes it) needs ``FOR UPDATE`` and waits for every open transaction of
the old epoch, while a renewal (which changes no key) waits for nobody. A leader that froze after its check therefore
either still holds the row, and nobody has taken over, or finds no row at its epoch and writes nothing.

Why it is live: the row expires on the database's clock. Should that clock jump back, a standby that has watched the
row stay unchanged for longer than its life, on its own monotonic clock, takes over all the same. Should it jump ahead,
every lease has expired at once; so a standby lets half of its life pass without a renewal first, which a living leader
makes sooner than that: a take-over would shift all timers by the jump (I14).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Engine, text

from orchestrator.errors import LostLeadership

ROLE = "scheduler"

_CREATE = text(
    "INSERT INTO leases (role, epoch, holder, expires_at) VALUES (:role, 0, '', clock_timestamp()) "
    "ON CONFLICT (role) DO NOTHING"
)
_LOOK = text(
    "SELECT epoch, holder, renewed_at, expires_at < clock_timestamp() AS expired, "
    "CAST(extract(epoch FROM expires_at - renewed_at) AS float8) AS life FROM leases WHERE role = :role"
)
_TAKE = text(
    "UPDATE leases SET epoch = epoch + 1, holder = :holder, acquired_at = clock_timestamp(), "
    "renewed_at = clock_timestamp(), expires_at = clock_timestamp() + :ttl * interval '1 second' "
    "WHERE role = :role AND epoch = :epoch AND renewed_at = :renewed RETURNING epoch"
)
_RENEW = text(
    "UPDATE leases SET renewed_at = clock_timestamp(), "
    "expires_at = clock_timestamp() + :ttl * interval '1 second' "
    "WHERE role = :role AND epoch = :epoch AND holder = :holder"
)
_STEP_DOWN = text(
    "UPDATE leases SET expires_at = least(renewed_at, clock_timestamp()) "
    "WHERE role = :role AND epoch = :epoch AND holder = :holder"
)
_LOCK = text("SELECT 1 FROM leases WHERE role = :role AND epoch = :epoch FOR KEY SHARE")


@dataclass(frozen=True, slots=True)
class Seen:
    """The lease row as a standby last saw it change, and when on its own monotonic clock."""

    epoch: int
    renewed_at: datetime
    since: float


class Lease:
    """The lease as one process sees it: a standby until :meth:`acquire` succeeds, the leader until it is lost.

    :param holder: random name of this process; shown by the API as the leader.
    :param ttl: seconds the lease lives without renewal.
    """

    def __init__(
        self, engine: Engine, holder: str, ttl: float, *, role: str = ROLE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._seen: Seen | None = None
        self._trusted_until = 0.0
        self.holder = holder
        self.ttl = ttl
        self.role = role
        self.epoch = 0

    @property
    def seen_epoch(self) -> int | None:
        """The epoch that :meth:`acquire` has found last."""
        return self._seen.epoch if self._seen else None

    def acquire(self, *, deaf_epoch: int | None = None) -> bool:
        """Take the lease over if it has expired, or has stood still for longer than it lives; say whether it is ours.

        :param deaf_epoch: take it from the leader of this epoch although he renews it: he can do nothing else.
        :raises StoreUnavailable: PostgreSQL does not answer, or an open transaction of the old epoch holds the row.
        """
        asked = self._clock()
        with self._engine.begin() as connection:
            connection.execute(_CREATE, {"role": self.role})
            row = connection.execute(_LOOK, {"role": self.role}).one()
            if self._seen is None or (self._seen.epoch, self._seen.renewed_at) != (row.epoch, row.renewed_at):
                self._seen = Seen(row.epoch, row.renewed_at, asked)
            if row.epoch != deaf_epoch and not self._may_take(row.expired, row.life, asked - self._seen.since):
                return False
            taken = connection.execute(
                _TAKE,
                {
                    "role": self.role,
                    "holder": self.holder,
                    "ttl": self.ttl,
                    "epoch": row.epoch,
                    "renewed": row.renewed_at,
                },
            ).scalar()
        if taken is None:
            return False
        self.epoch = int(taken)
        self._trusted_until = asked + self.ttl - self._margin
        return True

    def _may_take(self, expired: bool, life: float, unchanged: float) -> bool:
        """Say whether nobody holds the lease: given back, expired and not renewed, or standing still.

        :param life: seconds between its last renewal and its end.
        :param unchanged: seconds that we have seen it so, by our own clock.
        """
        return life <= 0.0 or (expired and unchanged >= life / 2) or unchanged > self.ttl + 0.5

    def renew(self) -> None:
        """Extend the lease. An expired lease nobody has taken may be extended: the epoch is the fence, not the time.

        :raises LostLeadership: another process has taken over.
        """
        asked = self._clock()
        with self._engine.begin() as connection:
            renewed = connection.execute(
                _RENEW, {"role": self.role, "epoch": self.epoch, "holder": self.holder, "ttl": self.ttl}
            ).rowcount
        if renewed != 1:
            self._trusted_until = 0.0
            raise LostLeadership(f"Another scheduler has taken over from epoch {self.epoch}; this one stands by.")
        self._trusted_until = asked + self.ttl - self._margin

    def trusted(self) -> bool:
        """Say whether the lease can't have expired yet, counted from before the request that got it."""
        return self._clock() < self._trusted_until

    def step_down(self) -> None:
        """Let the lease expire now, so that a standby takes over at once; harmless when it is no longer ours."""
        self._trusted_until = 0.0
        with self._engine.begin() as connection:
            connection.execute(_STEP_DOWN, {"role": self.role, "epoch": self.epoch, "holder": self.holder})

    @property
    def _margin(self) -> float:
        return min(1.0, 0.1 * self.ttl)


def lock_epoch(connection: Connection, epoch: int, *, role: str = ROLE) -> None:
    """Hold the lease row at this epoch until the transaction ends; the first statement of every writing transaction.

    :raises LostLeadership: the epoch is over.
    """
    if connection.execute(_LOCK, {"role": role, "epoch": epoch}).first() is None:
        raise LostLeadership(f"Epoch {epoch} is over: another scheduler leads. Nothing was written.")
