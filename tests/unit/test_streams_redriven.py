"""Whether a redriven event was overtaken between the look of the API and its place in the log."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from actors.log.records import LogRecord
from contract.errors import BrokerUnavailable, LogGap, RedriveRefused
from contract.events import ImageDeleted, ImageEvent, PayloadUpdated, Redrive, encode_json
from streams.outcome import SourceEvent
from streams.redriven import NewerEvents
from tests.unit.ingest_fakes import upload


class Source:
    """One partition of image-events, and how often it was read."""

    def __init__(self, events: Sequence[ImageEvent | bytes], first: int = 0) -> None:
        values = [event if isinstance(event, bytes) else encode_json(event) for event in events]
        self.records = [LogRecord(0, first + n, None, value, {}, 0) for n, value in enumerate(values)]
        self.first = first
        self.read_records = 0
        self.slice_max = 2
        self.away = False

    def __call__(self, collection: str, partition: int, start: int, most: int) -> Sequence[LogRecord]:
        assert (collection, partition) == ("images", 0)
        if self.away:
            return []
        if start < self.first:
            raise LogGap("trimmed")
        found = self.records[start - self.first :][: min(most, self.slice_max)]
        self.read_records += len(found)
        return found


def event_at(offset: int) -> SourceEvent:
    return SourceEvent("images", 0, offset, 0, b"")


def looked(newer_from: int) -> Redrive:
    return Redrive(source_offset=0, newer_from=newer_from, attempts=1, redrives=1)


A, B = upload("a", b"1"), upload("b", b"2")


@pytest.mark.parametrize("newer", [A, ImageDeleted("images", "a", 1), PayloadUpdated("images", "a", {"n": 1}, 1)])
async def test_any_newer_event_of_the_image_refuses_it_and_those_of_others_do_not(newer: ImageEvent) -> None:
    check = NewerEvents(Source([A, B, b"no event", newer, B, A])).check
    await check(event_at(3), looked(1), "a")
    with pytest.raises(RedriveRefused, match="offset 3"):
        await check(event_at(5), looked(1), "a")
    with pytest.raises(RedriveRefused, match="offset 0"):
        await check(event_at(5), looked(0), "a")
    await check(event_at(5), looked(4), "a")
    await check(event_at(4), looked(2), "b")


async def test_what_one_had_read_serves_the_next() -> None:
    source = Source([upload(f"i{n}", b"") for n in range(100)])
    newer = NewerEvents(source)
    for offset in range(50, 100):
        await newer.check(event_at(offset), looked(10), f"i{offset}")
    assert source.read_records == 89


async def test_what_cannot_be_known_is_refused_and_what_cannot_be_read_now_is_tried_again() -> None:
    source = Source([A, B, A], first=100)
    with pytest.raises(RedriveRefused, match="trimmed"):
        await NewerEvents(source).check(event_at(102), looked(99), "a")
    with pytest.raises(RedriveRefused, match="looked through"):
        await NewerEvents(source).check(event_at(90_000), looked(0), "a")
    with pytest.raises(RedriveRefused):
        await NewerEvents(source).check(event_at(101), looked(102), "a")
    source.away = True
    with pytest.raises(BrokerUnavailable):
        await NewerEvents(source).check(event_at(102), looked(100), "a")
