"""How a shard gets its store back, and how it leaves snapshots for the next time.

Plain Python: the clock and the pauses come from outside.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec
import structlog
from msgspec import Struct

from actors.index.engine import EngineParameters, ShardEngine
from actors.index.manifest import Manifest, SnapshotFacts
from actors.index.rows import Position
from actors.index.snapshots import Accept, Snapshots, replace_folder
from actors.log.records import LogIdentity
from contract.errors import ObjectStoreUnavailable, StoreIncompatible
from contract.telemetry import LogField
from contract.topics import TOMBSTONE_RETENTION_MS

_log = structlog.get_logger()
_TRIES = 3
_PAUSE_S = 2.0
# A shard whose log rests takes one now and then all the same: a snapshot that is older than the
# log's tombstones is worth nothing.
_REFRESH_MS = TOMBSTONE_RETENTION_MS // 7


class LogState(Struct, frozen=True):
    """A log as it is now: who it is, and per partition its lowest offset and the one after its last record."""

    identity: LogIdentity
    firsts: Mapping[int, int]
    ends: Mapping[int, int]

    @property
    def is_whole(self) -> bool:
        """Whether reading it from its start makes a whole store."""
        return not any(self.firsts.values())


def is_damage(error: BaseException) -> bool:
    """Whether an error says that the files of a store are not what was written: RocksDB has no type for it."""
    told = str(error)
    return type(error) is Exception and ("Corruption" in told or "No such file or directory" in told)


def refusal(manifest: Manifest, parameters: EngineParameters, now_ms: int, log: LogState | None) -> str | None:
    """Why a snapshot is of no use to a shard; None if it is.

    It must be of the shard's encoder, younger than the log keeps tombstones, and, where the log can
    be asked, a view of that very log whose next offsets are still in it.
    """
    facts = manifest.facts
    if (facts.fingerprint, facts.dimension) != (parameters.fingerprint, parameters.dimension):
        return f"it is of encoder {facts.fingerprint}, dimension {facts.dimension}"
    if facts.caught_up_at_ms < now_ms - TOMBSTONE_RETENTION_MS:
        return "it is older than the log keeps tombstones"
    return None if log is None else _strangeness(facts, log)


def _strangeness(facts: SnapshotFacts, log: LogState) -> str | None:
    """Why a snapshot cannot be followed by the log."""
    if facts.log_identity != log.identity:
        return f"it was made from the log {facts.log_identity}, and the log is {log.identity}"
    for partition, first in log.firsts.items():
        at = facts.positions.get(partition, Position()).log_offset
        if at < first:
            return f"partition {partition} begins at {first}, and the snapshot ends before {at}"
        if at > log.ends[partition]:
            return f"partition {partition} ends at {log.ends[partition]}, and the snapshot goes to {at}"
    return None


class Recovery:
    """Opens the store of one shard replica, from a snapshot where there is none or it cannot be read."""

    def __init__(
        self,
        path: Path,
        parameters: EngineParameters,
        snapshots: Snapshots,
        clock: Callable[[], float],
        pause: Callable[[float], object],
    ) -> None:
        """Nothing is read or written yet.

        Args:
            path: The store's folder.
            parameters: What the shard is made for.
            snapshots: Where snapshots are found.
            clock: Unix time in seconds.
            pause: Waits that many seconds.
        """
        self._path = path
        self._parameters = parameters
        self._snapshots = snapshots
        self._clock = clock
        self._pause = pause
        self._condemned = path.with_name(f".{path.name}.condemned")

    def condemn(self, reason: str) -> None:
        """Have the next start take a snapshot instead of the store: damage may show itself only while it is read."""
        self._condemned.parent.mkdir(parents=True, exist_ok=True)
        self._condemned.write_text(reason)

    def open(self, log: Callable[[], LogState | None]) -> ShardEngine:
        """The engine over the store; over a restored one if there is none, or it is damaged; over an empty one else.

        A damaged store that no snapshot replaces is kept beside as `….damaged` until the next one.

        Args:
            log: Asks the log for its state; None if it cannot be reached. Called only if there is a snapshot.

        Raises:
            StoreIncompatible: the store is of another format version, fingerprint or dimension.
            ObjectStoreUnavailable: retryable; there is no store, no local snapshot, and the log does
                not hold everything any more.
        """
        damage = self._condemned.read_text() if self._condemned.exists() else None
        if damage is None and (self._path / "CURRENT").exists():
            opened = self._opened(self._path)
            if isinstance(opened, ShardEngine):
                return opened
            damage = opened
        if damage is not None:
            _log.error("the store is damaged; looking for a snapshot", **{LogField.ERROR: damage})
            self.condemn(damage)
        engine = self._restored(self._path, functools.cache(log))
        if engine is None:
            if damage is not None:
                self._set_aside()
            engine = ShardEngine(self._path, self._parameters)
        self._condemned.unlink(missing_ok=True)
        return engine

    def heal(self, engine: ShardEngine, log: LogState) -> ShardEngine | None:
        """Replace a store that cannot go on in this log by a snapshot that can; None, and nothing is done, without one.

        `engine` is closed only when the snapshot has been restored and opened beside it.

        Raises:
            ObjectStoreUnavailable: retryable; whether there is a snapshot is not known, and the log
                does not hold everything.
        """
        beside = self._path.with_name(f".{self._path.name}.healing")
        try:
            healed = self._restored(beside, lambda: log)
            if healed is None:
                return None
            healed.close()
            engine.close()
            replace_folder(self._path, beside)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return ShardEngine(self._path, self._parameters)

    def _restored(self, target: Path, log: Callable[[], LogState | None]) -> ShardEngine | None:
        """An engine over the newest snapshot that is of use, restored to `target`."""
        useless: set[str] = set()

        def accept(manifest: Manifest) -> str | None:
            if manifest.snapshot_id in useless:
                return "its store could not be opened"
            return refusal(manifest, self._parameters, int(self._clock() * 1000), log())

        while (manifest := self._fetched(target, accept, log)) is not None:
            try:
                opened = self._opened(target)
            except StoreIncompatible as error:
                opened = error.detail
            if isinstance(opened, ShardEngine):
                return opened
            told = {LogField.SNAPSHOT: manifest.snapshot_id, LogField.ERROR: opened}
            _log.error("a restored snapshot cannot be opened; trying the one before", **told)
            useless.add(manifest.snapshot_id)
        return None

    def _fetched(self, target: Path, accept: Accept, log: Callable[[], LogState | None]) -> Manifest | None:
        for attempt in range(_TRIES):
            try:
                return self._snapshots.restore(target, accept)
            except ObjectStoreUnavailable as error:
                _log.warning("the object store is away; snapshots cannot be looked for", **_told(error))
                if attempt < _TRIES - 1:
                    self._pause(_PAUSE_S)
                    continue
                state = log()
                if state is None or not state.is_whole:
                    raise
                _log.error("going on without a snapshot: the log holds everything", **_told(error))
        return None

    def _opened(self, path: Path) -> ShardEngine | str:
        """The engine, or what is wrong with the files; a function of its own, so that it holds no half-open store."""
        try:
            return ShardEngine(path, self._parameters)
        except Exception as error:
            if is_damage(error) or isinstance(error, msgspec.MsgspecError):
                return str(error)
            raise

    def _set_aside(self) -> None:
        aside = self._path.with_name(f"{self._path.name}.damaged")
        _log.error("no snapshot replaces the damaged store; reading the log from its start", kept_at=str(aside))
        shutil.rmtree(aside, ignore_errors=True)
        if self._path.exists():
            self._path.rename(aside)


class Checkpointed(Protocol):
    """What a snapshot is taken of; ShardEngine is one."""

    @property
    def log_identity(self) -> LogIdentity | None:
        """The log the positions belong to."""

    @property
    def caught_up_at_ms(self) -> int:
        """When it last was at the end of its log, in Unix milliseconds."""

    def positions(self) -> dict[int, Position]:
        """Position per partition."""

    def checkpoint(self, folder: Path) -> SnapshotFacts:
        """Write all files needed to open it again to `folder`, which is not there yet."""


class SnapshotKeeper:
    """Takes a snapshot when something changed since the last one, and brings it to the object store."""

    def __init__(self, snapshots: Snapshots, clock: Callable[[], float]) -> None:
        """`clock` gives Unix time in seconds."""
        self._snapshots = snapshots
        self._clock = clock
        self.newest = snapshots.newest()

    def step(self, engine: Checkpointed) -> None:
        """Take a snapshot if one is due, and upload what is not uploaded.

        Failures are logged and tried again at the next step; a failed upload loses no local
        snapshot. Errors of a damaged store pass through.
        """
        try:
            if self._is_due(engine):
                started = self._clock()
                self.newest = self._snapshots.take(engine.checkpoint, int(started * 1000))
                self._report("snapshot taken", self.newest.snapshot_id, self.newest.bytes, started)
            started = self._clock()
            if (sent := self._snapshots.upload()) is not None:
                self._report("snapshot uploaded", sent.snapshot_id, sent.bytes, started)
        except ObjectStoreUnavailable as error:
            _log.warning("the snapshot is not uploaded yet", **_told(error))
        except Exception as error:
            if is_damage(error):
                raise
            # A full disk, or a store that is being closed or replaced: the shard goes on without.
            _log.exception("no snapshot was taken")

    def _is_due(self, engine: Checkpointed) -> bool:
        if engine.log_identity is None:
            return False
        if self.newest is None:
            return True
        then = self.newest.facts
        if then.log_identity != engine.log_identity:
            return True
        if _offsets(then.positions) != _offsets(engine.positions()):
            return True
        return engine.caught_up_at_ms >= then.caught_up_at_ms + _REFRESH_MS

    def _report(self, event: str, snapshot_id: str, sent_bytes: int, started: float) -> None:
        duration_s = round(self._clock() - started, 3)
        told = {LogField.SNAPSHOT: snapshot_id, LogField.BYTES: sent_bytes, LogField.DURATION_S: duration_s}
        _log.info(event, **told)


def _offsets(positions: Mapping[int, Position]) -> dict[int, int]:
    return {partition: position.log_offset for partition, position in positions.items()}


def _told(error: ObjectStoreUnavailable) -> dict[str, str]:
    return {LogField.CODE: error.code, LogField.ERROR: error.detail}
