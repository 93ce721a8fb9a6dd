"""A search from request to answer: encode, fan out, merge."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import numpy as np
from msgspec import Raw, Struct

from actors.messages import ShardQuery
from contract.errors import InvalidRequest, NotSearchableInTime
from contract.filters import Filter, check_fields, decode_filter
from contract.settings import Settings
from serving.catalog import ServedCollection
from serving.merge import merge
from serving.metrics import Metrics
from serving.query import QueryEncoder
from serving.schemas import ReceiptBody, SearchRequest

# What a request may name that is not built: refused, never silently ignored.
_NOT_YET = ("rerank",)


class HitOut(Struct):
    """One hit; `payload` goes from the shard into the answer without being parsed."""

    id: str
    score: float
    payload: Raw | None


class CoverageOut(Struct):
    """How much of the collection was searched."""

    shards_total: int
    shards_answered: int
    degraded: bool


class FreshnessOut(Struct):
    """Up to which event everything is searchable."""

    applied_offsets: dict[int, int]
    staleness_s: float


class TookOut(Struct):
    """Milliseconds of each stage."""

    encode: float
    fan_out: float
    merge: float
    rerank: float
    total: float


class AnswerOut(Struct):
    """The answer of a search, fast to encode; `serving.schemas.SearchAnswer` describes it."""

    hits: list[HitOut]
    no_confident_match: bool
    coverage: CoverageOut
    freshness: FreshnessOut
    took_ms: TookOut
    model: str
    request_id: str


def kind_of(request: SearchRequest, image: bytes | None) -> str:
    """What the query is made of, for metrics: `text`, `image`, `image_id`, `examples`, or `mixed`."""
    kinds = [
        name
        for name, given in (
            ("text", request.text is not None),
            ("image", image is not None),
            ("image_id", request.image_id is not None),
            ("examples", bool(request.positive or request.negative)),
        )
        if given
    ]
    return kinds[0] if len(kinds) == 1 else "mixed"


class Searcher:
    """Answers searches."""

    def __init__(
        self,
        settings: Settings,
        encoder: QueryEncoder,
        metrics: Metrics,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._settings = settings
        self._encoder = encoder
        self._metrics = metrics
        self._clock = clock

    async def search(
        self, collection: ServedCollection, request: SearchRequest, image: bytes | None, request_id: str
    ) -> AnswerOut:
        """Hits, coverage, freshness and timings of one search.

        Raises:
            InvalidRequest: limits exceeded, no query, a filter that cannot be or names a field that is not
                indexed, or a feature that is not available yet.
            NotFound: an image id in the query that is not searchable.
            NotSearchableInTime: `min_receipt` was not reached in time; retryable.
            ShardUnavailable: no shard answered; retryable. A part of them missing is no error.
            EmbedderUnavailable: retryable.
        """
        started = self._clock()
        self._check(request)
        collection.check_complete()
        # Here and not in the shards, where the queries of others share its call.
        wanted = _filter_of(collection, request)
        if request.min_receipt is not None:
            await self._await_receipt(collection, request.min_receipt)
        encoding = self._clock()
        vector = await self._encoder.encode(collection, request, image)
        encoded = self._clock()
        query = ShardQuery(k=request.limit + request.offset, exact=request.exact, filter=wanted)
        answer = await collection.fan_out.search(
            np.asarray(vector, np.float32), query, with_payload=request.with_payload, request_id=request_id
        )
        fanned_out = self._clock()
        hits = merge(
            answer.candidates, limit=request.limit, offset=request.offset, score_threshold=request.score_threshold
        )
        ended = self._clock()
        took = {"encode": encoded - encoding, "fan_out": fanned_out - encoded, "merge": ended - fanned_out}
        for stage, seconds in (*took.items(), ("total", ended - started)):
            self._metrics.search_stage.labels(stage).observe(seconds)
        coverage = answer.coverage
        self._metrics.searches.labels(kind_of(request, image), str(coverage.degraded).lower()).inc()
        return AnswerOut(
            hits=[
                HitOut(c.image_id, c.score, Raw(c.payload) if request.with_payload and c.payload else None)
                for c in hits
            ],
            no_confident_match=not hits,
            coverage=CoverageOut(coverage.shards_total, coverage.shards_answered, coverage.degraded),
            freshness=FreshnessOut(answer.freshness.applied_offsets, answer.freshness.staleness_s),
            took_ms=TookOut(
                encode=_ms(took["encode"]),
                fan_out=_ms(took["fan_out"]),
                merge=_ms(took["merge"]),
                rerank=0.0,
                total=_ms(ended - started),
            ),
            model=collection.spec.model,
            request_id=request_id,
        )

    def _check(self, request: SearchRequest) -> None:
        if request.limit + request.offset > self._settings.search_limit_max:
            raise InvalidRequest(f"limit plus offset may be at most {self._settings.search_limit_max}")
        for name in _NOT_YET:
            if getattr(request, name):
                raise InvalidRequest(f"`{name}` is not available yet; leave it out")

    async def _await_receipt(self, collection: ServedCollection, receipt: ReceiptBody) -> None:
        if receipt.partition >= collection.spec.partitions:
            raise InvalidRequest(
                f"min_receipt: collection {collection.spec.name!r} has no partition {receipt.partition}"
            )
        timeout_s = self._settings.min_receipt_timeout_s
        if not await collection.wait_applied(receipt.partition, receipt.offset, timeout_s):
            raise NotSearchableInTime(f"min_receipt was not searchable within {timeout_s:g} s")


def _filter_of(collection: ServedCollection, request: SearchRequest) -> Filter | None:
    if request.filter is None:
        return None
    wanted = decode_filter(request.filter)
    check_fields(wanted, collection.spec.filter_fields)
    return wanted


def encode_answer(answer: AnswerOut) -> bytes:
    """JSON bytes of an answer."""
    return msgspec.json.encode(answer)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
