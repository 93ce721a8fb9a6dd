"""The checker of tests/chaos accepts a good history and finds each planted violation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from tests.chaos.checker import check
from tests.chaos.history import (
    Event,
    FinalImage,
    FinalLetter,
    FinalListing,
    History,
    Receipt,
    Search,
    Write,
    read_history,
)

A1 = Write(
    kind="upload",
    image_id="a",
    version=1,
    picture=11,
    start_s=0,
    end_s=1,
    outcome="ok",
    status=202,
    receipt=Receipt(0, 5),
)
A2 = msgspec.structs.replace(A1, version=2, picture=12, start_s=2, end_s=3, receipt=Receipt(0, 7))
A_GONE = msgspec.structs.replace(A2, kind="delete", version=0, start_s=4, end_s=5, receipt=Receipt(0, 9))
CUT = msgspec.structs.replace(
    A2, version=3, picture=13, start_s=6, end_s=7, outcome="unknown", status=None, receipt=None
)
FOUND = Search(
    image_id="a",
    picture=12,
    start_s=3.1,
    end_s=3.2,
    status=200,
    limit=3,
    hits=("a", "b"),
    shards_total=2,
    shards_answered=2,
    applied_offsets={0: 8, 1: 3},
)
A2_LETTER = FinalLetter(image_id="a", receipt=Receipt(0, 7), code="object_store_unavailable", retryable=True)
A2_MISSED = msgspec.structs.replace(FOUND, hits=("b",))
OLD_AND_REJECTED = FinalImage(image_id="a", version=1, found=True, rejection_offset=7)
THERE = FinalImage(image_id="a", version=2, found=True)
GONE = FinalImage(image_id="a", version=None, found=False)


E = TypeVar("E", bound=Event)


def but(event: E, **changes: object) -> E:
    return msgspec.structs.replace(event, **changes)


def end(final: FinalImage = THERE, ids: Sequence[str] = ("a",), points: int | None = None) -> list[Event]:
    return [final, FinalListing(ids=tuple(ids), points=len(ids) if points is None else points)]


GOOD: dict[str, list[Event]] = {
    "uploaded twice and found": [A1, A2, FOUND, *end()],
    "deleted": [
        A1,
        A2,
        FOUND,
        A_GONE,
        but(FOUND, start_s=5.5, end_s=5.6, hits=("b",), applied_offsets={0: 9}),
        *end(GONE, ()),
    ],
    "not applied yet": [A1, A2, but(FOUND, hits=("b",), applied_offsets={0: 6, 1: 3}), *end()],
    "its shard did not answer, and the answer says so": [
        A1,
        A2,
        but(FOUND, hits=(), shards_answered=1, degraded=True, applied_offsets={1: 3}),
        *end(),
    ],
    "a write beside the search": [A1, but(A2, start_s=3.0, end_s=3.15), but(FOUND, hits=()), *end()],
    "cut off, and done": [A1, A2, CUT, *end(FinalImage(image_id="a", version=3, found=True))],
    "cut off, and not done": [A1, A2, CUT, *end()],
    "refused for now": [A1, A2, but(CUT, outcome="refused", status=503, retryable=True), *end()],
    "reported rejected, and the picture before it is still there": [
        A1,
        A2,
        A2_MISSED,
        A2_LETTER,
        *end(OLD_AND_REJECTED),
    ],
    "answered as rejected": [
        A1,
        but(A2, outcome="rejected", status=422, code="image_rejected", retryable=False),
        A2_LETTER,
        *end(OLD_AND_REJECTED),
    ],
    "a dead letter, and accepted when it was read again": [A1, A2, FOUND, A2_LETTER, *end()],
    "never more than rejected, and its payload changed": [
        but(A1, receipt=Receipt(0, 7)),
        but(A2, kind="patch", picture=11, receipt=Receipt(0, 8)),
        but(A2_MISSED, picture=11),
        A2_LETTER,
        *end(but(GONE, rejection_offset=7), ()),
    ],
    "rejected, and deleted": [A1, A2, A_GONE, A2_LETTER, *end(GONE, ())],
    "cut off, and rejected": [
        A1,
        CUT,
        but(A2_LETTER, receipt=Receipt(0, 8)),
        *end(but(OLD_AND_REJECTED, rejection_offset=8)),
    ],
    "a search that was refused for now": [A1, A2, but(FOUND, status=503, retryable=True, hits=()), *end()],
}

BAD: dict[str, tuple[str, list[Event]]] = {
    "lost upload": ("is lost", [A1, A2, *end(GONE, ())]),
    "older version": ("cannot be", [A1, A2, *end(FinalImage(image_id="a", version=1, found=True))]),
    "resurrected delete": ("came back", [A1, A2, A_GONE, *end()]),
    "duplicate hit": ("hits twice", [A1, A2, but(FOUND, hits=("a", "a")), *end()]),
    "undeclared partial answer": ("does not say so", [A1, A2, but(FOUND, shards_answered=1), *end()]),
    "claimed and not found": ("receipt is applied", [A1, A2, but(FOUND, hits=("b",)), *end()]),
    "deleted and returned": (
        "whose deletion",
        [A1, A2, A_GONE, but(FOUND, start_s=6, end_s=7, applied_offsets={0: 9}), *end(GONE, ())],
    ),
    "min_receipt not waited for": (
        "did not wait",
        [A1, A2, but(FOUND, min_receipt=Receipt(0, 7), applied_offsets={0: 6}), *end()],
    ),
    "write refused for ever": (
        "not retryable",
        [A1, A2, but(CUT, outcome="refused", status=404, retryable=False), *end()],
    ),
    "search refused for ever": ("not retryable", [A1, A2, but(FOUND, status=500, retryable=False), *end()]),
    "receipts that go back": ("go back", [A1, but(A2, receipt=Receipt(0, 4)), *end()]),
    "acknowledged without a receipt": ("without a receipt", [but(A1, receipt=None), A2, *end()]),
    "listed twice": ("2 times", [A1, A2, *end(THERE, ("a", "a"), 1)]),
    "listed and unknown": ("nobody knows", [A1, A2, *end(THERE, ("a", "z"), 1)]),
    "not listed": ("lacks", [A1, A2, *end(THERE, (), 1)]),
    "a point too many": ("2 points for 1", [A1, A2, *end(THERE, ("a",), 2)]),
    "there, and a search does not find it": ("finds it: False", [A1, A2, *end(but(THERE, found=False))]),
    "gone, and a search finds it": ("finds it: True", [A1, A2, A_GONE, *end(but(GONE, found=True), ())]),
    "rejected and no dead letter": (
        "is no dead letter",
        [A1, but(A2, outcome="rejected", status=422, code="image_rejected"), *end(OLD_AND_REJECTED)],
    ),
    "rejected for good": ("for good", [A1, A2, but(A2_LETTER, retryable=False), *end(OLD_AND_REJECTED)]),
    "a dead letter of another event explains nothing": (
        "receipt is applied",
        [A1, A2, A2_MISSED, but(A2_LETTER, receipt=Receipt(0, 5)), *end()],
    ),
    "a dead letter, and a page that tells of none": (
        "tells of a rejection at None",
        [A1, A2, A2_LETTER, *end(but(OLD_AND_REJECTED, rejection_offset=None))],
    ),
    "lost in spite of a dead letter of its successor": (
        "is lost",
        [A1, A2, A2_LETTER, *end(but(GONE, rejection_offset=7), ())],
    ),
    "not looked at": ("not looked at", [A1, A2, FinalListing(ids=("a",), points=1)]),
    "no end": ("no end", [A1, A2]),
}


@pytest.mark.parametrize("events", GOOD.values(), ids=GOOD.keys())
def test_a_kept_promise_is_no_violation(events: list[Event]) -> None:
    assert check(events) == []


@pytest.mark.parametrize(("told", "events"), BAD.values(), ids=BAD.keys())
def test_a_planted_violation_is_found(told: str, events: list[Event]) -> None:
    broken = check(events)
    assert broken
    assert any(told in one for one in broken), broken


def test_a_history_is_the_same_when_it_is_read_again(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    for event in (A1, A2, FOUND, *end()):
        history.add(event)
    assert read_history((tmp_path / "history.jsonl").read_bytes().splitlines()) == history.events
