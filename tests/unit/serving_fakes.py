"""Everything the API stands on, in memory: a log, a stream that applies it, shards, embedders, objects."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from actors.duplicates import alone, join
from actors.embedding.preprocessing import decode, to_pixels
from actors.lexical.words import words_of
from actors.log.records import LogRecord
from actors.messages import (
    Candidate,
    EmbedderRole,
    EmbedderStatus,
    EncoderDescription,
    FloatMatrix,
    Freshness,
    LexicalQuery,
    LexicalSearch,
    Pixels,
    PointState,
    PreprocessSpec,
    ShardQuery,
    ShardScan,
    ShardScanResult,
    ShardSearch,
    ShardSearchResult,
    ShardStatus,
)
from actors.scanning import scan
from contract.errors import (
    BrokerUnavailable,
    CollectionExists,
    EmbedderUnavailable,
    FingerprintMismatch,
    ImageTooLarge,
    InvalidImage,
    LogGap,
    NotFound,
    ObjectMissing,
    ShardUnavailable,
)
from contract.events import CollectionSpec, ImageDeleted, ImageUploaded, decode_event
from contract.filters import matches
from contract.keys import ApiKey
from contract.settings import Settings
from contract.topics import partition_of, shard_of_partition
from serving.dependencies import Dependencies
from tests.decoding import shared_decoder

SIDE = 4
DIMENSION = SIDE * SIDE * 3 + 1
FINGERPRINT = "fake-fingerprint"
PREPROCESS = PreprocessSpec(SIDE, "squash", "bilinear", 0.0, (0, 0, 0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
COLOURS = {"red": (230, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230), "white": (255, 255, 255)}


def picture(colour: str | tuple[int, int, int], side: int = 32, kind: str = "PNG") -> bytes:
    """Bytes of a picture in one colour."""
    out = io.BytesIO()
    Image.new("RGB", (side, side), COLOURS[colour] if isinstance(colour, str) else colour).save(out, kind)
    return out.getvalue()


def encode_pixels(pixels: Pixels) -> FloatMatrix:
    """Colours relative to grey, and a constant, so that no picture is the zero vector."""
    flat = pixels.reshape(len(pixels), -1).astype(np.float32) / 127.5 - 1.0
    vectors = np.hstack([flat, np.full((len(pixels), 1), 0.1, np.float32)])
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


class FakeEmbedder:
    """Encodes pictures by their colours and texts by the colour they name."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.images = 0
        self.fingerprint = FINGERPRINT
        self.down = False

    def _check(self) -> None:
        if self.down:
            raise EmbedderUnavailable("the fake embedder is down")

    async def describe(self) -> EncoderDescription:
        self._check()
        return EncoderDescription("fake", self.fingerprint, DIMENSION, PREPROCESS, "cpu")

    async def encode_images(self, pixels: Pixels) -> FloatMatrix:
        self._check()
        self.images += len(pixels)
        return encode_pixels(pixels)

    async def encode_texts(self, texts: Sequence[str]) -> FloatMatrix:
        self._check()
        self.texts += texts
        rows = []
        for text in texts:
            colour = next((rgb for name, rgb in COLOURS.items() if name in text), (127, 127, 127))
            rows.append(np.full((SIDE, SIDE, 3), colour, np.uint8))
        return encode_pixels(np.stack(rows))

    async def statuses(self) -> list[EmbedderStatus | EmbedderUnavailable]:
        if self.down:
            return [EmbedderUnavailable("the fake embedder is down")]
        return [EmbedderStatus("fake", self.fingerprint, "cpu", 1, self.images, len(self.texts))]


