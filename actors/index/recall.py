"""Online recall: a sample of live queries is searched exactly afterwards, and the answers compared."""

from __future__ import annotations

import random
import threading
from collections import deque

import numpy as np
from msgspec import Struct

from actors.index.searching import Found
from actors.messages import FloatMatrix
from contract.filters import Filter

RECALL_K = 10
_TIE = 1e-6
_WAITING_MAX = 8
_WINDOW = 256


class Sampled(Struct, frozen=True):
    """A query that was answered, and what was there then: numbers below `next_number`."""

    vector: FloatMatrix
    wanted: Filter | None
    found: Found
    next_number: int


class RecallSampler:
    """Chooses queries, keeps a few until they are measured, and remembers the last results. Thread-safe."""

    def __init__(self, share: float, seed: int | None = None) -> None:
        """`share` of the queries that ask for at least RECALL_K hits are taken, 0…1."""
        self._share = share
        self._random = random.Random(seed)  # noqa: S311 - a sample, no secret
        self._lock = threading.Lock()
        self._waiting: deque[Sampled] = deque(maxlen=_WAITING_MAX)
        self._results: deque[float] = deque(maxlen=_WINDOW)
        self._count = 0

    def chooses(self, k: int) -> bool:
        """Whether to keep the next query, which asks for `k` hits."""
        return k >= RECALL_K and self._share > 0 and self._random.random() < self._share

    def keep(self, sample: Sampled) -> None:
        """Put a query aside; the oldest gives way when measuring does not keep up."""
        self._waiting.append(sample)

    def take(self) -> Sampled | None:
        """The next query to measure."""
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def note(self, recall: float) -> None:
        """Remember a result."""
        with self._lock:
            self._results.append(recall)
            self._count += 1

    def result(self) -> tuple[float | None, int]:
        """Mean recall@10 of the last results (None before the first), and how many were ever measured."""
        with self._lock:
            return (float(np.mean(self._results)) if self._results else None), self._count


def recall(found: Found, truth: Found) -> float:
    """Share of the exact hits that was found; a hit as good as the worst exact one counts. 1.0 if there are none.

    Source: the ties rule of ANN-Benchmarks (Aumüller et al., 2020), with a tolerance of 1e-6.
    """
    if not truth:
        return 1.0
    least = truth[-1][0] - _TIE
    return min(1.0, sum(score >= least for score, _ in found[: len(truth)]) / len(truth))
