"""Fan-out: batches, the deadline, coverage, replicas. No clock is waited for: shards open gates."""

from __future__ import annotations

import asyncio
from random import Random

import numpy as np
import pytest

from actors.messages import Candidate, Freshness, ShardQuery, ShardSearch, ShardSearchResult
from contract.errors import FingerprintMismatch, ShardUnavailable
from serving.dependencies import Shard
from serving.fan_out import FanOut

NEVER_S = 3600.0


class ScriptedShard:
    """Answers when its gate is open; its candidate's score is the query vector's first number."""

    def __init__(self, name: str, *, open_gate: bool = True, error: Exception | None = None) -> None:
        self.name = name
        self.gate = asyncio.Event()
        if open_gate:
            self.gate.set()
        self.error = error
        self.requests: list[ShardSearch] = []

    async def search(self, request: ShardSearch) -> ShardSearchResult:
        self.requests.append(request)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        rows = tuple((Candidate(self.name, float(row[0]), None),) for row in request.vectors)
        return ShardSearchResult(rows, Freshness({int(self.name): 7}, 0.5))


def _fan_out(*shards: list[ScriptedShard], deadline_s: float = NEVER_S, window_s: float = NEVER_S) -> FanOut:
    typed: list[list[Shard]] = [list(replicas) for replicas in shards]  # type: ignore[arg-type]
    return FanOut(typed, "f", deadline_s, window_s, random=Random(0))


def _vector(value: float) -> np.ndarray:
    return np.array([value, 0.0], np.float32)


async def _turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_lone_query_leaves_at_once_and_covers_every_shard() -> None:
    """With a window of an hour it would never come back if it waited."""
    shards = [ScriptedShard("0"), ScriptedShard("1")]
    answer = await _fan_out([shards[0]], [shards[1]]).search(_vector(0.25), ShardQuery(3), request_id="r")
    assert [row[0].image_id for row in answer.candidates] == ["0", "1"]
    assert (answer.coverage.shards_total, answer.coverage.shards_answered) == (2, 2)
    assert not answer.coverage.degraded
    assert answer.freshness == Freshness({0: 7, 1: 7}, 0.5)
    assert shards[0].requests[0].request_ids == ("r",)


async def test_queries_of_one_moment_share_one_call_and_get_their_own_rows() -> None:
    shard = ScriptedShard("0")
    fan_out = _fan_out([shard])
    answers = await asyncio.gather(*(fan_out.search(_vector(value), ShardQuery(1)) for value in (0.1, 0.2, 0.3)))
    assert len(shard.requests) == 1
    assert shard.requests[0].vectors.shape == (3, 2)
    assert [answer.candidates[0][0].score for answer in answers] == pytest.approx([0.1, 0.2, 0.3])


async def test_queries_gather_while_a_call_is_under_way() -> None:
    shard = ScriptedShard("0", open_gate=False)
    fan_out = _fan_out([shard], window_s=0.001)
    first = asyncio.create_task(fan_out.search(_vector(1), ShardQuery(1)))
    await _turns()
    assert len(shard.requests) == 1
    rest = [asyncio.create_task(fan_out.search(_vector(v), ShardQuery(1))) for v in (2, 3)]
    await _turns()
    assert len(shard.requests) == 1, "they wait for the window while the first call is under way"
    shard.gate.set()
    await asyncio.gather(first, *rest)
    assert [len(request.queries) for request in shard.requests] == [1, 2]


async def test_a_full_batch_does_not_wait_for_its_window() -> None:
    shard = ScriptedShard("0", open_gate=False)
    fan_out = FanOut([[shard]], "f", NEVER_S, NEVER_S, batch_max=2)  # type: ignore[list-item]
    tasks = [asyncio.create_task(fan_out.search(_vector(0), ShardQuery(1)))]
    await _turns()
    tasks += [asyncio.create_task(fan_out.search(_vector(v), ShardQuery(1))) for v in (1, 2)]
    await _turns()
    assert [len(request.queries) for request in shard.requests] == [1, 2]
    shard.gate.set()
    await asyncio.gather(*tasks)


async def test_a_shard_that_misses_the_deadline_is_counted() -> None:
    late = ScriptedShard("1", open_gate=False)
    answer = await _fan_out([ScriptedShard("0")], [late], deadline_s=0.01).search(_vector(1), ShardQuery(1))
    assert answer.coverage.degraded
    assert (answer.coverage.shards_total, answer.coverage.shards_answered) == (2, 1)
    assert [row[0].image_id for row in answer.candidates] == ["0"]
    assert 1 not in answer.freshness.applied_offsets


async def test_no_shard_in_time_is_retryable_unavailability() -> None:
    with pytest.raises(ShardUnavailable) as caught:
        await _fan_out([ScriptedShard("0", open_gate=False)], deadline_s=0.01).search(_vector(1), ShardQuery(1))
    assert caught.value.retryable


async def test_a_dead_replica_is_replaced_by_the_other() -> None:
    dead, alive = ScriptedShard("0", error=ShardUnavailable("gone")), ScriptedShard("0")
    fan_out = _fan_out([dead, alive])
    for _ in range(4):
        answer = await fan_out.search(_vector(1), ShardQuery(1))
        assert not answer.coverage.degraded
    assert len(alive.requests) == 4
    assert len(dead.requests) <= 1, "a replica that failed just now is tried last"


async def test_an_unexpected_failure_costs_one_shard_only() -> None:
    broken = ScriptedShard("1", error=RuntimeError("a bug"))
    answer = await _fan_out([ScriptedShard("0")], [broken]).search(_vector(1), ShardQuery(1))
    assert answer.coverage.shards_answered == 1


async def test_vectors_of_two_encoders_never_meet() -> None:
    other = ScriptedShard("1", error=FingerprintMismatch("another encoder"))
    with pytest.raises(FingerprintMismatch):
        await _fan_out([ScriptedShard("0")], [other]).search(_vector(1), ShardQuery(1))


async def test_a_caller_that_goes_away_leaves_the_others_alone() -> None:
    shard = ScriptedShard("0", open_gate=False)
    fan_out = _fan_out([shard])
    tasks = [asyncio.create_task(fan_out.search(_vector(v), ShardQuery(1))) for v in (1, 2)]
    await _turns()
    tasks[0].cancel()
    shard.gate.set()
    assert (await tasks[1]).candidates[0][0].score == 2
