"""The engine beside raw FAISS and other vector stores: `python -m benchmarks.index` (`make bench-index`)."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.index import datasets
from benchmarks.index.datasets import Dataset
from benchmarks.index.figures import headline, ratios, system_figures
from benchmarks.index.measuring import INSERT_BATCH
from benchmarks.index.run import Measured, Plan, measure, measure_memory, run_folder
from benchmarks.index.systems import SPECS, SystemSpec, spec
from benchmarks.index.table import render
from benchmarks.index.worker import SWITCH_INTERVAL_S
from benchmarks.index.workers import thread_settings
from benchmarks.result_file import RESULTS, Result, write
from contract.settings import load_settings

SEED = 20
_CHURN = "benchmarks.index.churn"
# Part of what the engine keeps in memory is fixed, so bytes per point are taken from many points.
_MEMORY_POINTS = 400_000
_MEMORY_LOAD_LIMIT_S = 1200.0
_LARGE = "synthetic-large"


def _arguments() -> argparse.Namespace:
    plan = Plan()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index", description=__doc__)
    parser.add_argument(
        "--dataset", action="append", choices=datasets.names(), help="may be repeated; default: shobdo and synthetic"
    )
    parser.add_argument("--points", type=int, help="at most this many points (default: 50,000 synthetic, all real)")
    parser.add_argument("--systems", nargs="+", choices=[one.name for one in SPECS], metavar="SYSTEM", help="some only")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--rounds", type=int, default=plan.rounds, help="turns at searching")
    parser.add_argument("--round-s", type=float, default=plan.round_s, help="seconds of one turn and batch size")
    parser.add_argument("--ingest-s", type=float, default=plan.ingest_s, help="seconds of searching while inserting")
    parser.add_argument(
        "--load-limit-s", type=float, default=plan.load_limit_s, help="longest time to load, in seconds"
    )
    parser.add_argument("--threads", type=int, default=plan.threads, help="build threads of every system")
    parser.add_argument("--without-churn", action="store_true", help="leave the churn runbook out")
    parser.add_argument(
        "--memory-points", type=int, default=_MEMORY_POINTS, help="points for the memory of the engine; 0 leaves it out"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of index.json and index.md")
    return parser.parse_args()


def method(plan: Plan) -> str:
    """How it was measured, for the reader of the results."""
    variables = ", ".join(f"{name}={value}" for name, value in thread_settings(plan.threads).items())
    return (
        f"HNSW with m = {plan.m} and ef_construction = {plan.ef_construction} everywhere, inner product of "
        "L2-normalised vectors; ef is the smallest (within 2 %) that reaches recall@10 ≥ "
        f"{plan.target_recall} on held-out queries, ties within 1e-6 counting as hits. Each system has a process of "
        f"its own with one searching thread and {plan.threads} build thread(s) ({variables}, interpreter switch "
        f"interval {SWITCH_INTERVAL_S * 1e3:g} ms). Points come in batches of {INSERT_BATCH} in one thread, timed "
        "until all are in the index; the engine's builder runs beside that thread, and what a producer does (encoding "
        "of records) is not timed. The processor time of an insert shows who used more threads than that (Qdrant "
        f"does, whatever it is told). Searches are measured in {plan.rounds} rounds in which all systems take turns; "
        "ratios are medians of those of rounds. Searches while inserting are single queries beside an inserting "
        "thread at half of the system's own insert rate. Libraries without thread safety are behind a lock. Resident "
        "bytes are what the process (for a server: with its children, shared pages divided) has more than when it was "
        "empty, after searches and after free memory was given back; pages that only the operating system's cache "
        "holds do not count. A restart is a new process over warm files, timed from opening (after imports) until a "
        "point is found by its own vector. Where several data sets were measured, the value of a target is the worst "
        "of them; bytes per point are of the largest, because a part of them is fixed."
    )


def _described(name: str, dataset: Dataset, measured: Sequence[Measured]) -> dict[str, Any]:
    return {
        "name": name,
        "points": len(dataset.points),
        "dimension": int(dataset.points.shape[1]),
        "queries": len(dataset.queries),
        "sha256": dataset.sha256,
        "systems": [
            {
                "name": one.spec.name,
                "versions": one.versions,
                "quantization": one.spec.quantization,
                "durable": one.spec.durable,
                "failure": one.failure or _below(one),
            }
            for one in measured
        ],
    }


def _below(one: Measured) -> str | None:
    if one.tuned["reached"]:
        return None
    return f"recall@10 is {one.tuned['recall']:.4f} at ef {one.tuned['effort']:.0f}, the largest that was tried"


def _churn(dataset: Dataset, seed: int) -> list[Result]:
    """Recall@10 after churn over that of a fresh rebuild."""
    if importlib.util.find_spec(_CHURN) is None:
        print("no churn runbook", flush=True)
        return []
    with run_folder() as folder:
        value = float(importlib.import_module(_CHURN).run(dataset.points, dataset.queries, seed, folder))
    return [Result("recall_after_churn_ratio", round(value, 4), "1")]


class _Report:
    """What was measured so far; written after every data set, so that a run that is cut off leaves what it has."""

    def __init__(self, arguments: argparse.Namespace, plan: Plan, quantization: str) -> None:
        self._seed, self._out = arguments.seed, arguments.out
        self._plan = plan
        self._quantization = quantization
        self._started_at = datetime.now(UTC)
        self._digest = hashlib.sha256()
        self._described: list[dict[str, Any]] = []
        self._by_dataset: list[tuple[str, int, dict[str, float]]] = []
        self._figures: list[Result] = []
        self.churn: list[Result] = []

    def add(self, name: str, dataset: Dataset, measured: Sequence[Measured]) -> None:
        """Take what was measured on a data set."""
        self._digest.update(dataset.sha256.encode())
        self._described.append(_described(name, dataset, measured))
        self._by_dataset.append((name, len(dataset.points), ratios(measured, self._quantization)))
        self._figures += [result for one in measured for result in system_figures(one, name)]

    def write(self) -> Path:
        """Write index.json and index.md; returns the path of the page."""
        results = [*headline(self._by_dataset), *self.churn, *self._figures]
        path = write("index", results, self._seed, self._digest.hexdigest(), self._started_at, self._out)
        content = json.loads(path.read_text()) | {"method": method(self._plan), "datasets": self._described}
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        page = path.with_suffix(".md")
        page.write_text(render(content), encoding="utf-8")
        return page


def main() -> None:
    """Entry point of `python -m benchmarks.index`."""
    arguments = _arguments()
    settings = load_settings()
    plan = Plan(
        threads=arguments.threads,
        rounds=arguments.rounds,
        round_s=arguments.round_s,
        ingest_s=arguments.ingest_s,
        look_up_s=arguments.ingest_s / 2,
        load_limit_s=arguments.load_limit_s,
    )
    specs: list[SystemSpec] = [spec(name) for name in arguments.systems] if arguments.systems else list(SPECS)
    report = _Report(arguments, plan, settings.quantization)
    for name in arguments.dataset or ["shobdo", "synthetic"]:
        dataset = datasets.load(settings, name, arguments.points, arguments.seed)
        print(f"{name}: {len(dataset.points)} points of {dataset.points.shape[1]} dimensions", flush=True)
        with run_folder() as folder:
            report.add(name, dataset, measure(dataset, specs, plan, folder))
        report.write()
        if not report.churn and not arguments.without_churn:
            report.churn = _churn(dataset, arguments.seed)
    if arguments.memory_points:
        dataset = datasets.load(settings, "synthetic", arguments.memory_points, arguments.seed)
        many = replace(plan, threads=os.cpu_count() or 1, load_limit_s=_MEMORY_LOAD_LIMIT_S)
        with run_folder() as folder:
            report.add(_LARGE, dataset, [measure_memory(dataset, spec("engine_sq8"), many, folder)])
    page = report.write()
    print(page.read_text())
    print(page.with_suffix(".json"))


if __name__ == "__main__":
    main()
