"""From what was measured to benchmarks/results/serving.json and serving.png."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.load import LoadReport
from benchmarks.result_file import Result, commit, hardware, write

NAME: Final = "serving"
_RAW: Final = "raw_qps_all_threads"
_OURS: Final = "vector_qps_at_p99_100ms"
_PEER_SUFFIX: Final = "_peer_qps_at_p99_100ms"


class Point(NamedTuple):
    """One run: what was asked for (connections, or requests per second) and what it came to."""

    offered: float
    report: LoadReport


class Curve(NamedTuple):
    """The runs of the plot."""

    closed: list[Point]
    open: list[Point]


def load_results(name: str, report: LoadReport) -> list[Result]:
    """The figures of one run of the load generator."""
    return [
        Result(f"{name}_qps", report.qps, "1/s"),
        *(Result(f"{name}_{key}", getattr(report, key), "ms") for key in ("p50_ms", "p95_ms", "p99_ms", "max_ms")),
        Result(f"{name}_failed", float(report.failed), "1"),
        Result(f"{name}_partial", float(report.partial), "1"),
    ]


def ratios(values: dict[str, float]) -> list[Result]:
    """What compares two systems, as far as both were measured."""
    found = []
    ours, raw = values.get(_OURS), values.get(_RAW)
    one_thread = values.get("raw_qps_1_thread")
    peers = [value for name, value in values.items() if name.endswith(_PEER_SUFFIX)]
    if ours is not None and raw:
        found.append(Result("system_vs_raw_ratio", ours / raw, "1"))
    if ours is not None and one_thread:
        found.append(Result("system_vs_raw_one_thread_ratio", ours / one_thread, "1"))
    if ours is not None and peers and max(peers) > 0:
        found.append(Result("qps_vs_best_peer", ours / max(peers), "1"))
    return found


class Outcome:
    """Results by phase. A run of some phases leaves the figures of the others as they are in the file.

    That is, as far as they are of the same data on the same hardware; else they are left out.
    """

    def __init__(self, seed: int, data_sha256: str, started_at: datetime, folder: Path) -> None:
        self._seed, self._data_sha256, self._started_at, self._folder = seed, data_sha256, started_at, folder
        self._phases: dict[str, dict[str, Any]] = self._earlier()

    def _earlier(self) -> dict[str, dict[str, Any]]:
        path = self._folder / f"{NAME}.json"
        if not path.exists():
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["data_sha256"] != self._data_sha256 or content["hardware"] != hardware():
            return {}
        found: dict[str, dict[str, Any]] = content.get("phases", {})
        return found

    def add(self, phase: str, results: Iterable[Result], seconds: float, **notes: Any) -> Path:
        """Take what a phase came to, and write the file. A figure that is no number is left out."""
        self._phases[phase] = {
            "commit": commit(),
            "at": self._started_at.isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            **notes,
            "results": [one._asdict() for one in results if math.isfinite(one.value)],
        }
        return self._write()

    def fail(self, phase: str, reason: str, seconds: float) -> Path:
        """Say that a phase did not come to an end, and why."""
        return self.add(phase, [], seconds, failure=reason)

    def _write(self) -> Path:
        every = [Result(**one) for phase in self._phases.values() for one in phase["results"]]
        headline = ratios({one.name: one.value for one in every})
        path = write(NAME, [*headline, *every], self._seed, self._data_sha256, self._started_at, self._folder)
        content = json.loads(path.read_text(encoding="utf-8")) | {"phases": self._phases}
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    def values(self) -> dict[str, float]:
        """All figures by name, with the ratios."""
        every = [Result(**one) for phase in self._phases.values() for one in phase["results"]]
        found = {one.name: one.value for one in every}
        return found | {one.name: one.value for one in ratios(found)}


def draw(curve: Curve, title: str, path: Path) -> Path:
    """Plot latency percentiles over the offered rate, with the closed-loop runs as marks."""
    import matplotlib as mpl  # noqa: PLC0415 - only who draws needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    offered = [point.offered for point in curve.open]
    for key, style in (("p50_ms", "-"), ("p95_ms", "--"), ("p99_ms", "-")):
        values = [getattr(point.report, key) for point in curve.open]
        label = f"{key.removesuffix('_ms')}, open loop"
        axes.plot(offered, values, style, marker="o", markersize=3, label=label)
    for point in curve.closed:
        axes.plot(point.report.qps, point.report.p99_ms, "k^", markersize=5)
        where = (point.report.qps, point.report.p99_ms)
        axes.annotate(f"{point.offered:.0f}", where, textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.plot([], [], "k^", markersize=5, label="p99, closed loop (connections)")
    axes.axhline(100, color="grey", linewidth=0.8)
    axes.set(yscale="log", xlabel="searches per second", ylabel="latency, ms", title=title)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
