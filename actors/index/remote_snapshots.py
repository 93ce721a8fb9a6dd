"""Snapshots of one shard in an object store, shared by all its replicas.

Below the shard's prefix lie `manifests/{snapshot_id}.json` and
`objects/{sha256}-{snapshot_id}`: the bytes of a file, under the snapshot that first brought them.
Several replicas write and retire here without a lock. What keeps them apart:

1. An object is used again only while one of the newest manifests names it, and a manifest is
   written only after a pass that found every object in place and uploaded nothing.
2. A manifest that is not among the newest is deleted only `_SURPLUS_MS` after it was superseded, so
   whoever found its objects in such a pass has written a manifest of its own by then.
3. An object that no manifest names may belong to an upload under way, and is deleted after a day.

Ages are differences of times that the store gave, so the clocks of the machines do not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec
import structlog
from msgspec import Struct

from actors.index.manifest import (
    Manifest,
    SnapshotDamaged,
    SnapshotFile,
    SnapshotGone,
    decode_manifest,
    encode_manifest,
)
from contract.errors import ObjectMissing, ObjectStoreUnavailable
from contract.telemetry import LogField

_log = structlog.get_logger()
_MANIFESTS = "manifests/"
_OBJECTS = "objects/"
CHUNK_BYTES = 8 * 1024 * 1024
_PASSES = 5
_SURPLUS_MS = 120_000
_ORPHAN_MS = 24 * 3600 * 1000
# Half of it, so that what an upload counts on is not deleted before its manifest stands.
_RESUMABLE_MS = _ORPHAN_MS // 2


class RemoteObject(Struct, frozen=True):
    """An object as listed; `modified_at_ms` is the store's time of its writing, in Unix milliseconds."""

    key: str
    bytes: int
    modified_at_ms: int


class RemoteFolder(Protocol):
    """Objects below one prefix; keys are relative to it.

    Every method may raise ObjectStoreUnavailable (retryable).
    """

    def list(self, prefix: str) -> list[RemoteObject]:
        """All objects whose key begins with the folder `prefix` (ending in `/`)."""

    def put(self, key: str, chunks: Iterator[bytes]) -> None:
        """Store the chunks under a key at once, or, if the iterator raises, not at all; its error passes through."""

    def size(self, key: str) -> int:
        """Bytes of an object. Raises ObjectMissing."""

    def get(self, key: str, start: int, length: int) -> bytes:
        """The `length` bytes from `start` on, which are there. Raises ObjectMissing."""

    def read(self, key: str) -> bytes:
        """All bytes of a small object. Raises ObjectMissing."""

    def delete(self, key: str) -> None:
        """Remove a key; one that is not there is fine."""


class Upload(Struct, frozen=True):
    """What an upload sent; files that the store already held are not in it."""

    snapshot_id: str
    files: int
    bytes: int


