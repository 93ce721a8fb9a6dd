"""Which replica of a shard is asked, and when a second one is: pure rules, with the chance injected."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from random import Random

# Below this, a hedge would come about with every hiccup of a processor, and gain nothing that anyone notices.
_HEDGE_MIN_S = 0.005
# Leaves the second call as much time as the first one had.
_HEDGE_MAX_SHARE = 0.5
# Latencies that the percentile is taken of, and how many are needed before it says anything.
_RECENT = 128
_ENOUGH = 20
# The percentile is found anew after this many answers: sorting at every call costs more than it tells.
_EVERY = 16


def choose(in_flight: Sequence[int], among: Sequence[int], random: Random) -> int:
    """One replica of `among`: the less busy of two that are drawn; the first drawn where they are equally busy.

    Two choices keep the longest queue near the shortest, as one draw does not; and callers that know
    only their own calls do not all run to the same replica, as they do to the least busy one.

    Args:
        in_flight: Calls under way per replica.
        among: Replicas that may be asked; not empty.
        random: Draws the two.

    Source: Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, IEEE TPDS 12(10), 2001.
    """
    if len(among) == 1:
        return among[0]
    first, second = random.sample(among, 2)
    return second if in_flight[second] < in_flight[first] else first


class RecentLatencies:
    """The p95 of a shard's recent calls, in seconds."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._p95_s: float | None = None
        self._until_next = _ENOUGH

    def add(self, seconds: float) -> None:
        """A call took this long; one that was given up took at least this long."""
        self._recent.append(seconds)
        self._until_next -= 1
        if self._until_next <= 0:
            ranked = sorted(self._recent)
            self._p95_s = ranked[math.ceil(0.95 * len(ranked)) - 1]
            self._until_next = _EVERY

    def p95_s(self) -> float | None:
        """The nearest-rank percentile; None while too few calls were made."""
        return self._p95_s


class HedgeBudget:
    """Allows at most one second call for every `every` first ones, and `burst` at once.

    A shard that is slow because it has too much to do gets that much more to do, and no more.

    Source: Dean and Barroso, The Tail at Scale, CACM 56(2), 2013: hedging after the p95 costs about 5 % more calls.
    """

    def __init__(self, every: int = 20, burst: int = 5) -> None:
        self._every = every
        self._most = every * burst
        self._earned = self._most

    def earn(self) -> None:
        """A first call is made."""
        self._earned = min(self._most, self._earned + 1)

    def take(self) -> bool:
        """Whether a second call may be made; if so, it is paid for."""
        if self._earned < self._every:
            return False
        self._earned -= self._every
        return True


def hedge_after_s(p95_s: float | None, deadline_s: float) -> float:
    """How long a call is waited for before a second replica is asked; `p95_s` is of its shard's recent calls."""
    most_s = deadline_s * _HEDGE_MAX_SHARE
    return most_s if p95_s is None else min(max(p95_s, _HEDGE_MIN_S), most_s)
