"""Merging: the same as sorting everything, whatever the shards are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.messages import Candidate, Freshness
from serving.merge import merge, merge_freshness

ids = st.text("abcdef", min_size=1, max_size=3)
scores = st.floats(-1, 1, width=32)
candidates = st.builds(lambda i, s: Candidate(i, s, None), ids, scores)
shards = st.lists(st.lists(candidates, max_size=12), max_size=5)


def _pairs(hits: list[Candidate]) -> list[tuple[str, float]]:
    return [(hit.image_id, hit.score) for hit in hits]


@given(shards, st.integers(1, 20), st.integers(0, 10))
def test_merge_is_a_window_of_the_whole_ranking(per_shard: list[list[Candidate]], limit: int, offset: int) -> None:
    best: dict[str, float] = {}
    for candidate in (c for shard in per_shard for c in shard):
        best[candidate.image_id] = max(candidate.score, best.get(candidate.image_id, -2.0))
    ranking = sorted(best.items(), key=lambda pair: (-pair[1], pair[0]))
    assert _pairs(merge(per_shard, limit=limit, offset=offset)) == ranking[offset : offset + limit]


@given(shards, st.randoms())
def test_the_order_of_shards_and_candidates_does_not_matter(per_shard: list[list[Candidate]], random: object) -> None:
    shuffled = [list(shard) for shard in per_shard]
    for shard in (shuffled, *shuffled):
        random.shuffle(shard)  # type: ignore[attr-defined]
    assert _pairs(merge(per_shard, limit=10)) == _pairs(merge(shuffled, limit=10))


@given(shards, st.integers(0, 10), st.integers(1, 10))
def test_top_k_per_shard_is_enough(per_shard: list[list[Candidate]], offset: int, limit: int) -> None:
    """What a shard drops below its own `limit + offset` best ids can never be a hit."""
    k = offset + limit
    cut = []
    for shard in per_shard:
        unique = {c.image_id: c for c in sorted(shard, key=lambda c: c.score)}
        cut.append(sorted(unique.values(), key=lambda c: (-c.score, c.image_id))[:k])
    assert _pairs(merge(cut, limit=limit, offset=offset)) == _pairs(merge(per_shard, limit=limit, offset=offset))


@given(shards, scores)
def test_a_threshold_keeps_exactly_what_reaches_it(per_shard: list[list[Candidate]], threshold: float) -> None:
    everything = merge(per_shard, limit=100)
    kept = merge(per_shard, limit=100, score_threshold=threshold)
    assert _pairs(kept) == [pair for pair in _pairs(everything) if pair[1] >= threshold]


def test_equal_scores_stand_in_order_of_the_id() -> None:
    hits = merge([[Candidate("b", 0.5, None)], [Candidate("a", 0.5, None), Candidate("c", 0.9, None)]], limit=3)
    assert [hit.image_id for hit in hits] == ["c", "a", "b"]


@given(st.lists(st.tuples(st.dictionaries(st.integers(0, 7), st.integers(-1, 50)), st.floats(0, 60)), max_size=5))
def test_freshness_never_promises_more_than_every_shard_holds(parts: list[tuple[dict[int, int], float]]) -> None:
    merged = merge_freshness(Freshness(offsets, staleness) for offsets, staleness in parts)
    for partition, offset in merged.applied_offsets.items():
        assert offset == min(offsets[partition] for offsets, _ in parts if partition in offsets)
    assert set(merged.applied_offsets) == {p for offsets, _ in parts for p in offsets}
    assert merged.staleness_s == max((staleness for _, staleness in parts), default=0.0)
