"""Thumbnails are made once, when somebody first wants them, and kept in the object store."""

from __future__ import annotations

import structlog

from actors.objects import thumbnail_key
from contract.errors import ObjectMissing, ObjectStoreUnavailable
from contract.telemetry import LogField
from serving.dependencies import Decoder, Objects
from serving.pictures import THUMBNAIL_TYPE

_log = structlog.get_logger()


async def stored_thumbnail(
    objects: Objects,
    decoder: Decoder,
    collection: str,
    object_key: str,
    sha256: str,
    size: int,
) -> bytes:
    """WebP bytes of a picture, its longer side at most `size` pixels, made where there is none yet.

    Raises ObjectMissing, ObjectStoreUnavailable (retryable), InvalidImage, ImageTooLarge,
    DecoderUnavailable (retryable).
    """
    key = thumbnail_key(collection, sha256, size)
    try:
        return await objects.get(key)
    except ObjectMissing:
        original = await objects.get(object_key)
        data = await decoder.thumbnail(original, size)
        try:
            await objects.put(key, data, THUMBNAIL_TYPE)
        except ObjectStoreUnavailable as error:
            # The thumbnail is made anew next time; this answer has it.
            _log.warning("thumbnail not kept", **{LogField.ERROR: error.detail})
        return data
