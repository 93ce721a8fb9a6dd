"""Writes the API's events to `image-events` and waits for their effect."""

from __future__ import annotations

import time

from contract.errors import NotSearchableInTime
from contract.events import ImageDeleted, ImageEvent, PayloadUpdated, Receipt, ResultClicked, encode_json
from contract.topics import CLICKS_TOPIC, image_events_topic
from serving.catalog import ServedCollection
from serving.dependencies import EventLog
from serving.problems import ProblemError
from serving.schemas import Click


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


async def log_event(events: EventLog, collection: ServedCollection, event: ImageEvent) -> Receipt:
    """Write an event durably; the receipt says where it stands. Raises BrokerUnavailable (retryable)."""
    partition = collection.partition(event.image_id)
    topic = image_events_topic(collection.spec.name)
    offset = await events.send(topic, partition, event.image_id.encode(), encode_json(event))
    return Receipt(partition, offset)


async def await_applied(collection: ServedCollection, receipt: Receipt, timeout_s: float) -> None:
    """Return once the event at `receipt` has taken effect.

    Raises NotSearchableInTime (retryable), whose problem carries the receipt; ShardUnavailable.
    """
    if await collection.wait_applied(receipt.partition, receipt.offset, timeout_s):
        return
    error = NotSearchableInTime(
        f"the event is logged but not applied within {timeout_s:g} s; it will be: ask again with its receipt"
    )
    raise ProblemError(error, receipt={"partition": receipt.partition, "offset": receipt.offset})


def deletion(collection: ServedCollection, image_id: str, request_id: str) -> ImageDeleted:
    """The event that deletes an image."""
    return ImageDeleted(collection.spec.name, image_id, now_ms(), request_id)


def payload_update(
    collection: ServedCollection, image_id: str, payload: dict[str, object], request_id: str
) -> PayloadUpdated:
    """The event that replaces an image's payload."""
    return PayloadUpdated(collection.spec.name, image_id, payload, now_ms(), request_id)


async def log_click(events: EventLog, collection: ServedCollection, click: Click) -> None:
    """Write what a person chose. Raises BrokerUnavailable (retryable)."""
    record = ResultClicked(collection.spec.name, click.request_id, click.image_id, click.rank, now_ms())
    await events.send(CLICKS_TOPIC, 0, click.request_id.encode(), encode_json(record))
