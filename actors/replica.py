"""The logic of one shard replica: follow the log, keep the store in step with it, say how fresh it is.

Plain Python: the clock, the reader and the engine come from outside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

import structlog

from actors.delays import Delays, stamps
from actors.index.engine import APPLY_AT_ONCE, ShardEngine, entry_of
from actors.index.rows import Position
from actors.log.records import LogIdentity, LogReader, LogRecord
from actors.messages import DelayHistogram, Freshness
from actors.recovery import LogState
from actors.staleness import SourceWatch
from contract.errors import LogGap, Unavailable
from contract.events import SourceAdvanced
from contract.telemetry import LogField
from contract.topics import TOMBSTONE_RETENTION_MS

_log = structlog.get_logger()

SAMPLE_EVERY_S = 0.25
IDENTITY_EVERY_S = 10.0
CAUGHT_UP_EVERY_S = 60.0
_POLL_RECORDS = 256
_RETRY_FIRST_S = 0.5
_RETRY_MAX_S = 10.0

ReplicaState = Literal["recovering", "ready", "failed"]


class Follower(Protocol):
    """What is kept in step with the engine's points; actors.lexical.following.LexicalFollower is one."""

    def changing(self, image_ids: Iterable[str]) -> AbstractContextManager[None]:
        """Around every change of these points."""

    def restart(self, points: ShardEngine) -> None:
        """All points are gone, or those of another engine take their place."""


