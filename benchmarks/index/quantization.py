"""What each quantization of the engine costs in recall and gives in memory: `python -m benchmarks.index.quantization`.

At one fixed ef, with re-scoring (the engine's answer) and without it (the walk through the codes of
the very same graph).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, get_args

from actors.index import graph_files
from actors.index.codes import Codec
from actors.index.graph import SealedGraph, use_threads
from actors.messages import FloatMatrix
from benchmarks.index import datasets
from benchmarks.index.datasets import Dataset, K
from benchmarks.index.engine_system import EngineSystem
from benchmarks.index.measuring import INSERT_BATCH
from benchmarks.index.resources import memory, settle
from benchmarks.index.run import run_folder
from benchmarks.index.systems import Options
from benchmarks.index.truth import recall
from benchmarks.result_file import RESULTS, Result, write
from contract.events import Quantization
from contract.settings import load_settings

SEED: Final = 20
EF: Final = 64
_BATCH = 32
_M, _EF_CONSTRUCTION = 16, 100
_SEARCH_S = 3.0


@dataclass(frozen=True)
class Row:
    """One quantization. `bytes_per_point` is what the process has more in memory than when it was empty."""

    quantization: str
    recall: float
    recall_of_codes: float
    bytes_per_point: float
    code_bytes: int
    searches_per_s: float


def measure(quantization: Quantization, dataset: Dataset, folder: Path) -> Row:
    """Build an engine of a quantization, and search it at EF."""
    options = Options(
        folder=str(folder / "store"),
        variant=quantization,
        dimension=dataset.points.shape[1],
        capacity=len(dataset.points),
        m=_M,
        ef_construction=_EF_CONSTRUCTION,
        build_threads=1,
        existing=False,
    )
    system = EngineSystem(options)
    empty = _anonymous_bytes()
    for start in range(0, len(dataset.points), INSERT_BATCH):
        rows = dataset.points[start : start + INSERT_BATCH]
        system.insert(system.encode([str(start + i) for i in range(len(rows))], rows))
    system.finish()
    system.set_effort(EF)
    answers: list[list[str]] = []
    for start in range(0, len(dataset.queries), _BATCH):
        answers += system.search(dataset.queries[start : start + _BATCH], K)
    searches_per_s = _searches_per_s(system, dataset.queries)
    full = _anonymous_bytes()
    system.close()
    graph = graph_files.load(folder / "store" / "graph", options.dimension, _M, _EF_CONSTRUCTION)
    if graph is None or graph.codec.quantization != quantization:
        raise RuntimeError(f"the graph was not built with {quantization}")
    return Row(
        quantization,
        recall(answers, dataset.neighbours, K),
        recall(_by_codes(graph, dataset.queries), dataset.neighbours, K),
        (full - empty) / len(dataset.points),
        Codec(quantization, options.dimension).new_index(_M, _EF_CONSTRUCTION).storage.sa_code_size(),
        searches_per_s,
    )


def _anonymous_bytes() -> int:
    """Without mapped files, which are programs."""
    settle()
    return memory(os.getpid()).anonymous


def _searches_per_s(system: EngineSystem, queries: FloatMatrix) -> float:
    searched = 0
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < _SEARCH_S:
        start = searched % (len(queries) - _BATCH)
        system.search(queries[start : start + _BATCH], K)
        searched += _BATCH
    return searched / elapsed


def _by_codes(graph: SealedGraph, queries: FloatMatrix) -> list[list[str]]:
    use_threads(1)
    _, labels = graph.search(graph.codec.encode(queries), K, EF)
    return [[graph.image_ids[label] for label in row if label >= 0] for row in labels.tolist()]


def _in_process(quantization: Quantization, dataset: Dataset, folder: Path) -> Row:
    """Measure in a process of its own, so that its memory is its own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(measure, (quantization, dataset, folder))


def results(rows: list[Row], dataset: str) -> list[Result]:
    """Figures of the result file."""
    found = []
    for row in rows:
        name = f"{row.quantization}_{dataset}"
        found += [
            Result(f"{name}_recall_at_10", round(row.recall, 4), "1"),
            Result(f"{name}_recall_at_10_without_rescoring", round(row.recall_of_codes, 4), "1"),
            Result(f"{name}_code_bytes_per_point", row.code_bytes, "bytes"),
            Result(f"{name}_anonymous_bytes_per_point", round(row.bytes_per_point, 1), "bytes"),
            Result(f"{name}_searches_per_s", round(row.searches_per_s, 1), "1/s"),
        ]
    return found


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        f"| quantization | recall@10 at ef {EF} | without re-scoring | code bytes | resident bytes per point "
        f"| searches/s, batches of {_BATCH} |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.quantization} | {row.recall:.4f} | {row.recall_of_codes:.4f} | {row.code_bytes} "
        f"| {row.bytes_per_point:.0f} | {row.searches_per_s:.0f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Entry point of `python -m benchmarks.index.quantization`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index.quantization")
    parser.add_argument("--dataset", choices=datasets.names(), default="shobdo")
    parser.add_argument("--points", type=int)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--quantization", nargs="+", choices=get_args(Quantization), default=get_args(Quantization))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    started_at = datetime.now(UTC)
    dataset = datasets.load(load_settings(), arguments.dataset, arguments.points, arguments.seed)
    rows = []
    for quantization in arguments.quantization:
        with run_folder() as folder:
            rows.append(_in_process(quantization, dataset, folder))
        print(rows[-1], flush=True)
    name = "index-quantization"
    path = write(name, results(rows, dataset.name), arguments.seed, dataset.sha256, started_at, arguments.out)
    path.with_suffix(".md").write_text(table(rows), encoding="utf-8")
    print(table(rows))
    print(path)


if __name__ == "__main__":
    main()
