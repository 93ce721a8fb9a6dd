"""What travels between the processes that call actors and the actors. Imports neither ray nor faiss."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from contract.filters import Filter

FloatMatrix = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

RAY_NAMESPACE = "riverlens"

EmbedderRole = Literal["ingest", "query"]


class PreprocessSpec(Struct, frozen=True):
    """Geometry from a decoded RGB picture to the square an encoder takes; part of its fingerprint.

    `resize`: `fit` keeps the whole picture inside the square on `background`, with a margin of
    `padding` (a share of the side); `crop` resizes the short side and cuts the centre; `squash`
    ignores the aspect ratio. `mean` and `std` are per channel, for pixels scaled to 0…1.
    """

    size: int
    resize: Literal["fit", "crop", "squash"]
    interpolation: Literal["bicubic", "bilinear"]
    padding: float
    background: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class EncoderDescription(Struct, frozen=True):
    """Which encoder an embedder runs. `fingerprint` = weights hash + preprocessing + dimension."""

    model: str
    fingerprint: str
    dimension: int
    preprocess: PreprocessSpec
    device: str


class EmbedderStatus(Struct, frozen=True):
    """Health of an embedder actor."""

    model: str
    fingerprint: str
    device: str
    pid: int
    images_encoded: int
    texts_encoded: int


class Distinct(Struct, frozen=True):
    """Asks for pictures instead of points: images with equal bytes stand as one candidate, with a `group`.

    `allowed` keeps points out of every group that the index cannot keep out; it is held against each payload.
    """

    allowed: Filter | None = None


class ShardQuery(Struct, frozen=True):
    """What one query of a batch wants: the `k` best points that the filter lets through, by graph or by exact scan.

    With `distinct` it is the `k` best pictures.
    """

    k: int
    exact: bool = False
    ef_search: int | None = None
    filter: Filter | None = None
    distinct: Distinct | None = None


class ShardSearch(Struct, frozen=True):
    """A batch of queries to one shard: `vectors` is (q, d) float32, one row per query."""

    fingerprint: str
    vectors: FloatMatrix
    queries: tuple[ShardQuery, ...]
    with_payload: bool = True
    request_ids: tuple[str, ...] = ()


class Member(Struct, frozen=True, array_like=True, order=True):
    """One of several images with equal bytes; they compare in the order in which they came.

    An image that was no duplicate when it was uploaded comes before those that were, however often it is uploaded
    anew; else the earlier upload does, by Unix milliseconds, and of the same moment the lower id.
    """

    is_duplicate: bool
    uploaded_at_ms: int
    image_id: str


class Group(Struct, frozen=True, array_like=True):
    """Images with the same SHA-256 that match a query: how many, and the first of them in the order they came."""

    digest: bytes
    count: int
    members: tuple[Member, ...]


class Candidate(Struct, frozen=True, array_like=True):
    """A point a shard found. `score` is the inner product with the query; `payload` is JSON bytes.

    `group` is there where pictures were asked for (`Distinct`) and the point's SHA-256 is one; the candidate is its
    first member.
    """

    image_id: str
    score: float
    payload: bytes | None
    group: Group | None = None


class Freshness(Struct, frozen=True):
    """Up to which source offset everything is searchable, per partition, and how old the rest is.

    `applied_offsets[p]` is -1 until the first event of partition p is applied. `staleness_s` is
    the age in seconds of the oldest event that is not applied; 0.0 when caught up, and the time
    since the last look where the shard cannot look at image-events.
    """

    applied_offsets: dict[int, int]
    staleness_s: float


class ShardSearchResult(Struct, frozen=True):
    """Candidates per query, best first, and how fresh they are."""

    candidates: tuple[tuple[Candidate, ...], ...]
    freshness: Freshness


class LexicalQuery(Struct, frozen=True):
    """The `k` best points whose caption, tags or file name hold a word of `text`, and that the filter lets through.

    With `distinct` it is the `k` best pictures; the score of one is that of its best member.
    """

    text: str
    k: int
    filter: Filter | None = None
    distinct: Distinct | None = None


class LexicalSearch(Struct, frozen=True):
    """A batch of queries to the lexical index of one shard, answered with a ShardSearchResult of BM25 scores.

    `fresh` has the index take in everything that is applied first; else it may lag by a moment, which the
    freshness of the result tells.
    """

    queries: tuple[LexicalQuery, ...]
    with_payload: bool = True
    fresh: bool = False
    request_ids: tuple[str, ...] = ()


class PointState(Struct, frozen=True, kw_only=True):
    """What a shard knows of one image id. `state` is `searchable`, `rejected` or `deleted`.

    A rejected re-upload of a searchable image leaves it `searchable` and fills `rejection_*`.
    `last_offset` is the source offset of the newest event of any kind that is known of the id.
    `duplicate_of` is the image that had the same bytes before, when this one was uploaded, at `uploaded_at_ms`.
    `vector` is (d,) float32 and present only when asked for.
    """

    image_id: str
    state: Literal["searchable", "rejected", "deleted"]
    source_offset: int
    payload: bytes | None = None
    object_key: str | None = None
    sha256: str | None = None
    content_type: str | None = None
    file_name: str | None = None
    width: int | None = None
    height: int | None = None
    rejection_code: str | None = None
    rejection_reason: str | None = None
    rejection_offset: int | None = None
    last_offset: int = -1
    duplicate_of: str | None = None
    uploaded_at_ms: int = 0
    vector: FloatMatrix | None = None


class DelayHistogram(Struct, frozen=True):
    """Delays in buckets: `counts[i]` of at most `bounds_s[i]` seconds and above the bound before; the last is open."""

    bounds_s: tuple[float, ...]
    counts: tuple[int, ...]
    sum_s: float


class ShardScan(Struct, frozen=True):
    """Points of one shard in the order of their ids' UTF-8 bytes, from the first above `after`."""

    after: str | None
    limit: int
    filter: Filter | None = None
    with_payload: bool = True


