"""From a search request to the one vector that is searched with.

A query has parts: words, a picture, an indexed image, a vector, positive and negative examples. Each part
becomes a vector whose inner product with an image vector is a cosine. Parts are combined as their
weighted mean, so the score of a combined query is the weighted mean of what its parts score:
Σ wᵢ·sᵢ / Σ |wᵢ|. A list of examples is one part, the weighted mean of its members.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass

import numpy as np

from actors.messages import EncoderDescription, FloatMatrix, PointState
from contract.errors import FingerprintMismatch, InvalidRequest, NotFound
from contract.settings import Settings
from contract.telemetry import LogField
from serving.access.caller import current_caller
from serving.catalog import ServedCollection
from serving.dependencies import Decoder, Objects
from serving.metrics import Metrics
from serving.request_line import note
from serving.schemas import Crop, Example, ExampleOrId, SearchRequest
from serving.together import Together

# How long a description of an encoder is believed before it is asked again beside the next encoding.
DESCRIPTION_AGE_S = 1.0
_ZERO_NORM = 1e-6


@dataclass(frozen=True, slots=True)
class Part:
    """One weighted part of a query; `vector` is (d,) float32."""

    weight: float
    vector: FloatMatrix


def combine(parts: Sequence[Part]) -> FloatMatrix:
    """The weighted mean of the parts, (d,) float32. A single positive part is returned as it is.

    Raises InvalidRequest when there is no part with a positive weight, or the parts cancel out.
    """
    if not any(part.weight > 0 for part in parts):
        raise InvalidRequest("a search needs `text`, `image`, `image_id`, `vector` or `positive` with a weight above 0")
    if len(parts) == 1:
        return parts[0].vector
    total = sum(abs(part.weight) for part in parts)
    mean = np.sum([part.weight / total * part.vector for part in parts], axis=0)
    if float(np.linalg.norm(mean)) < _ZERO_NORM:
        raise InvalidRequest("the parts of the query cancel each other out")
    return np.asarray(mean, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class EncodedQuery:
    """A query vector, (d,) float32. `cached`: all of it was; None for a query of stored vectors only."""

    vector: FloatMatrix
    cached: bool | None


class QueryCache:
    """Query vectors of texts and pictures, least recently used out first. Not for several threads.

    The key holds the encoder's fingerprint, so a vector of another encoder is never found.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._vectors: OrderedDict[tuple[str, str], FloatMatrix] = OrderedDict()

    def get(self, fingerprint: str, query: str) -> FloatMatrix | None:
        """The vector, (d,) float32, if it is there."""
        vector = self._vectors.get((fingerprint, query))
        if vector is not None:
            self._vectors.move_to_end((fingerprint, query))
        return vector

    def put(self, fingerprint: str, query: str, vector: FloatMatrix) -> None:
        """Keep a vector."""
        self._vectors[fingerprint, query] = vector
        self._vectors.move_to_end((fingerprint, query))
        while len(self._vectors) > self._capacity:
            self._vectors.popitem(last=False)

    def __len__(self) -> int:
        return len(self._vectors)


