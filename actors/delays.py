"""How long uploads took until they were searchable, counted in buckets. Plain Python."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterable, Mapping
from typing import Protocol

from actors.log.records import LogRecord
from actors.messages import DelayHistogram
from contract.events import DELETED_HEADER, EventStamp, decode_stamp
from contract.telemetry import DELAY_BUCKETS_S


class LogPosition(Protocol):
    """Where a partition stood before records were applied; actors.index.rows.Position is one."""

    @property
    def log_offset(self) -> int:
        """Next offset to read in the embedding log."""

    @property
    def source_offset(self) -> int:
        """Highest source offset seen."""

    @property
    def complete_from(self) -> int:
        """End of the log when the shard began to follow it."""


class Delays:
    """Delays from upload to searchable, in seconds, since the shard began. Thread-safe."""

    def __init__(self) -> None:
        self._counts = [0] * (len(DELAY_BUCKETS_S) + 1)
        self._sum_s = 0.0
        self._lock = threading.Lock()

    def observe(self, delay_s: float) -> None:
        """Count one upload."""
        with self._lock:
            self._counts[bisect.bisect_left(DELAY_BUCKETS_S, delay_s)] += 1
            self._sum_s += delay_s

    def histogram(self) -> DelayHistogram:
        """What was counted so far."""
        with self._lock:
            return DelayHistogram(DELAY_BUCKETS_S, tuple(self._counts), self._sum_s)


def stamps(records: Iterable[LogRecord], before: Mapping[int, LogPosition]) -> list[tuple[int, EventStamp, bool]]:
    """Partition and stamp of each record that had an effect, and whether it brought a live upload.

    Live are uploads that came into the log after the shard began to follow it and were not there
    before: what is read again after a start, or was delivered twice, became searchable earlier.
    """
    found = []
    highest = {partition: position.source_offset for partition, position in before.items()}
    for record in records:
        position = before[record.partition]
        if record.offset < position.log_offset:
            continue
        data = record.value if record.value is not None else record.headers.get(DELETED_HEADER, b"")
        stamp = decode_stamp(data)
        is_new = record.offset >= position.complete_from and stamp.source_offset > highest[record.partition]
        highest[record.partition] = max(stamp.source_offset, highest[record.partition])
        found.append((record.partition, stamp, is_new and stamp.is_upload))
    return found
