"""A worker's right to publish: lost once it has stood still so long that its partitions may be another worker's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from contract.errors import Unavailable

_LOOK_EVERY_S = 0.5


class Lease:
    """Notices gaps in this process's own time: a stopped process, a suspended machine, a blocked event loop.

    Kafka gives the partitions of a worker that was not heard of for a session to another one, and refuses the
    first one's commits from then on, but not its records. What it still had in hand would stand in the embedding
    log behind the records of its successor. So a worker that slept longer than `limit_s` publishes nothing more
    and ends; its events are its successor's.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float]) -> None:
        """`limit_s` must be below the group's session time-out; `clock` is monotonic, in seconds."""
        self._limit_s = limit_s
        self._clock = clock
        self._seen_s = clock()
        self.lost: Unavailable | None = None

    def check(self) -> None:
        """Raise Unavailable if the process stood still for too long, now or ever before."""
        now_s = self._clock()
        if self.lost is None and now_s - self._seen_s > self._limit_s:
            self.lost = Unavailable(
                f"this worker stood still for {now_s - self._seen_s:.1f} s; its partitions may be another worker's"
            )
        self._seen_s = now_s
        if self.lost is not None:
            raise self.lost

    async def keep(self) -> None:
        """Look at the time again and again; ends by raising what `check` raises."""
        while True:
            self.check()
            await asyncio.sleep(_LOOK_EVERY_S)
