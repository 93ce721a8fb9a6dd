"""Runs the stages of re-ranking on the merged candidates of one search, and fetches what they need.

    policy → fetch → dedupe → verify → fuse → diversify → page

`policy` runs wherever the settings block something, the others where the request asks for them.
What is blocked is gone before anything else is looked at, so that no group names it. Verification
comes after duplicates are collapsed, so that its bounded number of comparisons is spent on
different pictures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import structlog
from msgspec import Struct

from actors.duplicates import GROUP_IDS_MAX, named
from actors.messages import Candidate, Distinct, PointState
from contract.errors import InvalidRequest, NotFound, RiverlensError
from contract.filters import Filter, number_of, values_at
from contract.settings import Settings
from contract.telemetry import LogField
from contract.topics import shard_of_partition
from serving.access.caller import current_caller
from serving.catalog import ServedCollection
from serving.dependencies import Decoder, Objects
from serving.rerank.dedupe import Rule, cosines, representatives, undecided
from serving.rerank.diversify import marginal_relevance
from serving.rerank.fuse import Scores, descending, fused, normalised, popularity, recency
from serving.rerank.geometry import confirmed_relevance
from serving.rerank.pictures import StoredPictures
from serving.rerank.policy import Policy, make_policy
from serving.rerank.request import RerankRequest, Verify
from serving.schemas import SearchRequest

_log = structlog.get_logger()


class GroupOut(Struct, frozen=True):
    """The hits a hit stands for: how many with itself, and the ids of the others, best first, bounded.

    Images with equal bytes that stand as one hit follow it in the order they came.
    """

    count: int
    ids: list[str]


class RerankedHit(Struct, frozen=True):
    """A hit with what the stages found; None where a stage did not run, or did not look at this hit."""

    candidate: Candidate
    rerank_score: float | None = None
    group: GroupOut | None = None
    inliers: int | None = None


class RerankOut(Struct, frozen=True):
    """What re-ranking did: hits that came in, that duplicates took out, that geometry confirmed.

    `without_vector` and `without_picture` count hits that a stage had to pass over, because a shard
    or the object store did not give it in time.
    """

    candidates: int
    collapsed: int
    verified: int
    without_vector: int
    without_picture: int


class Reranked(Struct, frozen=True):
    """Hits of one page, what was done, and the time of each stage in seconds; `did` is None if nothing was asked."""

    hits: list[RerankedHit]
    stages_s: dict[str, float]
    did: RerankOut | None = None


@dataclass(slots=True)
class _Run:
    """One re-ranking under way: everything lies in the order of `candidates`."""

    candidates: list[Candidate]
    relevance: list[float]
    points: list[PointState | None]
    groups: dict[int, list[int]] = field(default_factory=dict)
    inliers: dict[int, int] = field(default_factory=dict)
    verified: int = 0
    without_picture: int = 0


class Reranker:
    """Re-ranks searches of any collection. For one event loop."""

    def __init__(
        self,
        settings: Settings,
        objects: Objects,
        decoder: Decoder,
        clock: Callable[[], float] = time.perf_counter,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._objects = objects
        self._pictures = StoredPictures(settings, objects, decoder)
        self._clock = clock
        self._now = now
        self._policy = make_policy(settings.blocked_tags_field, settings.blocked_tags)

    @property
    def policy(self) -> Policy:
        """What may not be returned to the caller of the running request."""
        return self._policy.towards(current_caller())

    # Before the shards are asked

    def check(self, request: SearchRequest, image: bytes | None) -> None:
        """Raise InvalidRequest if the search asks for what re-ranking cannot do."""
        wanted, most = request.rerank, self._settings.rerank_candidates_max
        if wanted is None:
            return
        if request.limit + request.offset > most:
            raise InvalidRequest(f"with `rerank`, limit plus offset may be at most {most}")
        if wanted.candidates is not None and wanted.candidates > most:
            raise InvalidRequest(f"rerank.candidates may be at most {most}")
        if wanted.verify is not None and image is None and request.image_id is None:
            raise InvalidRequest("rerank.verify compares pictures: it needs `image` or `image_id`")

    def restrict(self, collection: ServedCollection, wanted: Filter | None) -> Filter | None:
        """The filter for the shards, which also leaves out what is blocked."""
        return self.policy.restrict(wanted, collection.spec.filter_fields)

    def candidates(self, collection: ServedCollection, request: SearchRequest) -> int:
        """How many hits to ask each shard for.

        With `rerank` at least `rerank_candidates`, and `rerank_overfetch` times the page's end, so
        that the pages of one search are cut from the same ranking; at most `rerank_candidates_max`.
        """
        end, settings, wanted = request.limit + request.offset, self._settings, request.rerank
        at_end = not self.policy.applies or self.policy.reaches_shards(collection.spec.filter_fields)
        if wanted is None and at_end:
            return end
        most = max(settings.rerank_candidates, settings.rerank_overfetch * end)
        if wanted is not None and wanted.candidates is not None:
            most = wanted.candidates
        return max(end, min(most, settings.rerank_candidates_max))

    def distinct(self, collection: ServedCollection) -> Distinct | None:
        """Whether to ask the shards for pictures instead of points, and what may not be in a group."""
        if collection.spec.duplicates == "keep":
            return None
        # What a group names is not looked at here any more.
        at_end = not self.policy.reaches_shards(collection.spec.filter_fields)
        return Distinct(self.policy.restrict(None, None) if at_end else None)

    def needs_payload(self, request: SearchRequest) -> bool:
        """Whether hits are needed with their payload, also where the answer shall not have it."""
        wanted = request.rerank
        signals = wanted is not None and (wanted.recency is not None or wanted.popularity is not None)
        return request.with_payload or self.policy.applies or signals

    # After the shards have answered

    async def rerank(
        self,
        collection: ServedCollection,
        request: SearchRequest,
        image: bytes | None,
        candidates: Sequence[Candidate],
    ) -> Reranked:
        """The page of hits the search asks for.

        Shards and pictures that do not answer within `rerank_deadline_ms` are passed over and counted.

        Args:
            collection: where the candidates are from.
            request: what was asked; checked with `check`.
            image: bytes of the query picture, if there is one.
            candidates: merged hits of all shards, best first, from the very first.

        Raises:
            NotFound: the image of `image_id` is gone, and `verify` needs it.
            ObjectMissing, ObjectStoreUnavailable, ShardUnavailable: its picture cannot be had for `verify`.
        """
        stages_s: dict[str, float] = {}
        page = slice(request.offset, request.offset + request.limit)
        wanted = request.rerank
        allowed = list(candidates)
        if self.policy.applies:
            with self._timed(stages_s, "policy"):
                allowed = [one for one in candidates if self.policy.allows(one.payload)]
        if wanted is None:
            return Reranked([RerankedHit(one, group=_equals(one)) for one in allowed[page]], stages_s)
        deadline = asyncio.get_running_loop().time() + self._settings.rerank_deadline_ms / 1000
        looks = wanted.dedupe is not None or wanted.verify is not None or wanted.diversify is not None
        run = _Run(allowed, [one.score for one in allowed], [None] * len(allowed))
        if looks and allowed:
            with self._timed(stages_s, "fetch"):
                run = await self._fetch(collection, allowed, deadline)
        similarity = cosines([None if point is None else point.vector for point in run.points])
        order = list(range(len(run.candidates)))
        if wanted.dedupe is not None:
            with self._timed(stages_s, "dedupe"):
                rule = Rule(wanted.dedupe.same_cosine, wanted.dedupe.similar_cosine, wanted.dedupe.hash_bits)
                asked = _known(run.points, undecided(similarity, rule))
                hashes = await self._pictures.hashes(collection.spec.name, asked, deadline)
                run.without_picture += len(asked) - len(hashes)
                for index, leader in enumerate(representatives(similarity, hashes, rule)):
                    run.groups.setdefault(int(leader), []).append(index)
                order = list(run.groups)
        if wanted.verify is not None:
            with self._timed(stages_s, "verify"):
                await self._verify(collection, request, image, wanted.verify, order, run, deadline)
        with self._timed(stages_s, "fuse"):
            scores = self._fuse(wanted, order, run)
            places = descending(scores)
            order, scores = [order[place] for place in places], scores[places]
        if wanted.diversify is not None:
            with self._timed(stages_s, "diversify"):
                count, trade_off = request.offset + request.limit, wanted.diversify.lambda_
                places = marginal_relevance(scores, similarity[order][:, order], trade_off, count)
                order, scores = [order[place] for place in places], scores[places]
        did = RerankOut(
            candidates=len(run.candidates),
            collapsed=len(run.candidates) - len(order),
            verified=run.verified,
            without_vector=sum(1 for point in run.points if point is None or point.vector is None) if looks else 0,
            without_picture=run.without_picture,
        )
        hits = [
            RerankedHit(
                run.candidates[index],
                float(score),
                _group([run.candidates[member] for member in run.groups[index]])
                if run.groups
                else _equals(run.candidates[index]),
                run.inliers.get(index),
            )
            for index, score in zip(order[page], scores[page], strict=True)
        ]
        return Reranked(hits, stages_s, did)

    @contextmanager
    def _timed(self, stages_s: dict[str, float], stage: str) -> Iterator[None]:
        started = self._clock()
        yield
        stages_s[stage] = self._clock() - started

    async def _fetch(self, collection: ServedCollection, candidates: Sequence[Candidate], deadline: float) -> _Run:
        """Vectors and places of the pictures, one call per shard; what was deleted or blocked since is gone."""
        spec = collection.spec
        by_shard: dict[int, list[str]] = {}
        for one in candidates:
            shard = shard_of_partition(collection.partition(one.image_id), spec.shards)
            by_shard.setdefault(shard, []).append(one.image_id)

        async def ask(ids: list[str]) -> list[PointState | None]:
            return await collection.ask(collection.partition(ids[0]), lambda shard: shard.fetch(ids, True))

        tasks = [asyncio.create_task(ask(ids)) for ids in by_shard.values()]
        try:
            await asyncio.wait(tasks, timeout=max(0.0, deadline - asyncio.get_running_loop().time()))
        finally:
            late = [task for task in tasks if task.cancel()]
        if late:
            await asyncio.wait(late)
        known: dict[str, PointState | None] = {}
        for ids, task in zip(by_shard.values(), tasks, strict=True):
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, RiverlensError):
                raise error
            if error is None and not task.cancelled():
                known.update(zip(ids, task.result(), strict=True))
            else:
                reason = "too late" if error is None else str(error)
                _log.warning("vectors not fetched", **{LogField.COUNT: len(ids), LogField.ERROR: reason})
        kept = [(one, known.get(one.image_id)) for one in candidates if self._still_allowed(one, known)]
        return _Run([one for one, _ in kept], [one.score for one, _ in kept], [point for _, point in kept])

    def _still_allowed(self, one: Candidate, known: Mapping[str, PointState | None]) -> bool:
        if one.image_id not in known:
            return True
        point = known[one.image_id]
        return point is not None and point.state == "searchable" and self.policy.allows(point.payload)

    async def _verify(
        self,
        collection: ServedCollection,
        request: SearchRequest,
        image: bytes | None,
        wanted: Verify,
        order: Sequence[int],
        run: _Run,
        deadline: float,
    ) -> None:
        """Put the inliers of the best hits into `run`, and those that are confirmed above the others."""
        crop = request.crop
        region = None if crop is None else (crop.x, crop.y, crop.width, crop.height)
        asked = _known(run.points, order[: wanted.candidates])
        try:
            async with asyncio.timeout_at(deadline):
                data = image if image is not None else await self._picture_of(collection, request.image_id or "")
        except TimeoutError:
            _log.warning("query picture not fetched in time")
        else:
            run.inliers = await self._pictures.inliers(collection.spec.name, data, region, asked, deadline)
        run.without_picture += len(asked) - len(run.inliers)
        # Scores are cosines, or what words or a fusion of both gave; confirmed hits stand above any of them.
        run.relevance = [float(relevance) for relevance in normalised(run.relevance)]
        for index, count in run.inliers.items():
            run.relevance[index] = confirmed_relevance(run.relevance[index], count, wanted.min_inliers)
            run.verified += count >= wanted.min_inliers

    async def _picture_of(self, collection: ServedCollection, image_id: str) -> bytes:
        (point,) = await collection.ask(collection.partition(image_id), lambda shard: shard.fetch([image_id]))
        if point is None or point.object_key is None:
            raise NotFound(f"image {image_id!r} has no stored picture to compare with")
        return await self._objects.get(point.object_key)

    def _fuse(self, wanted: RerankRequest, order: Sequence[int], run: _Run) -> Scores:
        signals = []
        of_payload = wanted.recency is not None or wanted.popularity is not None
        payloads = [_decoded(run.candidates[index].payload) for index in order] if of_payload else []
        if wanted.recency is not None:
            times = [_number(payload, wanted.recency.field) for payload in payloads]
            now = self._now()
            ages = [None if time_s is None else now - time_s for time_s in times]
            signals.append((wanted.recency.weight, recency(ages, wanted.recency.half_life_s)))
        if wanted.popularity is not None:
            counts = [_number(payload, wanted.popularity.field) for payload in payloads]
            signals.append((wanted.popularity.weight, popularity(counts)))
        return fused(normalised([run.relevance[index] for index in order]), signals)


def _known(points: Sequence[PointState | None], indexes: Sequence[int]) -> dict[int, PointState]:
    found = {index: points[index] for index in indexes}
    return {index: point for index, point in found.items() if point is not None}


def _group(hits: Sequence[Candidate]) -> GroupOut:
    """The group of the first of these hits, which stands for the others and for whatever they stand for."""
    count = sum(1 if one.group is None else one.group.count for one in hits)
    return GroupOut(count, [image_id for one in hits for image_id in named(one)][1 : GROUP_IDS_MAX + 1])


def _equals(hit: Candidate) -> GroupOut | None:
    """The group of a hit by itself; None where it stands for no other image."""
    return None if hit.group is None or hit.group.count == 1 else _group([hit])


def _decoded(payload: bytes | None) -> dict[str, object]:
    return {} if payload is None else msgspec.json.decode(payload, type=dict[str, object])


def _number(payload: Mapping[str, object], key: str) -> float | None:
    """The largest number or date-time at a key, a date-time as Unix seconds; None without one."""
    numbers = [number for value in values_at(payload, key) if (number := number_of(value)) is not None]
    return max(numbers, default=None)