class ShardScanResult(Struct, frozen=True):
    """Points in the order of their ids, as far as the scan went.

    `scanned_to` is the last id that was looked at; what follows it was not. None: the shard has no more.
    """

    points: tuple[PointState, ...]
    scanned_to: str | None


class MachineState(Struct, frozen=True, kw_only=True):
    """What a process takes of its machine or container, and what is left there, in bytes."""

    resident_bytes: int
    memory_bytes: int
    memory_available_bytes: int
    disk_bytes: int
    disk_free_bytes: int


class ShardStatus(Struct, frozen=True, kw_only=True):
    """State and position of one shard replica.

    `state` is `recovering` until the log end seen at the start is reached, then `ready`;
    `failed` carries its reason in `error`. `consumer_lag` is in messages of image-events. `dead`
    are deleted or replaced points that wait in the graph for its rebuild; `quantization` is that of
    the graph in memory, None without one. `recall_at_10` is the mean over recent sampled searches,
    None before the first. `lexical_points` are those with words that the lexical index finds, None
    while it is being built.
    `upload_to_searchable` counts since the replica began.
    `snapshot_at_ms` (Unix milliseconds) and `snapshot_bytes` are of the newest local snapshot.
    `started_at_ms` (Unix milliseconds) is when the actor started; `machine` is where it runs.
    """

    collection: str
    shard: int
    replica: int
    state: Literal["recovering", "ready", "failed"]
    error: str | None
    pid: int
    points: int
    deleted: int
    growing: int
    fingerprint: str
    log_offsets: dict[int, int]
    high_watermarks: dict[int, int]
    freshness: Freshness
    consumer_lag: int
    store_bytes: int
    snapshot_at_ms: int | None = None
    snapshot_bytes: int | None = None
    dead: int = 0
    quantization: str | None = None
    recall_at_10: float | None = None
    recall_samples: int = 0
    upload_to_searchable: DelayHistogram | None = None
    lexical_points: int | None = None
    started_at_ms: int | None = None
    machine: MachineState | None = None


def embedder_name(model: str, role: EmbedderRole, index: int) -> str:
    """Ray name of an embedder actor."""
    return f"embedder/{model}/{role}/{index}"


def shard_name(collection: str, incarnation: str, shard: int, replica: int) -> str:
    """Ray name of a shard actor."""
    return f"shard/{collection}/{incarnation}/{shard}/{replica}"