class FakeShard:
    """One shard with an exact search over what was applied to it."""

    def __init__(self, collection: str, shard: int, replica: int, partitions: Sequence[int]) -> None:
        self.collection, self.shard, self.replica = collection, shard, replica
        self.points: dict[str, PointState] = {}
        self.applied = dict.fromkeys(partitions, -1)
        self.moved = asyncio.Event()
        self.searches: list[ShardSearch] = []
        self.asked = asyncio.Event()
        self.down = False
        self.vectorless = self.wordless = False
        self.lexical_searches: list[LexicalSearch] = []
        self.state = "ready"
        self.gate: asyncio.Event | None = None

    def _check(self) -> None:
        if self.down:
            raise ShardUnavailable(f"fake shard {self.shard} is down")

    async def search(self, request: ShardSearch) -> ShardSearchResult:
        self.searches.append(request)
        self.asked.set()
        self._check()
        if self.vectorless:
            raise ShardUnavailable(f"fake shard {self.shard} searches no vectors")
        if self.gate is not None:
            await self.gate.wait()
        if request.fingerprint != FINGERPRINT:
            raise FingerprintMismatch("the fake shard is of another encoder")
        live = [p for p in self.points.values() if p.state == "searchable"]
        rows = []
        for vector, query in zip(request.vectors, request.queries, strict=True):
            scored = [(p, float(p.vector @ vector)) for p in live if p.vector is not None]
            rows.append(_best(scored, query, with_payload=request.with_payload))
        return ShardSearchResult(tuple(rows), Freshness(dict(self.applied), 0.0))

    async def search_lexical(self, request: LexicalSearch) -> ShardSearchResult:
        self.lexical_searches.append(request)
        self._check()
        if self.wordless:
            raise ShardUnavailable(f"fake shard {self.shard} builds its lexical index")
        rows = []
        for query in request.queries:
            asked = set(query.text.split())
            scores = [
                (p, float(len(asked & set(words_of(p.payload, p.file_name).split()))))
                for p in self.points.values()
                if p.state == "searchable"
            ]
            scored = [(p, score) for p, score in scores if score > 0]
            rows.append(_best(scored, query, with_payload=request.with_payload))
        return ShardSearchResult(tuple(rows), Freshness(dict(self.applied), 0.0))

    async def fetch(self, image_ids: Sequence[str], with_vector: bool = False) -> list[PointState | None]:
        self._check()
        return [self.points.get(image_id) for image_id in image_ids]

    async def scan(self, request: ShardScan) -> ShardScanResult:
        self._check()

        def source(after: str | None, limit: int) -> list[PointState]:
            live = sorted(image_id for image_id, point in self.points.items() if point.state == "searchable")
            return [self.points[image_id] for image_id in live if after is None or image_id > after][:limit]

        return scan(source, request)

    async def wait_applied(self, partition: int, source_offset: int, timeout_s: float) -> bool:
        self._check()
        try:
            async with asyncio.timeout(timeout_s):
                while self.applied[partition] < source_offset:
                    self.moved.clear()
                    await self.moved.wait()
        except TimeoutError:
            return False
        return True

    async def status(self) -> ShardStatus:
        self._check()
        live = sum(1 for p in self.points.values() if p.state == "searchable")
        return ShardStatus(
            collection=self.collection,
            shard=self.shard,
            replica=self.replica,
            state=self.state,  # type: ignore[arg-type]
            error=None,
            pid=100 + self.shard,
            points=live,
            deleted=sum(1 for p in self.points.values() if p.state == "deleted"),
            growing=live,
            fingerprint=FINGERPRINT,
            log_offsets={p: o + 1 for p, o in self.applied.items()},
            high_watermarks={p: o + 1 for p, o in self.applied.items()},
            freshness=Freshness(dict(self.applied), 0.0),
            consumer_lag=0,
            store_bytes=4096,
        )


def _best(
    scored: Sequence[tuple[PointState, float]], query: ShardQuery | LexicalQuery, *, with_payload: bool
) -> tuple[Candidate, ...]:
    """The best points, or pictures, that the query lets through."""
    conditions = [query.filter, None if query.distinct is None else query.distinct.allowed]
    found = []
    for point, score in scored:
        decoded = msgspec.json.decode(point.payload or b"{}")
        if all(condition is None or matches(condition, decoded) for condition in conditions):
            payload = point.payload if with_payload else None
            found.append(
                Candidate(point.image_id, score, payload)
                if query.distinct is None
                else alone(
                    point.image_id,
                    score,
                    payload,
                    sha256=point.sha256 or "",
                    duplicate_of=point.duplicate_of,
                    uploaded_at_ms=point.uploaded_at_ms,
                )
            )
    if query.distinct is not None:
        found = join(found)
    return tuple(sorted(found, key=lambda c: (-c.score, c.image_id))[: query.k])


