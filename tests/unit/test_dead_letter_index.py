"""The index of dead letters against a plain list, over a topic that grows, is trimmed and is made anew."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from actors.log.records import LogRecord
from contract.errors import LogGap, NotFound
from contract.events import DeadLetter, LetterSettled, Receipt, encode_json
from serving.dead_letter_index import DeadLetterIndex, LetterFilter


class Topic:
    """The dead-letter topic; counts what is read."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.low = 0
        self.read_records = 0

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        return self.low, len(self.values)

    def read(self, topic: str, partition: int, start: int, most: int, within_s: float) -> Sequence[LogRecord]:
        if start < self.low:
            raise LogGap("trimmed")
        found = [LogRecord(0, start + n, None, value, {}, 0) for n, value in enumerate(self.values[start:][:most])]
        self.read_records += len(found)
        return found

    def close(self) -> None:
        pass


WAITING = LetterFilter()


def letter(offset: int, partition: int = 0, **changes: object) -> DeadLetter:
    fields: dict[str, object] = {
        "collection": "images",
        "image_id": f"image-{offset}",
        "stage": "fetch",
        "code": "object_store_unavailable",
        "reason": "down",
        "retryable": True,
        "attempts": 5,
        "source_topic": "image-events.images",
        "source_partition": partition,
        "source_offset": offset,
        "event": b"{}",
        "failed_at_ms": 1000 + offset,
        "incarnation": "one",
    }
    return DeadLetter(**(fields | changes))  # type: ignore[arg-type]


def settled(offset: int, how: str = "dropped", receipt: Receipt | None = None) -> LetterSettled:
    return LetterSettled(
        collection="images",
        incarnation="one",
        source_partition=0,
        source_offset=offset,
        how=how,  # type: ignore[arg-type]
        receipt=receipt,
        settled_at_ms=5,
    )


def offsets(index: DeadLetterIndex, wanted: LetterFilter = WAITING, limit: int = 1000) -> list[int]:
    return [row.source_offset for row in index.page("images", "one", wanted, None, limit)]


def test_letters_are_listed_newest_first_once_each_and_settled_ones_apart() -> None:
    topic = Topic()
    index = DeadLetterIndex(topic)
    topic.values += [encode_json(letter(n)) for n in (4, 7, 4, 9)]
    topic.values.append(b"no letter")
    topic.values.append(encode_json(letter(7, collection="others")))
    topic.values.append(encode_json(letter(8, incarnation="an earlier life")))
    assert index.follow() == 0
    assert offsets(index) == [9, 7, 4]
    topic.values += [encode_json(settled(7)), encode_json(settled(9, "redriven", Receipt(0, 30)))]
    assert index.follow() == 0
    assert offsets(index) == [4]
    assert offsets(index, LetterFilter(state="dropped")) == [7]
    (again,) = index.page("images", "one", LetterFilter(state="redriven"), None, 10)
    assert (again.source_offset, again.receipt, again.settled_at_ms) == (9, Receipt(0, 30), 5)
    assert offsets(index, LetterFilter(state=None)) == [9, 7, 4]


def test_filters_and_pages_agree_with_a_plain_list() -> None:
    rng = random.Random(5)
    topic = Topic()
    letters = [
        letter(
            n,
            code=rng.choice(["invalid_image", "object_missing"]),
            stage=rng.choice(["fetch", "decode"]),
            retryable=rng.random() < 0.5,
            image_id=rng.choice([None, "a", "b"]),
        )
        for n in range(500)
    ]
    topic.values += [encode_json(one) for one in letters]
    index = DeadLetterIndex(topic)
    index.follow()
    for _ in range(30):
        wanted = LetterFilter(
            code=rng.choice([None, "invalid_image"]),
            stage=rng.choice([None, "decode"]),
            retryable=rng.choice([None, True, False]),
            image_id=rng.choice([None, "a"]),
            since_ms=rng.choice([None, 1000 + rng.randrange(500)]),
            until_ms=rng.choice([None, 1000 + rng.randrange(500)]),
        )
        expected = [
            one.source_offset
            for one in letters
            if (wanted.code in (None, one.code) and wanted.stage in (None, one.stage))
            and wanted.retryable in (None, one.retryable)
            and wanted.image_id in (None, one.image_id)
            and (wanted.since_ms is None or one.failed_at_ms >= wanted.since_ms)
            and (wanted.until_ms is None or one.failed_at_ms < wanted.until_ms)
        ]
        found: list[int] = []
        before: int | None = None
        while rows := index.page("images", "one", wanted, before, 37):
            found += [row.source_offset for row in rows]
            before = rows[-1].place
        assert found == expected[::-1]
        assert [r.source_offset for r in index.stretch("images", "one", wanted, -1, 10**6, 1000)] == expected


def test_a_topic_is_read_once_and_its_length_does_not_matter_to_a_look() -> None:
    topic = Topic()
    topic.values += [encode_json(letter(n)) for n in range(5000)]
    index = DeadLetterIndex(topic)
    while index.follow(0.0):
        index.follow(0.05)
    assert topic.read_records == 5000
    offsets(index)
    index.follow()
    assert topic.read_records == 5000


def test_what_the_topic_no_longer_holds_leaves_the_list() -> None:
    topic = Topic()
    topic.values += [encode_json(letter(n)) for n in range(10)]
    index = DeadLetterIndex(topic)
    index.follow()
    row = index.find("images", "one", 0, 3)
    assert row is not None
    assert index.letter(row).event == b"{}"
    topic.low = 6
    with pytest.raises(NotFound):
        index.letter(row)
    index.follow()
    assert offsets(index) == [9, 8, 7, 6]
    # A topic made anew holds other letters under the same places.
    topic.values, topic.low = [encode_json(letter(77))], 0
    index.follow()
    assert offsets(index) == [77]


def test_a_row_never_shows_the_letter_of_another() -> None:
    topic = Topic()
    topic.values.append(encode_json(letter(1)))
    index = DeadLetterIndex(topic)
    index.follow()
    row = index.find("images", "one", 0, 1)
    assert row is not None
    topic.values = [encode_json(letter(2))]
    with pytest.raises(NotFound):
        index.letter(row)
