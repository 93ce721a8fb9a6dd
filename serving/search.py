"""A search from request to answer: encode, fan out, merge, re-rank."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from msgspec import UNSET, Raw, Struct, UnsetType

from actors.messages import Candidate, FloatMatrix, Freshness, ShardQuery
from contract.errors import InvalidRequest, NotSearchableInTime
from contract.filters import Filter, check_fields, decode_filter
from contract.settings import Settings
from contract.telemetry import LogField
from serving.admission import Admission
from serving.catalog import ServedCollection
from serving.confidence import DEPTH, Calibration, Calibrations, Confidence, QueryKind, assess, query_kind, top_scores
from serving.coverage import Degraded
from serving.fallback import Found, Retrieval, check_hybrid
from serving.fusion import DEPTH as FUSION_DEPTH
from serving.metrics import Metrics
from serving.request_line import note
from serving.rerank.reranker import GroupOut, RerankedHit, Reranker, RerankOut
from serving.schemas import ReceiptBody, SearchRequest


class HitOut(Struct):
    """One hit; `payload` goes from the shard into the answer without being parsed.

    What stands after it is left out where no stage of re-ranking found it.
    """

    id: str
    score: float
    payload: Raw | None
    rerank_score: float | UnsetType = UNSET
    group: GroupOut | UnsetType = UNSET
    inliers: int | UnsetType = UNSET


class CoverageOut(Struct):
    """How much of the collection was searched."""

    shards_total: int
    shards_answered: int
    degraded: Degraded


class FreshnessOut(Struct):
    """Up to which event everything is searchable."""

    applied_offsets: dict[int, int]
    staleness_s: float


class TookOut(Struct):
    """Milliseconds of each stage; `rerank_stages` only where something was re-ranked."""

    encode: float
    fan_out: float
    merge: float
    rerank: float
    total: float
    rerank_stages: dict[str, float] | UnsetType = UNSET


class AnswerOut(Struct):
    """The answer of a search, fast to encode; `serving.schemas.SearchAnswer` describes it."""

    hits: list[HitOut]
    no_confident_match: bool
    confidence: Confidence
    coverage: CoverageOut
    freshness: FreshnessOut
    took_ms: TookOut
    model: str
    request_id: str
    rerank: RerankOut | UnsetType = UNSET


def kind_of(request: SearchRequest, image: bytes | None) -> str:
    """What the query is made of, for metrics: `text`, `image`, `image_id`, `vector`, `examples`, or `mixed`."""
    kinds = [
        name
        for name, given in (
            ("text", request.text is not None),
            ("image", image is not None),
            ("image_id", request.image_id is not None),
            ("vector", request.vector is not None),
            ("examples", bool(request.positive or request.negative)),
        )
        if given
    ]
    return kinds[0] if len(kinds) == 1 else "mixed"


def calibrated_kind(request: SearchRequest, image: bytes | None) -> QueryKind | None:
    """The kind of query whose calibrated confidence holds for this one; None if none does."""
    pictures = []
    if image is not None:
        pictures.append(request.image_weight)
    if request.image_id is not None:
        pictures.append(request.image_id_weight)
    return query_kind(
        request.text_weight if request.text is not None else None,
        pictures[0] if pictures else None,
        others=len(pictures) > 1 or request.vector is not None or bool(request.positive or request.negative),
    )


@dataclass(frozen=True, slots=True)
class PreparedSearch:
    """A search that was checked and encoded, and only needs the shards; times are of the searcher's clock, in seconds.

    `vector` is (d,) float32, None where the encoder does not answer and words do; `cached` says whether every part
    that needed an encoder came from the cache, None where none did; `receipts` are the least applied offsets per
    partition; `calibration` is that of this kind of query, None without one.
    """

    request: SearchRequest
    kind: str
    request_id: str
    image: bytes | None
    vector: FloatMatrix | None
    cached: bool | None
    query: ShardQuery
    receipts: dict[int, int]
    calibration: Calibration | None
    started: float
    encode_s: float


class Searcher:
    """Answers searches."""

    def __init__(
        self,
        settings: Settings,
        retrieval: Retrieval,
        reranker: Reranker,
        metrics: Metrics,
        calibrations: Calibrations,
        admission: Admission,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._settings = settings
        self._retrieval = retrieval
        self._reranker = reranker
        self._metrics = metrics
        self._calibrations = calibrations
        self.admission = admission
        self._clock = clock

    async def search(
        self,
        collection: ServedCollection,
        request: SearchRequest,
        image: bytes | None,
        request_id: str,
    ) -> AnswerOut:
        """Hits, coverage, freshness and timings of one search.

        Raises:
            Overloaded: too many searches are under way; retryable.
            RiverlensError: what `prepare` and `answer` raise.
        """
        with self.admission.admit():
            return await self.answer(collection, await self.prepare(collection, request, image, request_id))

    async def prepare(
        self, collection: ServedCollection, request: SearchRequest, image: bytes | None, request_id: str
    ) -> PreparedSearch:
        """Check an admitted search, wait for its receipts and encode its query.

        Raises:
            InvalidRequest: limits exceeded, no query, a filter that cannot be or names a field that is not
                indexed, a hybrid search without words.
            NotFound: an image id in the query that is not searchable.
            NotSearchableInTime: `min_receipt` was not reached in time; retryable.
            EmbedderUnavailable, ShardUnavailable: retryable.
        """
        started = self._clock()
        self._check(request)
        self._reranker.check(request, image)
        check_hybrid(request)
        collection.check_complete()
        # Here and not in the shards, where the queries of others share its call.
        wanted = _filter_of(collection, request)
        receipts = await self._await_receipts(collection, request.receipts())
        encoding = self._clock()
        encoded = await self._retrieval.encode(collection, request, image)
        calibration = None
        # Calibrated are the cosines of a ranking by vector.
        if encoded is not None and request.hybrid is None:
            calibration = self._calibrations.of(collection.spec.fingerprint, calibrated_kind(request, image))
        depth = _depth(request, calibration) if request.hybrid is None else FUSION_DEPTH
        return PreparedSearch(
            request=request,
            kind=kind_of(request, image),
            request_id=request_id,
            image=image,
            vector=None if encoded is None else np.asarray(encoded.vector, np.float32),
            cached=None if encoded is None else encoded.cached,
            query=ShardQuery(
                k=max(self._reranker.candidates(collection, request), depth),
                exact=request.exact,
                ef_search=request.ef_search,
                filter=self._reranker.restrict(collection, wanted),
                distinct=self._reranker.distinct(collection),
            ),
            receipts=receipts,
            calibration=calibration,
            started=started,
            encode_s=self._clock() - encoding,
        )

    async def answer(self, collection: ServedCollection, prepared: PreparedSearch) -> AnswerOut:
        """Hits, coverage, freshness and timings of a prepared search.

        Raises:
            ShardUnavailable: no shard answered; retryable. A part of them missing is no error.
            NotSearchableInTime: a replica that had been away answered from before `min_receipt`; retryable.
        """
        request = prepared.request
        fanning_out = self._clock()
        found = await self._retrieval.find(
            collection,
            request,
            prepared.image,
            prepared.vector,
            prepared.query,
            fresh=bool(prepared.receipts),
            with_payload=self._reranker.needs_payload(request),
            request_id=prepared.request_id,
        )
        _check_receipts(prepared.receipts, found.freshness)
        reranking = self._clock()
        reranked = await self._reranker.rerank(collection, request, prepared.image, found.ranked)
        ended = self._clock()
        took = {
            "encode": prepared.encode_s,
            "fan_out": reranking - fanning_out - found.merge_s,
            "merge": found.merge_s,
            "rerank": ended - reranking,
        }
        per_stage = {f"rerank_{stage}": seconds for stage, seconds in reranked.stages_s.items()}
        for stage, seconds in (*took.items(), *per_stage.items(), ("total", ended - prepared.started)):
            self._metrics.search_stage.labels(stage).observe(seconds)
        self._metrics.searches.labels(prepared.kind, str(found.degraded).lower()).inc()
        confidence = self._confidence(collection, prepared, found, has_hits=bool(reranked.hits))
        return AnswerOut(
            hits=[_hit_out(hit, with_payload=request.with_payload) for hit in reranked.hits],
            no_confident_match=confidence.no_confident_match,
            confidence=confidence,
            coverage=CoverageOut(found.shards_total, found.shards_answered, found.degraded),
            freshness=FreshnessOut(found.freshness.applied_offsets, found.freshness.staleness_s),
            took_ms=TookOut(
                encode=_ms(took["encode"]),
                fan_out=_ms(took["fan_out"]),
                merge=_ms(took["merge"]),
                rerank=_ms(took["rerank"]),
                total=_ms(ended - prepared.started),
                rerank_stages={stage: _ms(seconds) for stage, seconds in reranked.stages_s.items()} or UNSET,
            ),
            model=collection.spec.model,
            request_id=prepared.request_id,
            rerank=UNSET if reranked.did is None else reranked.did,
        )

    def _confidence(
        self,
        collection: ServedCollection,
        prepared: PreparedSearch,
        found: Found,
        *,
        has_hits: bool,
    ) -> Confidence:
        request, policy = prepared.request, self._reranker.policy
        scores: list[float] = []
        candidates: Sequence[Sequence[Candidate]] = found.per_shard
        # Where words decided, there are no cosines to judge by.
        calibration = prepared.calibration if candidates else None
        if calibration is not None:
            if not policy.reaches_shards(collection.spec.filter_fields):
                candidates = [[one for one in each if policy.allows(one.payload)] for each in candidates]
            scores = top_scores(candidates, () if request.image_id is None else (request.image_id,))
        threshold = self._settings.confidence_threshold
        confidence = assess(scores, calibration, threshold, has_hits=has_hits)
        self._metrics.confidence.labels(prepared.kind, confidence.reason or "confident").inc()
        return confidence

    def _check(self, request: SearchRequest) -> None:
        settings = self._settings
        if request.limit + request.offset > settings.search_limit_max:
            raise InvalidRequest(
                f"limit plus offset may be at most {settings.search_limit_max} (RIVERLENS_SEARCH_LIMIT_MAX); "
                "list the images to see all of them"
            )
        if request.ef_search is not None:
            if request.exact:
                raise InvalidRequest("`ef_search` has no effect on an exact search; leave one of the two out")
            if request.ef_search > settings.ef_search_max:
                raise InvalidRequest(f"ef_search may be at most {settings.ef_search_max} (RIVERLENS_EF_SEARCH_MAX)")

    async def _await_receipts(self, collection: ServedCollection, receipts: Sequence[ReceiptBody]) -> dict[int, int]:
        """The least applied offset per partition, once all are reached; one bound for all of them together."""
        wanted: dict[int, int] = {}
        for receipt in receipts:
            if receipt.partition >= collection.spec.partitions:
                raise InvalidRequest(
                    f"min_receipt: collection {collection.spec.name!r} has no partition {receipt.partition}"
                )
            wanted[receipt.partition] = max(receipt.offset, wanted.get(receipt.partition, 0))
        if not wanted:
            return wanted
        timeout_s = self._settings.min_receipt_timeout_s
        with self.admission.aside():
            reached = await asyncio.gather(
                *(collection.wait_applied(partition, offset, timeout_s) for partition, offset in wanted.items())
            )
        late = [place for place, is_reached in zip(wanted.items(), reached, strict=True) if not is_reached]
        if late:
            raise NotSearchableInTime(f"min_receipt: {_named(late)} not searchable within {timeout_s:g} s")
        return wanted


def _check_receipts(wanted: Mapping[int, int], freshness: Freshness) -> None:
    """Raise NotSearchableInTime where what answered has not applied what was waited for.

    A replica that was away does not answer the wait, and may be back for the search. A partition
    without an answer is no error: coverage tells of it.
    """
    applied = freshness.applied_offsets
    behind = [(partition, offset) for partition, offset in wanted.items() if applied.get(partition, offset) < offset]
    if behind:
        raise NotSearchableInTime(f"min_receipt: {_named(behind)} not searchable in a replica that catches up")


def _named(places: Sequence[tuple[int, int]]) -> str:
    named = ", ".join(f"offset {offset} of partition {partition}" for partition, offset in places)
    return f"{named} {'is' if len(places) == 1 else 'are'}"


def _depth(request: SearchRequest, calibration: Calibration | None) -> int:
    """Fewest candidates that the confidence needs of every shard."""
    if calibration is None:
        return 0
    # The query's own image is no answer to it.
    return DEPTH if request.image_id is None else DEPTH + 1


def _filter_of(collection: ServedCollection, request: SearchRequest) -> Filter | None:
    if request.filter is None:
        return None
    wanted = decode_filter(request.filter)
    check_fields(wanted, collection.spec.filter_fields)
    return wanted


def _hit_out(hit: RerankedHit, *, with_payload: bool) -> HitOut:
    found = hit.candidate
    return HitOut(
        id=found.image_id,
        score=found.score,
        payload=Raw(found.payload) if with_payload and found.payload else None,
        rerank_score=UNSET if hit.rerank_score is None else hit.rerank_score,
        group=UNSET if hit.group is None else hit.group,
        inliers=UNSET if hit.inliers is None else hit.inliers,
    )


def describe_search(request: SearchRequest, image: bytes | None, answer: AnswerOut) -> None:
    """Tell the request's log line what was searched for, and what came of it."""
    coverage, took = answer.coverage, msgspec.to_builtins(answer.took_ms)
    note(
        {
            LogField.KIND: kind_of(request, image),
            LogField.K: request.limit + request.offset,
            LogField.HITS: len(answer.hits),
            LogField.COVERAGE: f"{coverage.shards_answered}/{coverage.shards_total}",
            LogField.TOOK_MS: took,
        }
    )


def encode_answer(answer: AnswerOut) -> bytes:
    """JSON bytes of an answer."""
    return msgspec.json.encode(answer)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
