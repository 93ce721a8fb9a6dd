"""When a process that ended by itself is started again, and when that is given up. Plain Python."""

from __future__ import annotations

from collections import deque

_PAUSE_FIRST_S = 0.5
_PAUSE_MAX_S = 10.0


class Restarts:
    """Back-off and a bound: `most` restarts of one process within `window_s` seconds, each pause twice the one before.

    A bound over a window tells a process that dies now and then from one that cannot run at all:
    the second one would otherwise hide its error in an endless row of starts.
    """

    def __init__(self, most: int, window_s: float) -> None:
        self._most = most
        self._window_s = window_s
        self._ends: dict[str, deque[float]] = {}

    def ended(self, name: str, now: float) -> float | None:
        """Seconds to wait before `name`, which ended at `now` (monotonic), is started again; None to give up."""
        ends = self._ends.setdefault(name, deque())
        while ends and ends[0] <= now - self._window_s:
            ends.popleft()
        if len(ends) >= self._most:
            return None
        ends.append(now)
        return float(min(_PAUSE_FIRST_S * 2 ** (len(ends) - 1), _PAUSE_MAX_S))
