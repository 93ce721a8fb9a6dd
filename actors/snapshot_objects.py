"""The snapshots of a shard in the object store: `snapshots/{collection}/{incarnation}/{shard}/…`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import obstore
from obstore.exceptions import BaseError, NotFoundError

from actors.index.remote_snapshots import CHUNK_BYTES, RemoteObject
from actors.objects import first_line, open_store
from contract.errors import ObjectMissing, ObjectStoreUnavailable
from contract.settings import Settings

_Answer = TypeVar("_Answer")
# Pieces of one file under way at once; with the size of a piece it bounds the memory of an upload.
_PIECES: Final = 4
_ABSENT: Final = (FileNotFoundError, NotFoundError)


def snapshots_prefix(collection: str, incarnation: str) -> str:
    """Prefix of everything that snapshots of a collection's shards put into the object store."""
    return f"snapshots/{collection}/{incarnation}/"


class SnapshotObjects:
    """Implements `RemoteFolder` below one prefix of `settings.objects_url`, for file:// and s3://.

    Every method may raise ObjectStoreUnavailable (retryable). Nothing larger than a few pieces of
    8 MiB is held in memory, and no single request is longer than one piece, whatever a file's size.
    """

    def __init__(self, settings: Settings, prefix: str) -> None:
        self._store = open_store(settings)
        self._prefix = prefix

    def list(self, prefix: str) -> list[RemoteObject]:
        """All objects below `prefix`, which ends in `/` or is empty."""
        below = self._prefix + prefix

        def collect() -> list[RemoteObject]:
            return [
                RemoteObject(
                    one["path"].removeprefix(self._prefix), one["size"], int(one["last_modified"].timestamp() * 1000)
                )
                for page in obstore.list(self._store, below)
                for one in page
            ]

        return _translated(f"listing {below}", collect)

    def put(self, key: str, chunks: Iterator[bytes]) -> None:
        """Store the chunks under a key at once, or, if the iterator raises, not at all; its error passes through."""
        failed: list[BaseException] = []

        def told() -> Iterator[bytes]:
            try:
                yield from chunks
            except BaseException as error:
                failed.append(error)
                raise

        path = self._prefix + key
        try:
            obstore.put(self._store, path, told(), chunk_size=CHUNK_BYTES, max_concurrency=_PIECES)
        except (BaseError, OSError, ValueError) as error:
            if failed:
                raise failed[0] from None
            raise ObjectStoreUnavailable(f"storing {path}: {first_line(error)}") from error

    def size(self, key: str) -> int:
        """Bytes of an object. Raises ObjectMissing."""
        path = self._prefix + key
        return _translated(f"looking for {path}", lambda: int(obstore.head(self._store, path)["size"]))

    def get(self, key: str, start: int, length: int) -> bytes:
        """The `length` bytes from `start` on, which are there. Raises ObjectMissing."""
        path = self._prefix + key
        return _translated(
            f"fetching {path}", lambda: bytes(obstore.get_range(self._store, path, start=start, length=length))
        )

    def read(self, key: str) -> bytes:
        """All bytes of an object. Raises ObjectMissing."""
        path = self._prefix + key
        return _translated(f"fetching {path}", lambda: bytes(obstore.get(self._store, path).bytes()))

    def delete(self, key: str) -> None:
        """Remove a key; one that is not there is fine."""
        path = self._prefix + key
        try:
            _translated(f"deleting {path}", lambda: obstore.delete(self._store, path))
        except ObjectMissing:
            return

    def clear(self) -> int:
        """Remove every object below the prefix; how many there were."""
        found = self.list("")
        for one in found:
            self.delete(one.key)
        return len(found)


def _translated(doing: str, operation: Callable[[], _Answer]) -> _Answer:
    try:
        return operation()
    except _ABSENT as error:
        raise ObjectMissing(f"{doing}: there is no such object") from error
    except (BaseError, OSError, ValueError) as error:
        raise ObjectStoreUnavailable(f"{doing}: {first_line(error)}") from error
