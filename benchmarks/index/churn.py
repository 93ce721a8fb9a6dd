"""Recall after churn: `python -m benchmarks.index.churn`.

A runbook of insert, delete, upsert and search steps replaces 60 % of all points, and the engine's
recall@10 is compared with that of a fresh engine of the points that live then, at the same ef.

Source: the streaming track of Big-ANN-Benchmarks, NeurIPS 2023 (Simhadri et al., 2024), whose
runbooks let points come and go cluster by cluster, because a graph suffers most from that.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from actors.messages import FloatMatrix
from benchmarks.index.datasets import synthetic
from benchmarks.index.driven import DrivenEngine
from benchmarks.index.truth import exact_neighbours, recall
from contract.events import Quantization

K: Final = 10
# The last step lies between two rebuilds: a graph without its dead is nearly a fresh one.
STEPS: Final = 12
CHURN: Final = 0.6
UPSERT_SHARE: Final = 0.4
"""Share of the arriving points that replace the vector of a living one; for each other one, one is deleted."""
PIVOTS: Final = 64

Order = Literal["random", "clustered"]
Rows = npt.NDArray[np.int64]


class Step(NamedTuple):
    """One step of a runbook: rows that come under ids of their own, ids that take the rows' vectors, ids that go."""

    insert: Rows
    upsert: dict[int, int]
    delete: Rows


class StepResult(NamedTuple):
    """After a step: living points, share of the graph that is dead, and recall@10."""

    living: int
    dead_share: float
    recall: float


@dataclass(frozen=True)
class OrderResult:
    """One order of arrival: every step, and recall@10 of a fresh engine of the points that live at the end."""

    order: Order
    steps: list[StepResult]
    fresh_recall: float

    @property
    def recall_ratio(self) -> float:
        """Recall after the last step over that of the fresh engine."""
        return self.steps[-1].recall / self.fresh_recall


@dataclass(frozen=True)
class ChurnResult:
    """All orders of arrival."""

    orders: list[OrderResult]

    @property
    def recall_ratio(self) -> float:
        """The worst of them."""
        return min(one.recall_ratio for one in self.orders)

    def __float__(self) -> float:
        return self.recall_ratio


def arrival(points: FloatMatrix, order: Order, seed: int) -> Rows:
    """Rows of (n, d) float32 points in the order in which they come; clustered: near ones together."""
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(points))
    if order == "random":
        return shuffled
    pivots = points[shuffled[:PIVOTS]]
    nearest = np.concatenate([(points[i : i + 8192] @ pivots.T).argmax(axis=1) for i in range(0, len(points), 8192)])
    return shuffled[np.argsort(nearest[shuffled], kind="stable")]


def runbook(rows: Rows, order: Order, seed: int) -> Iterator[Step]:
    """The first step loads what comes first; STEPS more replace CHURN of it by what comes after.

    In a clustered order the oldest go, cluster by cluster; in a random one any do.
    """
    random = np.random.default_rng(seed)
    loaded = round(len(rows) / (1 + CHURN))
    living = [int(row) for row in rows[:loaded]]
    yield Step(rows[:loaded], {}, rows[:0])
    for arriving in np.array_split(rows[loaded:], STEPS):
        count = round(len(arriving) * UPSERT_SHARE)
        chosen = random.choice(len(living), len(arriving) - count, replace=False)
        gone = set(range(len(chosen))) if order == "clustered" else set(chosen.tolist())
        deleted = [living[place] for place in sorted(gone)]
        living = [row for place, row in enumerate(living) if place not in gone]
        replaced = random.choice(len(living), count, replace=False)
        upsert = {living[place]: int(row) for place, row in zip(replaced.tolist(), arriving[:count], strict=True)}
        living += [int(row) for row in arriving[count:]]
        yield Step(arriving[count:], upsert, np.array(deleted, dtype=np.int64))


def run(
    points: FloatMatrix,
    queries: FloatMatrix,
    seed: int,
    folder: Path,
    *,
    quantization: Quantization | None = None,
    orders: tuple[Order, ...] = get_args(Order),
    progress: Callable[[Order, StepResult], None] = lambda _order, _step: None,
) -> ChurnResult:
    """Run the runbook once per order of arrival.

    Args:
        points: (n, d) float32, L2-normalised; five eighths are loaded first, the others come later.
        queries: (q, d) float32, none of the points.
        seed: of everything random.
        folder: an empty folder for the stores.
        quantization: None for the engine's default.
        orders: orders of arrival.
        progress: is told of every step as it ends.
    """
    results = []
    for order in orders:
        rows = arrival(points, order, seed)
        engine = DrivenEngine(folder / f"{order}-churned", points.shape[1], quantization)
        vectors: dict[int, int] = {}
        steps = []
        for step in runbook(rows, order, seed):
            engine.delete([str(row) for row in step.delete])
            engine.upsert([str(row) for row in step.insert], points[step.insert])
            engine.upsert([str(row) for row in step.upsert], points[list(step.upsert.values())])
            for row in step.delete.tolist():
                del vectors[row]
            vectors |= {row: row for row in step.insert.tolist()} | step.upsert
            engine.settle()
            dead_share = engine.dead_share
            steps.append(StepResult(len(vectors), dead_share, _recall(engine, vectors, points, queries)))
            progress(order, steps[-1])
        engine.close()
        fresh = DrivenEngine(folder / f"{order}-fresh", points.shape[1], quantization)
        fresh.upsert([str(row) for row in vectors], points[list(vectors.values())])
        fresh.settle()
        results.append(OrderResult(order, steps, _recall(fresh, vectors, points, queries)))
        fresh.close()
    return ChurnResult(results)


def _recall(engine: DrivenEngine, vectors: dict[int, int], points: FloatMatrix, queries: FloatMatrix) -> float:
    """Mean recall@10 where the point of each id has the vector of the row it is mapped to."""
    ids = np.array(list(vectors))
    neighbours = exact_neighbours(points[list(vectors.values())], queries, K)
    named = np.where(neighbours >= 0, ids[neighbours], -1)
    return recall(engine.search(queries, K)[0], named, K)


def main() -> None:
    """Print recall@10 after every step, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=30_000, help="loaded and arriving ones together")
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--clusters", type=int, default=0, help="clusters of the synthetic vectors; 0: one cloud")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--quantization", nargs="+", choices=get_args(Quantization), default=["none", "sq8"])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rows = synthetic(given.points + given.queries, given.seed, clusters=given.clusters, dimension=given.dimension)
    queries, points = rows[: given.queries], rows[given.queries :]

    def told(order: Order, step: StepResult) -> None:
        print(f"| {quantization} | {order} | {step.living} | {step.dead_share:.1%} | {step.recall:.4f} |", flush=True)

    for quantization in given.quantization:
        print("| quantization | arrival | living | dead | recall@10 |\n|---|---|---|---|---|", flush=True)
        with tempfile.TemporaryDirectory(prefix="rl-churn-") as folder:
            result = run(points, queries, given.seed, Path(folder), quantization=quantization, progress=told)
        for one in result.orders:
            print(
                f"{quantization}, {one.order}: fresh {one.fresh_recall:.4f}, ratio {one.recall_ratio:.4f}", flush=True
            )


if __name__ == "__main__":
    main()
