"""The rules of choosing a replica and of hedging, as properties."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from serving.replica_choice import HedgeBudget, RecentLatencies, choose

LOADS = st.lists(st.integers(0, 20), min_size=1, max_size=8)


@given(LOADS, st.data(), st.integers(0, 2**32))
def test_the_choice_is_allowed_and_never_the_one_busiest(loads: list[int], data: st.DataObject, seed: int) -> None:
    among = data.draw(st.lists(st.sampled_from(range(len(loads))), min_size=1, unique=True))
    chosen = choose(loads, among, Random(seed))
    assert chosen in among
    others = [loads[replica] for replica in among if replica != chosen]
    assert not others or loads[chosen] <= max(others)


@given(st.integers(0, 2**32))
def test_of_two_the_less_busy_one_is_chosen(seed: int) -> None:
    assert choose([3, 1], [0, 1], Random(seed)) == 1
    assert choose([1, 3, 0], [0, 1], Random(seed)) == 0


def test_equally_busy_replicas_are_chosen_alike() -> None:
    random = Random(7)
    counts = [0, 0, 0]
    for _ in range(3000):
        counts[choose([2, 2, 2], [0, 1, 2], random)] += 1
    assert min(counts) > 800


def test_two_choices_keep_the_longest_queue_short() -> None:
    """Mitzenmacher 2001: with n calls on n replicas the longest queue falls from log n to log log n."""
    replicas = 1000
    one, two, random = [0] * replicas, [0] * replicas, Random(1)
    for _ in range(replicas):
        one[random.randrange(replicas)] += 1
        two[choose(two, range(replicas), random)] += 1
    assert max(two) <= 4 < max(one)


@given(st.lists(st.booleans(), max_size=400), st.integers(1, 30), st.integers(1, 6))
def test_the_budget_bounds_the_share_of_extra_calls(asks: list[bool], every: int, burst: int) -> None:
    """`asks`: whether a first call would be hedged if it might."""
    budget = HedgeBudget(every, burst)
    sent: list[int] = []
    for call, wants_hedge in enumerate(asks, 1):
        budget.earn()
        if wants_hedge and budget.take():
            sent.append(call)
    for index, first in enumerate(sent):
        for number, last in enumerate(sent[index:], 1):
            assert number <= burst + (last - first + 1) / every, "in any stretch of calls"


@given(st.integers(1, 30), st.integers(1, 6))
def test_the_budget_is_there_at_once_and_comes_back(every: int, burst: int) -> None:
    budget = HedgeBudget(every, burst)
    assert [budget.take() for _ in range(burst + 1)] == [True] * burst + [False]
    for _ in range(every):
        budget.earn()
    assert [budget.take(), budget.take()] == [True, False]


@given(st.lists(st.floats(0, 10), max_size=400))
def test_the_percentile_is_one_of_the_recent_latencies(seconds: list[float]) -> None:
    latencies = RecentLatencies()
    for one in seconds:
        latencies.add(one)
    p95_s = latencies.p95_s()
    if len(seconds) < 20:
        assert p95_s is None
    else:
        assert p95_s in seconds[-128 - 16 :]


def test_the_percentile_leaves_five_of_a_hundred_behind() -> None:
    latencies = RecentLatencies()
    for number in range(100):
        latencies.add(float(number))
    assert latencies.p95_s() == 94.0
