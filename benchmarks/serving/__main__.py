"""The whole system over HTTP: `python -m benchmarks.serving` (`make bench-serving`).

It starts a system of its own with the default settings, with the load generator in another process
on the same machine, and writes benchmarks/results/serving.json and serving.png.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Final

import msgspec

from benchmarks.index import datasets
from benchmarks.index.datasets import Dataset
from benchmarks.result_file import RESULTS, Result
from benchmarks.running import ROOT, Running, running_system
from benchmarks.serving import data
from benchmarks.serving.outcome import NAME, Curve, Outcome, draw
from benchmarks.serving.peers import measure_peers
from benchmarks.serving.pictures import measure_text, measure_uploads
from benchmarks.serving.raw import RawPlan, RawReport
from benchmarks.serving.stage import RECALL, Plan, Stage, TimeIsUp
from benchmarks.serving.under_load import measure_ingest, measure_kill, measure_load
from contract.settings import Settings

SEED: Final = 20
POINTS: Final = 200_000
LIMITS_S: Final = {"raw": 240, "load": 180, "ingest": 240, "text": 90, "uploads": 150, "kill": 150, "peers": 2700}
"""Phases in their order, with the longest time each may take; loading and tuning come on top."""

_WITHOUT_BEING_ASKED = tuple(name for name in LIMITS_S if name != "peers")
_TUNING_LIMIT_S = 120
_ON_THE_STAGE = ("load", "ingest", "kill")


def _arguments() -> argparse.Namespace:
    plan = Plan()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--points", type=int, default=POINTS, help="points of the collection")
    parser.add_argument(
        "--only",
        type=_phases,
        default=_WITHOUT_BEING_ASKED,
        metavar="PHASE,…",
        help=f"some of {', '.join(LIMITS_S)}; default: all but peers. Figures of the others stay in the result file",
    )
    parser.add_argument("--round-s", type=float, default=plan.round_s, help="seconds of one run of the load generator")
    parser.add_argument("--uploads", type=int, default=plan.uploads, help="pictures that are uploaded")
    parser.add_argument("--probes", type=int, default=plan.probes, help="points whose way to searchable is timed")
    parser.add_argument("--load-limit-s", type=float, default=plan.load_limit_s, help="longest time to load the points")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of serving.json and serving.png")
    return parser.parse_args()


def _phases(text: str) -> tuple[str, ...]:
    wanted = set(text.split(","))
    if unknown := wanted - set(LIMITS_S):
        raise argparse.ArgumentTypeError(f"no phase {', '.join(sorted(unknown))}; there are {', '.join(LIMITS_S)}")
    return tuple(name for name in LIMITS_S if name in wanted)


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise TimeIsUp in this, the main thread, when the block takes longer."""

    def over(_: int, __: FrameType | None) -> None:
        raise TimeIsUp(f"it took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Run:
    """The phases of one run, each with its time, its failure told and kept instead of ending the others."""

    def __init__(self, arguments: argparse.Namespace, plan: Plan, dataset: Dataset, started_at: datetime) -> None:
        self._outcome = Outcome(arguments.seed, dataset.sha256, started_at, arguments.out)
        self._seed, self._out, self._wanted = arguments.seed, arguments.out, arguments.only
        self._plan, self._dataset = plan, dataset
        self._curve: Curve | None = None
        self.failed: list[str] = []

    def _phase(self, name: str, measure: Callable[[], tuple[Sequence[Result], dict[str, Any]]]) -> None:
        if name not in self._wanted:
            return
        print(f"== {name}", flush=True)
        began = time.monotonic()
        try:
            with _within(LIMITS_S[name]):
                results, notes = measure()
        # Whatever one phase met, the others can still be measured; the exit status tells of it.
        except Exception as error:  # noqa: BLE001
            self._fail(name, error, began)
        else:
            self._outcome.add(name, results, time.monotonic() - began, **notes)

    def run(self) -> Path:
        """Measure what is wanted and return the path of the result file."""
        self._phase("raw", self._raw)
        if set(self._wanted) - {"raw", "peers"}:
            self._system()
        self._phase("peers", lambda: measure_peers(self._dataset, self._plan))
        for name, value in self._outcome.values().items():
            print(f"{name:48} {value:12.2f}")
        folder: Path = self._out
        return folder / f"{NAME}.json"

    def _raw(self) -> tuple[list[Result], dict[str, Any]]:
        settings, cores = Settings(), os.cpu_count() or 1
        with tempfile.TemporaryDirectory(prefix="rl-bench-") as folder:
            datasets.save(self._dataset, Path(folder))
            plan = RawPlan(
                folder=folder,
                m=settings.hnsw_m,
                ef_construction=settings.hnsw_ef_construction,
                build_threads=cores,
                threads=tuple(sorted({1, cores})),
                recall=RECALL,
                seconds=self._plan.round_s / 2,
            )
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.serving.raw"],
                cwd=ROOT,
                input=msgspec.json.encode(plan),
                stdout=subprocess.PIPE,
                check=True,
                timeout=LIMITS_S["raw"],
            )
        report = msgspec.json.decode(done.stdout, type=RawReport)
        if not report.reached:
            raise ValueError(f"raw FAISS reaches a recall@10 of {report.recall:.4f} only")
        results = [
            Result("raw_qps_all_threads", report.qps[cores], "1/s"),
            Result("raw_qps_1_thread", report.qps[1], "1/s"),
            Result("raw_threads", float(cores), "1"),
            Result("raw_ef_search", float(report.ef_search), "1"),
            Result("raw_recall_at_10", report.recall, "1"),
            Result("raw_build_s", report.build_s, "s"),
        ]
        print(", ".join(f"{one.name} {one.value:.4g}" for one in results), flush=True)
        return results, {"versions": report.versions, "index": "IndexHNSWSQ, 8 bits"}

    def _system(self) -> None:
        pictures = bool({"text", "uploads"} & set(self._wanted))
        print("starting the system", flush=True)
        with running_system(samples=pictures) as running, ExitStack() as stack:
            stage: Stage | None = None
            if set(_ON_THE_STAGE) & set(self._wanted):
                stage = self._staged(running, stack)
            if stage is not None:
                self._phase("load", lambda: self._load(stage))
                self._phase("ingest", lambda: (measure_ingest(stage), {}))
            self._phase("text", lambda: (measure_text(running.client, self._plan), {}))
            self._phase("uploads", lambda: (measure_uploads(running.client, self._plan, self._seed), {}))
            if stage is not None:
                self._phase("kill", lambda: (measure_kill(stage), {}))

    def _staged(self, running: Running, stack: ExitStack) -> Stage | None:
        """The loaded and tuned collection; None, with the phases that need it failed, where that cannot be had."""
        began = time.monotonic()
        try:
            with _within(self._plan.load_limit_s + _TUNING_LIMIT_S):
                stage = Stage(running, self._dataset, self._plan)
                stack.callback(stage.close)
                stage.prepare()
        # As in `_phase`.
        except Exception as error:  # noqa: BLE001
            for name in set(_ON_THE_STAGE) & set(self._wanted):
                self._fail(name, error, began)
            return None
        return stage

    def _fail(self, name: str, error: Exception, began: float) -> None:
        print(f"{name} failed: {type(error).__name__}: {error}", flush=True)
        self.failed.append(name)
        self._outcome.fail(name, f"{type(error).__name__}: {error}", time.monotonic() - began)

    def _load(self, stage: Stage) -> tuple[list[Result], dict[str, Any]]:
        results, self._curve = measure_load(stage)
        title = f"{len(self._dataset.points):,} points, {len(stage.shards())} shards, recall@10 {stage.recall:.3f}"
        self._out.mkdir(parents=True, exist_ok=True)
        print(draw(self._curve, title, self._out / f"{NAME}.png"), flush=True)
        made = stage.collection
        return results, {
            "points": len(self._dataset.points),
            "queries": len(self._dataset.queries),
            "dimension": made.dimension,
            "shards": made.shards_total,
            "quantization": made.raw["quantization"],
            "m": made.raw["m"],
            "ef_construction": made.raw["ef_construction"],
            "open_loop_connections": self._plan.open_connections,
        }


def main() -> int:
    """Entry of the process; 1 if a phase failed."""
    arguments = _arguments()
    started_at = datetime.now(UTC)
    plan = replace(
        Plan(),
        round_s=arguments.round_s,
        uploads=arguments.uploads,
        probes=arguments.probes,
        load_limit_s=arguments.load_limit_s,
    )
    print(f"making {arguments.points} points and their exact neighbours", flush=True)
    dataset = data.make(arguments.points, plan.arriving, arguments.seed)
    run = _Run(arguments, plan, dataset, started_at)
    print(run.run())
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
