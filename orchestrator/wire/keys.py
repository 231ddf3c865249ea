"""The names of all our keys in Redis, made from the one prefix of the site."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys under ``REDIS_TASK_QUEUE``; Celery's own keys get the same prefix (``global_keyprefix``)."""

    namespace: str

    @property
    def prefix(self) -> str:
        return f"{self.namespace}:"

    @property
    def events(self) -> str:
        """Stream of reports to the scheduler: claims, outcomes, goodbyes, wakes."""
        return f"{self.prefix}ev"

    @property
    def logs(self) -> str:
        """Stream of log chunks on their way to the artifact store."""
        return f"{self.prefix}logs"

    @property
    def live(self) -> str:
        """Set of the incarnations that have a heartbeat."""
        return f"{self.prefix}live"

    @property
    def generation(self) -> str:
        """Counter that the leader raises every second; missing or lower means that Redis was reset."""
        return f"{self.prefix}gen"

    @property
    def standby(self) -> str:
        """Written by standbys to learn whether Redis would take something from them."""
        return f"{self.prefix}standby"

    def heartbeat(self, incarnation: str) -> str:
        return f"{self.prefix}hb:{incarnation}"

    def reply(self, incarnation: str) -> str:
        """List of replies to one worker: grants, denials, answers."""
        return f"{self.prefix}reply:{incarnation}"

    def desired(self, incarnation: str) -> str:
        """What the leader wants of one worker, rewritten at every heartbeat it reads."""
        return f"{self.prefix}desired:{incarnation}"

    def progress(self, attempt_id: str) -> str:
        return f"{self.prefix}progress:{attempt_id}"

    def logged(self, attempt_id: str) -> str:
        """How many bytes of an attempt's log are stored without a gap, as its collector says."""
        return f"{self.prefix}logged:{attempt_id}"

    def queue(self, queue: str) -> str:
        """The list that Celery keeps a queue's messages in (at normal priority, the only one we use)."""
        return f"{self.prefix}{queue}"


def own_queue(incarnation: str) -> str:
    """Return the queue that only this incarnation consumes."""
    return f"w.{incarnation}"


def broker_url(redis_url: str) -> str:
    """Return REDIS_URL as Celery spells it: a socket is ``redis+socket://`` there and its database another word."""
    parts = urlsplit(redis_url)
    if parts.scheme != "unix":
        return redis_url
    database = parse_qs(parts.query).get("db", ["0"])[0]
    return f"redis+socket://{parts.netloc}{parts.path}?virtual_host={database}"
