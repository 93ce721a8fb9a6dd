"""Fusion of two rankings: what reciprocal ranks and weights promise, whatever the rankings are."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages import Candidate
from serving.fusion import RRF_K, Hybrid, fuse

METHODS = st.sampled_from(["rrf", "weighted"])
WEIGHTS = st.floats(0, 1)
rankings = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=1), st.floats(-1, 50, width=32), max_size=8).map(
    lambda scores: [
        Candidate(image_id, score, b"{}") for image_id, score in sorted(scores.items(), key=lambda p: (-p[1], p[0]))
    ]
)
Method = Literal["rrf", "weighted"]


def ids(ranking: list[Candidate]) -> list[str]:
    return [one.image_id for one in ranking]


@given(rankings, rankings, METHODS, WEIGHTS)
def test_every_candidate_is_there_once_best_first(
    by_vector: list[Candidate], by_words: list[Candidate], method: Method, weight: float
) -> None:
    fused = fuse(by_vector, by_words, Hybrid(fusion=method, lexical_weight=weight))
    expected = set(ids(by_vector) if weight < 1 else []) | set(ids(by_words) if weight > 0 else [])
    assert sorted(ids(fused)) == sorted(expected)
    assert [(-one.score, one.image_id) for one in fused] == sorted((-one.score, one.image_id) for one in fused)
    assert all(one.payload == b"{}" for one in fused)
    top = 1 / (RRF_K + 1) if method == "rrf" else 1.0
    assert all(0 <= one.score <= top + 1e-12 for one in fused)


@given(rankings, rankings, METHODS, WEIGHTS)
def test_the_two_rankings_are_alike(
    one: list[Candidate], other: list[Candidate], method: Method, weight: float
) -> None:
    there = fuse(one, other, Hybrid(fusion=method, lexical_weight=weight))
    back = fuse(other, one, Hybrid(fusion=method, lexical_weight=1 - weight))
    scores = {found.image_id: found.score for found in back}
    for found in there:
        assert found.score == pytest.approx(scores.get(found.image_id, 0.0), abs=1e-9)


@given(rankings, rankings)
def test_reciprocal_ranks_see_ranks_only(by_vector: list[Candidate], by_words: list[Candidate]) -> None:
    fused = fuse(by_vector, by_words, Hybrid())
    for found in fused:
        ranks = [
            ids(ranking).index(found.image_id) + 1
            for ranking in (by_vector, by_words)
            if found.image_id in ids(ranking)
        ]
        assert found.score == pytest.approx(sum(0.5 / (60 + rank) for rank in ranks))


@given(rankings, rankings, METHODS)
def test_all_of_the_weight_leaves_one_ranking(
    by_vector: list[Candidate], by_words: list[Candidate], method: Method
) -> None:
    assert set(ids(fuse(by_vector, by_words, Hybrid(fusion=method, lexical_weight=0)))) == set(ids(by_vector))
    if method == "rrf":
        assert ids(fuse(by_vector, by_words, Hybrid(lexical_weight=0))) == ids(by_vector)
        assert ids(fuse(by_vector, by_words, Hybrid(lexical_weight=1))) == ids(by_words)


@given(rankings, rankings, METHODS, st.floats(0.01, 0.99))
def test_who_is_first_in_both_is_first(
    by_vector: list[Candidate], by_words: list[Candidate], method: Method, weight: float
) -> None:
    first = Candidate("zz", 99.0, b"{}")
    fused = fuse([first, *by_vector], [first, *by_words], Hybrid(fusion=method, lexical_weight=weight))
    assert fused[0].image_id == "zz"


def test_weights_move_a_hit() -> None:
    by_vector = [Candidate("v", 0.9, None), Candidate("both", 0.8, None), Candidate("tail", 0.1, None)]
    by_words = [Candidate("w", 9.0, None), Candidate("both", 8.0, None), Candidate("end", 1.0, None)]
    assert ids(fuse(by_vector, by_words, Hybrid()))[0] == "both"
    assert ids(fuse(by_vector, by_words, Hybrid(lexical_weight=0.99)))[0] == "w"
    assert ids(fuse(by_vector, by_words, Hybrid(fusion="weighted", lexical_weight=0.01)))[0] == "v"
    weighted = fuse(by_vector, by_words, Hybrid(fusion="weighted"))
    assert weighted[0].score == pytest.approx(0.5 * 0.7 / 0.8 + 0.5 * 7 / 8)
