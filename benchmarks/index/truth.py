"""Exact neighbours, and recall against them. Needs numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

TIE: Final = 1e-6
"""A point whose score is within this of the k-th best one's counts as a hit, too."""

_CHUNK = 16_384

Neighbours = npt.NDArray[np.int64]
"""(q, w): per query the rows of all points that count as hits, then -1; w is as wide as the most ties need."""


def exact_neighbours(points: npt.NDArray[np.float32], queries: npt.NDArray[np.float32], k: int) -> Neighbours:
    """Rows of the points that count among the `k` of highest inner product, ties included.

    Args:
        points: (n, d) float32, n at least k.
        queries: (q, d) float32.
        k: how many neighbours.
    """
    best = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for start in range(0, len(points), _CHUNK):
        together = np.hstack([best, queries @ points[start : start + _CHUNK].T])
        best = -np.partition(-together, k - 1, axis=1)[:, :k]
    least = best.min(axis=1, keepdims=True) - np.float32(TIE)
    found: list[list[int]] = [[] for _ in queries]
    for start in range(0, len(points), _CHUNK):
        for query, row in zip(*np.nonzero(queries @ points[start : start + _CHUNK].T >= least), strict=True):
            found[query].append(start + int(row))
    width = max((len(rows) for rows in found), default=k)
    return np.array([rows + [-1] * (width - len(rows)) for rows in found], dtype=np.int64).reshape(-1, width)


def recall(answers: Sequence[Sequence[str]], neighbours: Neighbours, k: int) -> float:
    """Mean share of the `k` best that were found; ids are decimal row numbers.

    A repeated id counts once, and ids beyond the first `k` of an answer do not count.
    """
    shares = []
    for answer, rows in zip(answers, neighbours.tolist(), strict=True):
        wanted = {str(row) for row in rows if row >= 0}
        shares.append(min(len(wanted & set(answer[:k])), k) / k)
    return float(np.mean(shares))


def percentile_ms(seconds: Sequence[float], percent: float) -> float:
    """Percentile of durations in seconds, as milliseconds; NaN of none."""
    return float(np.percentile(np.asarray(seconds), percent) * 1e3) if len(seconds) else float("nan")
