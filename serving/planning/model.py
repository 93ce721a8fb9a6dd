"""What a search and an insert cost, and what a point takes, from the measured constants. Units: seconds and bytes."""

from __future__ import annotations

import math
from typing import Final, Protocol

from contract.events import VectorType

MEASURED_DIMENSION: Final = 512
"""All times were measured at it; they are taken to grow with the dimension."""
MEASURED_POINTS: Final = 50_000
SNAPSHOTS: Final = 2
"""What a shard and the object store keep of them (RIVERLENS_SNAPSHOT_KEEP)."""
_SECONDS = 1e-3
VECTOR_BYTES: Final[dict[VectorType, int]] = {"fp16": 2, "fp32": 4}
# The growing segment waits for at least and for at most so many points, and for a share of the graph in between.
_GROWING_MIN, _GROWING_MAX, _GROWING_SHARE = 1024, 4096, 1 / 256


class Values(Protocol):
    """Constants by name: `Constants.__getitem__` or `Ledger.measured`."""

    def __call__(self, name: str, /) -> float:
        """The value."""


def shard_call_s(value: Values) -> float:
    """What a call costs a shard whatever is in it: the engine's part, and the way through the search port."""
    return (value("search_call_ms") + value("port_call_ms")) * _SECONDS


def shard_query_s(value: Values, points: float, ef_search: int, dimension: int, slower: float = 1.0) -> float:
    """What each query of a call costs a shard of `points`; `slower` is of its quantization beside `sq8`.

    t = query + ef_search · (step + doubling · log2(points / 50,000)): a walk looks at about so many nodes as its
    ef_search, and each of them costs more where more memory lies between them.
    """
    doublings = math.log2(max(points, 1_000) / MEASURED_POINTS)
    step_ms = max(value("search_step_ms") + value("search_step_doubling_ms") * doublings, 0.0)
    return (value("search_query_ms") + ef_search * step_ms * slower * dimension / MEASURED_DIMENSION) * _SECONDS


def serial_call_s(value: Values) -> float:
    """The part of a call that is in Python: searches of one replica wait for each other in it."""
    return shard_call_s(value)


def serial_query_s(value: Values) -> float:
    """The part of a query that is in Python; the walk through the graph is not."""
    return value("search_query_ms") * _SECONDS


def under_ingest(value: Values, inserts_per_s: float) -> float:
    """By how much searches take longer beside inserts; measured at one rate, taken to grow evenly with the rate."""
    return 1 + (value("search_ingest_slowdown") - 1) * inserts_per_s / value("search_ingest_rate")


def insert_s(value: Values, points: float) -> float:
    """Processor time of one insert into a shard of `points`: a walk, and its part of the copy of the graph."""
    waits = max(_GROWING_MIN, min(_GROWING_MAX, points * _GROWING_SHARE))
    return (value("insert_walk_ms") + value("insert_copy_ms") * points / waits) * _SECONDS


def api_query_s(value: Values) -> float:
    """The API's own work on a search over HTTP, without the fan-out."""
    return value("api_query_ms") * _SECONDS


def fan_out_s(value: Values, shards: float) -> float:
    """The API's work on the fan-out of a lone query."""
    return (value("fan_out_batch_ms") + shards * (value("fan_out_call_ms") + value("fan_out_row_ms"))) * _SECONDS


def graph_bytes(value: Values, dimension: int, quantization: str) -> float:
    """Bytes in memory per point of a graph: its code, links, numbers and ids."""
    return code_bytes(value, dimension, quantization) + value("point_beside_code_bytes")


def code_bytes(value: Values, dimension: int, quantization: str) -> float:
    """Bytes of a code."""
    return value(f"code_{quantization}_bytes_per_dimension") * dimension + value(f"code_{quantization}_bytes")


def disk_bytes(value: Values, dimension: int, quantization: str, vector_type: VectorType) -> float:
    """Bytes on the disk per point without its payload: the vector twice, its place in the graph file, its row."""
    vectors = 2 * VECTOR_BYTES[vector_type] * dimension
    return vectors + code_bytes(value, dimension, quantization) + value("disk_beside_vectors_bytes")


def snapshot_graph_bytes(value: Values, points: float, dimension: int, quantization: str) -> float:
    """Bytes of the graph files of a shard's snapshots; all else in a local snapshot is hard links."""
    return SNAPSHOTS * points * graph_bytes(value, dimension, quantization)
