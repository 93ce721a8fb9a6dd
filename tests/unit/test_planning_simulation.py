"""The simulation of the fan-out agrees with what theory says of cases that theory knows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from serving.planning.simulation import Cluster, Costs, Load, Outcome, simulate

# Quantiles of the exponential distribution with mean 1.
EXPONENTIAL = tuple((i / 4000, -math.log(1 - i / 4000)) for i in range(4000))
EVEN = ((0.0, 1.0), (1.0, 1.0))
MEAN_S = 0.001


def _costs(spread: tuple[tuple[float, float], ...] = EVEN, **more: float) -> Costs:
    given = dict.fromkeys(("query_s", "batch_s", "call_s", "row_s", "shard_call_s"), 0.0)
    return Costs(**{**given, "shard_query_s": MEAN_S, "spread": spread, **more})  # type: ignore[arg-type]


def _cluster(shards: int = 1, replicas: int = 1, *, cores: int = 1, api: int = 500, **more: float) -> Cluster:
    """With so many API processes that hardly a batch has two queries."""
    return Cluster(shards, replicas, nodes=shards * replicas, cores=cores, api_processes=api, **more)  # type: ignore[arg-type]


def _mean_s(outcome: Outcome) -> float:
    return float(np.mean(outcome.latencies_s))


@pytest.mark.parametrize("busy", [0.3, 0.6])
def test_one_shard_with_exponential_times_is_the_queue_m_m_1(busy: float) -> None:
    outcome = simulate(_cluster(), _costs(EXPONENTIAL), Load(busy / MEAN_S, 40_000))
    assert _mean_s(outcome) == pytest.approx(MEAN_S / (1 - busy), rel=0.06)
    assert outcome.shard_busy == pytest.approx(busy, rel=0.03)


def test_one_shard_with_equal_times_is_the_queue_m_d_1() -> None:
    busy = 0.7
    outcome = simulate(_cluster(), _costs(), Load(busy / MEAN_S, 40_000))
    # Source: Pollaczek and Khinchine.
    assert _mean_s(outcome) == pytest.approx(MEAN_S * (1 + busy / (2 * (1 - busy))), rel=0.06)


def test_four_cores_are_the_queue_m_m_4() -> None:
    busy, cores = 0.8, 4
    offered = busy * cores
    tail = offered**cores / math.factorial(cores) / (1 - busy)
    # Source: Erlang's C formula.
    waits = tail / (sum(offered**k / math.factorial(k) for k in range(cores)) + tail)
    expected = MEAN_S * (1 + waits / (cores * (1 - busy)))
    outcome = simulate(_cluster(cores=cores), _costs(EXPONENTIAL), Load(offered / MEAN_S, 40_000))
    assert _mean_s(outcome) == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("shards", [1, 4, 16, 64])
def test_a_query_waits_for_its_slowest_shard(shards: int) -> None:
    """Without queues, the p-th of the greatest of n is the p^(1/n)-th of one; not all of 64 are simulated."""
    outcome = simulate(_cluster(shards), _costs(EXPONENTIAL), Load(5.0, 6_000))
    for percent in (50, 95):
        one = (percent / 100) ** (1 / shards)
        assert outcome.percentile_s(percent) == pytest.approx(-math.log(1 - one) * MEAN_S, rel=0.12)


def test_a_hedge_cuts_the_tail_where_one_call_in_fifty_is_slow() -> None:
    slow = ((0.0, 1.0), (0.979, 1.0), (0.98, 40.0), (1.0, 40.0))
    alone = simulate(_cluster(8, 1, api=4), _costs(slow), Load(20.0, 4_000))
    hedged = simulate(_cluster(8, 2, api=4), _costs(slow), Load(20.0, 4_000))
    assert 0 < hedged.hedges_per_call <= 0.06
    assert hedged.percentile_s(95) < 0.6 * alone.percentile_s(95)


def test_two_choices_use_both_replicas() -> None:
    """What one replica cannot carry, two do."""
    load = Load(1.4 / MEAN_S, 6_000)
    alone, two = (
        simulate(_cluster(2, replicas, in_flight_max=10**6), _costs(EXPONENTIAL), load) for replicas in (1, 2)
    )
    assert two.percentile_s(99) < 0.1 * alone.percentile_s(99)


def test_calls_of_one_replica_wait_for_its_interpreter() -> None:
    """Four cores do not help where all of the time is in Python: the queue is M/M/1 or longer again."""
    load = Load(0.6 / MEAN_S, 20_000)
    free, serial = (simulate(_cluster(cores=4), _costs(serial_query_s=seconds), load) for seconds in (0.0, MEAN_S))
    assert _mean_s(free) == pytest.approx(MEAN_S, rel=0.03)
    assert _mean_s(serial) == pytest.approx(MEAN_S * (1 + 0.6 / (2 * 0.4)), rel=0.06)


def test_queries_gather_into_batches_under_load() -> None:
    calm, loaded = (simulate(_cluster(4, api=1), _costs(shard_call_s=0.002), Load(qps, 3_000)) for qps in (20.0, 600.0))
    assert calm.queries_per_batch == pytest.approx(1.0, abs=0.1)
    assert loaded.queries_per_batch > 2


def test_what_is_past_the_deadline_is_in_part_and_past_the_bound_refused() -> None:
    slow = simulate(_cluster(api=1, deadline_s=0.0005), _costs(), Load(10.0, 200))
    assert slow.partial == 1.0
    assert slow.percentile_s(50) == pytest.approx(0.0005)
    full = simulate(_cluster(api=1, in_flight_max=4), _costs(shard_call_s=0.5), Load(1_000.0, 2_000))
    assert full.refused > 0.9


def test_cores_that_all_share_are_slower() -> None:
    costs, load = _costs(query_s=0.001), Load(300.0, 4_000)
    apart = simulate(Cluster(4, 1, nodes=4, cores=2, api_processes=1), costs, load)
    shared = simulate(Cluster(4, 1, nodes=1, cores=2, api_processes=1, shared=True), costs, load)
    busier = simulate(
        Cluster(4, 1, nodes=1, cores=2, api_processes=1, shared=True, background=0.2, client_s=0.0002), costs, load
    )
    assert apart.percentile_s(99) < shared.percentile_s(99) < busier.percentile_s(99)


def test_a_seed_gives_one_outcome() -> None:
    cluster, costs, load = _cluster(4, 2, api=2), _costs(EXPONENTIAL), Load(200.0, 1_000)
    assert simulate(cluster, costs, load, 7) == simulate(cluster, costs, load, 7)
    assert simulate(cluster, costs, load, 7) != simulate(cluster, costs, load, 8)
