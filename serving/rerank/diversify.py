"""Diversity among the hits. Pure functions."""

from __future__ import annotations

import numpy as np

from actors.messages import FloatMatrix
from serving.rerank.fuse import Scores


def marginal_relevance(relevance: Scores, similarity: FloatMatrix, trade_off: float, count: int) -> list[int]:
    """Order of all hits: the first `count` by maximal marginal relevance, the rest as they stood.

    The next hit is the one with the largest λ·relevance − (1 − λ)·(largest cosine with a hit chosen
    before); equal ones keep their order. The first stays the most relevant one, for any λ.

    Source: J. Carbonell and J. Goldstein, The Use of MMR, Diversity-Based Reranking, SIGIR 1998.

    Args:
        relevance: (n,) within 0…1, falling.
        similarity: (n, n), cosines.
        trade_off: λ; 1 orders by relevance alone, 0 by difference alone.
        count: how many hits are chosen; more than there are choose all.
    """
    left = np.ones(len(relevance), np.bool_)
    # Before the first is chosen there is nothing to differ from.
    nearest = np.zeros(len(relevance))
    chosen: list[int] = []
    for _ in range(min(count, len(relevance))):
        gain = trade_off * relevance - (1.0 - trade_off) * nearest
        best = int(np.argmax(np.where(left, gain, -np.inf)))
        nearest = np.maximum(nearest, similarity[best]) if chosen else similarity[best].astype(np.float64)
        left[best] = False
        chosen.append(best)
    return [*chosen, *(int(index) for index in np.flatnonzero(left))]
