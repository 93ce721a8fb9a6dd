"""Dead letters over HTTP: listed, shown, sent again, dropped."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence

import structlog
from msgspec import Struct

from actors.messages import PointState
from contract.errors import (
    BrokerUnavailable,
    EventInvalid,
    InvalidRequest,
    NotFound,
    NotSearchableInTime,
    RedriveRefused,
    RiverlensError,
)
from contract.events import (
    REDRIVE_HEADER,
    DeadLetter,
    ImageEvent,
    LetterSettled,
    Receipt,
    Redrive,
    decode_event,
    encode_json,
)
from contract.settings import Settings
from contract.telemetry import LogField
from contract.topics import DEAD_LETTER_TOPIC, image_events_topic
from serving.catalog import ServedCollection
from serving.dead_letter_index import DeadLetterIndex, LetterFilter, LetterRow
from serving.dependencies import CollectionAdmin, EventLog
from serving.events import now_ms

_log = structlog.get_logger()
# One request settles no more letters than this, and begins with no other after so many seconds.
SETTLE_MAX = 500
SETTLE_WITHIN_S = 10.0


class LetterId(Struct, frozen=True):
    """`PARTITION-OFFSET`: where the event stood that failed, which its uploader knows from the receipt."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}-{self.offset}"


def parse_letter_id(text: str) -> LetterId:
    """The id of a letter; raises InvalidRequest."""
    partition, dash, offset = text.partition("-")
    digits = partition + offset
    if not dash or not partition or not offset or not (digits.isascii() and digits.isdecimal()) or len(text) > 40:
        raise InvalidRequest(f"the id of a dead letter is PARTITION-OFFSET of its event, not {text[:60]!r}")
    return LetterId(int(partition), int(offset))


class Settled(Struct, frozen=True):
    """What became of one letter: its receipt if it was sent again, or the error that refused it."""

    id: str
    receipt: Receipt | None = None
    error: RiverlensError | None = None


class Batch(Struct, frozen=True):
    """What became of each letter, and the cursor of the next ones (`after`, `until`); None at the end."""

    settled: tuple[Settled, ...]
    following: tuple[int, int] | None = None


