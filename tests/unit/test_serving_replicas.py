"""Replicas of a shard: choice, failover, hedges and the one deadline, in virtual time."""

from __future__ import annotations

import asyncio
from random import Random
from typing import cast

import numpy as np
import pytest

from actors.messages import Candidate, Freshness, ShardQuery, ShardSearch, ShardSearchResult
from contract import telemetry
from contract.errors import FingerprintMismatch, ShardUnavailable
from serving.dependencies import Shard
from serving.metrics import Metrics
from serving.replicas import FanOutAnswer, Shards
from tests.unit.virtual_time import in_virtual_time, now, turns

DEADLINE_S = 0.2


class TimedReplica:
    """Answers, or fails, after `takes_s`."""

    def __init__(self, name: str, takes_s: float = 0.01, error: Exception | None = None) -> None:
        self.name, self.takes_s, self.error = name, takes_s, error
        self.asked_at: list[float] = []
        self.under_way = self.cancelled = 0

    async def search(self, _: ShardSearch) -> ShardSearchResult:
        self.asked_at.append(now())
        self.under_way += 1
        try:
            await asyncio.sleep(self.takes_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1
        if self.error is not None:
            raise self.error
        return ShardSearchResult(((Candidate(self.name, 1.0, None),),), Freshness({}, 0.0))


class Asking:
    """One shard of these replicas."""

    def __init__(self, *replicas: TimedReplica, seed: int = 0) -> None:
        self.metrics = Metrics()
        shards = [[cast(Shard, replica) for replica in replicas]]
        told = self.metrics.fan_out("c", 1)
        self._shards = Shards(shards, _search, DEADLINE_S, told, "shard replica", Random(seed))

    async def __call__(self) -> str:
        """Name of the replica whose answer was taken."""
        request = ShardSearch("f", np.zeros((1, 2), np.float32), (ShardQuery(1),))
        answers: list[FanOutAnswer] = await self._shards.ask(request, [""])
        return answers[0].candidates[0][0].image_id

    def hedges(self) -> tuple[float, float]:
        """How many were sent, and won."""
        names = (telemetry.SHARD_HEDGES.name, telemetry.SHARD_HEDGES_WON.name)
        sent, won = (self._told(name, collection="c", shard="0") for name in names)
        return sent, won

    def calls(self, outcome: str) -> float:
        return self._told(telemetry.SHARD_CALLS.name, collection="c", shard="0", outcome=outcome)

    def in_flight(self) -> float:
        return self._told(telemetry.SHARD_CALLS_IN_FLIGHT.name, collection="c")

    def _told(self, name: str, **labels: str) -> float:
        return self.metrics._registry.get_sample_value(name, labels) or 0.0


async def _search(shard: Shard, request: ShardSearch) -> ShardSearchResult:
    return await shard.search(request)


@in_virtual_time
async def test_a_slow_replica_is_overtaken_by_another_and_ends_by_itself() -> None:
    slow, quick = TimedReplica("slow", 0.15), TimedReplica("quick", 0.01)
    asking, began = Asking(slow, quick), now()
    while await asking() == "quick" and not slow.asked_at:
        began = now()
    assert now() - began == pytest.approx(DEADLINE_S / 2 + 0.01), "nothing is known yet: half of the deadline"
    assert asking.hedges() == (1, 1)
    assert slow.under_way == 1, "it is true that it is busy"
    assert await asking() == "quick", "so the other one is chosen"
    await asyncio.sleep(1.0)
    assert (slow.under_way, slow.cancelled) == (0, 0)
    assert asking.in_flight() == 0
    assert asking.calls("late") == 0


@in_virtual_time
async def test_a_hedge_comes_after_the_p95_of_recent_calls() -> None:
    replicas, random = (TimedReplica("0"), TimedReplica("1")), Random(3)
    asking = Asking(*replicas)
    for _ in range(100):
        for replica in replicas:
            replica.takes_s = random.uniform(0.01, 0.02)
        await asking()
    await asyncio.sleep(1.0)
    before, _ = asking.hedges()
    for replica in replicas:
        replica.takes_s = 0.1
    began = now()
    await asking()
    assert now() - began == pytest.approx(0.1)
    assert 0.018 < abs(replicas[0].asked_at[-1] - replicas[1].asked_at[-1]) <= 0.02
    assert asking.hedges()[0] == before + 1


@in_virtual_time
async def test_a_hedge_never_comes_with_the_hiccups_of_a_processor() -> None:
    replicas = TimedReplica("0", 0.0001), TimedReplica("1", 0.0001)
    asking = Asking(*replicas)
    for _ in range(40):
        await asking()
    for replica in replicas:
        replica.takes_s = 0.004
    await asking()
    assert asking.hedges() == (0, 0)


@in_virtual_time
async def test_a_lone_replica_is_asked_once() -> None:
    alone = TimedReplica("0", 0.19)
    asking = Asking(alone)
    assert await asking() == "0"
    assert (len(alone.asked_at), asking.hedges()) == (1, (0, 0))


@in_virtual_time
async def test_where_all_are_slow_hedges_stay_within_their_budget() -> None:
    replicas = TimedReplica("0", 0.01), TimedReplica("1", 0.01)
    asking = Asking(*replicas)
    for _ in range(40):
        await asking()
    for number in range(400):
        for replica in replicas:
            # Slower and slower: every call takes longer than those before.
            replica.takes_s = 0.02 + number * 0.0002
        await asking()
    sent, _ = asking.hedges()
    assert 0 < sent <= 5 + 440 / 20
    asked = sum(len(replica.asked_at) for replica in replicas)
    assert asked == 440 + sent


@in_virtual_time
async def test_a_replica_that_failed_just_now_is_tried_last_for_a_while() -> None:
    dead, alive = TimedReplica("dead", 0.0, ShardUnavailable("gone")), TimedReplica("alive", 0.0)
    asking = Asking(dead, alive)
    while not dead.asked_at:
        assert await asking() == "alive"
    for _ in range(50):
        assert await asking() == "alive"
    assert len(dead.asked_at) == 1
    await asyncio.sleep(1.0)
    dead.error = None
    names = {await asking() for _ in range(50)}
    assert names == {"dead", "alive"}, "it is asked again, and answers"


@in_virtual_time
async def test_where_all_failed_all_are_tried_again() -> None:
    replicas = [TimedReplica(str(number), 0.0, RuntimeError("a bug")) for number in range(3)]
    asking = Asking(*replicas)
    with pytest.raises(ShardUnavailable):
        await asking()
    assert [len(replica.asked_at) for replica in replicas] == [1, 1, 1]
    replicas[1].error = None
    assert await asking() == "1"


@in_virtual_time
async def test_attempts_share_one_deadline() -> None:
    first, second = (TimedReplica(str(number), 0.15, ShardUnavailable("gone")) for number in range(2))
    asking, began = Asking(first, second), now()
    with pytest.raises(ShardUnavailable):
        await asking()
    assert now() - began == pytest.approx(DEADLINE_S)
    assert (asking.calls("unavailable"), asking.calls("late")) == (1, 1)
    assert asking.in_flight() == 0


@in_virtual_time
async def test_a_stalled_replica_costs_one_hedge_and_is_then_avoided() -> None:
    stalled, alive = TimedReplica("stalled", 3600.0), TimedReplica("alive", 0.004)
    asking = Asking(stalled, alive)
    for _ in range(100):
        assert await asking() == "alive"
    assert asking.hedges() == (1, 1), "it is busy while its call waits, and doubted after that"
    await asyncio.sleep(1.0)
    assert asking.calls("late") == 1
    assert stalled.under_way == 0


@in_virtual_time
async def test_what_nobody_waits_for_is_given_up_and_no_replica_is_blamed() -> None:
    replicas = TimedReplica("0", 0.15), TimedReplica("1", 0.15)
    asking = Asking(*replicas)
    task = asyncio.create_task(asking())
    await asyncio.sleep(0.12)
    assert [replica.under_way for replica in replicas] == [1, 1], "one of them is a hedge"
    task.cancel()
    await turns()
    assert [replica.cancelled for replica in replicas] == [1, 1]
    assert (asking.calls("abandoned"), asking.calls("late"), asking.in_flight()) == (2, 0, 0)
    for replica in replicas:
        replica.takes_s = 0.0
    assert {await asking() for _ in range(30)} == {"0", "1"}


@in_virtual_time
async def test_vectors_of_two_encoders_are_no_matter_of_the_replica() -> None:
    replicas = [TimedReplica(str(number), 0.15, FingerprintMismatch("another encoder")) for number in range(2)]
    asking = Asking(*replicas)
    with pytest.raises(FingerprintMismatch):
        await asking()
    await asyncio.sleep(1.0)
    assert asking.in_flight() == 0


@in_virtual_time
async def test_an_overtaken_replica_may_fail_in_any_way() -> None:
    slow, quick = TimedReplica("slow", 0.15, FingerprintMismatch("another encoder")), TimedReplica("quick", 0.01)
    asking = Asking(slow, quick)
    while not slow.asked_at:
        assert await asking() == "quick"
    await asyncio.sleep(1.0)
    assert asking.calls("failed") == 1


@in_virtual_time
async def test_side_by_side_calls_are_spread_over_the_replicas() -> None:
    replicas = [TimedReplica(str(number), 0.05) for number in range(4)]
    asking = Asking(*replicas)
    await asyncio.gather(*(asking() for _ in range(40)))
    assert max(len(replica.asked_at) for replica in replicas) <= 13
