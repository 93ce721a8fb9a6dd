"""What a replica of the API knows of the dead-letter topic: one row per letter, without its event.

The topic only ever grows, and may hold millions of letters. They are read once, a bounded stretch at a time, into
a temporary SQLite database, which lies on disk and goes with the process; a list is a look-up in it.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from typing import Literal

import msgspec
import structlog
from msgspec import Struct

from actors.log.records import LogRecord
from contract.errors import EventInvalid, NotFound, RiverlensError
from contract.events import DeadLetter, LetterSettled, Receipt, decode_dead_letter, decode_letter_entry
from contract.telemetry import LogField
from contract.topics import DEAD_LETTER_TOPIC
from serving.dependencies import LetterTopic

_log = structlog.get_logger()
_READ_RECORDS = 1000
_READ_WITHIN_S = 1.0
# A request that finds the topic far ahead answers after this time with what is known by then.
FOLLOW_WITHIN_S = 3.0
# Of SQLite, beyond which rows wait on disk.
_CACHE_KIB = 4096

LetterState = Literal["waiting", "redriven", "dropped"]

_SCHEMA = """
CREATE TABLE letters (
    place INTEGER PRIMARY KEY, collection TEXT, incarnation TEXT, partition INTEGER, source_offset INTEGER,
    image_id TEXT, stage TEXT, code TEXT, reason TEXT, retryable INTEGER, attempts INTEGER, redrives INTEGER,
    failed_at_ms INTEGER, state TEXT, settled_at_ms INTEGER, receipt_partition INTEGER, receipt_offset INTEGER
);
CREATE UNIQUE INDEX of_source ON letters (collection, incarnation, partition, source_offset);
CREATE INDEX in_order ON letters (collection, incarnation, state, place);
"""
_COLUMNS = (
    "place, partition, source_offset, image_id, stage, code, reason, retryable, attempts, redrives, failed_at_ms, "
    "state, settled_at_ms, receipt_partition, receipt_offset"
)


class LetterRow(Struct, frozen=True):
    """One letter. `place` is its offset in the dead-letter topic; `receipt` is of the event sent again."""

    place: int
    partition: int
    source_offset: int
    image_id: str | None
    stage: str
    code: str
    reason: str
    retryable: bool
    attempts: int
    redrives: int
    failed_at_ms: int
    state: LetterState
    settled_at_ms: int | None
    receipt: Receipt | None


class LetterFilter(Struct, frozen=True):
    """Which letters of a collection; None for any. Times are Unix milliseconds, `until_ms` not included."""

    state: LetterState | None = "waiting"
    code: str | None = None
    stage: str | None = None
    retryable: bool | None = None
    image_id: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None


class DeadLetterIndex:
    """Follows the topic and answers from what it has read. Thread-safe; its calls block.

    A letter that was written twice, because its event was read twice, stands once. A letter of an earlier life of
    its collection is none of the present one's.
    """

    def __init__(self, topic: LetterTopic) -> None:
        self._topic = topic
        self._lock = threading.Lock()
        self._next = 0
        self._rows = self._empty()

    @staticmethod
    def _empty() -> sqlite3.Connection:
        # The empty name is a temporary database on disk, which SQLite removes when it is closed.
        rows = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        rows.executescript(f"PRAGMA cache_size = -{_CACHE_KIB}; PRAGMA journal_mode = OFF; {_SCHEMA}")
        return rows

    def follow(self, within_s: float = FOLLOW_WITHIN_S) -> int:
        """Read on for at most `within_s` seconds; returns how many records are left to read.

        Raises BrokerUnavailable (retryable).
        """
        deadline = time.monotonic() + within_s
        with self._lock:
            low, end = self._topic.bounds(DEAD_LETTER_TOPIC, 0)
            if end < self._next:
                # Another log under the same name: what was known came from one that is gone.
                _log.error("the dead-letter topic was made anew; reading it from its start")
                self._rows.close()
                self._rows, self._next = self._empty(), 0
            self._next = max(self._next, low)
            self._rows.execute("DELETE FROM letters WHERE place < ?", (low,))
            while self._next < end and time.monotonic() < deadline:
                records = self._topic.read(
                    DEAD_LETTER_TOPIC, 0, self._next, min(_READ_RECORDS, end - self._next), _READ_WITHIN_S
                )
                self._rows.execute("BEGIN")
                for record in records:
                    self._take(record)
                self._rows.execute("COMMIT")
                if records:
                    self._next = records[-1].offset + 1
            return max(0, end - self._next)

    def page(
        self, collection: str, incarnation: str, wanted: LetterFilter, before: int | None, limit: int
    ) -> list[LetterRow]:
        """Up to `limit` letters, newest first, those that lie before the place `before`."""
        return self._select(collection, incarnation, wanted, ("place < ?", before), "DESC", limit)

    def stretch(
        self, collection: str, incarnation: str, wanted: LetterFilter, after: int, until: int, limit: int
    ) -> list[LetterRow]:
        """Up to `limit` letters, oldest first, those that lie after the place `after` and before `until`."""
        rows = self._select(collection, incarnation, wanted, ("place > ?", after), "ASC", limit)
        return [row for row in rows if row.place < until]

    def end(self) -> int:
        """The place behind the last letter that was read."""
        with self._lock:
            return self._next

    def find(self, collection: str, incarnation: str, partition: int, source_offset: int) -> LetterRow | None:
        """The letter of the event that stands there, whatever its state."""
        with self._lock:
            found = self._rows.execute(
                f"SELECT {_COLUMNS} FROM letters WHERE collection = ? AND incarnation = ? "  # noqa: S608
                "AND partition = ? AND source_offset = ?",
                (collection, incarnation, partition, source_offset),
            ).fetchone()
        return None if found is None else _row(found)

    def letter(self, row: LetterRow) -> DeadLetter:
        """The whole letter, read from the topic; raises NotFound when the topic no longer holds it."""
        try:
            records = self._topic.read(DEAD_LETTER_TOPIC, 0, row.place, 1, _READ_WITHIN_S)
        except RiverlensError as error:
            if error.retryable:
                raise
            raise NotFound(f"the letter is no longer in the topic: {error.detail}") from error
        letter = decode_dead_letter(records[0].value or b"") if records and records[0].offset == row.place else None
        if letter is None or (letter.source_partition, letter.source_offset) != (row.partition, row.source_offset):
            raise NotFound("the letter is no longer in the topic")
        return letter

    def _select(
        self,
        collection: str,
        incarnation: str,
        wanted: LetterFilter,
        place: tuple[str, int | None],
        order: Literal["ASC", "DESC"],
        limit: int,
    ) -> list[LetterRow]:
        conditions: list[tuple[str, object]] = [
            ("collection = ?", collection),
            ("incarnation = ?", incarnation),
            ("state = ?", wanted.state),
            ("code = ?", wanted.code),
            ("stage = ?", wanted.stage),
            ("retryable = ?", wanted.retryable),
            ("image_id = ?", wanted.image_id),
            ("failed_at_ms >= ?", wanted.since_ms),
            ("failed_at_ms < ?", wanted.until_ms),
            place,
        ]
        given = [(text, value) for text, value in conditions if value is not None]
        where = " AND ".join(text for text, _ in given)
        with self._lock:
            found = self._rows.execute(
                f"SELECT {_COLUMNS} FROM letters WHERE {where} ORDER BY place {order} LIMIT ?",  # noqa: S608
                [*(value for _, value in given), limit],
            ).fetchall()
        return [_row(one) for one in found]

    def _take(self, record: LogRecord) -> None:
        try:
            entry = decode_letter_entry(record.value or b"")
        except EventInvalid as error:
            _log.error(
                "skipped a record that is no dead letter",
                **{LogField.OFFSET: record.offset, LogField.ERROR: error.detail},
            )
            return
        if isinstance(entry, LetterSettled):
            receipt = entry.receipt
            self._rows.execute(
                "UPDATE letters SET state = ?, settled_at_ms = ?, receipt_partition = ?, receipt_offset = ? "
                "WHERE collection = ? AND incarnation = ? AND partition = ? AND source_offset = ?",
                (
                    entry.how,
                    entry.settled_at_ms,
                    None if receipt is None else receipt.partition,
                    None if receipt is None else receipt.offset,
                    entry.collection,
                    entry.incarnation,
                    entry.source_partition,
                    entry.source_offset,
                ),
            )
            return
        # Ignored if it is there: its event was read twice.
        self._rows.execute(
            "INSERT OR IGNORE INTO letters VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'waiting', NULL, NULL, NULL)",
            (
                record.offset,
                entry.collection,
                entry.incarnation or "",
                entry.source_partition,
                entry.source_offset,
                entry.image_id,
                entry.stage,
                entry.code,
                entry.reason,
                entry.retryable,
                entry.attempts,
                entry.redrives,
                entry.failed_at_ms,
            ),
        )


def _row(found: tuple[object, ...]) -> LetterRow:
    *fields, partition, offset = found
    receipt = None if partition is None else {"partition": partition, "offset": offset}
    # SQLite has no truth values, only numbers.
    row = dict(zip(LetterRow.__struct_fields__, [*fields, receipt], strict=True))
    return msgspec.convert(row, LetterRow, strict=False)
