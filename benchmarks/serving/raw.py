"""Raw FAISS over the same points in one process: the limit of what a server of them can reach.

`python -m benchmarks.serving.raw` reads a RawPlan as JSON from standard input and prints a RawReport
as JSON. The index is IndexHNSWSQ with 8 bits; all queries come in one call, which FAISS spreads over
its threads.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import faiss
import msgspec
import numpy as np
from msgspec import Struct

from benchmarks.index.faiss_system import FaissSystem
from benchmarks.index.systems import Options
from benchmarks.index.truth import recall
from benchmarks.index.tuning import smallest_effort
from benchmarks.serving.asking import K

_BATCH = 1000
_EF_MAX = 1000


class RawPlan(Struct, frozen=True, kw_only=True):
    """`folder` holds points, queries and neighbours as `.npy`; `threads` are tried one after another."""

    folder: str
    m: int
    ef_construction: int
    build_threads: int
    threads: tuple[int, ...]
    recall: float
    seconds: float


class RawReport(Struct, frozen=True, kw_only=True):
    """`qps` is by number of threads, at the `recall` that was measured with `ef_search`."""

    versions: str
    build_s: float
    ef_search: int
    recall: float
    reached: bool
    qps: dict[int, float]


def measure(plan: RawPlan) -> RawReport:
    """Build, tune and time the index."""
    points, queries, neighbours = (np.load(Path(plan.folder) / f"{n}.npy") for n in ("points", "queries", "neighbours"))
    began = time.perf_counter()
    system = FaissSystem(
        Options(
            folder=plan.folder,
            variant="sq8",
            dimension=points.shape[1],
            capacity=len(points),
            m=plan.m,
            ef_construction=plan.ef_construction,
            build_threads=plan.build_threads,
            existing=False,
        )
    )
    for start in range(0, len(points), _BATCH):
        some = points[start : start + _BATCH]
        system.insert(system.encode([str(start + row) for row in range(len(some))], some))
    system.finish()
    build_s = time.perf_counter() - began
    print(f"  built in {build_s:.0f} s with {plan.build_threads} threads", file=sys.stderr, flush=True)

    def found(effort: int) -> float:
        system.set_effort(effort)
        return recall(system.search(queries, K), neighbours, K)

    tuned = smallest_effort(found, plan.recall, K, _EF_MAX)
    system.set_effort(tuned.effort)
    qps = {}
    for threads in plan.threads:
        faiss.omp_set_num_threads(threads)
        began, done = time.perf_counter(), 0
        while (took := time.perf_counter() - began) < plan.seconds:
            system.search(queries, K)
            done += len(queries)
        qps[threads] = done / took
    return RawReport(
        versions=system.versions(),
        build_s=build_s,
        ef_search=tuned.effort,
        recall=tuned.recall,
        reached=tuned.reached,
        qps=qps,
    )


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(measure(msgspec.json.decode(sys.stdin.buffer.read(), type=RawPlan))))
