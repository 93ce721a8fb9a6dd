"""What happened, as records that outlive the run: one JSON object a line, in the order in which things ended.

Times are seconds of the monotonic clock of the machine that ran the workload.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

Outcome = Literal["ok", "rejected", "refused", "unknown"]
"""`ok`: acknowledged. `rejected`: answered that the event was logged, and led to nothing. `refused`: answered with an
error that says nothing was done. `unknown`: perhaps done."""


class Receipt(Struct, frozen=True):
    """Where an event lies in image-events."""

    partition: int
    offset: int


class Write(Struct, frozen=True, tag="write", kw_only=True):
    """An upload, a deletion or a change of a payload. Writes of one id never overlap.

    `version` is what the payload of the id says after it; 0 after a deletion. `picture` is the seed of the picture
    that the id shows after it (of an upload) or showed before it.
    """

    kind: Literal["upload", "delete", "patch"]
    image_id: str
    version: int
    picture: int
    start_s: float
    end_s: float
    outcome: Outcome
    status: int | None = None
    code: str | None = None
    retryable: bool | None = None
    receipt: Receipt | None = None


class Search(Struct, frozen=True, tag="search", kw_only=True):
    """A search by the picture of `image_id`, and what its answer claimed. `status` None: the connection was cut."""

    image_id: str
    picture: int
    start_s: float
    end_s: float
    status: int | None
    limit: int
    min_receipt: Receipt | None = None
    code: str | None = None
    retryable: bool | None = None
    hits: tuple[str, ...] = ()
    shards_total: int = 0
    shards_answered: int = 0
    degraded: bool | str = False
    applied_offsets: dict[int, int] = {}


class FaultEvent(Struct, frozen=True, tag="fault", kw_only=True):
    """A fault begins, ends, or the system says (`/readyz`) that it is whole again."""

    fault: str
    phase: Literal["applied", "healed", "whole"]
    at_s: float


class FinalImage(Struct, frozen=True, tag="final_image", kw_only=True):
    """What the whole system says of one id at the end. `version` None: not there."""

    image_id: str
    version: int | None
    found: bool
    """Whether a search by the picture it last showed has it among the hits."""
    rejection_offset: int | None = None
    """Offset of the last rejected upload that its page shows."""


class FinalLetter(Struct, frozen=True, tag="final_letter", kw_only=True):
    """A dead letter at the end: the event at this receipt was reported to have led to nothing.

    A worker that ends between the letter and its marker reads the event again, and may then accept it.
    """

    image_id: str
    receipt: Receipt
    code: str
    retryable: bool


class FinalListing(Struct, frozen=True, tag="final_listing", kw_only=True):
    """All ids that the listing has at the end, and the points that the shards count."""

    ids: tuple[str, ...]
    points: int


Event = Write | Search | FaultEvent | FinalImage | FinalLetter | FinalListing


class History:
    """Appends events to a file and keeps them. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Event] = []
        self._lock = threading.Lock()
        path.write_bytes(b"")

    def add(self, event: Event) -> None:
        """Write one event; it is in the file when this returns."""
        with self._lock, self.path.open("ab") as file:
            self.events.append(event)
            file.write(msgspec.json.encode(event) + b"\n")


def read_history(lines: Iterable[bytes]) -> list[Event]:
    """The events of a history file, for a checker that runs later or elsewhere."""
    decoder = msgspec.json.Decoder(Event)
    return [decoder.decode(line) for line in lines if line.strip()]
