"""Stand-ins for what surrounds the ingest pipeline: objects, embedder, log, clock."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from actors.call_context import current_request_ids
from actors.log.producer import OutgoingRecord
from actors.log.records import LogRecord
from actors.messages import EncoderDescription, FloatMatrix, Pixels, PreprocessSpec
from contract.errors import (
    BrokerUnavailable,
    EmbedderUnavailable,
    EncodingFailed,
    ObjectMissing,
    ObjectStoreUnavailable,
    RedriveRefused,
)
from contract.events import CollectionSpec, ImageEvent, ImageUploaded, Redrive, encode_json
from contract.topics import partition_of
from streams.outcome import SourceEvent

PARTITIONS = 2
SPEC = CollectionSpec(
    name="images",
    incarnation="one",
    partitions=PARTITIONS,
    shards=1,
    replicas=1,
    model="tiny",
    fingerprint="f" * 16,
    dimension=4,
    created_at_ms=0,
)
PREPROCESS = PreprocessSpec(8, "fit", "bicubic", 0.0, (255, 255, 255), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def png(seed: int) -> bytes:
    """A small picture whose mean colour depends on `seed`."""
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (seed * 37 % 256, seed * 91 % 256, seed % 256)).save(out, "PNG")
    return out.getvalue()


def upload(image_id: str, data: bytes, **payload: object) -> ImageUploaded:
    """An upload whose bytes lie under their own hash."""
    sha256 = hashlib.sha256(data).hexdigest()
    return ImageUploaded("images", image_id, sha256, sha256, len(data), 1, payload=dict(payload))


class FakeLog:
    """An embedding log and a dead-letter topic in memory; keeps order, and can be made to fail."""

    def __init__(self) -> None:
        self.records: list[OutgoingRecord] = []
        self.refusals = 0
        self.crash_after: int | None = None

    async def send_all(self, records: Sequence[OutgoingRecord]) -> list[int]:
        """Append; a crash takes the first few records and dies before it confirms them."""
        await asyncio.sleep(0)
        if self.refusals:
            self.refusals -= 1
            raise BrokerUnavailable("refused on purpose")
        for record in records:
            if self.crash_after is not None:
                if self.crash_after == 0:
                    raise Crash
                self.crash_after -= 1
            self.records.append(record)
        return list(range(len(records)))

    def of(self, topic: str) -> list[OutgoingRecord]:
        """Records of one topic."""
        return [record for record in self.records if record.topic == topic]


class Crash(BaseException):
    """The process dies here."""


class FakeObjects:
    """Bytes by key; every key fails `hiccups` times first."""

    def __init__(self, hiccups: int = 0) -> None:
        self.data: dict[str, bytes] = {}
        self._hiccups = hiccups
        self._asked: dict[str, int] = {}

    def put(self, data: bytes) -> None:
        """Store bytes under their hash."""
        self.data[hashlib.sha256(data).hexdigest()] = data

    def asked(self, key: str) -> int:
        """How often a key was asked for."""
        return self._asked.get(key, 0)

    async def get(self, key: str, max_bytes: int | None = None) -> bytes:
        """The bytes, or why not."""
        del max_bytes
        self._asked[key] = self._asked.get(key, 0) + 1
        await asyncio.sleep(0)
        if self._asked[key] <= self._hiccups:
            raise ObjectStoreUnavailable("down on purpose")
        if key not in self.data:
            raise ObjectMissing(f"nothing under {key}")
        return self.data[key]


class FakeEmbedder:
    """Mean colours as vectors; fails on command."""

    def __init__(self, fingerprint: str = SPEC.fingerprint) -> None:
        self.fingerprint = fingerprint
        self.outages = 0
        self.poison: Callable[[Pixels], bool] = lambda _: False
        self.calls: list[int] = []
        self.request_ids: list[tuple[str, ...]] = []

    async def describe(self) -> EncoderDescription:
        """The tiny encoder."""
        return EncoderDescription("tiny", self.fingerprint, 4, PREPROCESS, "cpu")

    async def encode_images(self, pixels: Pixels) -> FloatMatrix:
        """(n, 8, 8, 3) → (n, 4)."""
        self.calls.append(len(pixels))
        self.request_ids.append(current_request_ids())
        for _ in range(len(pixels) % 3):
            await asyncio.sleep(0)
        if self.outages:
            self.outages -= 1
            raise EmbedderUnavailable("gone on purpose")
        if any(self.poison(picture) for picture in pixels):
            raise EncodingFailed("poisoned on purpose")
        means = pixels.reshape(len(pixels), -1, 3).mean(axis=1)
        rows = np.concatenate([means, np.ones((len(pixels), 1))], axis=1).astype(np.float32)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


class FakeOvertaken:
    """Which redriven images have a newer event."""

    def __init__(self) -> None:
        self.newer: set[str] = set()
        self.checked: list[tuple[int, Redrive, str]] = []
        self.outages = 0

    async def check(self, event: SourceEvent, redrive: Redrive, image_id: str) -> None:
        """Refuse on command."""
        self.checked.append((event.offset, redrive, image_id))
        if self.outages:
            self.outages -= 1
            raise BrokerUnavailable("away on purpose")
        if image_id in self.newer:
            raise RedriveRefused(f"image {image_id!r} has a newer event")


def every_offset(_collection: str, partition: int, start: int, most: int) -> list[LogRecord]:
    """Reads a log that has an event at every offset."""
    return [LogRecord(partition, offset, b"", b"", {}, 0) for offset in range(start, start + most)]


class FakeClock:
    """Time that passes at once."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now_ms(self) -> int:
        """A constant."""
        return 1234

    async def sleep(self, seconds: float) -> None:
        """Note the wait and go on."""
        self.slept.append(seconds)
        await asyncio.sleep(0)


def source(events: Sequence[ImageEvent | bytes], partition: int | None = None) -> list[SourceEvent]:
    """Events as records of image-events: each in its partition, with the offsets of a real log."""
    next_offset = dict.fromkeys(range(PARTITIONS), 0)
    records = []
    for event in events:
        value = event if isinstance(event, bytes) else encode_json(event)
        place = partition
        if place is None:
            place = 0 if isinstance(event, bytes) else partition_of(event.image_id, PARTITIONS)
        records.append(SourceEvent("images", place, next_offset[place], 1000, value))
        next_offset[place] += 1
    return records
