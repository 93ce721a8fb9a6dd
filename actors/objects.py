"""Picture bytes: one object store client for `file://` and `s3://`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, from_url

from contract.errors import ImageTooLarge, InvalidRequest, ObjectMissing, ObjectStoreUnavailable, SettingsInvalid
from contract.settings import Settings

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_Answer = TypeVar("_Answer")
# Requests under way at once; they wait for disks and networks, not for processors.
_THREADS: Final = 16
# The callers retry with their own patience; the client's own retries only bridge a hiccup.
_CLIENT: Final[ClientConfig] = {"timeout": timedelta(seconds=30), "connect_timeout": timedelta(seconds=5)}
_RETRY: Final[RetryConfig] = {"max_retries": 1, "retry_timeout": timedelta(seconds=10)}
# A key that cannot be parsed (ValueError) names nothing either.
_ABSENT: Final = (FileNotFoundError, NotFoundError, ValueError)


def image_key(collection: str, sha256: str) -> str:
    """Key of a picture's bytes; equal bytes share one object."""
    return f"images/{collection}/{sha256[:2]}/{sha256}"


def thumbnail_key(collection: str, sha256: str, size: int) -> str:
    """Key of a thumbnail whose longer side is `size` pixels."""
    return f"thumbnails/{collection}/{size}/{sha256[:2]}/{sha256}"


def open_store(settings: Settings) -> Any:
    """The client of `settings.objects_url`; raises SettingsInvalid, and does not connect yet."""
    url = settings.objects_url
    scheme = urlsplit(url).scheme
    options = dict(settings.object_store_options)
    try:
        if scheme == "file":
            return LocalStore(Path(unquote(urlsplit(url).path)), mkdir=True)
        if scheme == "s3":
            client: ClientConfig = {**_CLIENT, "allow_http": options.get("endpoint", "").startswith("http:")}
            return from_url(url, config=options, client_options=client, retry_config=_RETRY)  # type: ignore[call-overload]
    except (BaseError, OSError, ValueError) as error:
        raise SettingsInvalid(f"object_store_url or object_store_options: {first_line(error)}") from error
    raise SettingsInvalid(f"object_store_url: {url!r} must begin with file:// or s3://")


class ObjectStore:
    """Bytes by key under `settings.objects_url`. Safe to use from several asyncio loops.

    Every method may raise ObjectStoreUnavailable (retryable).
    """

    def __init__(self, settings: Settings) -> None:
        self._keeps_content_type = urlsplit(settings.objects_url).scheme != "file"
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="objects")
        self._store = open_store(settings)

    async def put(self, key: str, data: bytes, content_type: str | None = None) -> None:
        """Store bytes under a key, replacing what was there at once or not at all.

        `content_type` is kept by s3:// and not by file://. Raises InvalidRequest for a malformed key.
        """
        attributes = {"Content-Type": content_type} if content_type and self._keeps_content_type else None
        try:
            await self._call(lambda: obstore.put(self._store, key, data, attributes=attributes))
        except ValueError as error:
            raise InvalidRequest(f"{key!r} cannot be a key: {first_line(error)}") from error
        except (BaseError, OSError) as error:
            raise ObjectStoreUnavailable(f"storing {key}: {first_line(error)}") from error

    async def get(self, key: str, max_bytes: int | None = None) -> bytes:
        """The bytes under a key.

        Raises:
            ObjectMissing: there is no such key.
            ImageTooLarge: there are more than `max_bytes`; they are not read then.
        """
        if not key:
            raise ObjectMissing("the empty key names no object")
        try:
            return await self._call(lambda: self._get(key, max_bytes))
        except _ABSENT as error:
            raise ObjectMissing(f"there is no object {key}") from error
        except (BaseError, OSError) as error:
            raise ObjectStoreUnavailable(f"fetching {key}: {first_line(error)}") from error

    async def delete(self, key: str) -> None:
        """Remove a key; a key that is not there is fine."""
        try:
            await self._call(lambda: obstore.delete(self._store, key))
        except _ABSENT:
            return
        except (BaseError, OSError) as error:
            raise ObjectStoreUnavailable(f"deleting {key}: {first_line(error)}") from error

    async def exists(self, key: str) -> bool:
        """Whether there are bytes under a key."""
        try:
            await self._call(lambda: obstore.head(self._store, key))
        except _ABSENT:
            return False
        except (BaseError, OSError) as error:
            raise ObjectStoreUnavailable(f"looking for {key}: {first_line(error)}") from error
        return True

    def _get(self, key: str, max_bytes: int | None) -> bytes:
        answer = obstore.get(self._store, key)
        size = answer.meta["size"]
        if max_bytes is not None and size > max_bytes:
            raise ImageTooLarge(f"{key} has {size} bytes; at most {max_bytes} are accepted")
        return bytes(answer.bytes())

    async def _call(self, operation: Callable[[], _Answer]) -> _Answer:
        # obstore's own coroutines finish on foreign threads, which abort the process when it ends
        # just then; blocking calls in threads of our own do not.
        return await asyncio.get_running_loop().run_in_executor(self._threads, operation)


def first_line(error: Exception) -> str:
    """The message without the client's many lines of debug output."""
    return str(error).strip().split("\n", 1)[0]
