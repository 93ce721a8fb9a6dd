"""An upload: bytes to the object store, event to `image-events`, receipt to the caller."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from actors.objects import image_key
from contract.errors import Forbidden, ImageRejected, InvalidRequest
from contract.events import ImageUploaded, Receipt
from contract.settings import Settings
from serving.access.caller import current_caller
from serving.access.ownership import owned_payload
from serving.catalog import ServedCollection
from serving.dependencies import Decoder, EventLog, Objects
from serving.duplicates import first_with_these_bytes
from serving.events import await_applied, log_event, now_ms
from serving.fetching import UrlFetcher
from serving.metrics import Metrics
from serving.problems import ProblemError
from serving.requests import UploadedFile
from serving.schemas import ReceiptBody, UploadAnswer, UploadReference

_FILE_NAME_MAX = 255


class Uploader:
    """Takes uploads. Sending the same upload twice is harmless: the later event wins."""

    def __init__(
        self,
        settings: Settings,
        events: EventLog,
        objects: Objects,
        decoder: Decoder,
        fetcher: UrlFetcher,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._events = events
        self._objects = objects
        self._decoder = decoder
        self._fetcher = fetcher
        self._metrics = metrics

    async def upload(
        self,
        collection: ServedCollection,
        reference: UploadReference,
        file: UploadedFile | None,
        wait: Literal["logged", "searchable"],
        request_id: str,
    ) -> UploadAnswer:
        """Make a picture searchable: the bytes of `file`, behind `reference.url`, or under `reference.object_key`.

        The bytes are durable before the event is, so an event never names bytes that are not there.
        Returns once the event is logged, or with `wait="searchable"` once every search finds it.

        Raises:
            InvalidRequest: not exactly one source of bytes.
            Forbidden: the id is another owner's, or the payload names one.
            InvalidImage, ImageTooLarge: the bytes are no acceptable picture.
            UrlRefused, UrlUnavailable (retryable): no bytes behind `url`.
            ObjectMissing: no bytes under `object_key`.
            ImageRejected: logged, but the stream could not use the picture; the detail says why.
            NotSearchableInTime: logged, and not searchable within the wait; retryable.
            BrokerUnavailable, ObjectStoreUnavailable: retryable; the same call may be sent again.
        """
        if [file, reference.object_key, reference.url].count(None) != 2:
            raise InvalidRequest("an upload needs a `file` (multipart), or one of `url` and `object_key` (JSON)")
        payload = await self._owned(collection, reference)
        if reference.url is not None:
            data, object_key = await self._fetcher.fetch(reference.url), None
        elif file is not None:
            data, object_key = file.data, None
        else:
            object_key = _check_object_key(reference.object_key or "")
            data = await self._objects.get(object_key, self._settings.max_image_bytes)
        described = await self._decoder.inspect(data)
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        if object_key is None:
            object_key = image_key(collection.spec.name, sha256)
            await self._objects.put(object_key, data, described.content_type)
        event = ImageUploaded(
            collection=collection.spec.name,
            image_id=reference.id or uuid.uuid4().hex,
            object_key=object_key,
            sha256=sha256,
            size_bytes=len(data),
            uploaded_at_ms=now_ms(),
            content_type=described.content_type,
            file_name=_file_name(reference.url, file),
            payload=payload,
            request_id=request_id,
        )
        receipt = await log_event(self._events, collection, event)
        known: Literal["logged", "searchable", "duplicate"] = "logged"
        first = None
        try:
            if wait == "searchable":
                first = await self._outcome(collection, event.image_id, receipt)
                known = "searchable" if first is None else "duplicate"
        finally:
            self._metrics.uploads.labels(known).inc()
        body = ReceiptBody(partition=receipt.partition, offset=receipt.offset)
        return UploadAnswer(id=event.image_id, sha256=sha256, status=known, receipt=body, duplicate_of=first)

    async def _owned(self, collection: ServedCollection, reference: UploadReference) -> dict[str, Any]:
        """The payload with its owner. Raises Forbidden where it would take another owner's image."""
        caller = current_caller()
        if caller.sees_all:
            return reference.payload
        if reference.object_key is not None and not caller.is_admin:
            raise Forbidden("`object_key` names any bytes of the server's store, so it needs the scope `admin`")
        existing = None
        if reference.id is not None:
            image_id = reference.id
            (point,) = await collection.ask(collection.partition(image_id), lambda shard: shard.fetch([image_id]))
            existing = None if point is None or point.state == "deleted" else point.payload
        return owned_payload(caller, reference.payload, existing)

    async def _outcome(self, collection: ServedCollection, image_id: str, receipt: Receipt) -> str | None:
        """Wait for the event's effect; the image that had the bytes first, if another had.

        Raises ImageRejected in a problem that carries the receipt.
        """
        await await_applied(collection, receipt, self._settings.wait_searchable_timeout_s)
        (point,) = await collection.ask(receipt.partition, lambda shard: shard.fetch([image_id]))
        if point is not None and point.rejection_offset == receipt.offset:
            error = ImageRejected(f"{point.rejection_code}: {point.rejection_reason}")
            members = {"partition": receipt.partition, "offset": receipt.offset}
            raise ProblemError(error, id=image_id, receipt=members)
        return None if point is None else await first_with_these_bytes(collection, point)


def _file_name(url: str | None, file: UploadedFile | None) -> str | None:
    """The last part of what a URL or a browser names, as data only: nothing on disk is ever named by it."""
    named = urlsplit(url).path if url is not None else file.file_name if file is not None else None
    return PurePosixPath(named.replace("\\", "/")).name[:_FILE_NAME_MAX] or None if named else None


def _check_object_key(key: str) -> str:
    """A key that stays below the store's root."""
    parts = key.split("/")
    if not key or key.startswith("/") or "\\" in key or any(part in ("", ".", "..") for part in parts):
        raise InvalidRequest(f"object_key {key!r} must be a relative path without empty parts, '.' and '..'")
    return key