class FakeObjects:
    """Bytes by key."""

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        self.stored[key] = data

    async def get(self, key: str, max_bytes: int | None = None) -> bytes:
        if key not in self.stored:
            raise ObjectMissing(f"there is no object {key}")
        if max_bytes is not None and len(self.stored[key]) > max_bytes:
            raise ImageTooLarge(f"{key} is too large")
        return self.stored[key]


@dataclass
class FakeSystem:
    """A log whose events are applied at once while `applying`, by the same code for all of them."""

    settings: Settings
    specs: dict[str, CollectionSpec] = field(default_factory=dict)
    shards: dict[tuple[str, int, int], FakeShard] = field(default_factory=dict)
    embedders: dict[tuple[str, EmbedderRole], FakeEmbedder] = field(default_factory=dict)
    objects: FakeObjects = field(default_factory=FakeObjects)
    log: dict[tuple[str, int], list[bytes]] = field(default_factory=dict)
    applying: bool = True
    broker_down: bool = False
    letters_low: int = 0
    headers: dict[tuple[str, int, int], Mapping[str, bytes]] = field(default_factory=dict)
    closed: list[str] = field(default_factory=list)
    keys: dict[str, ApiKey] = field(default_factory=dict)

    def add(self, spec: CollectionSpec) -> None:
        self.specs[spec.name] = spec

    def dependencies(self) -> Dependencies:
        return Dependencies(
            self.settings,
            _Registry(self),
            _Admin(self),
            _Events(self),
            self.objects,
            self.embedder,
            self.shard,
            shared_decoder(self.settings),
            letters=_Letters(self),
            keys=_Keys(self),
        )

    def embedder(self, model: str, role: EmbedderRole, count: int) -> FakeEmbedder:
        return self.embedders.setdefault((model, role), FakeEmbedder())

    def shard(self, spec: CollectionSpec, shard: int, replica: int) -> FakeShard:
        owned = [p for p in range(spec.partitions) if shard_of_partition(p, spec.shards) == shard]
        return self.shards.setdefault((spec.name, shard, replica), FakeShard(spec.name, shard, replica, owned))

    def owners(self, collection: str, image_id: str) -> list[FakeShard]:
        spec = self.specs[collection]
        shard = shard_of_partition(partition_of(image_id, spec.partitions), spec.shards)
        return [self.shard(spec, shard, replica) for replica in range(spec.replicas)]

    def apply(self, collection: str, partition: int) -> None:
        """Apply all events of a partition that are not applied yet."""
        spec = self.specs[collection]
        for replica in range(spec.replicas):
            shard = self.shard(spec, shard_of_partition(partition, spec.shards), replica)
            events = self.log.get((f"image-events.{collection}", partition), [])
            for offset in range(shard.applied[partition] + 1, len(events)):
                self._apply(shard, events[offset], offset)
                shard.applied[partition] = offset
            shard.moved.set()

    def _apply(self, shard: FakeShard, data: bytes, offset: int) -> None:
        event = decode_event(data)
        known = shard.points.get(event.image_id)
        if isinstance(event, ImageUploaded):
            shard.points[event.image_id] = self._point(event, known, offset)
        elif isinstance(event, ImageDeleted):
            shard.points[event.image_id] = PointState(image_id=event.image_id, state="deleted", source_offset=offset)
        elif known is not None:
            payload = msgspec.json.encode(event.payload)
            shard.points[event.image_id] = msgspec.structs.replace(known, payload=payload, source_offset=offset)
        if event.image_id in shard.points:
            last = msgspec.structs.replace(shard.points[event.image_id], last_offset=offset)
            shard.points[event.image_id] = last

    def _point(self, event: ImageUploaded, known: PointState | None, offset: int) -> PointState:
        data = self.objects.stored[event.object_key]
        try:
            image = decode(data, max_pixels=10**8, min_side=1, max_bytes=10**9)
        except InvalidImage as error:
            good = known or PointState(image_id=event.image_id, state="rejected", source_offset=offset)
            return msgspec.structs.replace(
                good, rejection_code=error.code, rejection_reason=error.detail, rejection_offset=offset
            )
        return PointState(
            image_id=event.image_id,
            state="searchable",
            source_offset=offset,
            payload=msgspec.json.encode(event.payload),
            object_key=event.object_key,
            sha256=event.sha256,
            content_type=event.content_type,
            file_name=event.file_name,
            width=image.width,
            height=image.height,
            uploaded_at_ms=event.uploaded_at_ms,
            vector=encode_pixels(to_pixels(image, PREPROCESS)[None])[0],
        )


