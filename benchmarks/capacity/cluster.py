"""A small cluster under load: what a search costs in each of its processes, and how long its clients wait.

The processor times are what the planner's simulation is given, the latencies what it has to predict.
`four` are four shards with one replica each, `two` two shards with two. Everything shares one
machine, with the load generator.
"""

from __future__ import annotations

import os
import re
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.index.resources import cpu_seconds, memory
from benchmarks.load import LoadReport
from benchmarks.result_file import Result
from benchmarks.running import Running, running_system
from benchmarks.serving import data
from benchmarks.serving.asking import Floats, send, vector_requests
from benchmarks.serving.writing import LogWriter
from contract.settings import Settings
from serving.client import Client

POINTS: Final = {"four": 40_000, "two": 20_000}
SHAPES: Final = {"four": (4, 1), "two": (2, 2)}
"""Shards and replicas."""
RATES: Final = {"four": (50, 100, 200, 300), "two": (50, 100, 200, 300)}
EF_SEARCH: Final = 80

_ROUND_S, _WARM_S = 7.0, 1.0
_CONNECTIONS = 256
_WITHIN_S = 90.0
_LOOK_EVERY_S = 0.5
_REST_S = 3.0
_API = b"ServeReplica"


@dataclass(frozen=True)
class Used:
    """Processor seconds since the start of the processes, and batches and queries that went to shards."""

    api_s: float
    shards_s: float
    machine_s: float
    batches: float
    queries: float

    def since(self, before: Used) -> Used:
        """What was used between two moments."""
        return Used(
            self.api_s - before.api_s,
            self.shards_s - before.shards_s,
            self.machine_s - before.machine_s,
            self.batches - before.batches,
            self.queries - before.queries,
        )


class Observed:
    """One collection of the running system, and the processes that answer for it."""

    def __init__(self, running: Running, name: str) -> None:
        self.client: Client = running.client
        self.name = name
        shards, replicas = SHAPES[name]
        self.client.create_collection(name, shards=shards, replicas=replicas, partitions=shards)
        self._await(0)
        self._api = _processes(_API, running.home)

    def load(self, home: Path, points: Floats) -> None:
        """Bring the points in, and wait until they are in the graphs."""
        writer = LogWriter(Settings(home=home), self.client.collection(self.name))
        writer.load(
            [str(row) for row in range(len(points))],
            points,
            lambda: self.client.collection(self.name).applied_offsets,
        )
        writer.close()
        self._await(len(points) * SHAPES[self.name][1])

    def _await(self, points: int) -> None:
        until = time.monotonic() + _WITHIN_S
        at_rest = max(1, Settings().growing_max // 8)
        while True:
            shards = self._shards()
            held = sum(one["points"] for one in shards)
            ready = bool(shards) and all(one["state"] == "ready" for one in shards)
            if ready and held >= points and all(one["growing"] < at_rest for one in shards):
                return
            if time.monotonic() > until:
                raise TimeoutError(f"{self.name}: {held} of {points} points are there")
            time.sleep(_LOOK_EVERY_S)

    def _shards(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.client.collection(self.name).raw["shards"]
        return found

    def resident_bytes(self) -> tuple[float, float]:
        """Of an API process, and of a shard replica; without points, what its process takes."""
        shards = [memory(int(one["pid"])).resident for one in self._shards()]
        return max(memory(pid).resident for pid in self._api), min(shards)

    def used(self) -> Used:
        """Up to now."""
        counts = _counters(self.client.base_url, self.name)
        shards = sum(cpu_seconds(int(one["pid"])) for one in self._shards())
        return Used(sum(map(cpu_seconds, self._api)), shards, machine_busy_s(), *counts)


def _counters(base_url: str, collection: str) -> tuple[float, float]:
    """Batches and queries of a collection that went to its shards."""
    with urllib.request.urlopen(f"{base_url}/metrics", timeout=10) as answer:  # noqa: S310 - our own server
        text = answer.read().decode()
    found = []
    for name in ("batches", "queries"):
        line = re.search(rf'^riverlens_fan_out_{name}_total{{collection="{collection}"}} (\S+)$', text, re.M)
        found.append(float(line.group(1)) if line else 0.0)
    return found[0], found[1]


def machine_busy_s() -> float:
    """Seconds that all processors of the machine have worked."""
    user, nice, system, _idle, _wait, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _processes(name: bytes, home: Path) -> list[int]:
    """Processes of this system whose command line holds `name`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if name in (entry / "cmdline").read_bytes() and str(home).encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    if not found:
        raise RuntimeError(f"no process {name.decode()} of this system")
    return found


def _round(observed: Observed, queries: Floats, rate: float) -> list[Result]:
    """One run of the load generator in open loop, the warm-up included in what is counted, not in the latencies."""
    requests = vector_requests(observed.name, queries, EF_SEARCH)
    send(observed.client.base_url, requests, _CONNECTIONS, _WARM_S, rate=rate)
    before, began = observed.used(), time.monotonic()
    report: LoadReport = send(
        observed.client.base_url, requests, _CONNECTIONS, _ROUND_S + _WARM_S, rate=rate, warm_s=_WARM_S
    )
    seconds = time.monotonic() - began
    used = observed.used().since(before)
    name, calls = f"{observed.name}_{rate:g}", used.batches * SHAPES[observed.name][0]
    generator_s = report.cpu_share * (_ROUND_S + _WARM_S)
    if report.failed:
        raise RuntimeError(f"{name}: {report.failures}")
    return [
        Result(f"{name}_offered_qps", rate, "1/s"),
        Result(f"{name}_qps", report.qps, "1/s"),
        Result(f"{name}_p50_ms", report.p50_ms, "ms"),
        Result(f"{name}_p95_ms", report.p95_ms, "ms"),
        Result(f"{name}_p99_ms", report.p99_ms, "ms"),
        Result(f"{name}_partial", report.partial, "1"),
        Result(f"{name}_queries_per_batch", used.queries / used.batches, "1"),
        Result(f"{name}_api_cpu_ms_per_query", 1e3 * used.api_s / used.queries, "ms"),
        Result(f"{name}_shard_cpu_ms_per_call", 1e3 * used.shards_s / calls, "ms"),
        Result(f"{name}_generator_cpu_ms_per_query", 1e3 * generator_s / used.queries, "ms"),
        Result(f"{name}_other_cores", (used.machine_s - used.api_s - used.shards_s - generator_s) / seconds, "1"),
    ]


def measure(seed: int) -> tuple[list[Result], str]:
    """The rates of either shape in turn, on a system of its own."""
    dataset = data.make(max(POINTS.values()), 0, seed)
    results: list[Result] = []
    with running_system(samples=False) as running:
        observed = []
        for name, points in POINTS.items():
            observed.append(Observed(running, name))
            api_bytes, shard_bytes = observed[-1].resident_bytes()
            observed[-1].load(running.home, dataset.points[:points])
        time.sleep(_REST_S)
        before, began = observed[0].used(), time.monotonic()
        time.sleep(_REST_S)
        used = observed[0].used().since(before)
        results += [
            Result("api_process_bytes", api_bytes, "bytes"),
            Result("empty_shard_process_bytes", shard_bytes, "bytes"),
        ]
        results.append(Result("idle_busy_cores", used.machine_s / (time.monotonic() - began), "1"))
        for one in observed:
            for rate in RATES[one.name]:
                results += _round(one, dataset.queries, rate)
                print(", ".join(f"{r.name} {r.value:.2f}" for r in results[-11:]), flush=True)
    return results, dataset.sha256