class RemoteSnapshots:
    """Uploads, finds, fetches and retires the snapshots of one shard. Every method may raise ObjectStoreUnavailable."""

    def __init__(self, folder: RemoteFolder, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def ids(self) -> list[str]:
        """Ids of the snapshots there, oldest first."""
        return [_id_of(manifest.key) for manifest in self._manifests()]

    def manifest(self, snapshot_id: str) -> Manifest:
        """The manifest of a snapshot. Raises SnapshotDamaged."""
        try:
            return decode_manifest(self._folder.read(_manifest_key(snapshot_id)))
        except ObjectMissing as error:
            raise SnapshotGone(error.detail) from error

    def fetch(self, file: SnapshotFile, into: Path) -> None:
        """Write a file of a snapshot to `into`, verified while it comes, holding one piece in memory.

        Raises SnapshotDamaged; `into` is then not there.
        """
        try:
            is_good = self._copy(file.object_key or "", file, into)
        except BaseException as error:
            into.unlink(missing_ok=True)
            if isinstance(error, ObjectMissing):
                raise SnapshotGone(error.detail) from error
            raise
        if not is_good:
            into.unlink(missing_ok=True)
            raise SnapshotDamaged(f"{file.object_key} does not hold what {file.name} was")

    def _copy(self, key: str, file: SnapshotFile, into: Path) -> bool:
        """Copy an object; whether it has the size and the checksum of the file."""
        if self._folder.size(key) != file.bytes:
            return False
        digest = hashlib.sha256()
        with into.open("wb") as out:
            for start in range(0, file.bytes, CHUNK_BYTES):
                piece = self._folder.get(key, start, min(CHUNK_BYTES, file.bytes - start))
                out.write(piece)
                digest.update(piece)
        return digest.hexdigest() == file.sha256

    def upload(self, manifest: Manifest, files: Path) -> Upload | None:
        """Bring a snapshot whose files lie below `files` here, and retire older ones; None if it is here.

        An upload that was interrupted goes on where it was. Raises SnapshotDamaged if a file is not
        what the manifest says.
        """
        if manifest.snapshot_id in self.ids():
            return None
        sent: list[SnapshotFile] = []
        for _ in range(_PASSES):
            placed, new = self._place(manifest, files)
            if not new:
                remote = msgspec.structs.replace(manifest, files=placed)
                self._folder.put(_manifest_key(manifest.snapshot_id), iter([encode_manifest(remote)]))
                self.retire()
                return Upload(manifest.snapshot_id, len(sent), sum(file.bytes for file in sent))
            sent += new
        raise ObjectStoreUnavailable("other replicas retire snapshots faster than this one is uploaded")

    def _place(self, manifest: Manifest, files: Path) -> tuple[tuple[SnapshotFile, ...], list[SnapshotFile]]:
        """One pass: the files with their keys, and those that had to be uploaded in it."""
        manifests = self._manifests()
        reusable = self._named_by(_id_of(one.key) for one in manifests[-self._keep :])
        present = {one.key: one for one in self._folder.list(_OBJECTS)}
        store_now_ms = max((one.modified_at_ms for one in [*manifests, *present.values()]), default=0)
        keys: dict[str, str] = {}
        new: list[SnapshotFile] = []
        for file in manifest.files:
            if file.sha256 in keys:
                continue
            old, own = reusable.get(file.sha256), f"{_OBJECTS}{file.sha256}-{manifest.snapshot_id}"
            if old in present and present[old].bytes == file.bytes:
                keys[file.sha256] = old
                continue
            keys[file.sha256] = own
            # Our own key, from an earlier pass or an attempt that did not end: nobody else writes it.
            there = present.get(own)
            if there is None or there.bytes != file.bytes or store_now_ms - there.modified_at_ms >= _RESUMABLE_MS:
                self._folder.put(own, _verified(files / file.name, file))
                new.append(file)
        placed = tuple(msgspec.structs.replace(file, object_key=keys[file.sha256]) for file in manifest.files)
        return placed, new

    def retire(self) -> None:
        """Delete manifests that newer ones have superseded, and then the objects that none needs any more."""
        manifests = self._manifests()
        if not manifests:
            return
        newest_ms = max(one.modified_at_ms for one in manifests)
        surplus = []
        for i, one in enumerate(manifests[: -self._keep]):
            # A manifest became surplus when the `keep`th with a higher id was written.
            superseded_ms = sorted(newer.modified_at_ms for newer in manifests[i + 1 :])[self._keep - 1]
            if newest_ms - superseded_ms >= _SURPLUS_MS:
                surplus.append(_id_of(one.key))
        kept = {_id_of(one.key) for one in manifests} - set(surplus)
        released = set(self._named_by(surplus).values())
        for snapshot_id in surplus:
            self._folder.delete(_manifest_key(snapshot_id))
        try:
            needed = {file.object_key for snapshot_id in kept for file in self.manifest(snapshot_id).files}
        except SnapshotDamaged as error:
            # What an unreadable manifest needs is not known, so nothing is deleted until it is retired.
            _log.error("old snapshots are not removed from the object store", **{LogField.ERROR: str(error)})
            return
        for one in self._folder.list(_OBJECTS):
            if one.key not in needed and (one.key in released or newest_ms - one.modified_at_ms >= _ORPHAN_MS):
                self._folder.delete(one.key)

    def _manifests(self) -> list[RemoteObject]:
        return sorted(self._folder.list(_MANIFESTS), key=lambda one: one.key)

    def _named_by(self, snapshot_ids: Iterable[str]) -> dict[str, str]:
        """Object key by checksum, of the manifests that can be read."""
        found: dict[str, str] = {}
        for snapshot_id in snapshot_ids:
            try:
                files = self.manifest(snapshot_id).files
            except SnapshotDamaged:
                continue
            found |= {file.sha256: file.object_key for file in files if file.object_key is not None}
        return found


def _manifest_key(snapshot_id: str) -> str:
    return f"{_MANIFESTS}{snapshot_id}.json"


def _id_of(key: str) -> str:
    return key.removeprefix(_MANIFESTS).removesuffix(".json")


def _verified(path: Path, file: SnapshotFile) -> Iterator[bytes]:
    """The bytes of a file, piece by piece; raises SnapshotDamaged at the end if they are not the expected ones."""
    digest, count = hashlib.sha256(), 0
    with path.open("rb") as source:
        while piece := source.read(CHUNK_BYTES):
            digest.update(piece)
            count += len(piece)
            yield piece
    if count != file.bytes or digest.hexdigest() != file.sha256:
        raise SnapshotDamaged(f"{path} is not what was taken")
