"""How many cells, shards, replicas, nodes and API processes: a shape that holds the points and the load.

Whether its tail is short enough, the simulation says (`serving.planning.choosing`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from contract.errors import InvalidRequest
from serving.planning.ledger import Ledger
from serving.planning.model import (
    SNAPSHOTS,
    VECTOR_BYTES,
    api_query_s,
    disk_bytes,
    fan_out_s,
    graph_bytes,
    insert_s,
    serial_call_s,
    serial_query_s,
    shard_call_s,
    shard_query_s,
    snapshot_graph_bytes,
    under_ingest,
)
from serving.planning.quantities import show
from serving.planning.simulation import Cluster, Costs
from serving.planning.workload import Workload

_DAY_S = 86_400.0
_CORES_MIN = 2


@dataclass(frozen=True)
class Aim:
    """What a shape is built for: the workload, points per shard at most, and how busy processors may be."""

    workload: Workload
    points_per_shard: float
    busy: float


@dataclass(frozen=True)
class Shape:
    """`cells` alike; each has `shards` × `replicas` on `nodes` with `per_node` replicas, and `api_processes`.

    `router_processes` are of all cells together; there are none where one cell is all.
    """

    cells: int
    cells_asked: int
    shards: int
    replicas: int
    per_node: int
    nodes: int
    search_cores: int
    api_processes: int
    router_processes: int
    points: float
    cell_qps: float
    uploads_per_s: float
    replica_bytes: float
    replica_disk_bytes: float

    background: float
    background_burst_s: float
    batches_in_flight: int

    def cluster(self) -> Cluster:
        """One cell, as the simulation takes it."""
        return Cluster(
            self.shards,
            self.replicas,
            self.nodes,
            self.search_cores,
            self.api_processes,
            background=self.background,
            background_burst_s=self.background_burst_s,
            batches_in_flight=self.batches_in_flight,
        )


def shape(aim: Aim, ledger: Ledger) -> Shape:
    """The smallest shape whose processors and memory are not busier than they may be.

    Raises InvalidRequest where no number of machines is enough.
    """
    with ledger.group("Shape"):
        return _shape(aim, ledger)


def _shape(aim: Aim, ledger: Ledger) -> Shape:
    asked = aim.workload
    most = aim.points_per_shard
    wanted = math.ceil(asked.images / most)
    cells, cells_asked = _cells(aim, wanted, ledger)
    shards = max(1, math.ceil(asked.images / cells / most))
    points = asked.images / cells / shards
    ledger.add(
        "shards per cell", shards, "1", f"{show(asked.images / cells, '1')} images ÷ {show(most, '1')} points per shard"
    )
    ledger.add("points per shard", points, "1", f"{show(asked.images / cells, '1')} images ÷ {shards} shards")
    cell_qps = asked.qps * cells_asked / cells
    ledger.add(
        "searches a second per cell",
        cell_qps,
        "1/s",
        f"{show(asked.qps, '1/s')} × {cells_asked} of {cells} cells asked",
    )
    uploads = _uploads(asked, ledger) / cells
    replica_bytes = _replica_bytes(aim, points, ledger)
    by_memory = math.floor(
        ledger.assumed("node_memory_bytes") * (1 - ledger.assumed("memory_headroom")) / replica_bytes
    )
    if by_memory < 1:
        raise InvalidRequest(
            f"a replica of {show(points, '1')} points needs {show(replica_bytes, 'bytes')} of memory and a node has "
            "not as much to spare: lower --points-per-shard, take --quantization rabitq, or larger nodes "
            "(--assume node_memory_bytes=512GB)"
        )
    ledger.add(
        "replicas per node, by memory", by_memory, "1", "memory of a node without headroom ÷ memory of a replica"
    )
    disk = _replica_disk(asked, points, ledger)
    by_disk = math.floor(ledger.assumed("node_disk_bytes") / disk)
    if by_disk < 1:
        raise InvalidRequest(
            f"a replica of {show(points, '1')} points needs {show(disk, 'bytes')} of disk and a node has less: lower "
            "--points-per-shard, or assume larger disks (--assume node_disk_bytes=4TB)"
        )
    ledger.add("replicas per node, by disk", by_disk, "1", "disk of a node ÷ disk of a replica")
    room = min(by_memory, by_disk)
    replicas, per_node, search_cores = _processors(aim, points, shards, cell_qps, uploads, room, ledger)
    # Each replica of a shard on a node of its own.
    nodes = max(replicas, math.ceil(shards * replicas / per_node))
    ledger.add(
        "nodes of shards per cell",
        nodes,
        "1",
        f"{shards} shards × {replicas} replicas ÷ {per_node} per node, without spare ones",
    )
    api = _api(aim, shards, cell_qps, ledger)
    router = 0
    if cells > 1:
        each = api_query_s(ledger.measured) + fan_out_s(ledger.measured, cells_asked)
        router = math.ceil(asked.qps * each / ledger.assumed("core_speed") / aim.busy)
        ledger.add(
            "router processes",
            router,
            "1",
            f"{show(asked.qps, '1/s')} × {show(each, 's')} ÷ {aim.busy:.0%} busy, if a cell is asked as a shard is; "
            "the router is not built",
        )
    return Shape(
        cells=cells,
        cells_asked=cells_asked,
        shards=shards,
        replicas=replicas,
        per_node=per_node,
        nodes=nodes,
        search_cores=search_cores,
        api_processes=api,
        router_processes=router,
        points=points,
        cell_qps=cell_qps,
        uploads_per_s=uploads,
        replica_bytes=replica_bytes,
        replica_disk_bytes=disk,
        background=ledger.assumed("node_background"),
        background_burst_s=ledger.assumed("background_burst_s"),
        batches_in_flight=max(1, round(ledger.assumed("batches_in_flight"))),
    )


def _cells(aim: Aim, wanted: int, ledger: Ledger) -> tuple[int, int]:
    asked = aim.workload
    widest = ledger.assumed("shards_per_cell")
    cells = asked.cells or math.ceil(wanted / widest)
    ledger.add(
        "cells",
        cells,
        "1",
        "given" if asked.cells else f"{wanted} shards ÷ {widest:g} per cell at most, each with a log of its own",
    )
    cells_asked = asked.cells_asked or cells
    if cells_asked > cells:
        raise InvalidRequest(
            f"--cells-asked {cells_asked} is more than the {cells} cells there are: leave it out, or raise --cells"
        )
    return cells, cells_asked


def _uploads(asked: Workload, ledger: Ledger) -> float:
    if asked.uploads_per_s is not None:
        return ledger.add("uploads a second", asked.uploads_per_s, "1/s", "given")
    share = ledger.assumed("uploads_per_day")
    return ledger.add(
        "uploads a second", asked.images * share / _DAY_S, "1/s", f"{show(asked.images, '1')} images × {share:g} a day"
    )


def _replica_bytes(aim: Aim, points: float, ledger: Ledger) -> float:
    asked, value = aim.workload, ledger.measured
    held = points * (1 + ledger.assumed("dead_share"))
    each = graph_bytes(value, asked.dimension, asked.quantization)
    graph = ledger.add(
        "graph of a replica", held * each, "bytes", f"{show(held, '1')} points, the dead among them × {each:.0f} bytes"
    )
    ledger.add("its copy while it merges", graph, "bytes", "the graph is in memory twice while a merge runs")
    indexed = points * ledger.assumed("payload_index_bytes")
    ledger.add("payload index", indexed, "bytes", f"{show(points, '1')} points")
    row = VECTOR_BYTES[asked.vector_type] * asked.dimension
    rows = points * row * ledger.assumed("rows_cached")
    ledger.add(
        "page cache of stored vectors",
        rows,
        "bytes",
        f"{show(points, '1')} points × {row} bytes that candidates are re-scored from",
    )
    fixed = value("shard_beside_points_bytes") + value("shard_process_bytes")
    ledger.add("process and caches", fixed, "bytes", "an empty shard, and RocksDB's caches and buffers")
    total = 2 * graph + indexed + rows + fixed
    return ledger.add("memory of a replica", total, "bytes", "2 × graph + payload index + page cache + process")


def _replica_disk(asked: Workload, points: float, ledger: Ledger) -> float:
    value = ledger.measured
    each = disk_bytes(value, asked.dimension, asked.quantization, asked.vector_type) + ledger.assumed("payload_bytes")
    store = ledger.add("store of a replica", points * each, "bytes", f"{show(points, '1')} points × {each:.0f} bytes")
    graphs = snapshot_graph_bytes(value, points, asked.dimension, asked.quantization)
    ledger.add(
        "graphs of its snapshots", graphs, "bytes", f"{SNAPSHOTS} local snapshots; the rest of them are hard links"
    )
    whole = (store + graphs) / (1 - ledger.assumed("disk_headroom"))
    return ledger.add("disk of a replica", whole, "bytes", "store and snapshots, with the headroom")


def _processors(
    aim: Aim, points: float, shards: int, cell_qps: float, uploads: float, room: int, ledger: Ledger
) -> tuple[int, int, int]:
    """Replicas of each shard, how many replicas a node holds, and its cores that search."""
    asked, value = aim.workload, ledger.measured
    speed = ledger.assumed("core_speed")
    inserts = uploads * ledger.assumed("peak_factor") / shards
    # The largest shard there may be, so that a little more of everything never needs less.
    largest = min(asked.images, aim.points_per_shard)
    slower = under_ingest(value, inserts)
    search = slower * (
        shard_call_s(value)
        + shard_query_s(value, largest, asked.ef_search, asked.dimension, _code_slower(asked, ledger))
    )
    ledger.add(
        "processor per search and shard",
        search / speed,
        "s",
        f"a lone query, ef_search {asked.ef_search}, {show(largest, '1')} points; × {slower:.2f} beside inserts",
    )
    insert = insert_s(value, largest) / speed
    building = inserts * insert
    ledger.add(
        "processor per insert",
        insert,
        "s",
        f"walk and copy at {show(largest, '1')} points; × {show(inserts, '1/s')} at the peak",
    )
    if building > 1:
        raise InvalidRequest(
            f"a shard gets {show(inserts, '1/s')} points and its one builder takes {show(1 / insert, '1/s')}: "
            "lower --points-per-shard or --uploads"
        )
    cores = math.floor(ledger.assumed("node_cores"))
    if cores < _CORES_MIN:
        raise InvalidRequest(
            "a node of shards needs 2 cores at least, one of them to build: raise --assume node_cores=…"
        )
    per_replica = cell_qps * search / speed
    serial = slower * (serial_call_s(value) + serial_query_s(value)) / speed
    by_interpreter = math.ceil(cell_qps * serial / aim.busy)
    by_cores_of_a_node = math.ceil(per_replica / ((cores - 1) * aim.busy))
    replicas = max(asked.replicas, by_interpreter, by_cores_of_a_node)
    ledger.add(
        "replicas",
        replicas,
        "1",
        f"the most of {asked.replicas} wanted, {by_cores_of_a_node} for {per_replica:.2f} cores of searches, and "
        f"{by_interpreter} for {show(serial, 's')} of each in one interpreter",
    )
    by_cores = math.floor(cores * aim.busy / (per_replica / replicas + building))
    per_node = max(1, min(room, by_cores))
    ledger.add(
        "replicas per node",
        per_node,
        "1",
        f"the fewer of {room} by memory and disk, and {by_cores} by processors, {aim.busy:.0%} busy",
    )
    return replicas, per_node, max(1, cores - math.ceil(building * per_node))


def _code_slower(asked: Workload, ledger: Ledger) -> float:
    return 1.0 if asked.quantization == "sq8" else ledger.assumed("code_slower")


def _api(aim: Aim, shards: int, cell_qps: float, ledger: Ledger) -> int:
    value, speed = ledger.measured, ledger.assumed("core_speed")
    each = (api_query_s(value) + fan_out_s(value, shards)) / speed
    processes = max(2, math.ceil(cell_qps * each / aim.busy))
    ledger.add(
        "API processes per cell",
        processes,
        "1",
        f"{show(cell_qps, '1/s')} × {show(each, 's')} (HTTP, and a lone query to {shards} shards) "
        f"÷ {aim.busy:.0%} busy; at least 2",
    )
    return processes


def costs_of(made: Shape, aim: Aim, ledger: Ledger, spread: tuple[tuple[float, float], ...]) -> Costs:
    """What the simulation is given for one cell of this shape."""
    asked, value, speed = aim.workload, ledger.measured, ledger.assumed("core_speed")
    walks = _code_slower(asked, ledger)
    slower = under_ingest(value, made.uploads_per_s * ledger.assumed("peak_factor") / made.shards) / speed
    return Costs(
        query_s=api_query_s(value) / speed,
        batch_s=value("fan_out_batch_ms") * 1e-3 / speed,
        call_s=value("fan_out_call_ms") * 1e-3 / speed,
        row_s=value("fan_out_row_ms") * 1e-3 / speed,
        shard_call_s=shard_call_s(value) * slower,
        shard_query_s=slower * shard_query_s(value, made.points, asked.ef_search, asked.dimension, walks),
        serial_call_s=serial_call_s(value) * slower,
        serial_query_s=serial_query_s(value) * slower,
        network_s=ledger.assumed("network_s"),
        spread=spread,
    )
