"""One score from relevance and signals of the payload. Pure functions; every signal is within 0…1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]


def normalised(relevance: Sequence[float] | Scores) -> Scores:
    """Relevance from 0 (the worst of these) to 1 (the best); all 1 where they are equal.

    Cosines of one query lie close together, and where differs from query to query and model to
    model, so a weight means the same everywhere only over their range.

    Source: J. H. Lee, Analyses of Multiple Evidence Combination, SIGIR 1997.
    """
    values = np.asarray(relevance, np.float64)
    if not len(values):
        return values
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.ones_like(values)


def recency(ages_s: Sequence[float | None], half_life_s: float) -> Scores:
    """2^(-age / half-life) per age in seconds; 1 for what lies in the future, 0 without an age."""
    ages = np.array([np.inf if age is None else max(0.0, age) for age in ages_s], np.float64)
    return np.exp2(-ages / half_life_s)


def popularity(counts: Sequence[float | None]) -> Scores:
    """log(1 + n) over the largest of them; 0 for a count that is missing or below 0."""
    values = np.log1p([0.0 if count is None else max(0.0, count) for count in counts])
    return values / values.max() if len(values) and values.max() > 0 else np.zeros_like(values)


def fused(relevance: Scores, signals: Sequence[tuple[float, Scores]]) -> Scores:
    """Weighted mean of relevance, whose weight is 1, and signals; (n,) within 0…1.

    Source: CombSUM, with weights; E. A. Fox and J. A. Shaw, Combination of Multiple Searches, TREC-2 1994.
    """
    total = relevance + sum((weight * signal for weight, signal in signals), np.zeros_like(relevance))
    return np.asarray(total / (1.0 + sum(weight for weight, _ in signals)), np.float64)


def descending(scores: Scores) -> list[int]:
    """Indexes by falling score; equal scores keep their order."""
    return [int(index) for index in np.argsort(-scores, kind="stable")]
