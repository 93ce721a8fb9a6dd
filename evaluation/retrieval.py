"""Measures of retrieval, all exact: every query is compared with every picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from actors.messages import FloatMatrix
from evaluation.datasets import Picture

TIE: Final = 1e-7
"""Scores closer than this are a tie, and a tie counts against the system."""


@dataclass(frozen=True)
class Retrieval:
    """Text → image: how many queries and pictures, and figures between 0 (worst) and 1.

    `recall_at_k` is the share of queries with a relevant picture among the best k; `mrr` the mean of
    1/rank of the best relevant one.
    """

    queries: int
    pictures: int
    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    mrr: float

    def __str__(self) -> str:
        """One line with the recall in per cent."""
        return (
            f"{self.pictures} pictures, {self.queries} queries: R@1 {self.recall_at_1:.1%}, "
            f"R@5 {self.recall_at_5:.1%}, R@10 {self.recall_at_10:.1%}, MRR {self.mrr:.3f}"
        )


def queries_of(pictures: Sequence[Picture]) -> tuple[list[str], list[set[int]]]:
    """Distinct captions, sorted, and for each the indexes of the pictures that bear it."""
    by_caption: dict[str, set[int]] = {}
    for index, picture in enumerate(pictures):
        by_caption.setdefault(picture.caption.lower(), set()).add(index)
    queries = sorted(by_caption)
    return queries, [by_caption[query] for query in queries]


def ranks(scores: FloatMatrix, relevant: Sequence[set[int]]) -> npt.NDArray[np.int64]:
    """Rank (from 1) of the best relevant picture of each query; ties count against it.

    Args:
        scores: (q, n), higher is better.
        relevant: per query, the indexes of its relevant pictures.
    """
    result = np.empty(len(relevant), dtype=np.int64)
    for row, indexes in enumerate(relevant):
        is_relevant = np.zeros(scores.shape[1], dtype=np.bool_)
        is_relevant[list(indexes)] = True
        best = scores[row][is_relevant].max()
        result[row] = 1 + int((scores[row][~is_relevant] >= best - TIE).sum())
    return result


def text_to_image(texts: FloatMatrix, images: FloatMatrix, relevant: Sequence[set[int]]) -> Retrieval:
    """Recall and MRR of query vectors (q, d) over image vectors (n, d), by inner product."""
    found = ranks(texts @ images.T, relevant)
    return Retrieval(
        queries=len(texts),
        pictures=len(images),
        recall_at_1=float((found <= 1).mean()),
        recall_at_5=float((found <= 5).mean()),
        recall_at_10=float((found <= 10).mean()),
        mrr=float((1.0 / found).mean()),
    )


def precision_at(images: FloatMatrix, labels: Sequence[str], k: int = 10) -> tuple[float, int]:
    """Image → image: share of the k nearest other pictures that have the query's label.

    Only pictures whose label has more than k pictures are queries, so that 1 can be reached.

    Args:
        images: (n, d) float32, L2-normalised.
        labels: one per picture.
        k: neighbours that are looked at.

    Returns:
        The mean precision between 0 and 1, and the number of queries.
    """
    similarity = images @ images.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    counts = Counter(labels)
    queries = [index for index, label in enumerate(labels) if counts[label] > k]
    hits = [np.mean([labels[other] == labels[index] for other in nearest[index]]) for index in queries]
    return (float(np.mean(hits)) if hits else 0.0), len(queries)