class Replica:
    """Keeps an engine in step with its partitions of the embedding log. Driven by one thread.

    `step` is called again and again; it never raises for a broker that is away, and searches on the
    engine go on meanwhile. `freshness` and the rest may be read from any thread.
    """

    def __init__(
        self,
        engine: ShardEngine,
        open_reader: Callable[[], LogReader],
        partitions: Sequence[int],
        clock: Callable[[], float],
        on_applied: Callable[[], None] = lambda: None,
        heal: Callable[[LogState], ShardEngine | None] = lambda _: None,
        follower: Follower | None = None,
    ) -> None:
        """Attach at the first step.

        Args:
            engine: The points; this object is the only one that applies to it.
            open_reader: Makes a reader; called again after the broker was away.
            partitions: Partitions of the shard.
            clock: Unix time in seconds.
            on_applied: Called, in the driving thread, after something was applied.
            heal: Called, in the driving thread, when the store cannot go on in the log: puts a snapshot
                that can in its place and returns the engine over it, or leaves all as it is and returns None.
            follower: Told, in the driving thread, which points change.
        """
        self._engine = engine
        self._open_reader = open_reader
        self._partitions = tuple(partitions)
        self._clock = clock
        self._on_applied = on_applied
        self._heal = heal
        self._follower = follower
        self._reader: LogReader | None = None
        self._identity: LogIdentity | None = None
        self._watches = self._new_watches()
        self._delays = Delays()
        self._sampled_at = self._identified_at = self._marked_at = float("-inf")
        self._retry_at = float("-inf")
        self._retry_s = _RETRY_FIRST_S
        self.state: ReplicaState = "recovering"
        self.error: str | None = None

    def step(self, timeout_s: float) -> int:
        """Read and apply what is there, waiting up to `timeout_s` for a record; returns how many.

        While the broker is away it returns 0 at once; the caller waits before the next step.

        Raises:
            LogGap: the log has lost records that this shard has not applied, and no snapshot has them.
                Nothing else heals it than one that has, or a replay, so it stands in `state` and `error` too.
            EventInvalid, FingerprintMismatch: the log holds what must not be in it.
        """
        now = self._clock()
        if self._reader is None:
            if now < self._retry_at:
                return 0
            try:
                self._attach()
            except Unavailable as error:
                self._detach(error)
                return 0
        try:
            return self._follow(timeout_s)
        except LogGap as error:
            # Retention, or another log under the same name: the next attachment finds out which.
            _log.error("the log no longer holds the next offset", **{LogField.ERROR: error.detail})
            self._retry_later()
            return 0
        except Unavailable as error:
            self._detach(error)
            return 0

    def _follow(self, timeout_s: float) -> int:
        assert self._reader is not None  # noqa: S101
        now = self._clock()
        if now >= self._identified_at + IDENTITY_EVERY_S:
            self._identified_at = now
            if self._reader.identity() != self._identity:
                raise LogGap("the topic was made anew while the shard was reading it")
        if now >= self._sampled_at + SAMPLE_EVERY_S:
            self._sampled_at = now
            for partition, high_watermark in self._reader.source_end_offsets().items():
                self._watches[partition].observe(high_watermark, self._clock())
        records = self._reader.poll(_POLL_RECORDS, timeout_s)
        before = self.positions()
        if records:
            with self._changing(records):
                for start in range(0, len(records), APPLY_AT_ONCE):
                    self._engine.apply(records[start : start + APPLY_AT_ONCE])
            self._note_applied(records, before)
            self._on_applied()
        self._retry_s = _RETRY_FIRST_S
        self._note_progress()
        return len(records)

    def _changing(self, records: Sequence[LogRecord]) -> AbstractContextManager[None]:
        """Around the application of records: the follower looks again at the images they name."""
        if self._follower is None:
            return nullcontext()
        positions = self.positions()
        # Those below have no effect, and the engine does not even decode them.
        entries = [entry_of(one) for one in records if one.offset >= positions[one.partition].log_offset]
        return self._follower.changing(entry.image_id for entry in entries if not isinstance(entry, SourceAdvanced))

    def _note_applied(self, records: Sequence[LogRecord], before: Mapping[int, Position]) -> None:
        now = self._clock()
        for partition, stamp, is_live_upload in stamps(records, before):
            event_at_s = stamp.event_at_ms / 1000
            self._watches[partition].applied(event_at_s)
            if is_live_upload:
                # The clock of another machine may be ahead.
                self._delays.observe(max(0.0, now - event_at_s))

    def _new_watches(self) -> dict[int, SourceWatch]:
        caught_up_at_ms = self._engine.caught_up_at_ms
        complete_at_s = caught_up_at_ms / 1000 if caught_up_at_ms else None
        return {p: SourceWatch(complete_at_s) for p in self._partitions}

    def _note_progress(self) -> None:
        positions = self.positions()
        if any(position.log_offset < position.complete_from for position in positions.values()):
            return
        if self.state == "recovering":
            self.state, self.error = "ready", None
            _log.info("shard is ready", **{LogField.COUNT: self._engine.points})
        now = self._clock()
        if now >= self._marked_at + CAUGHT_UP_EVERY_S and self._reader is not None:
            ends = self._reader.end_offsets()
            if all(position.log_offset >= ends[p] for p, position in positions.items()):
                self._engine.mark_caught_up(int(now * 1000))
                self._marked_at = now

    def _attach(self) -> None:
        """Open a reader and decide what the stored positions are worth in the log it reads.

        1. Another identity, a log that ends before the next offset, or an absence longer than
           tombstones are kept: the store is not a view of this log, so it is replaced by a snapshot
           that is, or else wiped.
        2. A log that begins after the next offset: records are lost. A snapshot that has them takes
           the store's place; without one it is an error.
        3. Read on from the positions.
        """
        reader = self._reader = self._open_reader()
        identity = reader.identity()
        log = LogState(identity, reader.first_offsets(), reader.end_offsets())
        if (reason := self._reason_to_wipe(log)) is not None and not self._healed(log, reason):
            _log.error(
                "wiping the store and reading the log from its start",
                **{LogField.ERROR: reason, LogField.COUNT: self._engine.points},
            )
            self._engine.reset()
            self._begin_anew()
        if (gap := self._gap(log)) is not None and not self._healed(log, gap):
            self.state = "failed"
            self.error = f"log_gap: {gap}; no snapshot has them, so replay the images or restore the topic"
            self._close_reader()
            raise LogGap(self.error)
        if self._identity is None:
            # In the same process nothing was missed since the last attachment, so complete_from stays.
            self._engine.begin(identity, {p: log.ends[p] for p in self._partitions}, int(self._clock() * 1000))
        self._identity = identity
        self._identified_at = self._clock()
        reader.start({p: position.log_offset for p, position in self.positions().items()})
        self._on_applied()

    def _healed(self, log: LogState, reason: str) -> bool:
        """Whether a snapshot has taken the place of a store that cannot go on."""
        engine = self._heal(log)
        if engine is None:
            return False
        _log.error("the store was replaced by a snapshot", **{LogField.ERROR: reason, LogField.COUNT: engine.points})
        self._engine = engine
        self._begin_anew()
        return True

    def _begin_anew(self) -> None:
        """Another store follows the log now, and knows no more than its positions say."""
        self._watches = self._new_watches()
        self.state = "recovering"
        self._identity = None
        if self._follower is not None:
            self._follower.restart(self._engine)

    def _gap(self, log: LogState) -> str | None:
        positions = self.positions()
        for partition, first in log.firsts.items():
            if first > positions[partition].log_offset:
                return (
                    f"partition {partition} begins at {first}, "
                    f"and offsets from {positions[partition].log_offset} on were never applied"
                )
        return None

    def _reason_to_wipe(self, log: LogState) -> str | None:
        known = self._engine.log_identity
        if known is None:
            return None
        if known != log.identity:
            return f"the log is {log.identity}, and the store was made from {known}"
        for partition, position in self.positions().items():
            if log.ends[partition] < position.log_offset:
                return (
                    f"partition {partition} ends at {log.ends[partition]}, before the next offset {position.log_offset}"
                )
        caught_up_at_ms = self._engine.caught_up_at_ms
        if self._identity is None and 0 < caught_up_at_ms < self._clock() * 1000 - TOMBSTONE_RETENTION_MS:
            return "the shard was away longer than the log keeps tombstones"
        return None

    def _detach(self, error: Unavailable) -> None:
        _log.warning(
            "what the shard follows is away; searching goes on",
            **{LogField.CODE: error.code, LogField.ERROR: error.detail, LogField.DURATION_S: self._retry_s},
        )
        self._retry_later()

    def _retry_later(self) -> None:
        self._close_reader()
        self._retry_at = self._clock() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _RETRY_MAX_S)

    def _close_reader(self) -> None:
        if self._reader is not None:
            reader, self._reader = self._reader, None
            reader.close()

    @property
    def attached(self) -> bool:
        """Whether it follows the log now; without a broker it does not."""
        return self._reader is not None

    @property
    def rebuilding(self) -> bool:
        """Whether it reads a log from its start: what it has so far may hold images that were deleted since."""
        return any(position.is_partial for position in self.positions().values())

    def positions(self) -> dict[int, Position]:
        """Position of every partition of the shard."""
        known = self._engine.positions()
        return {p: known.get(p, Position()) for p in self._partitions}

    def applied_offset(self, partition: int) -> int:
        """Source offset up to which everything took effect; -1 before the first."""
        return self.positions()[partition].clean_source_offset

    def freshness(self) -> Freshness:
        """Applied offsets, and the staleness of the stalest partition in seconds."""
        applied = {p: position.clean_source_offset for p, position in self.positions().items()}
        now = self._clock()
        staleness = max((self._watches[p].staleness_s(offset, now) for p, offset in applied.items()), default=0.0)
        return Freshness(applied, staleness)

    def delays(self) -> DelayHistogram:
        """How long uploads took until they were searchable here, from the time of their event."""
        return self._delays.histogram()

    def high_watermarks(self) -> dict[int, int]:
        """High watermark of image-events per partition, as last seen."""
        return {p: watch.high_watermark for p, watch in self._watches.items()}

    def consumer_lag(self) -> int:
        """Events of image-events that are not applied, over all partitions."""
        return sum(self._watches[p].lag(position.clean_source_offset) for p, position in self.positions().items())

    def close(self) -> None:
        """Let the broker go. The engine stays the caller's."""
        self._close_reader()


class AppliedWaiters:
    """Coroutines that wait until a partition is applied up to a source offset. Lives on one event loop."""

    def __init__(self, applied_offset: Callable[[int], int]) -> None:
        self._applied_offset = applied_offset
        self._event = asyncio.Event()

    async def wait(self, partition: int, source_offset: int, timeout_s: float) -> bool:
        """True once `applied_offset(partition) >= source_offset`; False after `timeout_s` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._applied_offset(partition) < source_offset:
                    await self._event.wait()
        except TimeoutError:
            return False
        return True

    def wake(self) -> None:
        """Look again; called on the event loop after something was applied."""
        event, self._event = self._event, asyncio.Event()
        event.set()
