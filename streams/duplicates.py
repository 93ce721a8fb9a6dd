"""Equal bytes are embedded once: what is known of them, who holds them, and whose vector serves again.

Three places know of bytes, from quick to lasting: uploads in flight, the most recent embeddings in
memory, and the known-bytes table. None of them is trusted with a point: a vector that was not made in
this process comes from the shard of an image that stands, with the same bytes and the same encoder.
So a table that is lost, stale or behind costs an embedding and nothing else.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import structlog
from msgspec import Struct

from actors.messages import PointState
from contract.errors import EventInvalid, RiverlensError
from contract.events import (
    BytesHolder,
    CollectionSpec,
    ImageUploaded,
    KnownBytes,
    decode_known_bytes,
    encode_known_bytes,
)
from contract.telemetry import LogField
from contract.topics import known_bytes_key, partition_of, shard_of_partition
from streams.metrics import count_upload
from streams.outcome import Embedding

_log = structlog.get_logger()

# Bridges the time until a shard has applied a point and the table has its entry.
_RECENT = 1024
# Of many images with the same bytes, the first and the newest are kept: deleting these all costs one embedding.
_HOLDERS = 8
# The first call loads the shard's class into this process, with all that it imports: five seconds where two cores
# have more to do. A shard that hangs may not hold up every batch, so after a time-out it is given no more than an
# embedding takes, until it answers again.
_ASK_WITHIN_S = 30.0
_ASK_LATE_WITHIN_S = 0.2


class KnownBytesTable(Protocol):
    """What is remembered of bytes, by the keys of the known-bytes topic."""

    def get(self, key: bytes) -> bytes | None:
        """The newest value this process has seen; it may lag."""

    async def put(self, pairs: Mapping[bytes, bytes]) -> None:
        """Return once the pairs are durable; raises BrokerUnavailable (retryable)."""


class Shard(Protocol):
    """One replica of a shard; raises ShardUnavailable (retryable)."""

    async def fetch(self, image_ids: Sequence[str], with_vector: bool = False) -> list[PointState | None]:
        """What the shard knows of each id, None for an id it never met."""


Shards = Callable[[CollectionSpec, int], Sequence[Shard]]
Embed = Callable[[Sequence[int]], Awaitable[dict[int, Embedding]]]
Confirm = Callable[[int], Awaitable[bool]]


class Upload(Struct, frozen=True):
    """An upload and its place in its partition."""

    content: ImageUploaded
    source_offset: int


class Resolved(Struct, frozen=True):
    """A picture's embedding, the key of its bytes, and the image that had them first, if another had."""

    embedding: Embedding
    known_bytes: bytes | None
    duplicate_of: str | None


class _Known(Struct, frozen=True):
    """An embedding that is at hand, and the object it was made from or found with."""

    embedding: Embedding
    object_key: str | None


class _Held(Struct, frozen=True):
    """Who holds certain bytes, and of whom that was ever asked: the table may still name who lost them."""

    holders: tuple[BytesHolder, ...] = ()
    considered: frozenset[BytesHolder] = frozenset()


