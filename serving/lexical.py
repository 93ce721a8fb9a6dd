"""Asks the lexical index of every shard: queries that come while calls are under way share the next ones."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from actors.call_context import on_behalf_of
from actors.messages import LexicalQuery, LexicalSearch, ShardSearchResult
from contract.errors import ShardUnavailable
from contract.telemetry import LogField
from serving.dependencies import Shard
from serving.fan_out import Coverage, FanOutAnswer
from serving.merge import merge_freshness

_log = structlog.get_logger()

BATCH_MAX = 64
# A second batch leaves while a slow shard holds the first one up.
_UNDER_WAY_MAX = 2


@dataclass(frozen=True, slots=True)
class _Waiting:
    query: LexicalQuery
    with_payload: bool
    fresh: bool
    request_id: str
    done: asyncio.Future[FanOutAnswer]


class LexicalFanOut:
    """Asks every shard of one collection by words. For one event loop."""

    def __init__(self, shards: Sequence[Sequence[Shard]], deadline_s: float) -> None:
        """`shards[s][r]` is replica r of shard s; `deadline_s` counts from when a batch leaves."""
        self._shards = shards
        self._deadline_s = deadline_s
        self._waiting: list[_Waiting] = []
        # The loop holds tasks weakly; these send the batches.
        self._batches: set[asyncio.Task[None]] = set()
        self._senders = 0
        self._turn = 0

    async def search(
        self, query: LexicalQuery, *, with_payload: bool = True, fresh: bool = False, request_id: str = ""
    ) -> FanOutAnswer:
        """Candidates for one query, with BM25 scores.

        Args:
            query: Words, how many, and the filter.
            with_payload: Whether candidates carry their payload.
            fresh: Whether the indexes take in everything that is applied before they answer.
            request_id: Of the search, for the logs of the shards.

        Raises:
            ShardUnavailable: no shard answered before the deadline; retryable.
        """
        done: asyncio.Future[FanOutAnswer] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(query, with_payload, fresh, request_id, done))
        if self._senders < _UNDER_WAY_MAX:
            self._senders += 1
            task = asyncio.create_task(self._run())
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)
        return await done

    async def _run(self) -> None:
        """Send batches until nobody waits."""
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
                await self._send(batch)
        finally:
            # In the same turn in which nobody waited: who comes next starts another sender.
            self._senders -= 1

    async def _send(self, batch: Sequence[_Waiting]) -> None:
        try:
            answers = await self._ask_all(batch)
        # Whatever went wrong belongs to the queries that wait, not to this task.
        except BaseException as error:
            for waiting in batch:
                if not waiting.done.done():
                    waiting.done.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.done.done():
                waiting.done.set_result(answer)

    async def _ask_all(self, batch: Sequence[_Waiting]) -> list[FanOutAnswer]:
        request = LexicalSearch(
            queries=tuple(waiting.query for waiting in batch),
            with_payload=any(waiting.with_payload for waiting in batch),
            fresh=any(waiting.fresh for waiting in batch),
            request_ids=tuple(waiting.request_id for waiting in batch),
        )
        self._turn += 1
        with on_behalf_of(*filter(None, request.request_ids)):
            tasks = [
                asyncio.create_task(self._ask_shard(number, replicas, request))
                for number, replicas in enumerate(self._shards)
            ]
        try:
            await asyncio.wait(tasks, timeout=self._deadline_s)
        finally:
            late = [task for task in tasks if task.cancel()]
        if late:
            await asyncio.wait(late)
        results = [task.result() for task in tasks if not task.cancelled()]
        answered = [result for result in results if result is not None]
        if not answered:
            limit_ms = self._deadline_s * 1000
            raise ShardUnavailable(f"none of {len(tasks)} lexical indexes answered within {limit_ms:g} ms")
        coverage = Coverage(len(tasks), len(answered))
        freshness = merge_freshness(result.freshness for result in answered)
        return [
            FanOutAnswer(tuple(result.candidates[row] for result in answered), coverage, freshness)
            for row in range(len(batch))
        ]

    async def _ask_shard(
        self, number: int, replicas: Sequence[Shard], request: LexicalSearch
    ) -> ShardSearchResult | None:
        """Ask one replica, on failure the next; None when none of them could answer."""
        for attempt in range(len(replicas)):
            replica = (self._turn + attempt) % len(replicas)
            told = {LogField.SHARD: number, LogField.REPLICA: replica}
            try:
                return await replicas[replica].search_lexical(request)
            except ShardUnavailable as error:
                _log.warning("lexical index did not answer", **told, **{LogField.ERROR: error.detail})
            # A shard that fails in an unexpected way costs its part of the answer, not all of it.
            except Exception:  # noqa: BLE001
                _log.exception("lexical index failed", **told)
        return None
