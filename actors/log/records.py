"""The plain record a log reader yields, and the protocol that shards and tests share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct


class LogIdentity(Struct, frozen=True):
    """Which log offsets belong to: a wiped broker or a topic made anew has another identity."""

    cluster_id: str
    topic_id: str


class LogRecord(Struct, frozen=True):
    """One record of a partition. `value` is None for a tombstone."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]
    timestamp_ms: int


class LogReader(Protocol):
    """Reads the embedding log of one collection for one shard, and watches its image-events.

    Every method may raise BrokerUnavailable (retryable). Offsets are next-to-read positions.
    """

    def identity(self) -> LogIdentity:
        """Identity of the embedding log's topic."""

    def start(self, positions: Mapping[int, int]) -> None:
        """Read each partition from its given offset on."""

    def poll(self, max_records: int, timeout_s: float) -> Sequence[LogRecord]:
        """Up to `max_records` next records, in order within a partition; empty after the time-out."""

    def first_offsets(self) -> dict[int, int]:
        """Lowest offset still in the log, per partition."""

    def end_offsets(self) -> dict[int, int]:
        """Offset after the last record of the embedding log, per partition."""

    def source_end_offsets(self) -> dict[int, int]:
        """Offset after the last record of image-events (its high_watermark), per partition."""

    def close(self) -> None:
        """Release the connection."""
