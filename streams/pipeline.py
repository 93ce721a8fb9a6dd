"""The ingest pipeline, without Faust: batches of events in, durable records out, in source order.

Stages of a batch: read the events → find the pictures whose bytes are known → fetch and decode the others
side by side → embed them in one call → publish. Several batches are in flight; only the publishing of one
partition waits for the batch before it. An event is acknowledged once everything it led to is durable:

1. its dead letter, if it was rejected,
2. its records in the embedding log, after those of every earlier event of its partition,
3. the table entry that says whose bytes are known,
4. the acknowledgement.

A crash between any two of these repeats the event, and shards apply a repeated record once.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
import structlog
from msgspec import Struct

from actors.call_context import on_behalf_of
from actors.decoding.pool import DecodingPool
from actors.messages import EncoderDescription, FloatMatrix, Pixels, PreprocessSpec
from contract.errors import (
    EncodingFailed,
    EventInvalid,
    FingerprintMismatch,
    NotFound,
    ObjectDamaged,
    RedriveRefused,
    RiverlensError,
    Unavailable,
)
from contract.events import (
    REDRIVE_HEADER,
    CollectionSpec,
    ImageDeleted,
    ImageEvent,
    ImageUploaded,
    PayloadUpdated,
    decode_event,
    decode_redrive,
)
from contract.settings import Settings
from contract.telemetry import LogField
from contract.topics import partition_of
from streams.backoff import Clock, Retrying
from streams.budget import ByteBudget
from streams.continuity import Continuity
from streams.duplicates import Duplicates, Upload
from streams.metrics import stage_timer
from streams.outcome import (
    Embedding,
    Outcome,
    SourceEvent,
    accepted,
    bytes_holder,
    deleted,
    payload_changed,
    rejected,
)
from streams.publishing import Log, Publisher
from streams.redriven import Overtaken

_log = structlog.get_logger()

Answer = TypeVar("Answer")
Acknowledge = Callable[[], Awaitable[object]]


class Objects(Protocol):
    """Where picture bytes come from."""

    async def get(self, key: str, max_bytes: int | None = None) -> bytes:
        """Bytes under `key`; raises ObjectMissing, ImageTooLarge, ObjectStoreUnavailable (retryable)."""


class Embedder(Protocol):
    """Embeds pictures; raises EmbedderUnavailable (retryable)."""

    async def describe(self) -> EncoderDescription:
        """Which encoder it is."""

    async def encode_images(self, pixels: Pixels) -> FloatMatrix:
        """(n, s, s, 3) uint8 → (n, d) float32; raises EncodingFailed."""


class _Picture(Struct):
    """A decoded upload on its way to the embedder."""

    index: int
    upload: ImageUploaded
    pixels: Pixels
    width: int
    height: int


class Pipeline:
    """Takes batches with `submit`; `drain` waits for all of them. For one event loop.

    `failure` is what the first failed batch failed with. After it nothing is acknowledged, so a
    worker that sees it must end; its successor begins with the first event that was not.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        collections: Callable[[str], CollectionSpec],
        objects: Objects,
        embedder: Callable[[str], Embedder],
        log: Log,
        decoder: DecodingPool,
        duplicates: Duplicates,
        clock: Clock,
        overtaken: Overtaken,
        continuity: Continuity,
        may_publish: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._collections = collections
        self._objects = objects
        self._embedder = embedder
        self._publisher = Publisher(log, collections, clock)
        self._decoder = decoder
        self._duplicates = duplicates
        self._clock = clock
        self._overtaken = overtaken
        self._continuity = continuity
        self._may_publish = may_publish
        self._fetched = ByteBudget(settings.ingest_bytes_in_flight_max)
        self._slots = asyncio.Semaphore(settings.ingest_batches_in_flight)
        self._published: dict[tuple[str, int], asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self.failure: BaseException | None = None

    async def submit(self, batch: Sequence[tuple[SourceEvent, Acknowledge]]) -> None:
        """Begin with a batch; returns when there is room for the next one.

        Raises what an earlier batch failed with; nothing after that failure is acknowledged.
        While the pipeline drains it takes nothing new: the caller waits until it is cancelled.
        """
        await self._slots.acquire()
        if self._closing:
            await asyncio.Event().wait()
        if self.failure is not None:
            self._slots.release()
            raise self.failure
        try:
            await self._continuity.check([event for event, _ in batch])
        except Unavailable as error:
            self.failure = error
            self._slots.release()
            raise
        places: dict[tuple[str, int], list[int]] = {}
        for index, (event, _) in enumerate(batch):
            places.setdefault((event.collection, event.partition), []).append(index)
        # The order of publishing is fixed here, before anything can overtake anything.
        turns = []
        for place, indexes in places.items():
            done = asyncio.Event()
            turns.append((self._published.get(place), done, indexes))
            self._published[place] = done
        task = asyncio.create_task(self._run(batch, turns))
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    async def drain(self) -> None:
        """Take no more; wait until every batch is published and acknowledged; raises what one failed with."""
        self._closing = True
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self.failure is not None:
            raise self.failure

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.release()
        if task.cancelled():
            self.failure = self.failure or asyncio.CancelledError("a batch was cancelled")
        elif (error := task.exception()) is not None:
            self.failure = self.failure or error

    async def _run(
        self,
        batch: Sequence[tuple[SourceEvent, Acknowledge]],
        turns: Sequence[tuple[asyncio.Event | None, asyncio.Event, list[int]]],
    ) -> None:
        try:
            outcomes = await self._outcomes([event for event, _ in batch])
        except BaseException as error:
            self.failure = self.failure or error
            for _, done, _ in turns:
                done.set()
            raise

        async def publish_turn(before: asyncio.Event | None, done: asyncio.Event, indexes: list[int]) -> None:
            try:
                if before is not None:
                    await before.wait()
                if self.failure is not None:
                    return  # an earlier batch of this partition may have a hole; nothing may follow it
                self._may_publish()
                await self._publisher.publish([(batch[i][0], outcomes[i]) for i in indexes])
                done.set()
                await self._duplicates.remember(
                    [known for i in indexes if (known := bytes_holder(batch[i][0], outcomes[i])) is not None]
                )
                for index in indexes:
                    await batch[index][1]()
            except BaseException as error:
                self.failure = self.failure or error
                raise
            finally:
                done.set()

        with stage_timer("publish"):
            await asyncio.gather(*(publish_turn(*turn) for turn in turns))

    # Events → outcomes

    async def _outcomes(self, events: Sequence[SourceEvent]) -> list[Outcome]:
        outcomes: list[Outcome | None] = [None] * len(events)
        uploads: dict[str, list[tuple[int, ImageUploaded]]] = {}
        for index, event in enumerate(events):
            try:
                content = decode_event(event.value)
                _check_place(event, content, self._collections(event.collection))
                if REDRIVE_HEADER in event.headers:
                    await self._check_redrive(event, content.image_id)
            except EventInvalid as error:
                outcomes[index] = rejected(event, None, "read", error, 1, self._clock.now_ms())
                continue
            except RedriveRefused as error:
                outcomes[index] = rejected(event, content.image_id, "redrive", error, 1, self._clock.now_ms())
                continue
            except NotFound:
                # The collection was dropped, and its embedding log with it: there is nothing to tell to anybody.
                outcomes[index] = Outcome(())
                continue
            match content:
                case ImageUploaded():
                    uploads.setdefault(event.collection, []).append((index, content))
                case ImageDeleted():
                    outcomes[index] = deleted(event, content)
                case PayloadUpdated():
                    outcomes[index] = payload_changed(event, content)
        for collection, indexed in uploads.items():
            for index, outcome in await self._embed_uploads(self._collections(collection), events, indexed):
                outcomes[index] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    async def _check_redrive(self, event: SourceEvent, image_id: str) -> None:
        """Raises RedriveRefused for an event that a newer one has overtaken, EventInvalid for a bad header."""
        redrive = decode_redrive(event.headers[REDRIVE_HEADER])
        retrying = Retrying(self._clock, "waiting for the broker", fields={LogField.IMAGE_ID: image_id})
        await retrying(lambda: self._overtaken.check(event, redrive, image_id))

    async def _embed_uploads(
        self, spec: CollectionSpec, events: Sequence[SourceEvent], uploads: Sequence[tuple[int, ImageUploaded]]
    ) -> list[tuple[int, Outcome]]:
        """Outcomes of uploads by index; only bytes that nobody knows are decoded and embedded."""
        contents = dict(uploads)
        rejections: list[tuple[int, Outcome]] = []

        async def embed(indexes: Sequence[int]) -> dict[int, Embedding]:
            made, refused = await self._decode_and_embed(spec, events, [(i, contents[i]) for i in indexes])
            rejections.extend(refused)
            return made

        async def confirm(index: int) -> bool:
            try:
                await self._bytes(contents[index])
            except RiverlensError:
                return False  # decoding meets the same error, and tells of it
            return True

        places = {index: Upload(content, events[index].offset) for index, content in uploads}
        resolved = await self._duplicates.resolve(spec, places, embed, confirm)
        return rejections + [
            (i, accepted(events[i], contents[i], one.embedding, spec.fingerprint, one.known_bytes, one.duplicate_of))
            for i, one in resolved.items()
        ]

    async def _decode_and_embed(
        self, spec: CollectionSpec, events: Sequence[SourceEvent], uploads: Sequence[tuple[int, ImageUploaded]]
    ) -> tuple[dict[int, Embedding], list[tuple[int, Outcome]]]:
        """Embeddings by index, and the rejections of those that have none."""
        embedder = self._embedder(spec.model)
        preprocess = (await self._patiently(lambda: _describe(embedder, spec), spec)).preprocess
        with stage_timer("decode"):
            decoded = await asyncio.gather(
                *(self._picture(spec, events[index], index, upload, preprocess) for index, upload in uploads)
            )
        pictures = [one for one in decoded if isinstance(one, _Picture)]
        rejections = [one for one in decoded if not isinstance(one, _Picture)]
        if not pictures:
            return {}, rejections
        with stage_timer("embed"):
            made, refused = await self._embed(embedder, spec, events, pictures)
        return made, rejections + refused

    def _most_bytes(self, upload: ImageUploaded) -> int:
        """What its event says, within what is allowed; the budget of bytes in flight holds by that."""
        most = self._settings.max_image_bytes
        return upload.size_bytes if 0 < upload.size_bytes <= most else most

    async def _bytes(self, upload: ImageUploaded) -> bytes:
        """The bytes of an upload; raises ObjectDamaged (retryable) if they are not those its event names."""
        data = await self._objects.get(upload.object_key, max_bytes=self._most_bytes(upload))
        digest = await asyncio.to_thread(hashlib.sha256, data)
        if digest.hexdigest() != upload.sha256.lower():
            raise ObjectDamaged(f"the bytes under {upload.object_key} do not have the SHA-256 {upload.sha256}")
        return data

    async def _picture(
        self, spec: CollectionSpec, event: SourceEvent, index: int, upload: ImageUploaded, preprocess: PreprocessSpec
    ) -> _Picture | tuple[int, Outcome]:
        """Fetch and decode; a picture that cannot be had becomes a rejection."""
        settings = self._settings
        stage = "fetch"
        fetching = Retrying(
            self._clock,
            "fetch failed and is tried again",
            fields={LogField.IMAGE_ID: upload.image_id},
            attempts_max=settings.fetch_attempts,
        )
        try:
            async with self._fetched.take(self._most_bytes(upload)):
                data = await fetching(lambda: self._bytes(upload))
                stage = "decode"
                decoded = await self._patiently(lambda: self._decoder.square(data, preprocess), spec, "a decoder")
            return _Picture(index, upload, decoded.pixels, decoded.width, decoded.height)
        except RiverlensError as error:
            return index, rejected(event, upload.image_id, stage, error, fetching.attempts, self._clock.now_ms())
        except Exception as unexpected:  # noqa: BLE001
            # Whatever a picture does, it does to itself alone: its partition goes on.
            _log.exception("a picture failed in a way nobody expected", **{LogField.IMAGE_ID: upload.image_id})
            internal = RiverlensError(f"{type(unexpected).__name__}; the log of ingest has the reason")
            return index, rejected(event, upload.image_id, stage, internal, fetching.attempts, self._clock.now_ms())

    async def _embed(
        self, embedder: Embedder, spec: CollectionSpec, events: Sequence[SourceEvent], pictures: Sequence[_Picture]
    ) -> tuple[dict[int, Embedding], list[tuple[int, Outcome]]]:
        """One call for all; if the encoder fails on them, one call each, so that only the guilty is rejected."""
        pixels = np.stack([picture.pixels for picture in pictures])
        request_ids = dict.fromkeys(picture.upload.request_id for picture in pictures)
        try:
            with on_behalf_of(*(request_id for request_id in request_ids if request_id)):
                rows = await self._patiently(lambda: embedder.encode_images(pixels), spec)
        except EncodingFailed as error:
            if len(pictures) == 1:
                one = pictures[0]
                letter = rejected(events[one.index], one.upload.image_id, "embed", error, 1, self._clock.now_ms())
                return {}, [(one.index, letter)]
            made: dict[int, Embedding] = {}
            refused: list[tuple[int, Outcome]] = []
            for picture in pictures:
                good, bad = await self._embed(embedder, spec, events, [picture])
                made |= good
                refused += bad
            return made, refused
        return {one.index: Embedding(row, one.width, one.height) for one, row in zip(pictures, rows, strict=True)}, []

    async def _patiently(
        self, call: Callable[[], Awaitable[Answer]], spec: CollectionSpec, whom: str = "an embedder"
    ) -> Answer:
        """Repeat a call while nobody answers, or an embedder of another fingerprint: no picture's fault."""
        retrying = Retrying(
            self._clock,
            f"waiting for {whom}",
            fields={LogField.COLLECTION: spec.name},
            again_after=(Unavailable, FingerprintMismatch),
        )
        return await retrying(call)


def _check_place(event: SourceEvent, content: ImageEvent, spec: CollectionSpec) -> None:
    """Raises EventInvalid for an event that lies where no shard would look for it."""
    if content.collection != event.collection:
        raise EventInvalid(f"an event of collection {content.collection!r} lies in the topic of {event.collection!r}")
    expected = partition_of(content.image_id, spec.partitions)
    if expected != event.partition:
        raise EventInvalid(f"image id {content.image_id!r} belongs into partition {expected}, not {event.partition}")


async def _describe(embedder: Embedder, spec: CollectionSpec) -> EncoderDescription:
    """The embedder's encoder; raises FingerprintMismatch if it is not the collection's."""
    description = await embedder.describe()
    if description.fingerprint != spec.fingerprint:
        raise FingerprintMismatch(
            f"collection {spec.name!r} holds vectors of {spec.fingerprint or 'no encoder yet'}, "
            f"the embedder makes those of {description.fingerprint}"
        )
    return description
