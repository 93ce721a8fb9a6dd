"""One batched call per shard: concurrent queries share it, one deadline bounds it, gaps are counted.

A lone query leaves at once. While calls are under way, queries gather for `window_s` and then
leave together as one matrix, because a call costs far more than a row in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import structlog

from actors.call_context import on_behalf_of
from actors.messages import Candidate, FloatMatrix, Freshness, ShardQuery, ShardSearch, ShardSearchResult
from contract.errors import FingerprintMismatch, ShardUnavailable
from contract.telemetry import LogField
from serving.dependencies import Shard
from serving.merge import merge_freshness
from serving.metrics import FanOutMetrics, Metrics

_log = structlog.get_logger()

WINDOW_S = 0.0015
BATCH_MAX = 64


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many of a collection's shards an answer covers."""

    shards_total: int
    shards_answered: int

    @property
    def degraded(self) -> bool:
        """Whether part of the collection was not searched."""
        return self.shards_answered < self.shards_total


@dataclass(frozen=True, slots=True)
class FanOutAnswer:
    """Candidates of every shard that answered one query, and what that covers."""

    candidates: tuple[tuple[Candidate, ...], ...]
    coverage: Coverage
    freshness: Freshness


@dataclass(frozen=True, slots=True)
class _Waiting:
    vector: FloatMatrix
    query: ShardQuery
    with_payload: bool
    request_id: str
    done: asyncio.Future[FanOutAnswer]


class FanOut:
    """Asks every shard of one collection."""

    def __init__(
        self,
        shards: Sequence[Sequence[Shard]],
        fingerprint: str,
        deadline_s: float,
        window_s: float = WINDOW_S,
        batch_max: int = BATCH_MAX,
        metrics: FanOutMetrics | None = None,
    ) -> None:
        """`shards[s][r]` is replica r of shard s; `deadline_s` counts from when a batch leaves."""
        self._shards = shards
        self._fingerprint = fingerprint
        self._deadline_s = deadline_s
        self._window_s = window_s
        self._batch_max = batch_max
        self._metrics = metrics or Metrics().fan_out("", len(shards))
        self._waiting: list[_Waiting] = []
        self._timer: asyncio.TimerHandle | None = None
        self._under_way = 0
        # The loop holds tasks weakly; these are the batches under way.
        self._batches: set[asyncio.Task[None]] = set()
        self._turn = 0

    async def search(
        self, vector: FloatMatrix, query: ShardQuery, *, with_payload: bool = True, request_id: str = ""
    ) -> FanOutAnswer:
        """Candidates for one query vector, (d,) float32.

        Raises:
            ShardUnavailable: no shard answered before the deadline; retryable.
            FingerprintMismatch: a shard holds vectors of another encoder.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[FanOutAnswer] = loop.create_future()
        self._waiting.append(_Waiting(vector, query, with_payload, request_id, done))
        if len(self._waiting) >= self._batch_max:
            self._leave()
        elif self._timer is None:
            # Even with nothing under way, queries that became runnable in this same turn of the loop join.
            self._timer = loop.call_later(self._window_s if self._under_way else 0.0, self._leave)
        return await done

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch, self._waiting = self._waiting, []
        if batch:
            self._under_way += 1
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)

    async def _run(self, batch: list[_Waiting]) -> None:
        try:
            answers = await self._ask_all(batch)
        # Whatever went wrong belongs to the queries that wait, not to this task.
        except BaseException as error:
            self._under_way -= 1
            for waiting in batch:
                if not waiting.done.done():
                    waiting.done.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        # Counted down before a caller wakes: its next query then leaves at once.
        self._under_way -= 1
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.done.done():
                waiting.done.set_result(answer)

    async def _ask_all(self, batch: list[_Waiting]) -> list[FanOutAnswer]:
        request = ShardSearch(
            fingerprint=self._fingerprint,
            vectors=np.stack([waiting.vector for waiting in batch]).astype(np.float32, copy=False),
            queries=tuple(waiting.query for waiting in batch),
            with_payload=any(waiting.with_payload for waiting in batch),
            request_ids=tuple(waiting.request_id for waiting in batch),
        )
        self._turn += 1
        self._metrics.batch(len(batch))
        # The task that runs here is of one of the queries; the calls are for all of them.
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
            raise ShardUnavailable(f"none of {len(tasks)} shards answered within {self._deadline_s * 1000:g} ms")
        coverage = Coverage(len(tasks), len(answered))
        self._metrics.covered(len(answered) / len(tasks), len(batch))
        freshness = merge_freshness(result.freshness for result in answered)
        return [
            FanOutAnswer(tuple(result.candidates[row] for result in answered), coverage, freshness)
            for row in range(len(batch))
        ]

    async def _ask_shard(
        self, number: int, replicas: Sequence[Shard], request: ShardSearch
    ) -> ShardSearchResult | None:
        """Ask one replica, on failure the next; None when none of them could answer."""
        for attempt in range(len(replicas)):
            replica = (self._turn + attempt) % len(replicas)
            try:
                with self._metrics.call(number):
                    return await replicas[replica].search(request)
            except FingerprintMismatch:
                raise
            except ShardUnavailable as error:
                _log.warning(
                    "shard replica did not answer",
                    **{LogField.SHARD: number, LogField.REPLICA: replica, LogField.ERROR: error.detail},
                )
            # A shard that fails in an unexpected way costs its part of the answer, not all of it.
            except Exception:  # noqa: BLE001
                _log.exception("shard replica failed", **{LogField.SHARD: number, LogField.REPLICA: replica})
        return None
