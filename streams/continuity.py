"""Whether a worker gets every event of its partitions: an acknowledgement behind a hole would be one for the hole, too.

At a rebalance Faust may drop what it had buffered and go on behind it. Where the events were another worker's
meanwhile nothing is missing, which cannot be told from here; a worker that starts anew reads from what is
committed either way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from contract.errors import LogGap, NotFound, Unavailable
from contract.telemetry import LogField
from streams.outcome import SourceEvent
from streams.redriven import ReadEvents

_log = structlog.get_logger()


class Continuity:
    """Follows the events of a worker, batch after batch. For one event loop."""

    def __init__(self, read: ReadEvents) -> None:
        self._read = read
        self._next: dict[tuple[str, int], int] = {}

    async def check(self, events: Sequence[SourceEvent]) -> None:
        """Return if no event was passed over. Events that come again are no hole.

        Raises Unavailable for a hole, and BrokerUnavailable (retryable) where it cannot be seen whether one is there.
        """
        for event in events:
            place = (event.collection, event.partition)
            expected = self._next.get(place, event.offset)
            if event.offset > expected and await self._holds_events(place, expected, event.offset):
                raise Unavailable(
                    f"partition {event.partition} of {event.collection!r} goes on at {event.offset}, not at {expected}"
                )
            self._next[place] = max(expected, event.offset + 1)

    async def _holds_events(self, place: tuple[str, int], start: int, end: int) -> bool:
        """Whether there are events from `start` up to `end`. Offsets of a producer's transactions hold none."""
        try:
            records = await asyncio.to_thread(self._read, *place, start, 1)
        except LogGap as error:
            # Not ours to find: the retention of the topic is shorter than the worker is behind.
            _log.error("events are gone before they were read", **{LogField.ERROR: error.detail})
            return False
        except NotFound:
            return False  # the collection was dropped
        return not records or records[0].offset < end
