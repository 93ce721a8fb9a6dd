"""What a plan is asked for, and what it has to assume because nobody has measured it here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, get_args

import msgspec
from msgspec import Struct

from contract.errors import InvalidRequest
from contract.events import Quantization, VectorType
from serving.planning.quantities import parse_bytes, parse_count, parse_seconds


class Workload(Struct, frozen=True, kw_only=True):
    """The size of a deployment. `uploads_per_s` of None is the assumed share of the images a day.

    `cells` of None is as few as keep the fan-out of each within the assumed width; `cells_asked` of None is all.
    """

    images: float
    qps: float
    p99_s: float
    dimension: int = 512
    quantization: Quantization = "sq8"
    vector_type: VectorType = "fp16"
    ef_search: int = 64
    uploads_per_s: float | None = None
    replicas: int = 2
    points_per_shard: float = 2e6
    cells: int | None = None
    cells_asked: int | None = None

    def check(self) -> None:
        """Raises InvalidRequest, which says what to change."""
        wrong = [
            (self.images < 1, "--images must be at least 1"),
            (self.images > 1e15, "--images beyond 1000T are not planned here"),
            (not 0 < self.qps <= 1e8, "--qps must be above 0 and at most 100M"),
            (not 0 < self.p99_s <= 60, "--p99 must be above 0 and at most 60s"),
            (not 8 <= self.dimension <= 8192, "--dim must be between 8 and 8192"),
            (self.quantization not in get_args(Quantization), f"--quantization is one of {_list(Quantization)}"),
            (self.vector_type not in get_args(VectorType), f"--vector-type is one of {_list(VectorType)}"),
            (not 10 <= self.ef_search <= 1000, "--ef-search must be between 10 and 1000"),
            ((self.uploads_per_s or 0) < 0, "--uploads must not be negative"),
            (not 1 <= self.replicas <= 100, "--replicas must be between 1 and 100"),
            (not 1e4 <= self.points_per_shard <= 1e8, "--points-per-shard must be between 10k and 100M"),
            (self.cells is not None and self.cells < 1, "--cells must be at least 1"),
            (self.cells_asked is not None and self.cells_asked < 1, "--cells-asked must be at least 1"),
        ]
        found = [text for is_wrong, text in wrong if is_wrong]
        if found:
            raise InvalidRequest("; ".join(found))


def _list(kind: object) -> str:
    return ", ".join(get_args(kind))


class Assumption(Struct, frozen=True):
    """A number that was not measured on this code. `parse` is its kind: count, seconds, bytes, share or number."""

    value: float
    unit: str
    kind: str
    why: str


def _of(value: float, unit: str, kind: str, why: str) -> Assumption:
    return Assumption(value, unit, kind, why)


ASSUMPTIONS: Final[Mapping[str, Assumption]] = {
    "uploads_per_day": _of(0.005, "share", "share", "new images a day, of all, where --uploads is not given"),
    "peak_factor": _of(3.0, "×", "number", "the busiest minute of uploads over the mean"),
    "picture_bytes": _of(400e3, "bytes", "bytes", "a photograph as it is uploaded"),
    "payload_bytes": _of(200.0, "bytes", "bytes", "the payload of a picture as JSON"),
    "payload_index_bytes": _of(64.0, "bytes", "bytes", "the payload index in memory, per point; depends on the fields"),
    "thumbnailed": _of(1.0, "share", "share", "pictures whose thumbnail somebody wants some day"),
    "dead_share": _of(0.1, "share", "share", "deleted and replaced points in a graph; at 20 % it is rebuilt"),
    "rows_cached": _of(1.0, "share", "share", "stored vectors that the page cache must hold, as it did when measured"),
    "memory_headroom": _of(0.2, "share", "share", "memory of a node that a plan leaves free"),
    "disk_headroom": _of(0.3, "share", "share", "disk that compaction and a restore need for a while"),
    "node_cores": _of(16, "1", "count", "cores of a node of shards"),
    "node_memory_bytes": _of(128e9, "bytes", "bytes", "memory of a node of shards"),
    "node_disk_bytes": _of(1.9e12, "bytes", "bytes", "local NVMe disk of a node of shards"),
    "spare_nodes": _of(1, "1", "count", "nodes of shards per cell that stand by for one that is lost"),
    "node_price": _of(1.0, "$/h", "number", "a node of shards: 16 cores, 128 GB, 1.9 TB of NVMe"),
    "api_core_price": _of(0.045, "$/h", "number", "a core of a node of the API, of ingest or of a router, with 2 GB"),
    "code_slower": _of(2.0, "×", "number", "a walk over other codes than sq8; only sq8 was timed"),
    "node_background": _of(0.5, "1", "count", "cores of a node busy with other things, as the whole system was here"),
    "background_burst_s": _of(5e-3, "s", "seconds", "how long that lasts at a time; fitted, see below"),
    "batches_in_flight": _of(2, "1", "count", "RIVERLENS_SEARCH_BATCHES_IN_FLIGHT, for shards elsewhere"),
    "tail_margin": _of(3.0, "×", "number", "p99 to be held over the simulated one, which came out short by as much"),
    "core_speed": _of(1.0, "×", "number", "speed of a core there over one of the machine that was measured"),
    "shards_per_cell": _of(128, "1", "count", "the widest fan-out of one cell"),
    "network_s": _of(0.25e-3, "s", "seconds", "one way between two nodes of a zone, with the kernel's part"),
    "gpu_images_per_s": _of(1500, "1/s", "count", "images a second that a GPU embeds, ViT-B/32 in bf16"),
    "gpu_texts_per_s": _of(8000, "1/s", "count", "search texts a second that a GPU embeds"),
    "gpu_price": _of(0.8, "$/h", "number", "a GPU of the class L4"),
    "encoded_queries": _of(0.5, "share", "share", "queries whose vector is neither given nor in the cache"),
    "decode_s": _of(25e-3, "s", "seconds", "a core on decoding a photograph of 12 megapixels"),
    "gpu_busy": _of(0.7, "share", "share", "how busy embedders may be at the peak"),
    "backfill_days": _of(7, "1", "count", "days a backfill of everything may take"),
    "kafka_record_bytes": _of(30.0, "bytes", "bytes", "what Kafka adds to a record"),
    "kafka_replication": _of(3, "1", "count", "replicas of each partition"),
    "kafka_dirty": _of(0.5, "share", "share", "of a compacted log that may wait for its compaction"),
    "partition_growth": _of(4, "1", "count", "how much a collection may grow before its partitions are too few"),
    "partition_bytes_max": _of(100e9, "bytes", "bytes", "bytes of a partition that a broker still moves in good time"),
    "broker_partitions_max": _of(4000, "1", "count", "partition replicas of one broker"),
    "broker_disk_bytes": _of(4e12, "bytes", "bytes", "disk of a broker"),
    "broker_bytes_per_s": _of(100e6, "bytes/s", "bytes", "bytes a second that a broker writes, replication included"),
    "broker_price": _of(0.6, "$/h", "number", "a broker without its disk"),
    "event_retention_s": _of(math.inf, "s", "seconds", "how long image-events are kept: a new model replays them"),
    "disk_price": _of(0.08, "$/GB/month", "number", "network disk of a broker"),
    "object_price": _of(0.023, "$/GB/month", "number", "object store"),
    "restore_bytes_per_s": _of(500e6, "bytes/s", "bytes", "bytes a second at which a node restores snapshots"),
}  # fmt: skip
"""By name; `riverlens plan --assume NAME=VALUE` replaces one."""


def assumed(overrides: Mapping[str, str]) -> dict[str, Assumption]:
    """The assumptions with some of them replaced; raises InvalidRequest for a name or value that cannot be."""
    found = dict(ASSUMPTIONS)
    for name, text in overrides.items():
        known = found.get(name)
        if known is None:
            raise InvalidRequest(f"--assume {name}: there is no such assumption; there are {', '.join(ASSUMPTIONS)}")
        value = _parsed(known, name, text)
        found[name] = msgspec.structs.replace(known, value=value, why=f"{known.why} (given)")
    return found


def _parsed(known: Assumption, name: str, text: str) -> float:
    match known.kind:
        case "bytes":
            value = parse_bytes(text)
        case "seconds":
            value = math.inf if text == "forever" else parse_seconds(text)
        case "share":
            value = parse_count(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        case _:
            value = parse_count(text)
    zero_allowed = name in _MAY_BE_ZERO
    most = _BELOW_ONE if name in _NEVER_WHOLE else 1.0
    if (known.kind == "share" and value > most) or (value <= 0 and not zero_allowed):
        raise InvalidRequest(f"--assume {name}={text}: it must be {'at least' if zero_allowed else 'above'} 0" + (
            f" and at most {most:g}" if known.kind == "share" else ""))  # fmt: skip
    return value


_BELOW_ONE: Final = 0.9
_NEVER_WHOLE: Final = frozenset({"memory_headroom", "disk_headroom", "kafka_dirty", "dead_share", "gpu_busy"})
_MAY_BE_ZERO: Final = frozenset(
    {
        "uploads_per_day", "payload_bytes", "payload_index_bytes", "thumbnailed", "dead_share", "rows_cached",
        "memory_headroom", "disk_headroom", "network_s", "encoded_queries", "kafka_record_bytes", "kafka_dirty",
        "spare_nodes", "node_background", "node_price", "api_core_price", "gpu_price", "broker_price",
        "disk_price", "object_price",
    }
)  # fmt: skip
