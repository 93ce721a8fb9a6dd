"""Takes the planner's constants from the result files: `python -m benchmarks.capacity.constants`.

Writes serving/planning/constants.json. Where a constant is fitted to several results, the fit is the
one of least relative squares.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np

from benchmarks.capacity import caller, cluster, records, service
from benchmarks.result_file import RESULTS
from contract.events import Quantization
from serving.planning.constants import FILE, Constant, Constants
from serving.planning.model import MEASURED_DIMENSION, MEASURED_POINTS

_SMALL, _LARGE = "engine_sq8_synthetic", "engine_sq8_synthetic-large"
_FP16_BYTES = 2
_GROWING_MIN = 1024
_MS_MIN = 0.0


class File:
    """One result file."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = f"benchmarks/results/{name}.json"
        self.content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        self.values: dict[str, float] = {one["name"]: float(one["value"]) for one in self.content["results"]}

    def constant(self, value: float, unit: str, results: Sequence[str], how: str = "") -> Constant:
        """A constant with this file as its origin; the value to eight digits, so that machines agree on it."""
        if missing := [name for name in results if name not in self.values]:
            raise KeyError(f"{self.name} lacks {', '.join(missing)}")
        commit, hardware = self.content["commit"], self.content["hardware"]
        return Constant(float(f"{value:.8g}"), unit, self.name, tuple(results), commit, hardware, how)

    def plain(self, name: str, unit: str) -> Constant:
        """A result as it stands."""
        return self.constant(self.values[name], unit, [name])


