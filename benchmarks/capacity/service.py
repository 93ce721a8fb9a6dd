"""How long a shard's engine takes for a batch, by points, ef_search and queries in it; and how much that varies."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from actors.index.engine import EngineParameters, ShardEngine
from actors.messages import FloatMatrix, ShardQuery
from benchmarks.index.engine_system import FINGERPRINT, EngineSystem
from benchmarks.index.systems import Options
from benchmarks.result_file import Result
from benchmarks.serving import data

POINTS: Final = (12_500, 50_000, 100_000)
EFFORTS: Final = (40, 80, 160)
BATCHES: Final = (1, 8, 32)
QUANTILES: Final = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.9)
K: Final = 10

_M, _EF = 16, 100
_WARM = 5
_ROUND_S = 0.8
_SPREAD_S = 6.0
_INSERT_BATCH = 1024


def build(folder: Path, points: FloatMatrix) -> None:
    """The files of a shard that holds the points, (n, d) float32, as `sq8`."""
    options = Options(
        folder=str(folder),
        variant="sq8",
        dimension=points.shape[1],
        capacity=len(points),
        m=_M,
        ef_construction=_EF,
        build_threads=0,
        existing=False,
    )
    system = EngineSystem(options)
    for start in range(0, len(points), _INSERT_BATCH):
        rows = points[start : start + _INSERT_BATCH]
        system.insert(system.encode([str(start + row) for row in range(len(rows))], rows))
    system.finish()
    system.close()


def opened(folder: Path, dimension: int) -> ShardEngine:
    """The engine over such files."""
    return ShardEngine(
        folder,
        EngineParameters(
            fingerprint=FINGERPRINT,
            dimension=dimension,
            m=_M,
            ef_construction=_EF,
            quantization="sq8",
            vector_type="fp16",
        ),
    )


def _times(engine: ShardEngine, queries: FloatMatrix, ef_search: int, batch: int, seconds: float) -> list[float]:
    """Seconds of searches one after another, each of the next `batch` queries."""
    wanted = (ShardQuery(K, ef_search=ef_search),) * batch
    took: list[float] = []
    row, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until or len(took) <= _WARM:
        rows = np.arange(row, row + batch) % len(queries)
        began = time.perf_counter()
        engine.search(queries[rows], wanted, with_payload=True)
        took.append(time.perf_counter() - began)
        row += batch
    return took[_WARM:]


def _figures(name: str, engine: ShardEngine, queries: FloatMatrix) -> list[Result]:
    results = []
    for ef in EFFORTS:
        for batch in BATCHES:
            middle = float(np.median(_times(engine, queries, ef, batch, _ROUND_S)))
            results.append(Result(f"{name}_ef_{ef}_batch_{batch}_ms", 1e3 * middle, "ms"))
    return results


def _spread(engine: ShardEngine, queries: FloatMatrix) -> list[Result]:
    """Lone searches, each as a multiple of their mean: queries differ, and so do moments."""
    took: Sequence[float] = _times(engine, queries, 80, 1, _SPREAD_S)
    quantiles = np.percentile(took, QUANTILES) / np.mean(took)
    return [Result(f"spread_p{q:g}", float(value), "1") for q, value in zip(QUANTILES, quantiles, strict=True)]


def measure(seed: int) -> tuple[list[Result], str]:
    """Medians per size, effort and batch, of one thread on a machine at rest; the spread of the middle size."""
    dataset = data.make(max(POINTS), 0, seed)
    results: list[Result] = []
    for points in POINTS:
        with tempfile.TemporaryDirectory(prefix="rl-capacity-") as name:
            folder = Path(name) / "shard"
            build(folder, dataset.points[:points])
            engine = opened(folder, dataset.points.shape[1])
            results += _figures(f"points_{points}", engine, dataset.queries)
            if points == POINTS[1]:
                results += _spread(engine, dataset.queries)
            engine.close()
    return results, dataset.sha256
