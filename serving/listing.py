"""All images of a collection in the order of their ids, page after page."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct
from pydantic import BaseModel, Field

from actors.messages import PointState, ShardScan, ShardScanResult
from contract.errors import InvalidRequest, ShardUnavailable
from contract.filters import Filter, decode_filter
from contract.settings import Settings
from contract.telemetry import LogField
from contract.topics import partitions_of_shard
from serving.access.caller import current_caller
from serving.catalog import ServedCollection
from serving.dependencies import Shard
from serving.request_line import note

# Images of a page whose size is not asked for.
PAGE_IMAGES = 100
# A shard that does not answer within this time fails the page.
SHARD_TIMEOUT_S = 10.0
# A filter that lets little through ends a page early after this time, so that no request takes long.
PAGE_WITHIN_S = 0.5
_CHECK_BYTES = 8


class ListedImage(BaseModel):
    """One searchable image."""

    id: str = Field(examples=["red-bird"])
    payload: dict[str, Any] | None = Field(examples=[{"caption": "a red bird"}])
    sha256: str | None
    content_type: str | None
    file_name: str | None
    width: int | None
    height: int | None
    source_offset: int = Field(description="Offset in `image-events` of the last event that took effect.")


class ImageList(BaseModel):
    """One page of images, in the order of their ids."""

    images: list[ListedImage]
    next_cursor: str | None = Field(description="For the next page; null at the end, and only there.")


class ListedOut(Struct):
    """One image; `payload` goes from the shard into the answer without being parsed."""

    id: str
    payload: Raw | None
    sha256: str | None
    content_type: str | None
    file_name: str | None
    width: int | None
    height: int | None
    source_offset: int


class PageOut(Struct):
    """A page, fast to encode; `ImageList` describes it."""

    images: list[ListedOut]
    next_cursor: str | None


class Cursor(Struct, frozen=True, array_like=True):
    """Where a listing goes on: behind the id `after`, in this collection and with this filter."""

    incarnation: str
    filter_digest: bytes
    after: str

    def encode(self) -> str:
        """Text that nobody needs to understand; a change to it is noticed."""
        data = msgspec.msgpack.encode(self)
        return base64.urlsafe_b64encode(_check_value(data) + data).rstrip(b"=").decode()


def decode_cursor(text: str, incarnation: str, filter_digest: bytes) -> Cursor:
    """The cursor of a listing of this collection with this filter; raises InvalidRequest."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        check, data = raw[:_CHECK_BYTES], raw[_CHECK_BYTES:]
        if not hmac.compare_digest(check, _check_value(data)):
            raise InvalidRequest("cursor: it is not one this server gave, or was changed on its way")
        cursor = msgspec.msgpack.decode(data, type=Cursor)
    except (binascii.Error, msgspec.MsgspecError, ValueError) as error:
        raise InvalidRequest("cursor: it is not one this server gave, or was changed on its way") from error
    if cursor.incarnation != incarnation:
        raise InvalidRequest("cursor: it is of another collection, or this one was made anew; begin without a cursor")
    if cursor.filter_digest != filter_digest:
        raise InvalidRequest("cursor: it belongs to another `filter`; send the one the listing began with")
    return cursor


def _check_value(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECK_BYTES, person=b"riverlens-cursor").digest()


async def list_images(
    settings: Settings,
    collection: ServedCollection,
    *,
    limit: int,
    cursor: str | None,
    condition: object | None,
    with_payload: bool,
    clock: Callable[[], float] = time.monotonic,
) -> PageOut:
    """The next page. An image that is searchable while the whole listing runs stands on exactly one page.

    What is private to others stands on none.

    Args:
        settings: Bounds of a page.
        collection: Whose images.
        limit: Most images; a page may have fewer though more follow.
        cursor: `next_cursor` of the page before.
        condition: A filter as it was sent, or None.
        with_payload: Whether images carry their payload.
        clock: Seconds.

    Raises:
        InvalidRequest: a limit that is too large, a cursor that is not of this listing, a filter that cannot be.
        ShardUnavailable: a shard does not answer, and its images must not be passed over; retryable.
    """
    if limit > settings.list_limit_max:
        raise InvalidRequest(f"limit may be at most {settings.list_limit_max} (RIVERLENS_LIST_LIMIT_MAX)")
    wanted = None if condition is None else decode_filter(condition)
    hidden = current_caller().hidden
    if hidden is not None:
        wanted = Filter(must=() if wanted is None else (wanted,), must_not=(hidden,))
    spec = collection.spec
    digest = hashlib.blake2b(msgspec.json.encode(condition, order="sorted"), digest_size=_CHECK_BYTES).digest()
    after = None if cursor is None else decode_cursor(cursor, spec.incarnation, digest).after
    started = clock()
    images: list[PointState] = []
    while True:
        found, after = await _next(collection, after, limit - len(images), wanted, with_payload)
        images += found
        if after is None or len(images) == limit or clock() - started >= PAGE_WITHIN_S:
            break
    note({LogField.KIND: "list", LogField.K: limit, LogField.HITS: len(images)})
    following = None if after is None else Cursor(spec.incarnation, digest, after).encode()
    return PageOut([_listed(image) for image in images], following)


async def _next(
    collection: ServedCollection, after: str | None, limit: int, wanted: Filter | None, with_payload: bool
) -> tuple[list[PointState], str | None]:
    """Up to `limit` images above `after`, and the id up to which all were looked at; None at the end."""
    spec = collection.spec
    request = ShardScan(after, limit, wanted, with_payload)

    async def ask(shard: Shard) -> ShardScanResult:
        try:
            return await asyncio.wait_for(shard.scan(request), SHARD_TIMEOUT_S)
        except TimeoutError as error:
            raise ShardUnavailable(f"a shard gave no answer within {SHARD_TIMEOUT_S:g} s") from error

    owned = [partitions_of_shard(shard, spec.shards, spec.partitions)[0] for shard in range(spec.shards)]
    results = await asyncio.gather(*(collection.ask(partition, ask) for partition in owned))
    return merge_scans(results, limit)


def merge_scans(results: Sequence[ShardScanResult], limit: int) -> tuple[list[PointState], str | None]:
    """The first `limit` points of all shards by id, and the id behind which to go on; None at the end.

    Only ids up to which every shard was looked at count. An id that two shards hold (partitions on
    the move) stands once.
    """
    unfinished = [result.scanned_to for result in results if result.scanned_to is not None]
    # The order of code points is that of UTF-8 bytes, in which shards keep ids.
    frontier = min(unfinished) if unfinished else None
    points = {
        point.image_id: point
        for result in results
        for point in result.points
        if frontier is None or point.image_id <= frontier
    }
    ordered = [points[image_id] for image_id in sorted(points)]
    if len(ordered) > limit:
        return ordered[:limit], ordered[limit - 1].image_id
    return ordered, frontier


def _listed(point: PointState) -> ListedOut:
    return ListedOut(
        id=point.image_id,
        payload=None if point.payload is None else Raw(point.payload),
        sha256=point.sha256,
        content_type=point.content_type,
        file_name=point.file_name,
        width=point.width,
        height=point.height,
        source_offset=point.source_offset,
    )


def encode_page(page: PageOut) -> bytes:
    """JSON bytes of a page."""
    return msgspec.json.encode(page)