def fitted(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Coefficients whose products with the rows come nearest to the values, by relative error; none is below 0."""
    matrix, wanted = np.array(rows, float), np.array(values, float)
    free = list(range(matrix.shape[1]))
    found = np.zeros(matrix.shape[1])
    # What comes out below 0 is left out, and the rest fitted anew.
    while free:
        part, *_ = np.linalg.lstsq(matrix[:, free] / wanted[:, None], np.ones(len(wanted)), rcond=None)
        if (part >= _MS_MIN).all():
            found[free] = part
            break
        free = [column for column, value in zip(free, part, strict=True) if value > _MS_MIN]
    return [float(value) for value in found]


def _service(file: File) -> dict[str, Constant]:
    rows, values, names = [], [], []
    for points in service.POINTS:
        for ef in service.EFFORTS:
            for batch in service.BATCHES:
                names.append(f"points_{points}_ef_{ef}_batch_{batch}_ms")
                rows.append([1.0, batch, batch * ef, batch * ef * np.log2(points / MEASURED_POINTS)])
                values.append(file.values[names[-1]])
    how = "call + batch · (query + ef_search · (step + doubling · log2(points / 50,000))), fitted"
    kinds = ("search_call_ms", "search_query_ms", "search_step_ms", "search_step_doubling_ms")
    return {
        kind: file.constant(value, "ms", names, how) for kind, value in zip(kinds, fitted(rows, values), strict=True)
    }


def _caller(file: File) -> dict[str, Constant]:
    rows, values, names = [], [], []
    for shards in caller.SHARDS:
        for batch in caller.BATCHES:
            names.append(f"shards_{shards}_batch_{batch}_cpu_ms")
            rows.append([1.0, shards, shards * batch])
            values.append(file.values[names[-1]])
    how = "batch + shards · (call + row · queries), fitted"
    kinds = ("fan_out_batch_ms", "fan_out_call_ms", "fan_out_row_ms")
    return {
        kind: file.constant(value, "ms", names, how) for kind, value in zip(kinds, fitted(rows, values), strict=True)
    }


def _cluster(file: File, known: dict[str, Constant]) -> dict[str, Constant]:
    """What HTTP costs the API, and the search port a shard: the slopes of their processor time over the load.

    What they take without any load is the intercept, and part of the background.
    """
    api: list[tuple[float, float]] = []
    shard: list[tuple[float, float]] = []
    names: dict[str, list[str]] = {"api_cpu_ms_per_query": [], "shard_cpu_ms_per_call": []}
    for shape, (shards, replicas) in cluster.SHAPES.items():
        for rate in cluster.RATES[shape]:
            name = f"{shape}_{rate}"
            batch = file.values[f"{name}_queries_per_batch"]
            calls = rate / batch * shards
            fan_out = known["fan_out_batch_ms"].value + shards * (
                known["fan_out_call_ms"].value + known["fan_out_row_ms"].value * batch
            )
            api.append((rate, rate * (file.values[f"{name}_api_cpu_ms_per_query"] - fan_out / batch)))
            each = file.values[f"{name}_shard_cpu_ms_per_call"] - engine_ms(known, shape, batch)
            shard.append((calls / (shards * replicas), calls * each / (shards * replicas)))
            for kind, used in names.items():
                used.append(f"{name}_{kind}")
    found = {}
    for name, points, kind in (
        ("api_query", api, "api_cpu_ms_per_query"),
        ("port_call", shard, "shard_cpu_ms_per_call"),
    ):
        idle, each = fitted([[1.0, load] for load, _ in points], [cpu for _, cpu in points])
        how = "over the load, less what is known of it"
        found[f"{name}_ms"] = file.constant(each, "ms", names[kind], f"slope {how}")
        found[f"{name}_idle_cores"] = file.constant(idle / 1e3, "1", names[kind], f"intercept {how}")
    found["background_cores"] = file.plain("idle_busy_cores", "1")
    found["shard_process_bytes"] = file.plain("empty_shard_process_bytes", "bytes")
    return found


def engine_ms(known: dict[str, Constant], shape: str, batch: float) -> float:
    """What the engine takes for a call in a shape of the small cluster."""
    points = cluster.POINTS[shape] / cluster.SHAPES[shape][0]
    step = known["search_step_ms"].value + known["search_step_doubling_ms"].value * np.log2(points / MEASURED_POINTS)
    return float(known["search_call_ms"].value + batch * (known["search_query_ms"].value + cluster.EF_SEARCH * step))


def _index(file: File) -> dict[str, Constant]:
    count = {one["name"]: int(one["points"]) for one in file.content["datasets"]}
    few, many = count["synthetic"], count["synthetic-large"]
    resident = [f"{_SMALL}_resident_bytes_per_point", f"{_LARGE}_resident_bytes_per_point"]
    small, large = (file.values[name] * points for name, points in zip(resident, (few, many), strict=True))
    slope = (large - small) / (many - few)
    disk = f"{_SMALL}_disk_bytes_per_point"
    inserts = [f"{_SMALL}_insert_cpu_ms_per_point", f"{_LARGE}_insert_cpu_ms_per_point"]
    quick, slow = (file.values[name] for name in inserts)
    copy = (slow - quick) / ((many - few) / _GROWING_MIN)
    calm, busy = f"{_SMALL}_search_p50_ms", f"{_SMALL}_under_ingest_p50_ms"
    line = f"of a line through {few:,} and {many:,} points"
    return {
        "point_beside_code_bytes": file.constant(
            slope - MEASURED_DIMENSION, "bytes", resident, f"slope {line}, less the code"
        ),
        "shard_beside_points_bytes": file.constant(small - slope * few, "bytes", resident, f"intercept {line}"),
        "disk_beside_vectors_bytes": file.constant(
            file.values[disk] - 2 * _FP16_BYTES * MEASURED_DIMENSION - MEASURED_DIMENSION,
            "bytes",
            [disk],
            "less the vector in float16, twice, and its code",
        ),
        "insert_walk_ms": file.constant(
            quick - copy * few / _GROWING_MIN, "ms", inserts, f"intercept {line}, a copy per 1,024"
        ),
        "insert_copy_ms": file.constant(copy, "ms", inserts, "per point of the graph that is copied"),
        "search_ingest_slowdown": file.constant(
            file.values[busy] / file.values[calm], "×", [busy, calm], "p50 beside inserts ÷ p50 alone"
        ),
        "search_ingest_rate": file.plain(f"{_SMALL}_under_ingest_inserts_per_s", "1/s"),
    }


def _lines(file: File, name: str, results: dict[int, str]) -> dict[str, Constant]:
    """A line through bytes at several dimensions."""
    dimensions = sorted(results)
    slope, intercept = np.polyfit(dimensions, [file.values[results[d]] for d in dimensions], 1)
    names = [results[d] for d in dimensions]
    return {
        f"{name}_bytes_per_dimension": file.constant(round(float(slope), 6), "bytes", names, "slope over dimensions"),
        f"{name}_bytes": file.constant(round(float(intercept), 6) + 0.0, "bytes", names, "intercept over dimensions"),
    }


def _records(file: File) -> dict[str, Constant]:
    found: dict[str, Constant] = {}
    for quantization in get_args(Quantization):
        found |= _lines(file, f"code_{quantization}", {d: f"code_bytes_{quantization}_{d}" for d in records.DIMENSIONS})
        found[f"candidates_{quantization}"] = file.plain(f"candidates_{quantization}", "1")
    found |= _lines(file, "log_record", {d: f"embedding_log_bytes_{d}" for d in records.DIMENSIONS})
    found |= _lines(file, "request", {d: f"request_bytes_per_query_{d}" for d in records.DIMENSIONS})
    payload = file.values["payload_bytes"]
    for name, results in {
        "log_record_bytes": found["log_record_bytes"].results,
        "image_event_bytes": ("image_event_bytes",),
    }.items():
        whole = found[name].value if name in found else file.values[name]
        found[name] = file.constant(whole - payload, "bytes", [*results, "payload_bytes"], "less the payload")
    return found | {
        "known_bytes_record_bytes": file.plain("known_bytes_record_bytes", "bytes"),
        "request_batch_bytes": file.plain(f"request_bytes_per_batch_{MEASURED_DIMENSION}", "bytes"),
        "answer_bytes": file.plain("answer_bytes_per_query", "bytes"),
        "answer_batch_bytes": file.plain("answer_bytes_per_batch", "bytes"),
        "answer_payload_bytes": file.plain("payload_bytes", "bytes"),
    }


def derive(folder: Path = RESULTS) -> Constants:
    """All constants, from the result files in `folder`."""
    times = File("capacity-service", folder)
    found = _service(times) | _caller(File("capacity-caller", folder))
    found |= _cluster(File("capacity-cluster", folder), found)
    found |= _index(File("index", folder)) | _records(File("capacity-records", folder))
    pictures = File("capacity-pictures", folder)
    found["thumbnail_bytes"] = pictures.plain("thumbnail_bytes", "bytes")
    found["offline_encode_ms"] = pictures.plain("encode_cpu_ms", "ms")
    spread = tuple((q / 100, times.values[f"spread_p{q:g}"]) for q in service.QUANTILES)
    return Constants(dict(sorted(found.items())), spread)


def encoded(constants: Constants) -> bytes:
    """The bytes of constants.json."""
    return msgspec.json.format(msgspec.json.encode(constants), indent=1) + b"\n"


def main() -> None:
    """Entry point."""
    FILE.write_bytes(encoded(derive()))
    print(FILE)


if __name__ == "__main__":
    main()
