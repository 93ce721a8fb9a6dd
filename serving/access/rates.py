"""How many requests a key, or an address without one, may make: a token bucket for each."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

# Buckets that are kept; the one that was not asked for longest goes first, and is full when it comes back.
_BUCKETS_MAX = 10_000


class Rates:
    """Token buckets of one process: each fills with `per_s` tokens a second up to `burst`. Not for several threads."""

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`per_s` of 0 limits nothing."""
        self._per_s = per_s
        self._burst = float(burst)
        self._clock = clock
        # Tokens, and when they were counted.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> float:
        """Take a token of the bucket `name`: 0 if there was one, else the seconds until there is."""
        if self._per_s <= 0:
            return 0.0
        now = self._clock()
        tokens, counted_at = self._buckets.pop(name, (self._burst, now))
        tokens = min(self._burst, tokens + (now - counted_at) * self._per_s)
        wait_s = 0.0 if tokens >= 1 else (1 - tokens) / self._per_s
        self._buckets[name] = (tokens if wait_s else tokens - 1, now)
        if len(self._buckets) > _BUCKETS_MAX:
            self._buckets.popitem(last=False)
        return wait_s
