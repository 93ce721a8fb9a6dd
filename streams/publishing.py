"""Makes outcomes durable: dead letters first, then the records of the embedding log, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from msgspec.structs import replace

from actors.log.producer import OutgoingRecord
from contract.errors import BrokerUnavailable, InvalidRequest, NotFound
from contract.events import CollectionSpec, decode_event, encode_json
from contract.telemetry import LogField
from contract.topics import DEAD_LETTER_TOPIC, embedding_log_topic
from streams.backoff import Clock, Retrying
from streams.metrics import count_event, count_letter
from streams.outcome import Outcome, SourceEvent, rejected

_LOOK_EVERY_S = 0.5


class Log(Protocol):
    """Sends records in order; none is in the log without those before it."""

    async def send_all(self, records: Sequence[OutgoingRecord]) -> list[int]:
        """Return once all are durable; raises BrokerUnavailable (retryable), InvalidRequest."""


class Publisher:
    """Publishes one partition's share of a batch at a time; the caller keeps the shares in order."""

    def __init__(self, log: Log, collections: Callable[[str], CollectionSpec], clock: Clock) -> None:
        self._log = log
        self._collections = collections
        self._clock = clock

    async def publish(self, pairs: Sequence[tuple[SourceEvent, Outcome]]) -> None:
        """Return once everything the events of one partition led to is durable, in their order.

        Waits for a broker that is away. A record that no broker takes makes its event a rejection.
        """
        collection = pairs[0][0].collection
        await self._send(collection, [letter for _, one in pairs if (letter := self._letter(one)) is not None])
        try:
            await self._send(collection, [record for event, one in pairs for record in _records(event, one)])
            published = [one for _, one in pairs]
        except InvalidRequest:
            published = [await self._publish_one(event, one) for event, one in pairs]
        for one in published:
            _count(one)

    async def _publish_one(self, event: SourceEvent, outcome: Outcome) -> Outcome:
        """What became of it in the end."""
        try:
            await self._send(event.collection, _records(event, outcome))
        except InvalidRequest as error:
            image_id = decode_event(event.value).image_id
            refused = rejected(event, image_id, "publish", error, 1, self._clock.now_ms())
            letter = self._letter(refused)
            await self._send(event.collection, [*([letter] if letter is not None else []), *_records(event, refused)])
            return refused
        return outcome

    async def _send(self, collection: str, records: Sequence[OutgoingRecord]) -> None:
        """Send until the broker has confirmed all; repeats are harmless, gaps are not."""
        if not records:
            return

        async def send() -> None:
            try:
                await self._while_live(collection, self._log.send_all(records))
            except BrokerUnavailable:
                if self._is_live(collection):
                    raise

        await Retrying(self._clock, "waiting for the broker", fields={LogField.COLLECTION: collection})(send)

    async def _while_live(self, collection: str, sending: Coroutine[Any, Any, object]) -> None:
        """Await a sending; leave it behind when its collection ends, since topics that are gone confirm nothing."""
        task = asyncio.create_task(sending)
        try:
            while not task.done() and self._is_live(collection):
                await asyncio.wait({task}, timeout=_LOOK_EVERY_S)
        finally:
            if not task.done():
                task.cancel()
        if task.done():
            task.result()

    def _is_live(self, collection: str) -> bool:
        try:
            self._collections(collection)
        except NotFound:
            return False
        return True

    def _letter(self, outcome: Outcome) -> OutgoingRecord | None:
        letter = outcome.dead_letter
        if letter is None:
            return None
        key = letter.image_id.encode() if letter.image_id is not None else None
        try:
            letter = replace(letter, incarnation=self._collections(letter.collection).incarnation)
        except NotFound:
            return None  # nobody could ask for it
        return OutgoingRecord(DEAD_LETTER_TOPIC, 0, key, encode_json(letter))


def _count(outcome: Outcome) -> None:
    if outcome.dead_letter is None:
        count_event("published")
    else:
        count_event("rejected")
        count_letter(outcome.dead_letter)


def _records(event: SourceEvent, outcome: Outcome) -> list[OutgoingRecord]:
    topic = embedding_log_topic(event.collection)
    return [
        OutgoingRecord(topic, event.partition, record.key, record.value, record.headers) for record in outcome.records
    ]
