"""How far the shards are behind `image-events`, in messages, and how long they will take: by what they say themselves.

A look is made at most once a second, however many uploads ask; between two looks the receipts of this very
replica tell where the log ends.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from msgspec import Struct
from pydantic import BaseModel, Field

from actors.messages import ShardStatus
from contract.events import Receipt

# A look serves for so long.
LOOK_S = 1.0
# The pace is that of the last busy stretch, no further back than this.
_PACE_S = 30.0
# A shorter stretch says nothing about the pace.
_PACE_MIN_S = 0.5


class LagBody(BaseModel):
    """Events that are logged and not searchable yet, and how long that will take at the pace of late."""

    messages: int = Field(description="Events in `image-events` that are not applied; of a receipt, those before it.")
    drain_s: float | None = Field(description="Estimated seconds until they are; null while nothing moves.")


class Lag(Struct, frozen=True):
    """Messages that are not applied, and the estimated seconds until they are; None while nothing moves."""

    messages: int
    drain_s: float | None

    def body(self) -> LagBody:
        """As it stands in answers; seconds to the millisecond."""
        return LagBody(messages=self.messages, drain_s=None if self.drain_s is None else round(self.drain_s, 3))


@dataclass(slots=True)
class _Known:
    """Of one collection: per partition, the offset that is applied and the one after the last event."""

    looked_at: float = float("-inf")
    applied: dict[int, int] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)
    # (when, applied) of the looks since the shards fell behind, and the pace they had, in events a second.
    looks: deque[tuple[float, dict[int, int]]] = field(default_factory=deque)
    pace: dict[int, float] = field(default_factory=dict)

    def lag(self, partition: int) -> int:
        return max(0, self.ends.get(partition, 0) - self.applied.get(partition, -1) - 1)


class Lags:
    """What the looks say, by collection and incarnation. For one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[tuple[str, str], _Known] = {}

    def needs_look(self, name: str, incarnation: str) -> bool:
        """Whether the last look is too old."""
        return self._clock() - self._of(name, incarnation).looked_at >= LOOK_S

    def observe(self, name: str, incarnation: str, reports: Iterable[ShardStatus]) -> Lag:
        """Take note of what the replicas that answer say; of a partition, the one that is farthest counts."""
        known, now = self._of(name, incarnation), self._clock()
        for report in reports:
            for partition, offset in report.freshness.applied_offsets.items():
                known.applied[partition] = max(offset, known.applied.get(partition, -1))
            for partition, end in report.high_watermarks.items():
                known.ends[partition] = max(end, known.ends.get(partition, 0))
        known.looked_at = now
        self._pace(known, now)
        return self.lag(name, incarnation)

    def logged(self, name: str, incarnation: str, receipt: Receipt) -> Lag:
        """Take note of an event that was logged; the lag of its receipt: what stands before it."""
        known = self._of(name, incarnation)
        partition = receipt.partition
        known.ends[partition] = max(receipt.offset + 1, known.ends.get(partition, 0))
        ahead = max(0, receipt.offset - known.applied.get(partition, -1) - 1)
        return Lag(ahead, _seconds(ahead, known.pace.get(partition, 0.0)))

    def lag(self, name: str, incarnation: str) -> Lag:
        """Of the whole collection, as far as is known."""
        known = self._of(name, incarnation)
        messages = sum(known.lag(partition) for partition in known.ends)
        return Lag(messages, _seconds(messages, sum(known.pace.values())))

    def keep(self, live: Iterable[tuple[str, str]]) -> None:
        """Forget every other collection."""
        wanted = set(live)
        self._known = {key: known for key, known in self._known.items() if key in wanted}

    def _of(self, name: str, incarnation: str) -> _Known:
        return self._known.setdefault((name, incarnation), _Known())

    @staticmethod
    def _pace(known: _Known, now: float) -> None:
        """While there is a lag, what is applied is all that can be: that is the pace. At rest it tells of arrivals."""
        if known.looks and now - known.looks[0][0] >= _PACE_MIN_S:
            since, before = known.looks[0]
            known.pace = _rates(before, known.applied, now - since)
        if not any(known.lag(partition) for partition in known.ends):
            known.looks.clear()
        known.looks.append((now, dict(known.applied)))
        while now - known.looks[0][0] > _PACE_S:
            known.looks.popleft()


def _rates(before: Mapping[int, int], after: Mapping[int, int], seconds: float) -> dict[int, float]:
    # A partition that is first seen now began at -1 at the latest.
    return {partition: max(0, offset - before.get(partition, offset)) / seconds for partition, offset in after.items()}


def _seconds(messages: int, pace: float) -> float | None:
    if messages == 0:
        return 0.0
    return messages / pace if pace > 0 else None
