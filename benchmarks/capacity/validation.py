"""Compares the simulation with small clusters that were measured: `python -m benchmarks.capacity.validation`.

The simulation is given what a search costs its processes; latencies are what it predicts. Of a measured run it takes
how often searches came, what the load generator took of the same machine, and what else kept it busy. One number is
fitted to latencies: how long a burst of the background lasts, to the p99 of the calmest runs (CALM).
`make bench-serving` measured other shards on another day, and nothing of it went into the constants.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from benchmarks.capacity import cluster
from benchmarks.capacity.constants import File
from benchmarks.result_file import RESULTS
from serving.planning.constants import Constants, load_constants
from serving.planning.model import (
    MEASURED_DIMENSION,
    api_query_s,
    serial_call_s,
    serial_query_s,
    shard_call_s,
    shard_query_s,
)
from serving.planning.simulation import Cluster, Costs, Load, simulate

PERCENTILES: Final = (50, 95, 99)
QUERIES: Final = 3_000
CORES: Final = 2
SEED: Final = 20
CALM: Final = 50
"""Searches a second of the runs to which the bursts are fitted; the others are predicted."""
_DISTURBED = 0.15
# Of the code that was measured.
_BATCHES_IN_FLIGHT = 2
BURSTS_S: Final = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03)
SERVING: Final = (25, 50, 70)
"""Runs of `make bench-serving` in open loop, by share of what it took in closed loop; above, it refused some."""


class Run(NamedTuple):
    """A measured run: on which cluster, how often searches came, and the percentiles of their latencies in ms."""

    name: str
    shards: int
    replicas: int
    points_per_shard: float
    ef_search: float
    qps: float
    client_s: float
    background: float
    measured_ms: tuple[float, ...]
    disturbed: bool


class Compared(NamedTuple):
    """One percentile of one run, in milliseconds."""

    run: Run
    percentile: int
    measured_ms: float
    predicted_ms: float

    @property
    def error(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted_ms / self.measured_ms - 1


def runs(folder: Path = RESULTS) -> list[Run]:
    """Those of the small cluster, then those of the benchmark of the whole system."""
    file = File("capacity-cluster", folder)
    idle = file.values["idle_busy_cores"]
    others = [one for name, one in file.values.items() if name.endswith("_other_cores")]
    found = []
    for shape, (shards, replicas) in cluster.SHAPES.items():
        for rate in cluster.RATES[shape]:
            value = {name.removeprefix(f"{shape}_{rate}_"): one for name, one in file.values.items()}
            latencies = tuple(value[f"p{percent}_ms"] for percent in PERCENTILES)
            points = cluster.POINTS[shape] / shards
            # Beyond what the quietest run had, somebody else was at work on the machine.
            client_s, other = value["generator_cpu_ms_per_query"] * 1e-3, idle + value["other_cores"] - min(others)
            found.append(
                Run(
                    "capacity-cluster",
                    shards,
                    replicas,
                    points,
                    cluster.EF_SEARCH,
                    rate,
                    client_s,
                    other,
                    latencies,
                    other > idle + _DISTURBED,
                )
            )
    # Nobody counted there what else was busy: it is taken to be what it was here without load.
    client_s = float(np.median([run.client_s for run in found]))
    serving = File("serving", folder)
    load = serving.content["phases"]["load"]
    for share in SERVING:
        name = f"vector_open_{share}"
        latencies = tuple(serving.values[f"{name}_p{percent}_ms"] for percent in PERCENTILES)
        points, ef = load["points"] / load["shards"], serving.values["vector_ef_search"]
        qps = serving.values[f"{name}_offered_qps"]
        found.append(Run("serving", load["shards"], 1, points, ef, qps, client_s, idle, latencies, disturbed=False))
    return found


def predicted_ms(run: Run, known: Constants, burst_s: float) -> tuple[float, ...]:
    """The percentiles that the simulation finds."""
    value = known.__getitem__
    costs = Costs(
        query_s=api_query_s(value),
        batch_s=value("fan_out_batch_ms") * 1e-3,
        call_s=value("fan_out_call_ms") * 1e-3,
        row_s=value("fan_out_row_ms") * 1e-3,
        shard_call_s=shard_call_s(value),
        shard_query_s=shard_query_s(value, run.points_per_shard, int(run.ef_search), MEASURED_DIMENSION),
        serial_call_s=serial_call_s(value),
        serial_query_s=serial_query_s(value),
        spread=known.spread,
    )
    machine = Cluster(
        run.shards,
        run.replicas,
        nodes=1,
        cores=CORES,
        api_processes=1,
        shared=True,
        background=run.background,
        background_burst_s=burst_s,
        client_s=run.client_s,
        batches_in_flight=_BATCHES_IN_FLIGHT,
    )
    outcome = simulate(machine, costs, Load(run.qps, QUERIES, poisson=False), SEED)
    return tuple(1e3 * outcome.percentile_s(percent) for percent in PERCENTILES)


def fitted_burst_s(folder: Path = RESULTS, constants: Constants | None = None) -> float:
    """The length of background bursts with which the p99 of the calmest runs is nearest to what was measured."""
    known = constants or load_constants()
    calm = [run for run in runs(folder) if run.qps == CALM]

    def distance(burst_s: float) -> float:
        return sum(abs(math.log(predicted_ms(run, known, burst_s)[-1] / run.measured_ms[-1])) for run in calm)

    return min(BURSTS_S, key=distance)


def compare(folder: Path = RESULTS, constants: Constants | None = None) -> Iterator[Compared]:
    """Every run, predicted."""
    known = constants or load_constants()
    burst_s = fitted_burst_s(folder, known)
    for run in runs(folder):
        predicted = predicted_ms(run, known, burst_s)
        for percent, measured, found in zip(PERCENTILES, run.measured_ms, predicted, strict=True):
            yield Compared(run, percent, measured, found)


@cache
def compared() -> tuple[Compared, ...]:
    """Every run with the constants and results of this release."""
    return tuple(compare())


def table(compared: Sequence[Compared]) -> str:
    """Markdown: a row per run, measured and predicted with the error, and the middle error of each percentile."""
    lines = [
        "| result | shards × replicas | searches/s | cores busy with other things | p50 ms | p95 ms | p99 ms |",
        "|---|---|---|---|---|---|---|",
    ]
    rows: dict[Run, list[str]] = {}
    for one in compared:
        cell = f"{one.measured_ms:.1f} → {one.predicted_ms:.1f} ({one.error:+.0%})"
        rows.setdefault(one.run, []).append(cell)
    for run, cells in rows.items():
        lines.append(
            f"| `{run.name}` | {run.shards} × {run.replicas} | {run.qps:.0f} "
            f"| {run.background:.2f}{' (disturbed)' if run.disturbed else ''} | {' | '.join(cells)} |"
        )
    middle = [
        f"{np.median([abs(one.error) for one in compared if one.percentile == percent and not one.run.disturbed]):.0%}"
        for percent in PERCENTILES
    ]
    lines.append(f"| median of the absolute errors of the undisturbed runs | | | | {' | '.join(middle)} |")
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    print(table(compared()))


if __name__ == "__main__":
    main()
