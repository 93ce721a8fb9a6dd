"""Asks one replica of every shard, and another one where the first fails or is slow; one deadline bounds it all.

The replica is chosen by power of two choices on the calls under way. When it has not answered after the
p95 of its shard's recent calls, a second one is asked as well (a hedge) and the first good answer wins.
What answers too late is left to end by itself: it is true, then, that its replica is busy, and how long it took.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar

import structlog

from actors.call_context import on_behalf_of
from actors.messages import Candidate, Freshness, ShardSearchResult
from contract.errors import FingerprintMismatch, ShardUnavailable
from contract.telemetry import LogField
from serving.dependencies import Shard
from serving.merge import merge_freshness
from serving.metrics import FanOutMetrics
from serving.replica_choice import HedgeBudget, RecentLatencies, choose, hedge_after_s

_log = structlog.get_logger()

# A replica that failed is asked after the others for this long: it is being started again, or it is overwhelmed.
_DOUBTED_FOR_S = 1.0
# By how much a deadline's timer may fire early.
_SLACK_S = 0.001

Request = TypeVar("Request")


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


class Shards(Generic[Request]):
    """All shards of one collection, asked by one kind of call. For one event loop."""

    def __init__(
        self,
        shards: Sequence[Sequence[Shard]],
        call: Callable[[Shard, Request], Awaitable[ShardSearchResult]],
        deadline_s: float,
        metrics: FanOutMetrics,
        name: str,
        random: Random | None = None,
    ) -> None:
        """`shards[s][r]` is replica r of shard s; `name` says in logs and errors what is asked.

        `random` chooses among replicas.
        """
        self._deadline_s = deadline_s
        self._metrics = metrics
        self._name = name
        random = random or Random()  # noqa: S311 - spreads load, guards nothing
        self._shards = [
            _Replicas(number, replicas, call, deadline_s, metrics, name, random)
            for number, replicas in enumerate(shards)
        ]

    async def ask(self, request: Request, request_ids: Sequence[str]) -> list[FanOutAnswer]:
        """One answer per query of a batch; `request_ids` has the id of each, empty where it has none.

        Raises:
            ShardUnavailable: no shard answered before the deadline; retryable.
            FingerprintMismatch: a shard holds vectors of another encoder.
        """
        queries = len(request_ids)
        self._metrics.batch(queries)
        until = asyncio.get_running_loop().time() + self._deadline_s
        # The task that runs here is of one of the queries; the calls are for all of them.
        with on_behalf_of(*filter(None, request_ids)):
            tasks = [asyncio.create_task(shard.ask(request, until)) for shard in self._shards]
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
            raise ShardUnavailable(f"no {self._name} of {len(tasks)} shards answered within {limit_ms:g} ms")
        coverage = Coverage(len(tasks), len(answered))
        self._metrics.covered(len(answered) / len(tasks), queries)
        freshness = merge_freshness(result.freshness for result in answered)
        return [
            FanOutAnswer(tuple(result.candidates[row] for result in answered), coverage, freshness)
            for row in range(queries)
        ]


class _Replicas(Generic[Request]):
    """The replicas of one shard, with what their recent calls tell."""

    def __init__(
        self,
        number: int,
        replicas: Sequence[Shard],
        call: Callable[[Shard, Request], Awaitable[ShardSearchResult]],
        deadline_s: float,
        metrics: FanOutMetrics,
        name: str,
        random: Random,
    ) -> None:
        self._number = number
        self._replicas = replicas
        self._call = call
        self._deadline_s = deadline_s
        self._metrics = metrics
        self._name = name
        self._random = random
        self._in_flight = [0] * len(replicas)
        self._doubted_until = [float("-inf")] * len(replicas)
        self._latencies = RecentLatencies()
        self._budget = HedgeBudget()
        # The loop holds tasks weakly; these are calls that nobody waits for any more.
        self._overtaken: set[asyncio.Task[ShardSearchResult | None]] = set()

    async def ask(self, request: Request, until: float) -> ShardSearchResult | None:
        """The first good answer of a replica; None when none of them could answer. `until` is of the loop's clock."""
        if len(self._replicas) == 1:
            return await self._attempt(0, request, until)
        loop = asyncio.get_running_loop()
        left = list(range(len(self._replicas)))
        attempts: set[asyncio.Task[ShardSearchResult | None]] = set()
        hedge: asyncio.Task[ShardSearchResult | None] | None = None
        may_hedge = True

        def start() -> asyncio.Task[ShardSearchResult | None]:
            trusted = self._trusted(left, loop.time())
            replica = choose(self._in_flight, trusted or left, self._random)
            left.remove(replica)
            attempt = loop.create_task(self._attempt(replica, request, until))
            attempts.add(attempt)
            return attempt

        self._budget.earn()
        hedge_at = loop.time() + hedge_after_s(self._latencies.p95_s(), self._deadline_s)
        start()
        try:
            while attempts:
                wait_s = max(0.0, hedge_at - loop.time()) if may_hedge else None
                ended, _ = await asyncio.wait(attempts, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                if not ended:
                    may_hedge = False
                    if self._trusted(left, loop.time()) and self._budget.take():
                        self._metrics.hedge_sent(self._number)
                        hedge = start()
                for attempt in ended:
                    attempts.remove(attempt)
                    result = attempt.result()
                    if result is not None:
                        if attempt is hedge:
                            self._metrics.hedge_won(self._number)
                        self._overtake(attempts, until)
                        return result
                if ended and not attempts and left:
                    start()
        except BaseException:
            for attempt in attempts:
                attempt.cancel()
            if attempts:
                await asyncio.wait(attempts)
            raise
        return None

    def _trusted(self, replicas: Sequence[int], now: float) -> list[int]:
        return [replica for replica in replicas if self._doubted_until[replica] <= now]

    def _overtake(self, attempts: set[asyncio.Task[ShardSearchResult | None]], until: float) -> None:
        """Let attempts end by themselves, or at their deadline."""
        for attempt in attempts:
            self._overtaken.add(attempt)
            timer = attempt.get_loop().call_at(until, attempt.cancel)

            def ended(task: asyncio.Task[ShardSearchResult | None], timer: asyncio.TimerHandle = timer) -> None:
                timer.cancel()
                self._overtaken.discard(task)
                # Another replica has answered; what this one raised was for the same query.
                if not task.cancelled():
                    task.exception()

            attempt.add_done_callback(ended)

    async def _attempt(self, replica: int, request: Request, until: float) -> ShardSearchResult | None:
        """The answer of one replica; None when it fails."""
        loop = asyncio.get_running_loop()
        told = {LogField.SHARD: self._number, LogField.REPLICA: replica}
        started = loop.time()
        self._in_flight[replica] += 1
        try:
            with self._metrics.call(self._number) as told_of:
                try:
                    result = await self._call(self._replicas[replica], request)
                except asyncio.CancelledError:
                    if loop.time() >= until - _SLACK_S:
                        self._doubt(replica)
                        self._latencies.add(loop.time() - started)
                    else:
                        told_of.is_abandoned()
                    raise
        except FingerprintMismatch:
            raise
        except ShardUnavailable as error:
            self._doubt(replica)
            _log.warning(f"{self._name} did not answer", **told, **{LogField.ERROR: error.detail})
            return None
        # A shard that fails in an unexpected way costs its part of the answer, not all of it.
        except Exception:  # noqa: BLE001
            self._doubt(replica)
            _log.exception(f"{self._name} failed", **told)
            return None
        finally:
            self._in_flight[replica] -= 1
        self._latencies.add(loop.time() - started)
        return result

    def _doubt(self, replica: int) -> None:
        self._doubted_until[replica] = asyncio.get_running_loop().time() + _DOUBTED_FOR_S
