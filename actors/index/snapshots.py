"""Snapshots of one shard replica: whole copies of its store in a local folder, and in an object store.

A snapshot is a folder named by its id: `files/` with everything the engine needs to open, and
`manifest.json`. RocksDB's tables never change, so a snapshot holds them as hard links and costs
the disk what changed since the one before.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog

from actors.index.linking import link
from actors.index.manifest import (
    Manifest,
    SnapshotDamaged,
    SnapshotFacts,
    SnapshotFile,
    SnapshotForeign,
    SnapshotGone,
    decode_manifest,
    encode_manifest,
)
from actors.index.remote_snapshots import RemoteFolder, RemoteSnapshots, Upload
from contract.errors import ObjectStoreUnavailable
from contract.telemetry import LogField

_log = structlog.get_logger()
_MANIFEST = "manifest.json"
_FILES = "files"
# RocksDB never writes again to a table or blob file; everything else it may append to or rewrite.
_IMMUTABLE = (".sst", ".blob")
_CHUNK_BYTES = 1024 * 1024
_LISTINGS = 3

Accept = Callable[[Manifest], str | None]


class Snapshots:
    """Takes, uploads, restores and retires the snapshots of one shard replica. Thread-safe.

    One process uses the local folder; the remote one is shared by all replicas of the shard.
    """

    def __init__(self, folder: Path, keep: int, remote: RemoteFolder | None = None) -> None:
        """Nothing is read or written yet.

        Args:
            folder: Where the local snapshots lie; best on the file system of the store, or tables are copied.
            keep: Snapshots to keep, locally and remotely.
            remote: The shard's objects in the object store, if snapshots go there, too.
        """
        self._folder = folder
        self._keep = keep
        self._remote = RemoteSnapshots(remote, keep) if remote is not None else None
        self._lock = threading.Lock()

    def newest(self) -> Manifest | None:
        """The newest local snapshot whose manifest can be read; its files are not looked at."""
        for snapshot_id in reversed(self._ids()):
            try:
                return self._manifest(snapshot_id)
            except SnapshotDamaged:
                continue
        return None

    def take(self, write: Callable[[Path], SnapshotFacts], now_ms: int) -> Manifest:
        """Take a local snapshot and retire those beyond `keep`.

        1. `write` makes the folder it is given, which is not there yet, and fills it.
        2. Every file gets its checksum (hard links that the snapshot before holds, too, have theirs)
           and is synced to the disk, then the folders, then the manifest.
        3. A rename makes it a snapshot. A crash before it leaves nothing but a folder that the next use removes.

        Args:
            write: Writes the store's files and says what they are; what it raises passes through. It
                may link files that are never written to again.
            now_ms: Unix milliseconds.

        Raises:
            OSError: the disk is full or failing; no snapshot was taken.
        """
        with self._lock:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
            ids = self._ids()
            # Ids ascend even where the clock does not.
            created_at_ms = max(now_ms, _time_of(ids[-1]) + 1) if ids else now_ms
            snapshot_id = f"{created_at_ms:015d}-{secrets.token_hex(4)}"
            work = self._folder / f".{snapshot_id}"
            try:
                work.mkdir()
                facts = write(work / _FILES)
                manifest = Manifest(
                    snapshot_id=snapshot_id,
                    created_at_ms=created_at_ms,
                    facts=facts,
                    files=tuple(self._describe(work / _FILES, ids)),
                )
                _sync_folders(work / _FILES)
                (work / _MANIFEST).write_bytes(encode_manifest(manifest))
                _sync(work / _MANIFEST)
                _sync(work)
                work.rename(self._folder / snapshot_id)
                _sync(self._folder)
            except BaseException:
                shutil.rmtree(work, ignore_errors=True)
                raise
            for old in [*ids, snapshot_id][: -self._keep]:
                self._discard(old)
            return manifest

    def upload(self) -> Upload | None:
        """Bring the newest local snapshot to the object store; None if it is there or nothing is to be done.

        Raises:
            ObjectStoreUnavailable: retryable; the local snapshot stays, and the next try goes on from here.
            SnapshotDamaged: a local file is not what was taken; it was not uploaded.
        """
        with self._lock:
            ids = self._ids()
            if self._remote is None or not ids:
                return None
            return self._remote.upload(self._manifest(ids[-1]), self._folder / ids[-1] / _FILES)

    def restore(self, target: Path, accept: Accept) -> Manifest | None:
        """Put the newest good and accepted snapshot in the place of `target`; None if there is none.

        Every file is verified. A damaged snapshot is told loudly and the one before it is tried; a
        local one is removed then. Until all is there, `target` is left as it is.

        Args:
            target: The store's folder. Nobody has it open.
            accept: Says why a snapshot is of no use here, such as one of another encoder; None: it is.

        Raises:
            ObjectStoreUnavailable: retryable; no local snapshot will do, and those of the object store
                cannot be had now.
        """
        with self._lock:
            self._remove_unfinished()
            staging = target.parent / f".{target.name}.restoring"
            _remove(staging)
            staging.mkdir(parents=True)
            try:
                seen: list[list[str]] = []
                while len(seen) < _LISTINGS:
                    attempt = _Restore(staging, self._remote)
                    manifest = self._restore_newest(attempt, accept)
                    if manifest is not None:
                        replace_folder(target, attempt.tree)
                        return manifest
                    # What was retired while it was fetched has a newer one in its place.
                    if not attempt.was_overtaken or attempt.remote_ids in seen:
                        return None
                    seen.append(attempt.remote_ids)
                raise ObjectStoreUnavailable("snapshots are retired faster than they can be fetched")
            finally:
                _remove(staging)

    def _restore_newest(self, attempt: _Restore, accept: Accept) -> Manifest | None:
        away: ObjectStoreUnavailable | None = None
        damaged: list[str] = []
        try:
            attempt.remote_ids = self._remote.ids() if self._remote is not None else []
        except ObjectStoreUnavailable as error:
            away = error
        # Local before remote where both have a snapshot.
        candidates = [(snapshot_id, True) for snapshot_id in self._ids()]
        candidates += [(snapshot_id, False) for snapshot_id in attempt.remote_ids]
        manifest: Manifest | None
        for snapshot_id, is_local in sorted(candidates, reverse=True):
            told = {LogField.SNAPSHOT: snapshot_id, LogField.PLACE: "local" if is_local else "remote"}
            try:
                manifest = self._manifest(snapshot_id) if is_local else attempt.manifest(snapshot_id)
                if (reason := accept(manifest)) is not None:
                    _log.warning("a snapshot is of no use here", **told | {LogField.ERROR: reason})
                    continue
                attempt.build(manifest, self._folder / snapshot_id / _FILES if is_local else None)
            except ObjectStoreUnavailable as error:
                away = error
            except (SnapshotDamaged, OSError) as error:
                attempt.was_overtaken |= isinstance(error, SnapshotGone)
                _log.error("a snapshot is damaged; trying the one before", **told | {LogField.ERROR: str(error)})
                if is_local and isinstance(error, SnapshotDamaged) and not isinstance(error, SnapshotForeign):
                    damaged.append(snapshot_id)
            else:
                _log.info("snapshot restored", **told | {LogField.COUNT: manifest.facts.points})
                break
        else:
            manifest = None
        # Only now: the files of a damaged one that are good may have served another.
        for snapshot_id in damaged:
            self._discard(snapshot_id)
        if manifest is None and away is not None:
            raise away
        return manifest

    def _ids(self) -> list[str]:
        """Ids of the local snapshots, oldest first."""
        if not self._folder.exists():
            return []
        return sorted(path.name for path in self._folder.iterdir() if path.is_dir() and not path.name.startswith("."))

    def _manifest(self, snapshot_id: str) -> Manifest:
        try:
            return decode_manifest((self._folder / snapshot_id / _MANIFEST).read_bytes())
        except FileNotFoundError as error:
            raise SnapshotDamaged("the manifest is missing") from error

    def _describe(self, files: Path, ids: list[str]) -> Iterator[SnapshotFile]:
        """Name, size and checksum of every file, synced; what the newest of `ids` holds, too, is not read again."""
        known: dict[tuple[int, int, int], str] = {}
        if ids:
            try:
                for file in self._manifest(ids[-1]).files:
                    known[_inode(self._folder / ids[-1] / _FILES / file.name)] = file.sha256
            except (SnapshotDamaged, OSError):
                known = {}
        for path in sorted(files.rglob("*")):
            if path.is_dir():
                continue
            checksum = known.get(_inode(path))
            if checksum is None:
                checksum = _checksum(path)
                _sync(path)
            yield SnapshotFile(path.relative_to(files).as_posix(), path.stat().st_size, checksum)

    def _discard(self, snapshot_id: str) -> None:
        """Remove a local snapshot; after the rename it is none any more, whatever happens."""
        doomed = self._folder / f".{snapshot_id}"
        (self._folder / snapshot_id).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def _remove_unfinished(self) -> None:
        if self._folder.exists():
            for path in self._folder.iterdir():
                if path.name.startswith("."):
                    shutil.rmtree(path, ignore_errors=True)


class _Restore:
    """The building of a store below `staging`; files that were verified serve the next snapshot, too."""

    def __init__(self, staging: Path, remote: RemoteSnapshots | None) -> None:
        self.tree = staging / "store"
        self.was_overtaken = False
        self.remote_ids: list[str] = []
        self._fetched = staging / "fetched"
        self._fetched.mkdir(exist_ok=True)
        self._remote = remote
        self._verified = {path.name: path for path in self._fetched.iterdir()}

    def manifest(self, snapshot_id: str) -> Manifest:
        assert self._remote is not None  # noqa: S101
        return self._remote.manifest(snapshot_id)

    def build(self, manifest: Manifest, local: Path | None) -> None:
        """Build the tree from a snapshot whose files lie in `local`, or remotely.

        Raises SnapshotDamaged, ObjectStoreUnavailable, OSError.
        """
        _remove(self.tree)
        for file in manifest.files:
            source = self._verified.get(file.sha256)
            if source is None:
                source = self._verified[file.sha256] = self._obtain(file, local)
            path = self.tree / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            # What may be written to later must not share its bytes with a snapshot, nor with a twin.
            if file.name.endswith(_IMMUTABLE) or (source.parent == self._fetched and source.stat().st_nlink == 1):
                link(source, path)
            else:
                shutil.copyfile(source, path)
            _sync(path)
        _sync_folders(self.tree)

    def _obtain(self, file: SnapshotFile, local: Path | None) -> Path:
        if local is None:
            assert self._remote is not None  # noqa: S101
            path = self._fetched / f"{file.sha256}.part"
            self._remote.fetch(file, path)
            return path.rename(self._fetched / file.sha256)
        path = local / file.name
        try:
            size = path.stat().st_size
            if size != file.bytes:
                raise SnapshotDamaged(f"{file.name} has {size} bytes, and {file.bytes} were written")
            if _checksum(path) != file.sha256:
                raise SnapshotDamaged(f"{file.name} is not what was written")
        except FileNotFoundError as error:
            raise SnapshotDamaged(f"{file.name} is missing") from error
        return path


def replace_folder(target: Path, source: Path) -> None:
    """Put the folder `source` in the place of `target`, which may be missing; both on one file system.

    A crash leaves the old one, the new one, or none at `target`, and never a mixture.
    """
    old = target.parent / f".{target.name}.replaced"
    _remove(old)
    if target.exists():
        target.rename(old)
    source.rename(target)
    _sync(target.parent)
    _remove(old)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _time_of(snapshot_id: str) -> int:
    digits = snapshot_id.partition("-")[0]
    return int(digits) if digits.isdecimal() else 0


def _inode(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folders(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir():
            _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
