"""Rate limits: a token bucket per caller, in the memory of this process.

Several API processes each allow the rate; a site that needs one limit for all puts it into its proxy.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

_MOST_CALLERS = 10_000


class Throttle:
    """Lets each caller do ``rate`` requests per second on average, and twice as many at once.

    :param clock: monotonic seconds.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = max(1.0, 2 * rate)
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, caller: str, cost: float = 1.0, *, take: bool = True) -> float:
        """Take from the caller's bucket; return 0, or the seconds until there is enough in it again.

        :param take: whether to take it, or only to ask whether it is there.
        """
        if self._rate <= 0:
            return 0.0
        with self._lock:
            now = self._clock()
            level, at = self._buckets.pop(caller, (self._burst, now))
            level = min(self._burst, level + (now - at) * self._rate)
            short = cost - level
            self._buckets[caller] = (level - cost if take and short <= 0 else level, now)
            if len(self._buckets) > _MOST_CALLERS:
                # The caller not seen for longest has the fullest bucket: forgetting it gives away the least.
                self._buckets.popitem(last=False)
        return short / self._rate if short > 0 else 0.0
