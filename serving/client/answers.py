"""What the server answers, as typed records.

Fields this version does not know are left out of the records, never refused: every answer keeps
the JSON object it was read from in `raw`.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from contract.events import Receipt


class Answer(Struct, frozen=True, kw_only=True):
    """Base of the answers. `raw` is the JSON object as it came, with what this version has no field for."""

    raw: dict[str, Any] = {}

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.__struct_fields__ if name != "raw"]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


class Lag(Struct, frozen=True, kw_only=True):
    """Events that are not searchable yet, and the estimated seconds until they are; None while none moves."""

    messages: int = 0
    drain_s: float | None = None


class Uploaded(Answer, frozen=True, kw_only=True):
    """Answer to an upload. `status`: `logged` (durable), `searchable` (every search finds it) or `duplicate`.

    A `duplicate` is searchable, and the image `duplicate_of` had the same bytes first.
    """

    id: str
    sha256: str
    status: str
    receipt: Receipt
    duplicate_of: str | None = None
    lag: Lag | None = None


class Changed(Answer, frozen=True, kw_only=True):
    """Answer to a delete or to a change of the payload. `status`: `logged`, or `applied` in every search.

    `receipt` is None only for a delete whose answer was lost on the way and that found the image
    gone when it was sent again.
    """

    id: str
    status: str
    receipt: Receipt | None


class Rejection(Struct, frozen=True, kw_only=True):
    """Why an upload led to no point; `offset` is the place of its event in its partition."""

    code: str
    reason: str
    offset: int


class Image(Answer, frozen=True, kw_only=True):
    """What is known of one image. `state`: `logged`, `searchable`, `duplicate` or `rejected`.

    A `duplicate` is searchable, and the image `duplicate_of` had the same bytes first.
    """

    id: str
    state: str
    partition: int | None = None
    source_offset: int | None = None
    payload: dict[str, Any] | None = None
    sha256: str | None = None
    content_type: str | None = None
    file_name: str | None = None
    width: int | None = None
    height: int | None = None
    duplicate_of: str | None = None
    rejection: Rejection | None = None


class ListedImage(Struct, frozen=True, kw_only=True):
    """One searchable image of a listing; `source_offset` is that of the last event that took effect."""

    id: str
    payload: dict[str, Any] | None = None
    sha256: str | None = None
    content_type: str | None = None
    file_name: str | None = None
    width: int | None = None
    height: int | None = None
    source_offset: int | None = None


class ImagePage(Answer, frozen=True, kw_only=True):
    """One page of a listing, in the order of the ids; `next_cursor` is None at the end, and only there."""

    images: tuple[ListedImage, ...]
    next_cursor: str | None = None


class Content(Struct, frozen=True, kw_only=True):
    """Bytes of a picture or a thumbnail; `etag` changes with them."""

    data: bytes
    content_type: str
    etag: str | None


class Group(Struct, frozen=True, kw_only=True):
    """The near-duplicates, or images with equal bytes, a hit stands for: how many with itself, and ids of others."""

    count: int
    ids: tuple[str, ...] = ()


class Hit(Struct, frozen=True, kw_only=True):
    """One result; `score` as docs/api.md says, higher is better.

    The last three come with `rerank`, and `group` also from a collection with `duplicates="alias"`.
    """

    id: str
    score: float
    payload: dict[str, Any] | None = None
    rerank_score: float | None = None
    group: Group | None = None
    inliers: int | None = None


class Coverage(Struct, frozen=True, kw_only=True):
    """How much of the collection was searched. `degraded` is true, or says how, when it was not all of it."""

    shards_total: int
    shards_answered: int
    degraded: bool | str


class Freshness(Struct, frozen=True, kw_only=True):
    """Per partition the offset up to which everything is searchable, and the age of the oldest event beyond."""

    applied_offsets: dict[int, int]
    staleness_s: float


class Took(Struct, frozen=True, kw_only=True):
    """Milliseconds of the stages of a search; `rerank_stages` has those of re-ranking by name."""

    total: float
    encode: float = 0.0
    fan_out: float = 0.0
    merge: float = 0.0
    rerank: float = 0.0
    rerank_stages: dict[str, float] | None = None


class Confidence(Struct, frozen=True, kw_only=True):
    """How likely the best hit is right, 0…1, and why the answer is not confident; None where nothing is known."""

    probability: float | None = None
    reason: str | None = None


class SearchAnswer(Answer, frozen=True, kw_only=True):
    """Hits, best first, and what they cover."""

    hits: tuple[Hit, ...]
    coverage: Coverage
    freshness: Freshness
    took_ms: Took
    model: str
    no_confident_match: bool | None = None
    confidence: Confidence | None = None
    request_id: str = ""


class Collection(Answer, frozen=True, kw_only=True):
    """Parameters of a collection. `state`: `creating` while its encoder starts, then `ready`."""

    name: str
    state: str = ""
    model: str = ""
    fingerprint: str = ""
    dimension: int = 0
    partitions: int = 0
    shards_total: int = 0
    replicas: int = 0
    duplicates: str = "keep"
    incarnation: str = ""
    created_at_ms: int = 0


class Shard(Struct, frozen=True, kw_only=True):
    """State and position of one shard replica."""

    shard: int = 0
    replica: int = 0
    state: str = ""
    error: str | None = None
    points: int = 0
    applied_offsets: dict[int, int] = {}
    consumer_lag: int | None = None
    staleness_s: float | None = None


class CollectionStatistics(Collection, frozen=True, kw_only=True):
    """A collection with its counts and shards."""

    points: int = 0
    deleted: int = 0
    lag: Lag | None = None
    shards: tuple[Shard, ...] = ()

    @property
    def applied_offsets(self) -> dict[int, int]:
        """Per partition, the offset that every replica which answers has applied; the rest is left out."""
        applied: dict[int, int] = {}
        for shard in self.shards:
            for partition, offset in shard.applied_offsets.items():
                applied[partition] = min(offset, applied.get(partition, offset))
        return applied


class Dropped(Answer, frozen=True, kw_only=True):
    """The collection is gone."""

    name: str
    state: Literal["dropped"] = "dropped"


class Readiness(Struct, frozen=True, kw_only=True):
    """Whether every part answers and has caught up; `missing` has a sentence for each that does not."""

    ready: bool
    missing: tuple[str, ...] = ()


class DeadLetter(Answer, frozen=True, kw_only=True):
    """An event that led to nothing; `id` is PARTITION-OFFSET of the event.

    `event` and `event_base64` (its exact bytes) come with `dead_letter` only.
    """

    id: str
    image_id: str | None = None
    stage: str = ""
    code: str = ""
    reason: str = ""
    retryable: bool = False
    attempts: int = 0
    redrives: int = 0
    failed_at_ms: int = 0
    state: str = "waiting"
    receipt: Receipt | None = None
    event: dict[str, Any] | None = None
    event_base64: str | None = None


class DeadLetterPage(Answer, frozen=True, kw_only=True):
    """One page, newest first; `next_cursor` is None at the end. `unread` records are not in the list yet."""

    dead_letters: tuple[DeadLetter, ...]
    next_cursor: str | None = None
    unread: int = 0


class Refusal(Struct, frozen=True, kw_only=True):
    """Why a letter was not redriven or dropped."""

    code: str
    detail: str
    retryable: bool = False


class SettledLetter(Answer, frozen=True, kw_only=True):
    """What became of one letter: `redriven`, with the receipt of the event sent again, `dropped` or `refused`."""

    id: str
    status: str
    receipt: Receipt | None = None
    problem: Refusal | None = None


class SettledLetters(Answer, frozen=True, kw_only=True):
    """What became of each; `next_cursor` leads to the rest of a match."""

    dead_letters: tuple[SettledLetter, ...]
    next_cursor: str | None = None
