"""What each quantization of the engine costs in recall and gives in memory: `python -m benchmarks.index.quantization`.

At one fixed ef, with re-scoring (the engine's answer) and without it (a FAISS graph over the same codes,
with the same parameters).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, get_args

import faiss
import numpy as np

from actors.index.codes import Codec
from actors.index.graph import use_threads
from actors.messages import FloatMatrix
from benchmarks.index import datasets
from benchmarks.index.datasets import Dataset, K, save
from benchmarks.index.engine_system import EngineSystem
from benchmarks.index.measuring import INSERT_BATCH, RowFile
from benchmarks.index.resources import memory, settle
from benchmarks.index.run import run_folder
from benchmarks.index.systems import Options
from benchmarks.index.truth import Neighbours, recall
from benchmarks.result_file import RESULTS, Result, write
from contract.events import Quantization
from contract.settings import load_settings

SEED: Final = 20
EF: Final = 64
_BATCH = 32
_M, _EF_CONSTRUCTION = 16, 100
_CHUNK = 1024
_SEARCH_S = 3.0
_faiss: Any = faiss


@dataclass(frozen=True)
class Row:
    """One quantization. `bytes_per_point` is what the process has more in memory than when it was empty."""

    quantization: str
    recall: float
    recall_of_codes: float
    bytes_per_point: float
    code_bytes: int
    searches_per_s: float


def measure(quantization: Quantization, folder: Path) -> Row:
    """Build an engine of a quantization over the data set's files in `folder`, and search it at EF."""
    points = RowFile(folder / "points.npy")
    queries: FloatMatrix = np.load(folder / "queries.npy")
    neighbours: Neighbours = np.load(folder / "neighbours.npy")
    options = Options(
        folder=str(folder / "store"),
        variant=quantization,
        dimension=points.shape[1],
        capacity=len(points),
        m=_M,
        ef_construction=_EF_CONSTRUCTION,
        build_threads=1,
        existing=False,
    )
    system = EngineSystem(options)
    empty = _anonymous_bytes()
    for start in range(0, len(points), INSERT_BATCH):
        rows = points.rows(start, start + INSERT_BATCH)
        system.insert(system.encode([str(start + i) for i in range(len(rows))], rows))
    system.finish()
    system.set_effort(EF)
    answers: list[list[str]] = []
    for start in range(0, len(queries), _BATCH):
        answers += system.search(queries[start : start + _BATCH], K)
    searches_per_s = _searches_per_s(system, queries)
    full = _anonymous_bytes()
    system.close()
    by_codes, code_bytes = _by_codes(Codec(quantization, options.dimension), points, queries)
    return Row(
        quantization,
        recall(answers, neighbours, K),
        recall(by_codes, neighbours, K),
        (full - empty) / len(points),
        code_bytes,
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


def _by_codes(codec: Codec, points: RowFile, queries: FloatMatrix) -> tuple[list[list[str]], int]:
    """What the codes alone find, and their bytes per point."""
    use_threads(1)
    index = codec.new_index(_M, _EF_CONSTRUCTION)
    if codec.train_min:
        index.train(codec.encode(points.rows(0, 2 * codec.train_min)))
    for start in range(0, len(points), _CHUNK):
        index.add(codec.encode(points.rows(start, start + _CHUNK)))
    _, labels = index.search(codec.encode(queries), K, params=_faiss.SearchParametersHNSW(efSearch=EF))
    code_bytes = int(_faiss.downcast_index(index.storage).sa_code_size())
    return [[str(label) for label in row if label >= 0] for row in labels.tolist()], code_bytes


def _in_process(quantization: Quantization, dataset: Dataset) -> Row:
    """Measure in a process of its own, so that its memory is its own."""
    with run_folder() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
        save(dataset, folder)
        return pool.apply(measure, (quantization, folder))


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
        rows.append(_in_process(quantization, dataset))
        print(rows[-1], flush=True)
    name = "index-quantization"
    path = write(name, results(rows, dataset.name), arguments.seed, dataset.sha256, started_at, arguments.out)
    path.with_suffix(".md").write_text(table(rows), encoding="utf-8")
    print(table(rows))
    print(path)


if __name__ == "__main__":
    main()
