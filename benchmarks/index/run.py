"""All systems on one data set, side by side: each in its own process, searched in turns."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.index.datasets import Dataset, save
from benchmarks.index.systems import Options, SystemSpec
from benchmarks.index.workers import SystemFailed, WorkerProcess

BATCHES = (1, 32)
# Half of what a system can insert leaves room for what it has put off.
_INGEST_SHARE = 0.5


@dataclass(frozen=True)
class Plan:
    """How a run goes. Times in seconds; `target_recall` is recall@10."""

    m: int = 16
    ef_construction: int = 100
    threads: int = 1
    target_recall: float = 0.95
    rounds: int = 5
    round_s: float = 0.6
    ingest_s: float = 4.0
    look_up_s: float = 2.0
    load_limit_s: float = 180.0


@dataclass
class Measured:
    """What was measured of one system on one data set; `failure` says why it is not whole.

    `qps[batch]` has one value per round, `latencies_s[batch]` one per call.
    """

    spec: SystemSpec
    versions: str = ""
    failure: str | None = None
    load: dict[str, float] = field(default_factory=dict)
    tuned: dict[str, float] = field(default_factory=dict)
    qps: dict[int, list[float]] = field(default_factory=lambda: {batch: [] for batch in BATCHES})
    latencies_s: dict[int, list[float]] = field(default_factory=lambda: {batch: [] for batch in BATCHES})
    cpu_share: list[float] = field(default_factory=list)
    empty: dict[str, int] = field(default_factory=dict)
    full: dict[str, int] = field(default_factory=dict)
    idle: list[float] = field(default_factory=list)
    ingest: dict[str, Any] = field(default_factory=dict)
    look_up: dict[str, Any] = field(default_factory=dict)
    disk_bytes: int = 0
    restart_s: float = 0.0


@contextmanager
def run_folder() -> Iterator[Path]:
    """A folder for the files of a run, which other users may pass through: PostgreSQL runs as one."""
    folder = Path(tempfile.mkdtemp(prefix="rl-bench-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def measure(dataset: Dataset, specs: Sequence[SystemSpec], plan: Plan, folder: Path) -> list[Measured]:
    """Measure systems on a data set; one that fails is in the list with its reason.

    First each is loaded and tuned, one after another. Then all are searched in turns, in several
    rounds, so that whatever slows the machine down for a while slows all of them down. Then each is
    searched while it inserts, and closed and opened again.
    """
    save(dataset, folder)
    running = [_Running(spec, dataset, plan, folder) for spec in specs]
    try:
        for one in running:
            one.attempt("load", one.load)
        for number in range(plan.rounds):
            for one in running if number % 2 == 0 else reversed(running):
                one.attempt("search", one.search_round)
            print(f"{dataset.name}: search round {number + 1} of {plan.rounds}", flush=True)
        for one in running:
            one.attempt("memory", one.measure_memory)
        for one in running:
            one.attempt("ingest", one.ingest)
        for one in running:
            one.attempt("restart", one.restart)
    finally:
        for one in running:
            one.stop()
    return [one.measured for one in running]


def measure_memory(dataset: Dataset, spec: SystemSpec, plan: Plan, folder: Path) -> Measured:
    """Load one system, search it for a while, and see what it keeps in memory."""
    save(dataset, folder)
    running = _Running(spec, dataset, plan, folder)
    try:
        running.attempt("load", running.load)
        running.attempt("search", running.search_round)
        running.attempt("memory", running.measure_memory)
    finally:
        running.stop()
    return running.measured


class _Running:
    """One system under measurement."""

    def __init__(self, spec: SystemSpec, dataset: Dataset, plan: Plan, folder: Path) -> None:
        self.measured = Measured(spec)
        self._plan = plan
        self._data = folder
        self._folder = folder / spec.name
        self._log = folder / f"{spec.name}.log"
        self._worker: WorkerProcess | None = None
        self._arriving = len(dataset.arriving)
        self._probe = len(dataset.points) // 2
        self._name = f"{dataset.name}: {spec.name}"
        self._options = Options(
            folder=str(self._folder),
            variant=spec.variant,
            dimension=dataset.points.shape[1],
            capacity=len(dataset.points) + len(dataset.arriving),
            m=plan.m,
            ef_construction=plan.ef_construction,
            build_threads=plan.threads,
            existing=False,
        )

    def attempt(self, phase: str, step: Callable[[], None]) -> None:
        """Take a step unless the system has failed before; remember why it fails."""
        if self.measured.failure is not None:
            return
        try:
            step()
        except SystemFailed as error:
            self.measured.failure = f"{phase}: {error}"
            print(f"{self._name}: FAILED: {self.measured.failure}", flush=True)
            self.stop()

    def load(self) -> None:
        """Open, fill and tune."""
        one, plan = self.measured, self._plan
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        one.versions = self._open(probe=None)["versions"]
        one.empty = self._do("memory")
        one.load = self._do("load", timeout_s=2 * plan.load_limit_s, limit_s=plan.load_limit_s)
        one.tuned = self._do("tune", target=plan.target_recall)
        print(
            f"{self._name}: {one.load['inserts_per_s']:.0f} inserts/s; "
            f"recall {one.tuned['recall']:.4f} at effort {one.tuned['effort']:.0f}",
            flush=True,
        )

    def _open(self, *, probe: int | None) -> Any:
        self._worker = WorkerProcess(self.measured.spec, self._log, self._plan.threads)
        options = asdict(self._options) | {"existing": probe is not None}
        effort = None if probe is None else int(self.measured.tuned["effort"])
        system = self.measured.spec.name
        return self._do("open", system=system, options=options, data=str(self._data), effort=effort, probe=probe)

    def _do(self, command: str, **arguments: Any) -> Any:
        if self._worker is None:
            raise SystemFailed("its process is not running")
        return self._worker.do(command, **arguments)

    def search_round(self) -> None:
        """One turn at searching."""
        for batch in BATCHES:
            found = self._do("search", batch=batch, seconds=self._plan.round_s)
            self.measured.qps[batch].append(found["qps"])
            self.measured.latencies_s[batch] += found["latencies_s"]
            self.measured.cpu_share.append(found["cpu_share"])

    def measure_memory(self) -> None:
        """After searches: what they keep in memory counts."""
        self.measured.full = self._do("memory")

    def ingest(self) -> None:
        """Searches beside inserts, with idle searches before and after."""
        one, plan = self.measured, self._plan
        rate = _INGEST_SHARE * one.load["inserts_per_s"]
        # Where the arriving points would not last, both windows become shorter alike.
        lasting = min(1.0, self._arriving / rate / (plan.ingest_s + plan.look_up_s))
        one.idle += self._do("search", batch=1, seconds=plan.ingest_s / 2)["latencies_s"]
        one.ingest = self._do("ingest", per_s=rate, seconds=lasting * plan.ingest_s, look_up=False)
        self._do("finish")
        one.idle += self._do("search", batch=1, seconds=plan.ingest_s / 2)["latencies_s"]
        one.look_up = self._do("ingest", per_s=rate, seconds=lasting * plan.look_up_s, look_up=True)
        self._do("finish")
        print(
            f"{self._name}: {one.ingest['qps']:.0f} searches/s beside {one.ingest['inserted_per_s']:.0f} inserts/s",
            flush=True,
        )

    def restart(self) -> None:
        """Close, and open in a new process."""
        self.measured.disk_bytes = self._do("close")["disk_bytes"]
        self.stop()
        self.measured.restart_s = self._open(probe=self._probe)["restart_s"]

    def stop(self) -> None:
        """End the process, however far it is."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
