"""Whether an event that is sent again from its dead letter has been overtaken meanwhile.

Before it is sent, the API has seen that its image has no newer event up to an offset. What was logged
between that offset and the place where the event stands is looked at here, in the log itself.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Protocol

from actors.log.ranges import RangeReader
from actors.log.records import LogRecord
from contract.errors import BrokerUnavailable, EventInvalid, LogGap, RedriveRefused
from contract.events import Redrive, decode_event
from contract.settings import Settings
from contract.topics import image_events_topic
from streams.outcome import SourceEvent

# More than this between the look and the event, and the redrive is refused: the operator sends it again.
_WINDOW_MAX = 20_000
_READ_RECORDS = 500
_READ_WITHIN_S = 5.0

ReadEvents = Callable[[str, int, int, int], Sequence[LogRecord]]
"""(collection, partition, start, most) → events from `start` on. Blocks."""


class Overtaken(Protocol):
    """Says whether a redriven event may take effect."""

    async def check(self, event: SourceEvent, redrive: Redrive, image_id: str) -> None:
        """Return if nothing newer is there; raises RedriveRefused, BrokerUnavailable (retryable)."""


class NewerEvents:
    """Implements `Overtaken` on the log. For one event loop.

    Redriven events come in a row, so that what one had read serves the next: per partition one stretch of
    the log is kept, as offsets by image id, never more than `_WINDOW_MAX` of them.
    """

    def __init__(self, read: ReadEvents) -> None:
        self._read = read
        self._stretches: dict[tuple[str, int], _Stretch] = {}
        self._reading = asyncio.Lock()

    async def check(self, event: SourceEvent, redrive: Redrive, image_id: str) -> None:
        """Return if no event of `image_id` stands between `redrive.newer_from` and the event.

        Raises:
            RedriveRefused: there is one, or the stretch is too long or no longer in the log.
            BrokerUnavailable: retryable.
        """
        if not 0 <= redrive.newer_from <= event.offset or event.offset - redrive.newer_from > _WINDOW_MAX:
            raise RedriveRefused(
                f"{event.offset - redrive.newer_from} events stand between the redriven event and the look "
                f"for newer ones; at most {_WINDOW_MAX} are looked through"
            )
        place = (event.collection, event.partition)
        async with self._reading:
            stretch = self._stretches.get(place)
            if stretch is None or not stretch.may_hold(redrive.newer_from, event.offset):
                stretch = self._stretches[place] = _Stretch(redrive.newer_from)
            while stretch.end < event.offset:
                most = min(_READ_RECORDS, event.offset - stretch.end)
                try:
                    records = await asyncio.to_thread(self._read, *place, stretch.end, most)
                except LogGap as error:
                    raise RedriveRefused(f"whether the image has a newer event is unknown: {error.detail}") from error
                if not records:
                    raise BrokerUnavailable(f"{image_events_topic(event.collection)} gave no records in time")
                for record in records:
                    stretch.add(record)
        newer = stretch.first_of(image_id, redrive.newer_from)
        if newer is not None and newer < event.offset:
            raise RedriveRefused(f"image {image_id!r} has a newer event at offset {newer}")


class _Stretch:
    """Offsets by image id from `start` up to `end`."""

    def __init__(self, start: int) -> None:
        self._start = start
        self.end = start
        self._offsets: dict[str, list[int]] = {}

    def may_hold(self, start: int, end: int) -> bool:
        """Whether it begins early enough, and would not grow too long."""
        return self._start <= start <= self.end and end - self._start <= _WINDOW_MAX

    def add(self, record: LogRecord) -> None:
        self.end = record.offset + 1
        try:
            image_id = decode_event(record.value or b"").image_id
        except EventInvalid:
            return  # it names no image, and will have no effect
        self._offsets.setdefault(image_id, []).append(record.offset)

    def first_of(self, image_id: str, start: int) -> int | None:
        offsets = self._offsets.get(image_id, [])
        index = bisect_left(offsets, start)
        return offsets[index] if index < len(offsets) else None


def events_reader(settings: Settings) -> tuple[ReadEvents, Callable[[], None]]:
    """How `NewerEvents` reads the real log, and how to release that connection."""
    reader = RangeReader(settings, "riverlens-redriven")

    def read(collection: str, partition: int, start: int, most: int) -> Sequence[LogRecord]:
        return reader.read(image_events_topic(collection), partition, start, most, _READ_WITHIN_S)

    return read, reader.close
