"""What re-ranking needs of stored pictures: perceptual hashes and local features, kept for the next search.

They are computed from the kept thumbnails, in threads of their own, so that neither the event loop
nor the decoding of other requests waits for them.
"""

from __future__ import annotations

import asyncio
import io
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import cv2
import structlog
from PIL import Image

from actors.decoding.messages import Region
from actors.messages import Pixels, PointState
from contract.errors import ObjectMissing, RiverlensError
from contract.settings import Settings
from contract.telemetry import LogField
from serving.dependencies import Decoder, Objects
from serving.rerank.geometry import SIDE, Features, features, inliers
from serving.rerank.picture_hash import perceptual_hash
from serving.thumbnails import stored_thumbnail

_log = structlog.get_logger()

# The smallest thumbnail there is; the hash looks at 32 × 32 pixels.
_HASH_SIDE = 64
_HASHES_KEPT = 50_000
# Features of one picture take at most 110 kB.
_FEATURES_KEPT = 256
# Pictures looked at side by side. The best hits come first, so that a deadline costs the last ones.
_AT_ONCE = 8

Value = TypeVar("Value")


class _Recent(Generic[Value]):
    """Values by the hash of a picture's bytes, least recently used out first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: OrderedDict[str, Value] = OrderedDict()

    def get(self, sha256: str) -> Value | None:
        value = self._values.get(sha256)
        if value is not None:
            self._values.move_to_end(sha256)
        return value

    def put(self, sha256: str, value: Value) -> None:
        self._values[sha256] = value
        while len(self._values) > self._capacity:
            self._values.popitem(last=False)


class StoredPictures:
    """Looks at the stored pictures of points. For one event loop."""

    def __init__(self, settings: Settings, objects: Objects, decoder: Decoder) -> None:
        self._decoder = decoder
        self._objects = objects
        self._pool = ThreadPoolExecutor(settings.rerank_threads, thread_name_prefix="rerank")
        self._hashes: _Recent[int] = _Recent(_HASHES_KEPT)
        self._features: _Recent[Features] = _Recent(_FEATURES_KEPT)
        # OpenCV's own threads would take every processor for one picture.
        cv2.setNumThreads(1)

    async def hashes(self, collection: str, points: Mapping[int, PointState], deadline: float) -> dict[int, int]:
        """64-bit perceptual hashes by the same keys; what cannot be had by the loop's time `deadline` is left out."""

        async def look(point: PointState) -> int:
            return await self._kept(self._hashes, collection, point, _HASH_SIDE, perceptual_hash)

        return await _in_time(points, look, deadline)

    async def inliers(
        self, collection: str, query: bytes, region: Region | None, points: Mapping[int, PointState], deadline: float
    ) -> dict[int, int]:
        """Inliers against the query picture by the same keys; what cannot be had by `deadline` is left out.

        `region` is x, y, width, height in fractions of the query picture.

        Raises InvalidImage, ImageTooLarge for a query picture that cannot be decoded.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline):
                seen = await self._decoder.small(query, SIDE, region)
                of_query = await loop.run_in_executor(self._pool, _features_of, seen.pixels)
        except TimeoutError:
            _log.warning("query picture not looked at in time")
            return {}

        async def look(point: PointState) -> int:
            of_point = await self._kept(self._features, collection, point, SIDE, features)
            return await loop.run_in_executor(self._pool, inliers, of_query, of_point)

        return await _in_time(points, look, deadline)

    async def _kept(
        self,
        kept: _Recent[Value],
        collection: str,
        point: PointState,
        side: int,
        compute: Callable[[Image.Image], Value],
    ) -> Value:
        if point.object_key is None or point.sha256 is None:
            raise ObjectMissing(f"image {point.image_id!r} has no stored picture")
        value = kept.get(point.sha256)
        if value is None:
            place = (point.object_key, point.sha256, side)
            data = await stored_thumbnail(self._objects, self._decoder, collection, *place)
            value = await asyncio.get_running_loop().run_in_executor(self._pool, _from_thumbnail, data, compute)
            kept.put(point.sha256, value)
        return value


def _features_of(pixels: Pixels) -> Features:
    return features(Image.fromarray(pixels))


def _from_thumbnail(data: bytes, compute: Callable[[Image.Image], Value]) -> Value:
    # Written by this system, so that none of the checks of an upload apply.
    with Image.open(io.BytesIO(data)) as image:
        return compute(image.convert("RGB"))


async def _in_time(
    points: Mapping[int, PointState], look: Callable[[PointState], Awaitable[Value]], deadline: float
) -> dict[int, Value]:
    """What `look` says of each point, in their order; failures and those that are late are left out and logged."""
    slots = asyncio.Semaphore(_AT_ONCE)

    async def in_turn(point: PointState) -> Value:
        async with slots:
            return await look(point)

    tasks = {key: asyncio.create_task(in_turn(point)) for key, point in points.items()}
    if not tasks:
        return {}
    remaining_s = max(0.0, deadline - asyncio.get_running_loop().time())
    try:
        await asyncio.wait(tasks.values(), timeout=remaining_s)
    finally:
        late = [task for task in tasks.values() if task.cancel()]
    if late:
        await asyncio.wait(late)
        _log.warning("pictures not looked at in time", **{LogField.COUNT: len(late)})
    answers: dict[int, Value] = {}
    failures: list[RiverlensError] = []
    for key, task in tasks.items():
        error = None if task.cancelled() else task.exception()
        if isinstance(error, RiverlensError):
            failures.append(error)
        elif error is not None:
            raise error
        elif not task.cancelled():
            answers[key] = task.result()
    if failures:
        first = {LogField.CODE: failures[0].code, LogField.ERROR: failures[0].detail}
        _log.warning("pictures not looked at", **{LogField.COUNT: len(failures)}, **first)
    return answers
