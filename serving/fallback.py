"""Finds the candidates of a search: by its vector, by its words where vectors cannot, by both where it is hybrid.

A text query needs the encoder and the graphs. When either does not answer, the lexical index of every
shard does, which needs neither, and the answer says `degraded: "metadata"`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain

import structlog

from actors.duplicates import join
from actors.messages import Candidate, Distinct, FloatMatrix, Freshness, LexicalQuery, ShardQuery
from contract.errors import EmbedderUnavailable, InvalidRequest, ShardUnavailable
from contract.settings import Settings
from contract.telemetry import LogField
from serving.catalog import ServedCollection
from serving.coverage import Degraded
from serving.fusion import Hybrid, fuse
from serving.merge import merge, merge_freshness
from serving.metrics import Metrics
from serving.query import EncodedQuery, QueryEncoder
from serving.replicas import FanOutAnswer
from serving.schemas import SearchRequest

_log = structlog.get_logger()

# An encoder that did not answer in time gets little of the next queries' time for this long: only what
# lies in the cache comes back that quickly, and the others are answered by their words at once.
_DOUBTED_FOR_S = 1.0
_DOUBTED_WAIT_S = 0.05


@dataclass(frozen=True, slots=True)
class Found:
    """Merged candidates, best first, and what they cover.

    `per_shard` are those by vector, for the confidence in them, in one piece where they are pictures; empty where
    words decided, too.
    `merge_s` is the time of merging in seconds.
    """

    ranked: list[Candidate]
    per_shard: tuple[tuple[Candidate, ...], ...]
    shards_total: int
    shards_answered: int
    degraded: Degraded
    freshness: Freshness
    merge_s: float


def is_text_alone(request: SearchRequest, image: bytes | None) -> bool:
    """Whether words are all that the search is made of, so that they can answer it."""
    others = request.image_id is not None or request.vector is not None or request.positive or request.negative
    return request.text is not None and request.text_weight > 0 and image is None and not others


def check_hybrid(request: SearchRequest) -> None:
    """Raise InvalidRequest for a hybrid search without words."""
    if request.hybrid is not None and (request.text is None or request.text_weight <= 0):
        raise InvalidRequest("`hybrid` needs a `text` with a weight above 0")


class Retrieval:
    """Encodes searches and finds their candidates. For one event loop."""

    def __init__(
        self,
        settings: Settings,
        encoder: QueryEncoder,
        metrics: Metrics,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._encode_deadline_s = settings.encode_deadline_ms / 1000
        self._encoder = encoder
        self._metrics = metrics
        self._clock = clock
        # Until when the encoder of a model is doubted, on `clock`.
        self._doubted: dict[str, float] = {}

    async def encode(
        self, collection: ServedCollection, request: SearchRequest, image: bytes | None
    ) -> EncodedQuery | None:
        """The query vector; None where the encoder does not answer and the words alone can.

        Raises what `QueryEncoder.encode` raises; EmbedderUnavailable only if words cannot answer.
        """
        if not is_text_alone(request, image):
            return await self._encoder.encode(collection, request, image)
        model = collection.spec.model
        doubted = self._clock() < self._doubted.get(model, float("-inf"))
        wait_s = min(_DOUBTED_WAIT_S, self._encode_deadline_s) if doubted else self._encode_deadline_s
        try:
            async with asyncio.timeout(wait_s):
                encoded = await self._encoder.encode(collection, request, image)
        except (EmbedderUnavailable, TimeoutError) as error:
            if not doubted:
                self._doubted[model] = self._clock() + _DOUBTED_FOR_S
                reason = error.detail if isinstance(error, EmbedderUnavailable) else f"no vector within {wait_s:g} s"
                _log.warning("the encoder does not answer; words do", **{LogField.ERROR: reason})
            return None
        if encoded.cached is False:
            self._doubted.pop(model, None)
        return encoded

    async def find(
        self,
        collection: ServedCollection,
        request: SearchRequest,
        image: bytes | None,
        vector: FloatMatrix | None,
        query: ShardQuery,
        *,
        fresh: bool,
        with_payload: bool,
        request_id: str,
    ) -> Found:
        """Up to `query.k` candidates of all shards.

        Args:
            collection: Where to search.
            request: What was asked; checked with `check_hybrid`.
            image: Bytes of the query picture, if there is one.
            vector: (d,) float32; None has the words answer.
            query: What each shard is asked for.
            fresh: Whether the lexical indexes take in everything that is applied first.
            with_payload: Whether candidates carry their payload.
            request_id: Of the search.

        Raises:
            ShardUnavailable: no shard answered in any way that the search allows; retryable.
            FingerprintMismatch: a shard holds vectors of another encoder.
        """

        async def by_vector(of: FloatMatrix) -> FanOutAnswer:
            answer = await collection.fan_out.search(of, query, with_payload=with_payload, request_id=request_id)
            return _of_pictures(answer, query.distinct)

        async def by_words() -> FanOutAnswer:
            words = LexicalQuery(request.text or "", query.k, query.filter, query.distinct)
            started = self._clock()
            answer = await collection.lexical.search(
                words, with_payload=with_payload, fresh=fresh, request_id=request_id
            )
            self._metrics.search_stage.labels("lexical").observe(self._clock() - started)
            return _of_pictures(answer, query.distinct)

        if vector is None:
            return self._of_words(await by_words(), query.k)
        if request.hybrid is None:
            try:
                answer = await by_vector(vector)
            except ShardUnavailable as unavailable:
                if not is_text_alone(request, image):
                    raise
                _log.warning("no shard searches by vector; words do", **{LogField.ERROR: unavailable.detail})
                try:
                    return self._of_words(await by_words(), query.k)
                except ShardUnavailable:
                    raise unavailable from None
            return self._of_vectors(answer, query.k, request.score_threshold)
        vectors, words = await asyncio.gather(by_vector(vector), by_words(), return_exceptions=True)
        return self._of_both(vectors, words, query.k, request, request.hybrid)

    def _of_vectors(self, answer: FanOutAnswer, limit: int, score_threshold: float | None) -> Found:
        started = self._clock()
        ranked = merge(answer.candidates, limit=limit, score_threshold=score_threshold)
        total, answered = answer.coverage.shards_total, answer.coverage.shards_answered
        merge_s = self._clock() - started
        return Found(ranked, answer.candidates, total, answered, answered < total, answer.freshness, merge_s)

    def _of_words(self, answer: FanOutAnswer, limit: int) -> Found:
        started = self._clock()
        # No score threshold: it was meant for scores of another kind.
        ranked = merge(answer.candidates, limit=limit)
        total, answered = answer.coverage.shards_total, answer.coverage.shards_answered
        return Found(ranked, (), total, answered, "metadata", answer.freshness, self._clock() - started)

    def _of_both(
        self,
        vectors: FanOutAnswer | BaseException,
        words: FanOutAnswer | BaseException,
        limit: int,
        request: SearchRequest,
        how: Hybrid,
    ) -> Found:
        for half in (vectors, words):
            if isinstance(half, BaseException) and not isinstance(half, ShardUnavailable):
                raise half
        if isinstance(vectors, BaseException):
            if isinstance(words, BaseException):
                raise vectors
            return self._of_words(words, limit)
        started = self._clock()
        total, answered, freshness = vectors.coverage.shards_total, vectors.coverage.shards_answered, vectors.freshness
        ranked_by_words: list[Candidate] = []
        lacks_words = isinstance(words, BaseException)
        if not isinstance(words, BaseException):
            ranked_by_words = merge(words.candidates, limit=limit)
            answered = min(answered, words.coverage.shards_answered)
            freshness = merge_freshness((freshness, words.freshness))
        ranked = fuse(merge(vectors.candidates, limit=limit), ranked_by_words, how)[:limit]
        if request.score_threshold is not None:
            ranked = [one for one in ranked if one.score >= request.score_threshold]
        return Found(ranked, (), total, answered, lacks_words or answered < total, freshness, self._clock() - started)


def _of_pictures(answer: FanOutAnswer, distinct: Distinct | None) -> FanOutAnswer:
    """Where pictures are asked for, the answer with one candidate for each, whichever shards its images lie in."""
    if distinct is None:
        return answer
    return replace(answer, candidates=(tuple(join(chain.from_iterable(answer.candidates))),))
