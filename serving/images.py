"""Reads and changes of single images."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

import msgspec
import structlog

from actors.messages import PointState
from contract.errors import BrokerUnavailable, NotFound, NotSearchableInTime
from contract.events import ImageDeleted, PayloadUpdated
from contract.settings import Settings
from contract.telemetry import LogField
from serving.access.caller import current_caller
from serving.access.ownership import check_change, owned_payload
from serving.catalog import ServedCollection
from serving.dependencies import CollectionAdmin, Decoder, EventLog, Objects
from serving.duplicates import first_with_these_bytes
from serving.events import await_applied, deletion, log_event, payload_update
from serving.pictures import THUMBNAIL_TYPE
from serving.schemas import ChangeAnswer, ImageAnswer, ReceiptBody, Rejection
from serving.thumbnails import stored_thumbnail

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes of a picture or a thumbnail, as they are sent."""

    data: bytes
    content_type: str
    etag: str


class Images:
    """Single images of any collection."""

    def __init__(
        self, settings: Settings, events: EventLog, objects: Objects, decoder: Decoder, admin: CollectionAdmin
    ) -> None:
        self._settings = settings
        self._events = events
        self._objects = objects
        self._decoder = decoder
        self._admin = admin

    async def describe(self, collection: ServedCollection, image_id: str) -> ImageAnswer:
        """Payload and state. Raises NotFound for an id that was never uploaded, or is deleted."""
        point = await self._find(collection, image_id)
        partition = collection.partition(image_id)
        if point is None:
            return ImageAnswer(id=image_id, state="logged", partition=partition, source_offset=None)
        rejection = None
        if point.rejection_offset is not None:
            rejection = Rejection(
                code=point.rejection_code or "", reason=point.rejection_reason or "", offset=point.rejection_offset
            )
        first = await first_with_these_bytes(collection, point)
        there: Literal["searchable", "duplicate"] = "searchable" if first is None else "duplicate"
        return ImageAnswer(
            id=image_id,
            state=there if point.state == "searchable" else "rejected",
            partition=partition,
            source_offset=point.source_offset,
            payload=None if point.payload is None else msgspec.json.decode(point.payload),
            sha256=point.sha256,
            content_type=point.content_type,
            file_name=point.file_name,
            width=point.width,
            height=point.height,
            duplicate_of=first,
            rejection=rejection,
        )

    async def delete(
        self, collection: ServedCollection, image_id: str, wait: Literal["logged", "searchable"], request_id: str
    ) -> ChangeAnswer:
        """Delete an image. Raises NotFound for an id that is not there, Forbidden; nothing is logged then."""
        await self._find_own(collection, image_id)
        return await self._change(collection, deletion(collection, image_id, request_id), wait)

    async def update_payload(
        self,
        collection: ServedCollection,
        image_id: str,
        payload: dict[str, object],
        wait: Literal["logged", "searchable"],
        request_id: str,
    ) -> ChangeAnswer:
        """Replace the payload as a whole; its owner stays. Raises NotFound for an id that is not there, Forbidden."""
        point = await self._find_own(collection, image_id)
        payload = owned_payload(current_caller(), payload, None if point is None else point.payload)
        return await self._change(collection, payload_update(collection, image_id, payload, request_id), wait)

    async def content(self, collection: ServedCollection, image_id: str, size: int | None) -> Content:
        """The picture as uploaded but for its metadata, or a thumbnail of at most `size` pixels on the longer side.

        Raises:
            NotFound: unknown, deleted or rejected.
            NotSearchableInTime: the shard has not caught up within the wait; retryable.
            InvalidImage, ImageTooLarge: what is stored is no picture within the limits.
            ObjectMissing, ObjectStoreUnavailable, DecoderUnavailable.
        """
        point = await self._find(collection, image_id)
        if point is None:
            raise NotSearchableInTime(f"the shard of image {image_id!r} has not caught up yet")
        if point.state != "searchable" or point.object_key is None or point.sha256 is None:
            raise NotFound(f"image {image_id!r} was rejected; there is no picture to show")
        if size is not None:
            return await self._thumbnail(collection, point.object_key, point.sha256, size)
        data = await self._objects.get(point.object_key)
        # The bytes decide what they are, never the uploader: a page dressed as a picture must not run.
        clean, content_type = await self._decoder.clean(data)
        return Content(clean, content_type, point.sha256)

    async def _thumbnail(self, collection: ServedCollection, object_key: str, sha256: str, size: int) -> Content:
        place = (collection.spec.name, object_key, sha256, size)
        data = await stored_thumbnail(self._objects, self._decoder, *place)
        return Content(data, THUMBNAIL_TYPE, f"{sha256}-{size}")

    async def _change(
        self,
        collection: ServedCollection,
        event: ImageDeleted | PayloadUpdated,
        wait: Literal["logged", "searchable"],
    ) -> ChangeAnswer:
        receipt = await log_event(self._events, collection, event)
        if wait == "searchable":
            await await_applied(collection, receipt, self._settings.wait_searchable_timeout_s)
        return ChangeAnswer(
            id=event.image_id,
            status="applied" if wait == "searchable" else "logged",
            receipt=ReceiptBody(partition=receipt.partition, offset=receipt.offset),
        )

    async def _find(self, collection: ServedCollection, image_id: str) -> PointState | None:
        """What the shard knows of an image that is there; None when the shard is too far behind to tell.

        An id the shard does not have may have been logged a moment ago, so the shard is given time
        to apply everything logged by now before the id counts as unknown. What is private to others
        is not there, and takes the same time not to be.
        """
        partition = collection.partition(image_id)
        point = await self._fetch(collection, image_id, partition)
        if _present(point):
            return point
        caught_up = await self._catch_up(collection, partition)
        point = await self._fetch(collection, image_id, partition)
        if _present(point):
            return point
        if not caught_up:
            # Also of an id that the shard knows as deleted: it may have been uploaded again since.
            return None
        raise NotFound(f"there is no image {image_id!r} in collection {collection.spec.name!r}")

    async def _fetch(self, collection: ServedCollection, image_id: str, partition: int) -> PointState | None:
        (point,) = await collection.ask(partition, lambda shard: shard.fetch([image_id]))
        return None if point is None or not current_caller().sees(point.payload) else point

    async def _find_own(self, collection: ServedCollection, image_id: str) -> PointState | None:
        """As `_find`, for a change.

        Raises Forbidden if the image is another owner's, and NotSearchableInTime (retryable) while nobody can tell
        whose it is.
        """
        point, caller = await self._find(collection, image_id), current_caller()
        if point is None and not caller.sees_all:
            raise NotSearchableInTime(f"the shard of image {image_id!r} has not caught up yet")
        check_change(caller, None if point is None else point.payload)
        return point

    async def _catch_up(self, collection: ServedCollection, partition: int) -> bool:
        """Whether the shard has applied everything that is in the partition now, within a bounded wait."""
        spec = collection.spec
        try:
            end = await asyncio.to_thread(self._admin.source_end, spec.name, partition)
        except BrokerUnavailable as error:
            _log.warning("high watermark unknown", **{LogField.COLLECTION: spec.name, LogField.ERROR: error.detail})
            return False
        if end == 0:
            return True
        return await collection.wait_applied(partition, end - 1, self._settings.min_receipt_timeout_s)


def _present(point: PointState | None) -> bool:
    return point is not None and point.state != "deleted"