class QueryEncoder:
    """Encodes search requests with the embedders of the collection's model."""

    def __init__(
        self,
        settings: Settings,
        objects: Objects,
        decoder: Decoder,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._objects = objects
        self._decoder = decoder
        self._metrics = metrics
        self._clock = clock
        self._cache = QueryCache(settings.text_cache)
        self._descriptions: dict[str, tuple[float, EncoderDescription]] = {}
        self._texts: Together[str, FloatMatrix] = Together()
        self._points: Together[str, PointState | None] = Together()

    async def encode(self, collection: ServedCollection, request: SearchRequest, image: bytes | None) -> EncodedQuery:
        """The query vector, of the encoder whose fingerprint the collection has.

        Requests that are encoded at the same time share the calls to the embedder and to the shards.

        Raises:
            InvalidRequest: no usable part, a crop without a picture, or a vector of another dimension.
            NotFound: an image id that is not searchable.
            InvalidImage: the picture cannot be decoded.
            FingerprintMismatch: the running encoder, or the one that the request names, is not the collection's.
            EmbedderUnavailable, DecoderUnavailable, ShardUnavailable, ObjectStoreUnavailable: retryable.
        """
        _check_given(collection, request)
        if request.crop is not None and image is None and request.image_id is None:
            raise InvalidRequest("`crop` needs a picture: `image` or `image_id`")
        weights: list[float] = []
        making: list[Coroutine[None, None, FloatMatrix]] = []
        # Whether each look-up in the cache found something.
        hits: list[bool] = []
        if request.text is not None:
            weights.append(request.text_weight)
            making.append(self._text(collection, request.text, hits))
        if image is not None:
            weights.append(request.image_weight)
            making.append(self._picture(collection, image, request.crop, hits))
        if request.image_id is not None:
            region = request.crop if image is None else None
            weights.append(request.image_id_weight)
            making.append(self._indexed(collection, request.image_id, region, hits))
        for examples, weight in (
            (request.positive, request.positive_weight),
            (request.negative, -request.negative_weight),
        ):
            if examples:
                weights.append(weight)
                making.append(self._mean(collection, examples, hits))
        # A vector that is there already costs no task.
        vectors = await asyncio.gather(*making) if making else []
        if request.vector is not None:
            weights.append(request.vector_weight)
            vectors.append(request.vector)
        vector = combine([Part(weight, vector) for weight, vector in zip(weights, vectors, strict=True)])
        cached = all(hits) if hits else None
        note({LogField.CACHE_HIT: cached})
        return EncodedQuery(vector, cached)

    async def _mean(
        self, collection: ServedCollection, examples: Sequence[ExampleOrId], hits: list[bool]
    ) -> FloatMatrix:
        """The weighted mean of examples, (d,) float32."""
        some = [Example(image_id=one) if isinstance(one, str) else one for one in examples]
        vectors = await asyncio.gather(*(self._example(collection, one, hits) for one in some))
        mean = np.average(np.stack(vectors), axis=0, weights=[one.weight for one in some])
        return np.asarray(mean, dtype=np.float32)

    async def _example(self, collection: ServedCollection, example: Example, hits: list[bool]) -> FloatMatrix:
        if example.text is not None:
            return await self._text(collection, example.text, hits)
        return await self._indexed(collection, example.image_id or "", example.crop, hits)

    def _look_up(self, kind: str, fingerprint: str, query: str, hits: list[bool]) -> FloatMatrix | None:
        vector = self._cache.get(fingerprint, query)
        hits.append(vector is not None)
        self._metrics.query_cache.labels(kind, "hit" if vector is not None else "miss").inc()
        return vector

    def _keep(self, fingerprint: str, query: str, vector: FloatMatrix) -> None:
        self._cache.put(fingerprint, query, vector)
        self._metrics.query_cache_entries.set(len(self._cache))

    async def _text(self, collection: ServedCollection, text: str, hits: list[bool]) -> FloatMatrix:
        fingerprint = collection.spec.fingerprint
        cached = self._look_up("text", fingerprint, f"text:{text}", hits)
        if cached is not None:
            return cached

        async def encode(texts: Sequence[str]) -> list[FloatMatrix]:
            return list(await collection.embedder.encode_texts(texts))

        vector, _ = await asyncio.gather(
            self._texts.get((collection.spec.model, fingerprint), text, encode),
            self._description(collection),
        )
        self._keep(fingerprint, f"text:{text}", vector)
        return vector

    async def _picture(
        self, collection: ServedCollection, data: bytes, region: Crop | None, hits: list[bool]
    ) -> FloatMatrix:
        fingerprint = collection.spec.fingerprint
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        query = f"image:{digest}" + ("" if region is None else f":{region.model_dump_json()}")
        cached = self._look_up("image", fingerprint, query, hits)
        if cached is not None:
            return cached
        description = await self._description(collection)

        place = None if region is None else (region.x, region.y, region.width, region.height)
        decoded = await self._decoder.square(data, description.preprocess, place)
        vector: FloatMatrix = (await collection.embedder.encode_images(decoded.pixels[None]))[0]
        self._keep(fingerprint, query, vector)
        return vector

    async def _indexed(
        self, collection: ServedCollection, image_id: str, region: Crop | None, hits: list[bool]
    ) -> FloatMatrix:
        point = await self._point(collection, image_id)
        if region is None:
            return _vector(point)
        if point.object_key is None:
            raise NotFound(f"image {image_id!r} has no stored bytes to crop")
        return await self._picture(collection, await self._objects.get(point.object_key), region, hits)

    async def _point(self, collection: ServedCollection, image_id: str) -> PointState:
        partition = collection.partition(image_id)

        async def fetch(image_ids: Sequence[str]) -> list[PointState | None]:
            return await collection.ask(partition, lambda shard: shard.fetch(image_ids, True))

        place = (collection.spec.name, collection.spec.incarnation, partition)
        point = await self._points.get(place, image_id, fetch)
        if point is None or point.state != "searchable" or not current_caller().sees(point.payload):
            raise NotFound(f"image {image_id!r} is not searchable in collection {collection.spec.name!r}")
        return point

    async def _description(self, collection: ServedCollection) -> EncoderDescription:
        """The running encoder, known to be the collection's."""
        model = collection.spec.model
        known = self._descriptions.get(model)
        if known is None or self._clock() - known[0] >= DESCRIPTION_AGE_S:
            known = (self._clock(), await collection.embedder.describe())
            self._descriptions[model] = known
        description = known[1]
        if description.fingerprint != collection.spec.fingerprint:
            # A collection may have been completed since; the next request asks the embedder anew.
            del self._descriptions[model]
            raise FingerprintMismatch(
                f"collection {collection.spec.name!r} is of encoder {collection.spec.fingerprint}, "
                f"but {model!r} runs {description.fingerprint}"
            )
        return description


def _vector(point: PointState) -> FloatMatrix:
    if point.vector is None:
        raise NotFound(f"image {point.image_id!r} has no stored vector")
    return point.vector


def _check_given(collection: ServedCollection, request: SearchRequest) -> None:
    """What the request says of its encoder, before any is asked."""
    spec, vector = collection.spec, request.vector
    if request.fingerprint is not None and request.fingerprint != spec.fingerprint:
        raise FingerprintMismatch(
            f"the search is meant for encoder {request.fingerprint}, "
            f"but collection {spec.name!r} is of {spec.fingerprint}"
        )
    if vector is not None and len(vector) != spec.dimension:
        raise InvalidRequest(
            f"`vector` has {len(vector)} numbers; vectors of collection {spec.name!r} have {spec.dimension}"
        )
