"""Merge the candidates of all shards into the hits of one query. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from actors.messages import Candidate, Freshness


def merge(
    per_shard: Iterable[Sequence[Candidate]], *, limit: int, offset: int = 0, score_threshold: float | None = None
) -> list[Candidate]:
    """The best candidates of all shards, by falling score; equal scores stand in order of the id.

    An id that several shards return (partitions on the move) is kept once, with its best score.
    The result does not depend on the order of the shards. `offset` skips that many of the merged
    candidates, so the shards must have been asked for `limit + offset` each.

    Args:
        per_shard: candidates of each shard, in any order.
        limit: most hits to return.
        offset: hits to skip.
        score_threshold: lowest score a hit may have; None keeps all.
    """
    best: dict[str, Candidate] = {}
    for candidates in per_shard:
        for candidate in candidates:
            known = best.get(candidate.image_id)
            if known is None or candidate.score > known.score:
                best[candidate.image_id] = candidate
    ranked = sorted(best.values(), key=lambda candidate: (-candidate.score, candidate.image_id))
    if score_threshold is not None:
        ranked = [candidate for candidate in ranked if candidate.score >= score_threshold]
    return ranked[offset : offset + limit]


def merge_freshness(per_shard: Iterable[Freshness]) -> Freshness:
    """Applied offsets of all partitions, and the staleness of the stalest shard.

    Where two shards report the same partition, the lower offset counts: only up to there is
    everything searchable whoever answers.
    """
    applied: dict[int, int] = {}
    staleness_s = 0.0
    for freshness in per_shard:
        for partition, offset in freshness.applied_offsets.items():
            applied[partition] = min(offset, applied.get(partition, offset))
        staleness_s = max(staleness_s, freshness.staleness_s)
    return Freshness(dict(sorted(applied.items())), staleness_s)