class DeadLetters:
    """Reads the topic through its index, and writes to it what was done."""

    def __init__(self, settings: Settings, index: DeadLetterIndex, events: EventLog, admin: CollectionAdmin) -> None:
        self._settings = settings
        self._index = index
        self._events = events
        self._admin = admin

    async def page(
        self, collection: ServedCollection, wanted: LetterFilter, before: int | None, limit: int
    ) -> tuple[list[LetterRow], int | None, int]:
        """A page of letters, newest first, the place before which the next one begins, and how many are not read yet.

        Raises BrokerUnavailable (retryable).
        """
        unread = await asyncio.to_thread(self._index.follow)
        spec = collection.spec
        rows = await asyncio.to_thread(self._index.page, spec.name, spec.incarnation, wanted, before, limit + 1)
        return rows[:limit], rows[limit - 1].place if len(rows) > limit else None, unread

    async def show(self, collection: ServedCollection, letter_id: LetterId) -> tuple[LetterRow, DeadLetter]:
        """One letter as a whole. Raises NotFound, BrokerUnavailable (retryable)."""
        await self._caught_up()
        row = await self._find(collection, letter_id)
        return row, await asyncio.to_thread(self._index.letter, row)

    async def redrive(self, collection: ServedCollection, ids: Sequence[LetterId], request_id: str) -> list[Settled]:
        """Send the exact events of these letters again; an answer for each, in their order.

        A letter is sent only if its event is the newest of its image in its shard. What is logged between that
        look and the sending is seen by the ingest worker, which then leaves the image as it is. So an event
        that is sent again never overtakes a newer one. Sending twice has the effect of sending once.
        """
        await self._caught_up()
        given = [await self._settling(collection, one) for one in ids]
        by_partition: dict[int, list[LetterRow]] = defaultdict(list)
        for row in given:
            if isinstance(row, LetterRow):
                by_partition[row.partition].append(row)
        done: dict[str, Settled] = {one.id: one for one in given if isinstance(one, Settled)}
        for partition, rows in by_partition.items():
            for one in await self._redrive_partition(collection, partition, rows, request_id):
                done[one.id] = one
        return [done[str(one)] for one in ids]

    async def drop(self, collection: ServedCollection, ids: Sequence[LetterId], request_id: str) -> list[Settled]:
        """Mark letters as dropped; an answer for each. One that was redriven stays so. Idempotent."""
        await self._caught_up()
        settled = []
        for letter_id in ids:
            try:
                row = await self._find(collection, letter_id)
                if row.state == "waiting":
                    await self._mark(collection, row, "dropped", None, request_id)
                settled.append(Settled(str(letter_id), row.receipt))
            except NotFound as error:
                settled.append(Settled(str(letter_id), error=error))
        return settled

    async def matching(
        self, collection: ServedCollection, wanted: LetterFilter, cursor: tuple[int, int] | None, limit: int
    ) -> tuple[list[LetterId], tuple[int, int] | None]:
        """Letters that match, oldest first, up to those that were there when the first page was asked for.

        Raises BrokerUnavailable (retryable), also while the topic is still being read.
        """
        await self._caught_up()
        after, until = cursor or (-1, await asyncio.to_thread(self._index.end))
        spec = collection.spec
        rows = await asyncio.to_thread(self._index.stretch, spec.name, spec.incarnation, wanted, after, until, limit)
        following = (rows[-1].place, until) if len(rows) == limit else None
        return [LetterId(row.partition, row.source_offset) for row in rows], following

    async def _find(self, collection: ServedCollection, letter_id: LetterId) -> LetterRow:
        spec = collection.spec
        row = await asyncio.to_thread(
            self._index.find, spec.name, spec.incarnation, letter_id.partition, letter_id.offset
        )
        if row is None:
            raise NotFound(f"there is no dead letter {letter_id} in collection {spec.name!r}")
        return row

    async def _caught_up(self) -> None:
        unread = await asyncio.to_thread(self._index.follow)
        if unread:
            raise BrokerUnavailable(f"the dead-letter topic is being read: {unread} records are left")

    async def _settling(self, collection: ServedCollection, letter_id: LetterId) -> LetterRow | Settled:
        try:
            row = await self._find(collection, letter_id)
        except NotFound as error:
            return Settled(str(letter_id), error=error)
        if row.state == "redriven":
            return Settled(_id(row), row.receipt)
        if row.state == "dropped":
            return Settled(_id(row), error=RedriveRefused("the letter was dropped"))
        return row

    async def _redrive_partition(
        self, collection: ServedCollection, partition: int, rows: Sequence[LetterRow], request_id: str
    ) -> list[Settled]:
        named = [row for row in rows if row.image_id is not None]
        try:
            newer_from = await self._applied_end(collection, partition)
            ids = [row.image_id or "" for row in named]
            points = await collection.ask(partition, lambda shard: shard.fetch(ids)) if ids else []
        except RiverlensError as error:
            return [Settled(_id(row), error=error) for row in rows]
        known = {_id(row): point for row, point in zip(named, points, strict=True)}
        settled = []
        for row in rows:
            try:
                receipt = await self._send(collection, row, known.get(_id(row)), newer_from, request_id)
                settled.append(Settled(_id(row), receipt))
            except RiverlensError as error:
                settled.append(Settled(_id(row), error=error))
        return settled

    async def _applied_end(self, collection: ServedCollection, partition: int) -> int:
        """The end of a partition of image-events, once its shard has applied everything before it.

        Raises NotSearchableInTime (retryable) when that takes too long, BrokerUnavailable, ShardUnavailable.
        """
        end = await asyncio.to_thread(self._admin.source_end, collection.spec.name, partition)
        timeout_s = self._settings.min_receipt_timeout_s
        if end > 0 and not await collection.wait_applied(partition, end - 1, timeout_s):
            raise NotSearchableInTime(
                f"whether the image has a newer event is unknown: the shard of partition {partition} is behind"
            )
        return end

    async def _send(
        self, collection: ServedCollection, row: LetterRow, point: PointState | None, newer_from: int, request_id: str
    ) -> Receipt:
        letter = await asyncio.to_thread(self._index.letter, row)
        event = _usable(collection, letter)
        newest = -1 if point is None else point.last_offset
        if newest != letter.source_offset:
            raise RedriveRefused(
                f"image {event.image_id!r} has a newer event, at offset {newest}"
                if newest > letter.source_offset
                else f"the shard no longer knows of the event; a newer one of {event.image_id!r} may be gone, too"
            )
        header = Redrive(
            source_offset=letter.source_offset,
            newer_from=newer_from,
            attempts=letter.attempts,
            redrives=letter.redrives + 1,
        )
        topic, key = image_events_topic(collection.spec.name), event.image_id.encode()
        offset = await self._events.send(topic, row.partition, key, letter.event, {REDRIVE_HEADER: encode_json(header)})
        receipt = Receipt(row.partition, offset)
        await self._mark(collection, row, "redriven", receipt, request_id)
        return receipt

    async def _mark(
        self, collection: ServedCollection, row: LetterRow, how: str, receipt: Receipt | None, request_id: str
    ) -> None:
        spec = collection.spec
        mark = LetterSettled(
            collection=spec.name,
            incarnation=spec.incarnation,
            source_partition=row.partition,
            source_offset=row.source_offset,
            how="redriven" if how == "redriven" else "dropped",
            receipt=receipt,
            settled_at_ms=now_ms(),
            request_id=request_id,
        )
        await self._events.send(DEAD_LETTER_TOPIC, 0, _id(row).encode(), encode_json(mark))
        _log.info(
            "dead letter settled",
            **{
                LogField.COLLECTION: spec.name,
                LogField.PARTITION: row.partition,
                LogField.OFFSET: row.source_offset,
                LogField.STATUS: how,
                LogField.REQUEST_ID: request_id,
            },
        )


async def settle_matching(
    letters: DeadLetters,
    collection: ServedCollection,
    wanted: LetterFilter,
    cursor: tuple[int, int] | None,
    how: str,
    request_id: str,
) -> Batch:
    """Redrive or drop all letters that match, a bounded piece of the work; the cursor leads to the rest."""
    deadline = time.monotonic() + SETTLE_WITHIN_S
    act = letters.redrive if how == "redriven" else letters.drop
    settled: list[Settled] = []
    while len(settled) < SETTLE_MAX and time.monotonic() < deadline:
        ids, cursor = await letters.matching(collection, wanted, cursor, min(100, SETTLE_MAX - len(settled)))
        settled += await act(collection, ids, request_id)
        if cursor is None:
            break
    return Batch(tuple(settled), cursor)


def _id(row: LetterRow) -> str:
    return str(LetterId(row.partition, row.source_offset))


def _usable(collection: ServedCollection, letter: DeadLetter) -> ImageEvent:
    """The event of a letter; raises RedriveRefused if it can never succeed."""
    if letter.event_left_out:
        raise RedriveRefused("the event is too large to be kept in a letter")
    try:
        event = decode_event(letter.event)
    except EventInvalid as error:
        raise RedriveRefused(f"the event can never succeed: {error.detail}") from error
    if event.collection != collection.spec.name or collection.partition(event.image_id) != letter.source_partition:
        raise RedriveRefused("the event can never succeed: it lies in a wrong partition or topic")
    return event
