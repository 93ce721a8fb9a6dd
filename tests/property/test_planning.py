"""A larger workload never needs less."""

from __future__ import annotations

import functools
import math

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from contract.errors import InvalidRequest
from contract.events import Quantization
from serving.planning.constants import load_constants
from serving.planning.ledger import Ledger
from serving.planning.quantities import parse_bytes, parse_count, parse_seconds, show
from serving.planning.shape import Aim, Shape, shape
from serving.planning.simulation import Cluster, Costs, Load, simulate
from serving.planning.sizing import sizes
from serving.planning.workload import Workload, assumed

workloads = st.builds(
    Workload,
    images=st.floats(1.0, 1e12),
    qps=st.floats(0.1, 50_000),
    p99_s=st.just(0.1),
    dimension=st.sampled_from([128, 256, 512, 768, 1024]),
    quantization=st.sampled_from(["none", "fp16", "sq8", "pq", "rabitq"]),
    vector_type=st.sampled_from(["fp16", "fp32"]),
    ef_search=st.integers(10, 400),
    uploads_per_s=st.floats(0.0, 100.0),
    replicas=st.integers(1, 4),
    points_per_shard=st.floats(1e5, 4e6),
    cells=st.none() | st.integers(1, 5),
)


def _sized(workload: Workload) -> tuple[Shape, dict[str, float]]:
    ledger = Ledger(load_constants(), assumed({}))
    try:
        made = shape(Aim(workload, workload.points_per_shard, 0.6), ledger)
    except InvalidRequest:
        assume(False)
        raise
    sizes(made, workload, ledger)
    return made, {one.name: one.value for one in ledger.figures}


NEVER_LESS = (
    "memory of all shards",
    "disk of all shards",
    "object store",
    "Kafka's disks",
    "shard replicas",
    "GPU hours of a backfill",
    "core hours to decode it",
)


@settings(max_examples=60, deadline=None)
@given(workload=workloads, more=st.floats(1.0, 100.0))
def test_more_images_never_need_less(workload: Workload, more: float) -> None:
    # Cells that are not given change the load of each, which is another deployment.
    workload = msgspec.structs.replace(workload, cells=workload.cells or 1)
    _, before = _sized(workload)
    _, after = _sized(msgspec.structs.replace(workload, images=workload.images * more))
    assert [name for name in NEVER_LESS if after[name] < before[name] * (1 - 1e-9)] == []


@settings(max_examples=60, deadline=None)
@given(workload=workloads, more=st.floats(1.0, 100.0))
def test_more_searches_never_need_less(workload: Workload, more: float) -> None:
    before, _ = _sized(workload)
    after, _ = _sized(msgspec.structs.replace(workload, qps=workload.qps * more))
    assert after.replicas >= before.replicas
    assert after.nodes >= before.nodes
    assert after.api_processes >= before.api_processes


@settings(max_examples=60, deadline=None)
@given(workload=workloads)
def test_a_shape_holds_everything_it_is_made_for(workload: Workload) -> None:
    made, figures = _sized(workload)
    values = {name: one.value for name, one in assumed({}).items()}
    assert made.points <= workload.points_per_shard * (1 + 1e-9)
    assert made.cells * made.shards * made.points == pytest.approx(workload.images)
    assert made.nodes * made.per_node >= made.shards * made.replicas
    # Every replica of a shard on a machine of its own, and room for the fullest machine.
    assert made.nodes >= made.replicas
    assert made.per_node * made.replica_bytes <= values["node_memory_bytes"] * (1 - values["memory_headroom"])
    assert made.per_node * made.replica_disk_bytes <= values["node_disk_bytes"]
    assert figures["partitions per collection"] >= made.shards
    assert [name for name, value in figures.items() if not math.isfinite(value) or value < 0] == []


@settings(max_examples=40, deadline=None)
@given(
    workload=workloads, coarser=st.sampled_from([("none", "fp16"), ("fp16", "sq8"), ("sq8", "pq"), ("pq", "rabitq")])
)
def test_coarser_codes_never_need_more_memory(workload: Workload, coarser: tuple[Quantization, Quantization]) -> None:
    fine, coarse = (_sized(msgspec.structs.replace(workload, quantization=one))[0] for one in coarser)
    assert coarse.replica_bytes <= fine.replica_bytes


COSTS = Costs(
    0.001,
    0.0002,
    0.00005,
    0.00001,
    0.0002,
    0.0006,
    network_s=0.0001,
    spread=((0.0, 0.5), (0.5, 0.9), (0.99, 3.0), (1.0, 5.0)),
)


@functools.cache
def _p99_s(shards: int, replicas: int, qps: float) -> float:
    cluster = Cluster(shards, replicas, nodes=shards * replicas, cores=1, api_processes=2)
    return simulate(cluster, COSTS, Load(qps, 2_500)).percentile_s(99)


@settings(max_examples=15, deadline=None)
@given(shards=st.sampled_from([1, 4, 16]), replicas=st.integers(1, 2), qps=st.sampled_from([50.0, 100.0, 200.0, 400.0]))
def test_the_tail_grows_with_the_load(shards: int, replicas: int, qps: float) -> None:
    # A tenth is what the tail of so few searches varies by.
    assert _p99_s(shards, replicas, 2 * qps) >= 0.9 * _p99_s(shards, replicas, qps)


@settings(max_examples=15, deadline=None)
@given(shards=st.sampled_from([1, 4, 16]), qps=st.sampled_from([50.0, 200.0]))
def test_the_tail_grows_with_the_fan_out(shards: int, qps: float) -> None:
    assert _p99_s(4 * shards, 1, qps) >= 0.9 * _p99_s(shards, 1, qps)


@given(st.integers(1, 999), st.sampled_from(["", "k", "M", "B", "T"]))
def test_counts_are_read_as_they_are_written(number: int, unit: str) -> None:
    times = {"": 1, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[unit]
    assert parse_count(f"{number}{unit}") == parse_count(f" {number} {unit.lower()} ") == number * times


@given(st.text(max_size=12))
def test_whatever_is_written_is_read_or_refused(text: str) -> None:
    for parse in (parse_count, parse_seconds, parse_bytes):
        try:
            assert parse(text) >= 0
        except InvalidRequest as error:
            assert "write it like" in error.detail


@given(st.floats(1e-6, 1e18), st.sampled_from(["1", "bytes", "bytes/s", "s", "1/s", "share", "ms"]))
def test_every_figure_can_be_shown(value: float, unit: str) -> None:
    shown = show(value, unit)
    assert shown
    assert "e+" not in shown
