"""Recall and speed of filtered searches: `python -m benchmarks.index.filters`.

Which points match is drawn at random, or goes by their vectors: the points nearest to one of them
match, so that most queries lie far from everything that they may return.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

import numpy as np

from actors.messages import FloatMatrix
from benchmarks.index.datasets import synthetic
from benchmarks.index.driven import DrivenEngine
from benchmarks.index.truth import exact_neighbours, recall
from benchmarks.result_file import RESULTS, Result, write
from contract.events import Quantization
from contract.filters import Filter, Range

K: Final = 10
SHARES: Final = (0.5, 0.1, 0.01, 0.001)

Kind = Literal["random", "correlated"]


class Filtered(NamedTuple):
    """Searches with one filter: `matching` points satisfy it, and `complete` of the answers have all hits they may."""

    kind: Kind | None
    share: float
    matching: int
    recall: float
    complete: float
    searches_per_s: float


def measure(
    points: FloatMatrix,
    queries: FloatMatrix,
    seed: int,
    folder: Path,
    *,
    quantization: Quantization | None = None,
    shares: Sequence[float] = SHARES,
) -> list[Filtered]:
    """Searches without a filter first, then with one per kind and share, one query at a time.

    Args:
        points: (n, d) float32, L2-normalised.
        queries: (q, d) float32, none of the points.
        seed: of everything random.
        folder: an empty folder for the store.
        quantization: None for the engine's default.
        shares: shares of the points that match, 0…1.
    """
    count = len(points)
    random = np.random.default_rng(seed)
    ranks: dict[Kind, np.ndarray[tuple[int], np.dtype[np.int64]]] = {
        "random": random.permutation(count),
        "correlated": np.argsort(np.argsort(-(points @ points[random.integers(count)]))),
    }
    payloads = [{str(kind): int(rank[i]) for kind, rank in ranks.items()} for i in range(count)]
    engine = DrivenEngine(folder / "filtered", points.shape[1], quantization)
    engine.upsert([str(i) for i in range(count)], points, payloads)
    engine.settle()
    found = [_searched(engine, points, queries, None, np.arange(count))]
    for kind, rank in ranks.items():
        for share in shares:
            matching = np.flatnonzero(rank < round(share * count))
            found.append(_searched(engine, points, queries, kind, matching))
    engine.close()
    return found


def _searched(
    engine: DrivenEngine,
    points: FloatMatrix,
    queries: FloatMatrix,
    kind: Kind | None,
    matching: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
) -> Filtered:
    wanted = None if kind is None else Filter(must=(Range(kind, lt=len(matching)),))
    k = min(K, len(matching))
    neighbours = exact_neighbours(points[matching], queries, k)
    named = np.where(neighbours >= 0, matching[neighbours], -1)
    engine.search(queries[:10], K, wanted)
    answers, per_s = engine.search(queries, K, wanted)
    complete = float(np.mean([len(answer) == k for answer in answers]))
    return Filtered(kind, len(matching) / len(points), len(matching), recall(answers, named, k), complete, per_s)


def table(found: Sequence[Filtered]) -> str:
    """The measured filters as a Markdown table."""
    lines = [
        "| points that match | share | matching | recall@10 | full answers | searches/s |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.kind or 'all, without a filter'} | {one.share:.1%} | {one.matching} | {one.recall:.4f} "
        f"| {one.complete:.1%} | {one.searches_per_s:.0f} |"
        for one in found
    ]
    return "\n".join(lines)


def results(quantization: Quantization, found: Sequence[Filtered]) -> list[Result]:
    """Figures of the result file."""
    figures = []
    for one in found:
        name = f"{quantization}_{one.kind or 'all'}" + ("" if one.kind is None else f"_{one.share:g}")
        figures += [
            Result(f"{name}_recall_at_10", round(one.recall, 4), "1"),
            Result(f"{name}_full_answers", round(one.complete, 4), "1"),
            Result(f"{name}_searches_per_s", round(one.searches_per_s, 1), "1/s"),
        ]
    return figures


def main() -> None:
    """Measure, print one table per quantization, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--quantization", nargs="+", choices=get_args(Quantization), default=["none", "sq8"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    started_at = datetime.now(UTC)
    figures: list[Result] = []
    rows = synthetic(given.points + given.queries, given.seed, dimension=given.dimension)
    queries, points = rows[: given.queries], rows[given.queries :]
    for quantization in given.quantization:
        with tempfile.TemporaryDirectory(prefix="rl-filters-") as folder:
            found = measure(points, queries, given.seed, Path(folder), quantization=quantization)
        print(f"\n{quantization}, {given.points} points of {given.dimension} dimensions\n\n{table(found)}", flush=True)
        figures += results(quantization, found)
    digest = hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()
    print(write("index-filters", figures, given.seed, digest, started_at, given.out))


if __name__ == "__main__":
    main()