class Duplicates:
    """Gives uploads their embeddings, each distinct picture embedded once. For one event loop."""

    def __init__(self, table: KnownBytesTable, shards: Shards) -> None:
        self._table = table
        self._shards = shards
        self._flying: dict[bytes, asyncio.Future[_Known | None]] = {}
        self._recent: OrderedDict[bytes, _Known] = OrderedDict()
        self._held: OrderedDict[bytes, _Held] = OrderedDict()
        self._late: set[tuple[str, int]] = set()

    async def resolve(
        self, spec: CollectionSpec, uploads: Mapping[int, Upload], embed: Embed, confirm: Confirm
    ) -> dict[int, Resolved]:
        """The embeddings of `uploads`, by their index; those that `embed` rejects are left out.

        `embed` is called for as few pictures as can be; `confirm` says whether an upload's object holds the
        bytes that its event claims, and is asked where the object is another than that of the known bytes.
        An upload whose bytes are in flight waits for them. Who waits holds nothing others wait for.
        """
        keys = {i: known_bytes_key(spec.incarnation, spec.fingerprint, u.content.sha256) for i, u in uploads.items()}
        mine: dict[int, bytes] = {}
        alone: list[int] = []
        flights: dict[int, asyncio.Future[_Known | None]] = {}
        for index, key in keys.items():
            if key is None:
                alone.append(index)
            elif key in self._flying:
                flights[index] = self._flying[key]
            else:
                self._flying[key] = asyncio.get_running_loop().create_future()
                mine[index] = key
        found: dict[int, _Known] = {}
        try:
            found = await self._obtain(spec, uploads, {**mine, **dict.fromkeys(alone)}, embed, confirm)
        finally:
            for index, key in mine.items():
                self._flying.pop(key).set_result(found.get(index))
        embedded_apart: list[int] = []
        for index, flight in flights.items():
            known = await flight
            if known is not None and await _same_object(known, index, uploads[index].content, confirm):
                found[index] = known
                count_upload("saved")
            else:
                embedded_apart.append(index)
        if embedded_apart:
            # Their bytes were rejected under another id: each gets a rejection of its own, side by side.
            found |= await self._embed(uploads, keys, embedded_apart, embed)
        return {
            index: Resolved(known.embedding, keys[index], self._join(keys[index], uploads[index]))
            for index, known in sorted(found.items())
        }

    async def remember(self, points: Sequence[tuple[bytes, BytesHolder]]) -> None:
        """Note in the table who holds which bytes, once their points are durable in the embedding log.

        A table that cannot be written costs an embedding some time; the points are there all the same.
        """
        pairs: dict[bytes, bytes] = {}
        for key, holder in points:
            value = encode_known_bytes(KnownBytes(_with(self._known_holders(key), holder)))
            if self._table.get(key) != value:
                pairs[key] = value
        if not pairs:
            return
        try:
            await self._table.put(pairs)
        except RiverlensError as error:
            _log.warning("known bytes are not remembered", **{LogField.CODE: error.code, LogField.ERROR: error.detail})

    def _join(self, key: bytes | None, upload: Upload) -> str | None:
        """Count an upload among the holders of its bytes; the one before it that came first."""
        if key is None:
            return None
        holders = _with(self._known_holders(key), BytesHolder(upload.content.image_id, upload.source_offset))
        self._hold(key, holders)
        first = holders[0].image_id
        if first == upload.content.image_id:
            return None
        count_upload("duplicate")
        return first

    def _hold(self, key: bytes, holders: tuple[BytesHolder, ...], considered: tuple[BytesHolder, ...] = ()) -> None:
        before = self._held.get(key, _Held())
        self._held[key] = _Held(holders, before.considered.union(holders, considered))
        self._held.move_to_end(key)
        while len(self._held) > _RECENT:
            self._held.popitem(last=False)

    def _known_holders(self, key: bytes) -> tuple[BytesHolder, ...]:
        """Those in memory, then those that only the table knows."""
        held, value = self._held.get(key, _Held()), self._table.get(key)
        if value is None:
            return held.holders
        try:
            remembered = decode_known_bytes(value).holders
        except EventInvalid as error:
            _log.warning("an entry of the known bytes is passed over", **{LogField.ERROR: error.detail})
            return held.holders
        holders = held.holders
        for holder in remembered:
            if holder not in held.considered:
                holders = _with(holders, holder)
        return holders

    async def _obtain(
        self,
        spec: CollectionSpec,
        uploads: Mapping[int, Upload],
        keys: Mapping[int, bytes | None],
        embed: Embed,
        confirm: Confirm,
    ) -> dict[int, _Known]:
        """What is known of the uploads' bytes, and embeddings of the rest."""
        holders = {i: self._known_holders(key) for i, key in keys.items() if key is not None}
        states = await self._states(spec, {holder.image_id for some in holders.values() for holder in some})
        found: dict[int, _Known] = {}
        for index, some in holders.items():
            key, upload = keys[index], uploads[index].content
            if key is None:
                continue
            left = tuple(holder for holder in some if not _is_gone(holder, states.get(holder.image_id), upload.sha256))
            self._hold(key, left, some)
            known = self._recent.get(key) or _standing([states.get(h.image_id) for h in left], upload.sha256)
            if known is not None and await _same_object(known, index, upload, confirm):
                found[index] = known
                count_upload("saved")
        rest = [index for index in keys if index not in found]
        if rest:
            found |= await self._embed(uploads, keys, rest, embed)
        return found

    async def _embed(
        self, uploads: Mapping[int, Upload], keys: Mapping[int, bytes | None], indexes: list[int], embed: Embed
    ) -> dict[int, _Known]:
        made = {
            index: _Known(embedding, uploads[index].content.object_key)
            for index, embedding in (await embed(indexes)).items()
        }
        for index, known in made.items():
            count_upload("embedded")
            key = keys[index]
            if key is not None:
                self._recent[key] = known
                self._recent.move_to_end(key)
        while len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
        return made

    async def _states(self, spec: CollectionSpec, image_ids: set[str]) -> dict[str, PointState]:
        """What the shards know of images, one call per shard; a shard that does not answer is left out."""
        by_shard: dict[int, list[str]] = {}
        for image_id in sorted(image_ids):
            shard = shard_of_partition(partition_of(image_id, spec.partitions), spec.shards)
            by_shard.setdefault(shard, []).append(image_id)
        answers = await asyncio.gather(*(self._ask(spec, shard, ids) for shard, ids in by_shard.items()))
        return {state.image_id: state for answer in answers for state in answer if state is not None}

    async def _ask(self, spec: CollectionSpec, shard: int, image_ids: list[str]) -> list[PointState | None]:
        place = (spec.incarnation, shard)
        for replica in self._shards(spec, shard):
            within_s = _ASK_LATE_WITHIN_S if place in self._late else _ASK_WITHIN_S
            try:
                answer = await asyncio.wait_for(replica.fetch(image_ids, True), within_s)
            except (RiverlensError, TimeoutError) as error:
                if isinstance(error, TimeoutError):
                    self._late.add(place)
                _log.info(
                    "a shard does not say whether bytes are known",
                    **{LogField.COLLECTION: spec.name, LogField.SHARD: shard, LogField.ERROR: repr(error)},
                )
                continue
            self._late.discard(place)
            return answer
        return []