class _Events:
    def __init__(self, system: FakeSystem) -> None:
        self._system = system

    async def send(
        self, topic: str, partition: int, key: bytes, value: bytes | None, headers: Mapping[str, bytes] | None = None
    ) -> int:
        if self._system.broker_down:
            raise BrokerUnavailable("the fake broker is down")
        assert value is not None
        records = self._system.log.setdefault((topic, partition), [])
        records.append(value)
        self._system.headers[topic, partition, len(records) - 1] = dict(headers or {})
        if topic.startswith("image-events.") and self._system.applying:
            self._system.apply(topic.removeprefix("image-events."), partition)
        return len(records) - 1

    def close(self) -> None:
        self._system.closed.append("events")


class _Letters:
    """Reads any topic of the fake log."""

    def __init__(self, system: FakeSystem) -> None:
        self._system = system

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        if self._system.broker_down:
            raise BrokerUnavailable("the fake broker is down")
        return self._system.letters_low, len(self._system.log.get((topic, partition), []))

    def read(self, topic: str, partition: int, start: int, most: int, within_s: float) -> list[LogRecord]:
        if start < self._system.letters_low:
            raise LogGap("the fake log begins later")
        values = self._system.log.get((topic, partition), [])[start : start + most]
        return [LogRecord(partition, start + n, None, value, {}, 0) for n, value in enumerate(values)]

    def close(self) -> None:
        self._system.closed.append("letters")


class _Registry:
    def __init__(self, system: FakeSystem) -> None:
        self._system = system

    def refresh(self) -> dict[str, CollectionSpec]:
        if self._system.broker_down:
            raise BrokerUnavailable("the fake broker is down")
        return dict(self._system.specs)

    def close(self) -> None:
        self._system.closed.append("registry")


class _Keys:
    def __init__(self, system: FakeSystem) -> None:
        self._system = system

    def refresh(self) -> dict[str, ApiKey]:
        if self._system.broker_down:
            raise BrokerUnavailable("the fake broker is down")
        return dict(self._system.keys)

    def put(self, key: ApiKey) -> None:
        self._system.keys[key.key_id] = key

    def close(self) -> None:
        self._system.closed.append("keys")


class _Admin:
    def __init__(self, system: FakeSystem) -> None:
        self._system = system

    def create(self, spec: CollectionSpec) -> CollectionSpec:
        if spec.name in self._system.specs:
            raise CollectionExists(f"collection {spec.name!r} exists")
        self._system.add(spec)
        return spec

    def drop(self, name: str) -> None:
        if name not in self._system.specs:
            raise NotFound(f"there is no collection {name!r}")
        del self._system.specs[name]

    def source_end(self, collection: str, partition: int) -> int:
        if self._system.broker_down:
            raise BrokerUnavailable("the fake broker is down")
        return len(self._system.log.get((f"image-events.{collection}", partition), []))

    def close(self) -> None:
        self._system.closed.append("admin")


def make_spec(name: str = "images", **changes: int | str | tuple[str, ...]) -> CollectionSpec:
    """A collection of 4 partitions on 4 shards."""
    spec = CollectionSpec(
        name=name,
        incarnation=hashlib.sha256(name.encode()).hexdigest()[:8],
        partitions=4,
        shards=4,
        replicas=1,
        model="fake",
        fingerprint=FINGERPRINT,
        dimension=DIMENSION,
        created_at_ms=1,
    )
    return msgspec.structs.replace(spec, **changes)


def make_system(home: Path, **settings: float | str) -> FakeSystem:
    """A system with the collection `images`, which leaves a line for every request."""
    usual: dict[str, float | str] = {"search_deadline_ms": 2000, "access_log": "all"}
    system = FakeSystem(Settings(home=home, **{**usual, **settings}))  # type: ignore[arg-type]
    system.add(make_spec())
    return system
