"""What the API needs from outside, as protocols: the app is built from these, in tests from fakes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from actors.decoding.messages import Region
from actors.decoding.pool import Decoded, DecodingLoad, Described
from actors.log.records import LogRecord
from actors.messages import (
    EmbedderRole,
    EmbedderStatus,
    EncoderDescription,
    FloatMatrix,
    LexicalSearch,
    Pixels,
    PointState,
    PreprocessSpec,
    ShardScan,
    ShardScanResult,
    ShardSearch,
    ShardSearchResult,
    ShardStatus,
)
from contract.errors import EmbedderUnavailable
from contract.events import CollectionSpec
from contract.settings import Settings
from serving.access.keys import KeyStore


class Embedder(Protocol):
    """The embedders of one model and role; `actors.handles.EmbedderClient`."""

    async def describe(self) -> EncoderDescription:
        """Model, fingerprint, dimension and preprocessing."""

    async def encode_images(self, pixels: Pixels) -> FloatMatrix:
        """(n, s, s, 3) uint8 → (n, d) float32."""

    async def encode_texts(self, texts: Sequence[str]) -> FloatMatrix:
        """N texts → (n, d) float32."""

    async def statuses(self) -> list[EmbedderStatus | EmbedderUnavailable]:
        """Status of every embedder, or why it has none."""


class Shard(Protocol):
    """One replica of one shard; `actors.handles.ShardClient`."""

    async def search(self, request: ShardSearch) -> ShardSearchResult:
        """One batched call."""

    async def search_lexical(self, request: LexicalSearch) -> ShardSearchResult:
        """One batched call to the lexical index."""

    async def fetch(self, image_ids: Sequence[str], with_vector: bool = False) -> list[PointState | None]:
        """What the shard knows of each id."""

    async def scan(self, request: ShardScan) -> ShardScanResult:
        """Searchable points in id order, a bounded piece of work."""

    async def wait_applied(self, partition: int, source_offset: int, timeout_s: float) -> bool:
        """True once `applied_offset >= source_offset`."""

    async def status(self) -> ShardStatus:
        """State, positions, counts."""


class EventLog(Protocol):
    """Writes events durably; `actors.log.producer.LogProducer`."""

    async def send(
        self, topic: str, partition: int, key: bytes, value: bytes | None, headers: Mapping[str, bytes] = ...
    ) -> int:
        """Offset of the record, once the broker has confirmed it. Raises BrokerUnavailable (retryable)."""

    def close(self) -> None:
        """Flush and release the connection."""


class Objects(Protocol):
    """Picture bytes by key; `actors.objects.ObjectStore`."""

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        """Store bytes; idempotent."""

    async def get(self, key: str, max_bytes: int | None = None) -> bytes:
        """Bytes of a key. Raises ObjectMissing, ImageTooLarge, ObjectStoreUnavailable (retryable)."""


class Decoder(Protocol):
    """Decodes pictures where they can do no harm; `actors.decoding.pool.DecodingPool`.

    Every method may raise InvalidImage, ImageTooLarge, DecoderUnavailable (retryable).
    """

    async def inspect(self, data: bytes) -> Described:
        """Type and size by the header."""

    async def square(self, data: bytes, spec: PreprocessSpec, region: Region | None = None) -> Decoded:
        """The square an encoder takes."""

    async def small(self, data: bytes, side: int, region: Region | None = None) -> Decoded:
        """RGB pixels whose longer side is at most `side`."""

    async def thumbnail(self, data: bytes, side: int) -> bytes:
        """WebP bytes whose longer side is at most `side` pixels."""

    async def clean(self, data: bytes) -> tuple[bytes, str]:
        """The file without metadata, and its content type."""

    def load(self) -> DecodingLoad:
        """How busy the decoding processes are."""

    def close(self) -> None:
        """End the decoding processes."""


class Registry(Protocol):
    """Which collections there are; `actors.log.registry.CollectionRegistry`. Calls block."""

    def refresh(self) -> dict[str, CollectionSpec]:
        """Live collections by name."""

    def close(self) -> None:
        """Release the connection."""


class LetterTopic(Protocol):
    """The dead-letter topic; `actors.log.ranges.RangeReader`. Calls block; all raise BrokerUnavailable (retryable)."""

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Lowest offset still there, and the offset after the last record."""

    def read(self, topic: str, partition: int, start: int, most: int, within_s: float) -> Sequence[LogRecord]:
        """Up to `most` records from `start` on. Raises LogGap, NotFound."""

    def close(self) -> None:
        """Release the connections."""


class CollectionAdmin(Protocol):
    """Makes and drops collections, and knows where their events end; `serving.admin`. Calls block."""

    def create(self, spec: CollectionSpec) -> CollectionSpec:
        """Ensure the topics, then register the collection. Raises CollectionExists, TopicShapeMismatch."""

    def drop(self, name: str) -> None:
        """Register the end of the collection, then delete its topics. Raises NotFound."""

    def source_end(self, collection: str, partition: int) -> int:
        """High watermark of one partition of `image-events`. Raises BrokerUnavailable (retryable)."""

    def close(self) -> None:
        """Release the connections."""


EmbedderFactory = Callable[[str, EmbedderRole, int], Embedder]
ShardFactory = Callable[[CollectionSpec, int, int], Shard]


@dataclass(frozen=True, slots=True)
class Dependencies:
    """Everything `create_app` needs."""

    settings: Settings
    registry: Registry
    admin: CollectionAdmin
    events: EventLog
    objects: Objects
    make_embedder: EmbedderFactory
    make_shard: ShardFactory
    decoder: Decoder
    keys: KeyStore
    letters: LetterTopic

    def close(self) -> None:
        """Release every connection."""
        self.events.close()
        self.keys.close()
        self.admin.close()
        self.letters.close()
        self.registry.close()
        self.decoder.close()
