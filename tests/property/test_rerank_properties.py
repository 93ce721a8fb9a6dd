"""The stages of re-ranking: nothing is lost or invented, and the same input gives the same order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages import FloatMatrix
from contract.filters import Filter, Match, matches
from serving.rerank.dedupe import Rule, cosines, representatives, undecided
from serving.rerank.diversify import marginal_relevance
from serving.rerank.fuse import descending, fused, normalised, popularity, recency
from serving.rerank.geometry import confirmed_relevance
from serving.rerank.policy import make_policy

RULE = Rule(same_cosine=0.99, similar_cosine=0.9, hash_bits=10)

# Few distinct directions, so that near-duplicates, equal vectors and the zero vector come up.
small = st.integers(-3, 3).map(float)
vectors = st.lists(
    st.one_of(st.none(), st.lists(small, min_size=4, max_size=4).map(lambda row: np.array(row, np.float32))),
    max_size=16,
)
hash_values = st.integers(0, 2**64 - 1) | st.integers(0, 2**12)
unit = st.floats(0, 1)
counts = st.none() | st.floats(-1e12, 1e12)


@st.composite
def ranked(draw: st.DrawFn) -> tuple[FloatMatrix, dict[int, int]]:
    """Cosines of hits, and hashes of some of them."""
    similarity = cosines(draw(vectors))
    indexes = st.integers(0, max(0, len(similarity) - 1))
    hashes = draw(st.dictionaries(indexes, hash_values)) if len(similarity) else {}
    return similarity, hashes


@given(vectors)
def test_cosines_are_symmetric_and_bounded(rows: list[FloatMatrix | None]) -> None:
    similarity = cosines(rows)
    assert similarity.shape == (len(rows), len(rows))
    assert np.array_equal(similarity, similarity.T)
    assert (np.abs(similarity) <= 1).all()
    for index, row in enumerate(rows):
        if row is None or not row.any():
            assert not similarity[index].any()


@given(ranked())
def test_every_hit_is_stood_for_once_by_an_earlier_one_that_stands_for_itself(
    hits: tuple[FloatMatrix, dict[int, int]],
) -> None:
    similarity, hashes = hits
    found = representatives(similarity, hashes, RULE)
    assert len(found) == len(similarity)
    for index, leader in enumerate(found):
        assert leader <= index
        assert found[leader] == leader
        if leader != index:
            assert similarity[index, leader] >= RULE.similar_cosine
            sure = similarity[index, leader] >= RULE.same_cosine
            assert sure or (hashes[index] ^ hashes[int(leader)]).bit_count() <= RULE.hash_bits


@given(ranked())
def test_no_two_that_stand_for_themselves_are_surely_the_same(hits: tuple[FloatMatrix, dict[int, int]]) -> None:
    similarity, hashes = hits
    leaders = sorted(set(representatives(similarity, hashes, RULE).tolist()))
    among = similarity[leaders][:, leaders] - 2 * np.eye(len(leaders), dtype=np.float32)
    assert (among < RULE.same_cosine).all()


@given(ranked())
def test_only_hashes_that_are_asked_for_matter(hits: tuple[FloatMatrix, dict[int, int]]) -> None:
    similarity, hashes = hits
    asked = {index: hashes[index] for index in undecided(similarity, RULE) if index in hashes}
    assert np.array_equal(representatives(similarity, asked, RULE), representatives(similarity, hashes, RULE))


@given(st.lists(st.floats(-10, 10), max_size=20))
def test_normalised_relevance_keeps_the_order_within_0_and_1(relevance: list[float]) -> None:
    values = normalised(relevance)
    assert all(0 <= value <= 1 for value in values)
    for one, other in zip(np.argsort(relevance), np.argsort(relevance)[1:], strict=False):
        assert values[one] <= values[other]
    if relevance:
        assert max(values) == 1


@given(st.lists(st.tuples(unit, counts, counts), min_size=1, max_size=20), st.floats(0, 10), st.floats(0, 10))
def test_a_fused_score_stays_within_0_and_1_and_rises_with_each_signal(
    hits: list[tuple[float, float | None, float | None]], recent_weight: float, popular_weight: float
) -> None:
    relevance = np.array([hit[0] for hit in hits])
    recent, popular = recency([hit[1] for hit in hits], 3600.0), popularity([hit[2] for hit in hits])
    scores = fused(relevance, [(recent_weight, recent), (popular_weight, popular)])
    assert ((scores >= 0) & (scores <= 1 + 1e-12)).all()
    for one in range(len(hits)):
        for other in range(len(hits)):
            if relevance[one] >= relevance[other] and recent[one] >= recent[other] and popular[one] >= popular[other]:
                assert scores[one] >= scores[other] - 1e-12
    order = descending(scores)
    assert sorted(order) == list(range(len(hits)))
    assert all(scores[a] > scores[b] or (scores[a] == scores[b] and a < b) for a, b in itertools.pairwise(order))


@given(unit, unit, st.integers(0, 1000), st.integers(0, 1000), st.integers(4, 100))
def test_a_confirmed_hit_stands_above_all_others_and_rises_with_its_inliers(
    one: float, other: float, few: int, many: int, least: int
) -> None:
    few, many = sorted((few, many))
    if few < least:
        assert confirmed_relevance(one, few, least) == one
    if few < least <= many:
        assert confirmed_relevance(one, few, least) < confirmed_relevance(other, many, least)
    if least <= few < many:
        assert confirmed_relevance(one, few, least) < confirmed_relevance(other, many, least)


def test_recency_halves_with_every_half_life() -> None:
    assert recency([-5, 0, 60, 120, None], 60).tolist() == [1, 1, 0.5, 0.25, 0]


def test_popularity_is_relative_to_the_most_popular() -> None:
    assert popularity([0, 9, 99, None, -3]) == pytest.approx([0, 0.5, 1, 0, 0])
    assert popularity([None, 0]).tolist() == [0, 0]
    assert popularity([]).tolist() == []


@given(vectors, st.floats(0, 1), st.integers(0, 20))
def test_diversity_only_reorders_and_keeps_the_first(
    rows: list[FloatMatrix | None], trade_off: float, count: int
) -> None:
    relevance = np.linspace(1, 0, len(rows))
    order = marginal_relevance(relevance, cosines(rows), trade_off, count)
    assert sorted(order) == list(range(len(rows)))
    assert order[:1] == list(range(len(rows)))[:1]
    rest = order[count:]
    assert rest == sorted(rest)
    # A later page is cut from the same ranking.
    longer = marginal_relevance(relevance, cosines(rows), trade_off, count + 5)
    assert longer[:count] == order[:count]


@given(vectors, st.integers(0, 20))
def test_diversity_at_1_is_the_order_of_relevance(rows: list[FloatMatrix | None], count: int) -> None:
    relevance = np.linspace(1, 0, len(rows))
    assert marginal_relevance(relevance, cosines(rows), 1.0, count) == list(range(len(rows)))


def test_diversity_takes_the_different_one_before_the_similar_one() -> None:
    similarity = cosines([np.array(v, np.float32) for v in ([1, 0], [0.99, 0.1], [0, 1])])
    assert marginal_relevance(np.array([1.0, 0.9, 0.5]), similarity, 0.5, 3) == [0, 2, 1]
    assert marginal_relevance(np.array([1.0, 0.9, 0.5]), similarity, 0.9, 3) == [0, 1, 2]


tags = st.sampled_from(["private", "adult", "bird", "tree"])
payloads = st.one_of(
    st.just({}), st.builds(lambda t: {"tags": t}, tags | st.lists(tags, max_size=3) | st.none() | st.integers())
)


@given(st.lists(tags, max_size=2), payloads, st.none() | st.builds(lambda t: Filter(must=(Match("tags", (t,)),)), tags))
def test_what_the_shards_let_through_is_what_is_wanted_and_allowed(
    blocked: list[str], payload: dict[str, object], wanted: Filter | None
) -> None:
    policy = make_policy("tags", blocked)
    restricted = policy.restrict(wanted, None)
    let_through = restricted is None or matches(restricted, payload)
    assert let_through == ((wanted is None or matches(wanted, payload)) and policy.allows_decoded(payload))
    bears = payload.get("tags")
    bearing = set(bears) if isinstance(bears, list) else {bears}
    assert policy.allows_decoded(payload) == (not bearing & set(blocked))


def test_a_policy_is_the_same_filter_for_every_search() -> None:
    assert make_policy("tags", ["b", "a", "b"]).restrict(None, None) == make_policy("tags", ["a", "b"]).restrict(
        None, {"tags"}
    )
    assert make_policy("tags", ["a"]).restrict(None, {"owner"}) is None
    assert make_policy("tags", []).restrict(None, None) is None
