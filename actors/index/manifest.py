"""What a snapshot says of itself: its facts, its files with their checksums, and how that is written down."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath

import msgspec
from msgspec import Struct

from actors.index.rows import Position
from actors.log.records import LogIdentity

FORMAT_VERSION = 1


class SnapshotDamaged(Exception):
    """A snapshot is torn, corrupted or incomplete, and no retry makes it whole."""


class SnapshotGone(SnapshotDamaged):
    """A snapshot was retired while it was read; a newer one is there now."""


class SnapshotForeign(SnapshotDamaged):
    """A snapshot of another format version: whole as it may be, this release cannot read it."""


class SnapshotFacts(Struct, frozen=True, kw_only=True):
    """What an engine knows of a checkpoint it wrote; all of it belongs to the same moment.

    `positions` hold per partition the next log offset and the applied source offset.
    `caught_up_at_ms` is when the shard last was at the end of its log, in Unix milliseconds.
    """

    fingerprint: str
    dimension: int
    log_identity: LogIdentity | None
    positions: dict[int, Position]
    points: int
    caught_up_at_ms: int


class SnapshotFile(Struct, frozen=True):
    """A file: `name` relative to the store, with `/`. `object_key` is where it lies in the object store."""

    name: str
    bytes: int
    sha256: str
    object_key: str | None = None


class Manifest(Struct, frozen=True, kw_only=True):
    """A whole snapshot. Ids of one shard sort by the time at which the snapshots were taken."""

    snapshot_id: str
    created_at_ms: int
    facts: SnapshotFacts
    files: tuple[SnapshotFile, ...]
    format_version: int = FORMAT_VERSION

    @property
    def bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.bytes for file in self.files)


class _Sealed(Struct, frozen=True):
    """The manifest's own bytes under their checksum: a changed position would lose records silently."""

    sha256: str
    manifest: msgspec.Raw


class _Version(Struct, frozen=True):
    format_version: int


def encode_manifest(manifest: Manifest) -> bytes:
    """JSON: the manifest and the checksum of its bytes."""
    body = msgspec.json.encode(manifest)
    return msgspec.json.encode(_Sealed(hashlib.sha256(body).hexdigest(), msgspec.Raw(body)))


def decode_manifest(data: bytes) -> Manifest:
    """The manifest in `data`.

    Raises:
        SnapshotForeign: of another format version.
        SnapshotDamaged: cut off, changed, or naming files outside of its folder.
    """
    try:
        sealed = msgspec.json.decode(data, type=_Sealed)
        body = bytes(sealed.manifest)
        if hashlib.sha256(body).hexdigest() != sealed.sha256:
            raise SnapshotDamaged("the manifest is not what was written")
        version = msgspec.json.decode(body, type=_Version).format_version
        if version != FORMAT_VERSION:
            raise SnapshotForeign(f"the manifest has format version {version}, and {FORMAT_VERSION} is known")
        manifest = msgspec.json.decode(body, type=Manifest)
    except msgspec.MsgspecError as error:
        raise SnapshotDamaged(f"the manifest cannot be read: {error}") from error
    for file in manifest.files:
        path = PurePosixPath(file.name)
        if path.is_absolute() or ".." in path.parts or str(path) != file.name or file.name == ".":
            raise SnapshotDamaged(f"the manifest names the file {file.name!r}")
    return manifest
