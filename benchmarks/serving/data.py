"""The vectors of one run: synthetic, of low intrinsic dimension, with their exact neighbours."""

from __future__ import annotations

import csv
import hashlib

import numpy as np

from benchmarks.index.datasets import QUERIES, Dataset, synthetic
from benchmarks.index.truth import exact_neighbours
from benchmarks.running import ROOT
from benchmarks.serving.asking import K

# Of benchmarks.index.datasets.synthetic.
_CHUNK = 8192


def make(points: int, arriving: int, seed: int) -> Dataset:
    """`points` to load, `arriving` to insert under load, and 1,000 queries that are never inserted.

    Every vector is (512,) float32, L2-normalised. Neighbours are the exact ones among `points`. The
    sha256 is of queries, points and the sample pictures, which searches by words look at.
    """
    # Whole chunks of random numbers, so that the points do not depend on how many arrive.
    count = -(-(QUERIES + points + arriving) // _CHUNK) * _CHUNK
    rows = synthetic(count, seed)[: QUERIES + points + arriving]
    queries, loaded, later = rows[:QUERIES], rows[QUERIES : QUERIES + points], rows[QUERIES + points :]
    digest = hashlib.sha256(np.ascontiguousarray(rows[: QUERIES + points]).data)
    with (ROOT / "samples" / "captions.csv").open(newline="") as table:
        for row in csv.DictReader(table):
            digest.update((ROOT / "samples" / row["file"]).read_bytes())
    return Dataset("synthetic", loaded, later, queries, exact_neighbours(loaded, queries, K), digest.hexdigest())