def _with(holders: tuple[BytesHolder, ...], holder: BytesHolder) -> tuple[BytesHolder, ...]:
    """The holders and one more; one that is among them keeps its place and gets its newest offset."""
    for place, other in enumerate(holders):
        if other.image_id == holder.image_id:
            newest = max(holder, other, key=lambda one: one.source_offset)
            return (*holders[:place], newest, *holders[place + 1 :])
    if len(holders) < _HOLDERS:
        return (*holders, holder)
    return (holders[0], *holders[2 - _HOLDERS :], holder)


def _is_gone(holder: BytesHolder, state: PointState | None, sha256: str) -> bool:
    """Whether the image has lost these bytes since: deleted, or replaced by others."""
    if state is None or max(state.source_offset, state.last_offset) < holder.source_offset:
        return False  # not applied yet
    return state.state != "searchable" or state.sha256 != sha256


def _standing(states: Sequence[PointState | None], sha256: str) -> _Known | None:
    """The embedding of the first of these images that stands with these bytes."""
    for state in states:
        if state is None or state.state != "searchable" or state.sha256 != sha256:
            continue
        if state.vector is not None and state.width is not None and state.height is not None:
            return _Known(Embedding(state.vector, state.width, state.height), state.object_key)
    return None


async def _same_object(known: _Known, index: int, upload: ImageUploaded, confirm: Confirm) -> bool:
    """Whether an upload's bytes are those known: the same object, or one that was read and hashed."""
    return upload.object_key == known.object_key or await confirm(index)
