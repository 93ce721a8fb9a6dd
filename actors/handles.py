"""Typed clients of the actors: the only way `streams` and `serving` reach them.

Every method is a coroutine for the event loop of the calling process, which has called
`ray.init` before. An actor that is gone is looked up anew at the next call, because the
supervisor starts a dead one again under the same name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from actors.call_context import current_request_ids
from actors.messages import (
    RAY_NAMESPACE,
    EmbedderRole,
    EmbedderStatus,
    EncoderDescription,
    FloatMatrix,
    LexicalSearch,
    Pixels,
    PointState,
    ShardScan,
    ShardScanResult,
    ShardSearch,
    ShardSearchResult,
    ShardStatus,
    embedder_name,
    shard_name,
)
from actors.search_port.caller import SearchCaller
from actors.search_port.frames import SearchAddress
from contract.errors import EmbedderUnavailable, RiverlensError, ShardUnavailable, Unavailable


class _ActorClient:
    """Calls one named actor and turns Ray's errors into Riverlens's."""

    def __init__(self, name: str, unavailable: type[Unavailable]) -> None:
        self.name = name
        self._unavailable = unavailable
        self._handle: ActorHandle[Any] | None = None

    async def call_for_requests(self, method: str, *arguments: object) -> Any:
        """As `call`, and tells the actor which requests it works for."""
        request_ids = current_request_ids()
        return await self.call(method, *arguments, **({"request_ids": request_ids} if request_ids else {}))

    async def call(self, method: str, *arguments: object, **named: object) -> Any:
        """Await `method`; raises the actor's own RiverlensError, or the client's Unavailable.

        A caller that is cancelled cancels the actor's work as far as it has not begun.
        """
        try:
            if self._handle is None:
                # get_actor blocks on Ray's control store, so it leaves the event loop free.
                self._handle = await asyncio.to_thread(ray.get_actor, self.name, RAY_NAMESPACE)
            answer = getattr(self._handle, method).remote(*arguments, **named)
            try:
                return await answer
            except asyncio.CancelledError:
                # What waits in the actor for a free thread does not begin, then.
                ray.cancel(answer)
                raise
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, RiverlensError):
                raise cause from None
            raise
        except (RayActorError, ActorUnavailableError, ValueError) as error:
            # ValueError is what get_actor raises for a name that is not there.
            self._handle = None
            raise self._unavailable(f"{self.name} does not answer: {type(error).__name__}") from error


class EmbedderClient:
    """The embedders of one model and role, used in turn."""

    def __init__(self, model: str, role: EmbedderRole, count: int) -> None:
        self._clients = [_ActorClient(embedder_name(model, role, index), EmbedderUnavailable) for index in range(count)]
        self._next = 0

    def _pick(self) -> _ActorClient:
        self._next = (self._next + 1) % len(self._clients)
        return self._clients[self._next]

    async def describe(self) -> EncoderDescription:
        """Model, fingerprint, dimension and preprocessing. Raises EmbedderUnavailable (retryable)."""
        return cast(EncoderDescription, await self._pick().call_for_requests("describe"))

    async def encode_images(self, pixels: Pixels) -> FloatMatrix:
        """(n, s, s, 3) uint8 RGB squares → (n, d) float32 vectors for indexing or querying.

        Raises EmbedderUnavailable (retryable), EncodingFailed.
        """
        return cast(FloatMatrix, await self._pick().call_for_requests("encode_images", pixels))

    async def encode_texts(self, texts: Sequence[str]) -> FloatMatrix:
        """N texts → (n, d) float32 query vectors. Raises EmbedderUnavailable (retryable)."""
        return cast(FloatMatrix, await self._pick().call_for_requests("encode_texts", list(texts)))

    async def statuses(self) -> list[EmbedderStatus | EmbedderUnavailable]:
        """Status of every embedder, or why it has none."""
        answers = await asyncio.gather(*(c.call_for_requests("status") for c in self._clients), return_exceptions=True)
        result: list[EmbedderStatus | EmbedderUnavailable] = []
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, EmbedderUnavailable):
                raise answer
            result.append(cast("EmbedderStatus | EmbedderUnavailable", answer))
        return result


class ShardClient:
    """One replica of one shard. All methods raise ShardUnavailable (retryable) when it is gone."""

    def __init__(self, collection: str, incarnation: str, shard: int, replica: int) -> None:
        self.shard = shard
        self.replica = replica
        self._client = _ActorClient(shard_name(collection, incarnation, shard, replica), ShardUnavailable)
        self._searches = SearchCaller(self._client.name, self._search_address)

    async def search(self, request: ShardSearch) -> ShardSearchResult:
        """One batched call, which names its requests. Raises FingerprintMismatch for vectors of another encoder."""
        result = await self._searches.search(request)
        return cast(ShardSearchResult, await self._client.call("search", request)) if result is None else result

    def close(self) -> None:
        """Close what waits for the next search; a search after this opens it again."""
        self._searches.close()

    async def _search_address(self) -> SearchAddress | None:
        return cast("SearchAddress | None", await self._client.call("search_address"))

    async def search_lexical(self, request: LexicalSearch) -> ShardSearchResult:
        """One batched call; candidates carry BM25 scores. Needs no encoder."""
        return cast(ShardSearchResult, await self._client.call("search_lexical", request))

    async def fetch(self, image_ids: Sequence[str], with_vector: bool = False) -> list[PointState | None]:
        """What the shard knows of each id, None for an id it never met."""
        found = await self._client.call_for_requests("fetch", list(image_ids), with_vector)
        return cast("list[PointState | None]", found)

    async def scan(self, request: ShardScan) -> ShardScanResult:
        """Searchable points in id order; a bounded piece of work, which may end before `limit` points are found."""
        return cast(ShardScanResult, await self._client.call_for_requests("scan", request))

    async def wait_applied(self, partition: int, source_offset: int, timeout_s: float) -> bool:
        """True once `applied_offset >= source_offset`; False after `timeout_s` seconds."""
        answer = await self._client.call_for_requests("wait_applied", partition, source_offset, timeout_s)
        return cast(bool, answer)

    async def status(self) -> ShardStatus:
        """State, positions, counts."""
        return cast(ShardStatus, await self._client.call_for_requests("status"))
