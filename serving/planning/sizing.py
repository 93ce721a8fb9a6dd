"""Memory, disks, Kafka, network, embedding and cost of a shape, each figure with its derivation."""

from __future__ import annotations

import math
from typing import Final

from serving.planning.ledger import Ledger
from serving.planning.model import SNAPSHOTS, disk_bytes, insert_s, snapshot_graph_bytes
from serving.planning.quantities import show
from serving.planning.shape import Shape
from serving.planning.workload import Workload

_HOURS_A_MONTH: Final = 730.0
_DAY_S: Final = 86_400.0
_GB: Final = 1e9


def sizes(made: Shape, workload: Workload, ledger: Ledger) -> None:
    """Add all figures that follow from the shape."""
    with ledger.group("Memory"):
        _memory(made, workload, ledger)
    with ledger.group("Disk and objects"):
        _disk(made, workload, ledger)
        objects = _objects(made, workload, ledger)
    with ledger.group("Kafka"):
        brokers, logs = _kafka(made, workload, ledger)
    with ledger.group("Ingest and backfill"):
        gpus, ingest_cores = _ingest(made, workload, ledger)
    with ledger.group("Network"):
        _network(made, workload, ledger)
    with ledger.group("Recovery"):
        _recovery(made, ledger)
    with ledger.group("Cost"):
        _cost(made, objects, brokers, logs, gpus, ingest_cores, ledger)


def _memory(made: Shape, workload: Workload, ledger: Ledger) -> None:
    replicas = made.cells * made.shards * made.replicas
    ledger.add("shard replicas", replicas, "1", f"{made.cells} cells × {made.shards} shards × {made.replicas} replicas")
    total = replicas * made.replica_bytes
    ledger.add("memory of all shards", total, "bytes", f"{replicas:,} × {show(made.replica_bytes, 'bytes')}")
    ledger.add(
        "memory per image",
        total / workload.images,
        "bytes",
        "memory of all shards ÷ images: every replica, twice its graph",
    )
    spare = ledger.assumed("spare_nodes")
    nodes = made.cells * (made.nodes + math.ceil(spare))
    ledger.add("nodes of shards", nodes, "1", f"{made.cells} cells × ({made.nodes} + {spare:g} spare)")
    ledger.add("memory of these nodes", nodes * ledger.assumed("node_memory_bytes"), "bytes", f"{nodes:,} nodes")


def _disk(made: Shape, workload: Workload, ledger: Ledger) -> None:
    per_node = made.replica_disk_bytes * made.per_node
    available = ledger.assumed("node_disk_bytes")
    ledger.add(
        "disk used per node",
        per_node,
        "bytes",
        f"{made.per_node} replicas; {per_node / available:.0%} of {show(available, 'bytes')}",
    )
    candidates = ledger.measured(f"candidates_{workload.quantization}")
    misses = (1 - ledger.assumed("rows_cached")) * candidates
    reads = made.cell_qps * made.shards / made.nodes * misses
    ledger.add(
        "reads of stored vectors per node",
        reads,
        "1/s",
        f"{candidates:.0f} candidates per search and shard, what is not in the page cache",
    )
    whole = made.replica_disk_bytes * made.cells * made.shards * made.replicas
    ledger.add("disk of all shards", whole, "bytes", "every replica")


def _objects(made: Shape, workload: Workload, ledger: Ledger) -> float:
    pictures = workload.images * ledger.assumed("picture_bytes")
    ledger.add("pictures", pictures, "bytes", f"{show(workload.images, '1')} images, as uploaded")
    thumbnails = workload.images * ledger.assumed("thumbnailed") * ledger.measured("thumbnail_bytes")
    ledger.add("thumbnails", thumbnails, "bytes", "one of 256 pixels per picture that somebody looks at")
    each = disk_bytes(ledger.measured, workload.dimension, workload.quantization, workload.vector_type)
    each += ledger.assumed("payload_bytes")
    graphs = snapshot_graph_bytes(ledger.measured, workload.images, workload.dimension, workload.quantization)
    snapshots = workload.images * each + graphs
    ledger.add("snapshots", snapshots, "bytes", f"a store per shard, shared by its replicas, and {SNAPSHOTS} graphs")
    return ledger.add("object store", pictures + thumbnails + snapshots, "bytes", "pictures, thumbnails, snapshots")


def _kafka(made: Shape, workload: Workload, ledger: Ledger) -> tuple[int, float]:
    """Brokers, and bytes on their disks."""
    images, uploads = workload.images, made.uploads_per_s * made.cells
    around = ledger.assumed("kafka_record_bytes")
    payload = ledger.assumed("payload_bytes")
    record = (
        ledger.measured("log_record_bytes_per_dimension") * workload.dimension + ledger.measured("log_record_bytes")
        + payload + around
    )  # fmt: skip
    ledger.add(
        "embedding-log, per record", record, "bytes", "vector in float32, the record around it, payload, Kafka's part"
    )
    log = images * record / (1 - ledger.assumed("kafka_dirty"))
    ledger.add("embedding-log", log, "bytes", f"{show(images, '1')} records, compacted, and what waits for compaction")
    event = ledger.measured("image_event_bytes") + payload + ledger.assumed("kafka_record_bytes")
    retention_s = ledger.assumed("event_retention_s")
    kept = images if math.isinf(retention_s) else min(images, uploads * retention_s)
    ledger.add(
        "image-events", kept * event, "bytes", f"{show(kept, '1')} events within their retention × {event:.0f} bytes"
    )
    known_record = ledger.measured("known_bytes_record_bytes") + ledger.assumed("kafka_record_bytes")
    known = images * known_record
    ledger.add(
        "known-bytes", known, "bytes", f"{show(images, '1')} × {known_record:.0f} bytes in one partition per cell"
    )
    copies = round(ledger.assumed("kafka_replication"))
    held = copies * (log + kept * event + known)
    ledger.add("Kafka's disks", held, "bytes", f"{copies} copies of all")
    by_size = math.ceil(log / made.cells / ledger.assumed("partition_bytes_max"))
    grown = math.ceil(made.shards * ledger.assumed("partition_growth"))
    partitions = max(by_size, grown, made.shards)
    ledger.add(
        "partitions per collection",
        partitions,
        "1",
        f"the most of {made.shards} shards, {grown} with room to grow, {by_size} by size; fixed for life",
    )
    replicas_of_partitions = 2 * partitions * copies * made.cells
    ledger.add(
        "partition replicas", replicas_of_partitions, "1", f"2 topics × {partitions} × {copies} × {made.cells} cells"
    )
    written = copies * uploads * ledger.assumed("peak_factor") * (record + event + known_record)
    ledger.add("written at the peak", written, "bytes/s", "every copy of every record")
    counts = {
        "copies": copies * made.cells,
        "partitions": math.ceil(replicas_of_partitions / ledger.assumed("broker_partitions_max")),
        "disk": math.ceil(held / (ledger.assumed("broker_disk_bytes") * (1 - ledger.assumed("disk_headroom")))),
        "writes": math.ceil(written / ledger.assumed("broker_bytes_per_s")),
    }
    brokers = max(counts.values())
    ledger.add("brokers", brokers, "1", "the most of " + ", ".join(f"{n:,} by {name}" for name, n in counts.items()))
    return brokers, held


def _ingest(made: Shape, workload: Workload, ledger: Ledger) -> tuple[int, int]:
    """GPUs, and cores that decode and publish."""
    uploads = made.uploads_per_s * made.cells
    peak = ledger.add(
        "uploads at the peak",
        uploads * ledger.assumed("peak_factor"),
        "1/s",
        f"{show(uploads, '1/s')} × the peak factor",
    )
    rate, busy = ledger.assumed("gpu_images_per_s"), ledger.assumed("gpu_busy")
    embedders = max(1, math.ceil(peak / (rate * busy)))
    ledger.add(
        "embedders of images", embedders, "1", f"{show(peak, '1/s')} ÷ ({rate:g}/s × {busy:.0%} busy), a GPU each"
    )
    texts = workload.qps * ledger.assumed("encoded_queries")
    text_rate, text_busy = ledger.assumed("gpu_texts_per_s"), ledger.assumed("gpu_busy")
    query_embedders = math.ceil(texts / (text_rate * text_busy))
    ledger.add(
        "embedders of queries",
        query_embedders,
        "1",
        f"{show(texts, '1/s')} not in the cache ÷ ({text_rate:g}/s × {text_busy:.0%})",
    )
    cores = max(2, math.ceil(peak * ledger.assumed("decode_s") / ledger.assumed("core_speed") / 0.6))
    ledger.add("cores of ingest", cores, "1", "uploads at the peak × time to decode ÷ 60 % busy; at least 2")
    gpu_s = workload.images / rate
    ledger.assumed("gpu_images_per_s")
    ledger.add("GPU hours of a backfill", gpu_s / 3600, "h", f"{show(workload.images, '1')} images ÷ {rate:g}/s")
    days = ledger.assumed("backfill_days")
    ledger.add("GPUs to do it in time", math.ceil(gpu_s / (days * _DAY_S)), "1", f"in {days:g} days")
    decoding = workload.images * ledger.assumed("decode_s") / ledger.assumed("core_speed")
    ledger.add("core hours to decode it", decoding / 3600, "h", "images × time to decode")
    cpu = workload.images * ledger.measured("offline_encode_ms") * 1e-3
    ledger.add("the same without a GPU", cpu / 3600, "h", "core hours of the offline model, for comparison")
    inserting = workload.images * made.replicas * insert_s(ledger.measured, made.points) / ledger.assumed("core_speed")
    ledger.add(
        "core hours to insert it", inserting / 3600, "h", f"images × {made.replicas} replicas × an insert at full size"
    )
    return embedders + query_embedders, cores


def _network(made: Shape, workload: Workload, ledger: Ledger) -> None:
    asked = (
        ledger.measured("request_bytes_per_dimension") * workload.dimension + ledger.measured("request_bytes")
        + ledger.measured("request_batch_bytes")
    )  # fmt: skip
    extra = max(0.0, ledger.assumed("payload_bytes") - ledger.measured("answer_payload_bytes"))
    answered = ledger.measured("answer_bytes") + ledger.measured("answer_batch_bytes") + 10 * extra
    ledger.add("a query to a shard", asked, "bytes", "vector in float32, with its frame")
    ledger.add("its answer", answered, "bytes", "10 candidates with payload")
    per_cell = made.cell_qps * made.shards * (asked + answered)
    ledger.add(
        "fan-out of a cell", per_cell, "bytes/s", f"{show(made.cell_qps, '1/s')} × {made.shards} shards × both ways"
    )
    ledger.add("fan-out per API process", per_cell / made.api_processes, "bytes/s", f"÷ {made.api_processes} processes")
    ledger.add("fan-out per node of shards", per_cell / made.nodes, "bytes/s", f"÷ {made.nodes} nodes")
    uploads = made.uploads_per_s * made.cells * ledger.assumed("peak_factor")
    pictures = 3 * uploads * ledger.assumed("picture_bytes")
    ledger.add("pictures at the peak", pictures, "bytes/s", "in at the API, out to the object store, in at ingest")


def _recovery(made: Shape, ledger: Ledger) -> None:
    store = _value(ledger, "store of a replica")
    rate = ledger.assumed("restore_bytes_per_s")
    ledger.add("a replica from its snapshot", store / rate, "s", f"{show(store, 'bytes')} ÷ {show(rate, 'bytes/s')}")
    replay = made.points * insert_s(ledger.measured, made.points) / ledger.assumed("core_speed")
    ledger.add("a replica from the log", replay, "s", f"{show(made.points, '1')} inserts of one builder, at full size")


def _cost(made: Shape, objects: float, brokers: int, logs: float, gpus: int, ingest_cores: int, ledger: Ledger) -> None:
    nodes = _value(ledger, "nodes of shards")
    api_cores = made.cells * made.api_processes + made.router_processes + ingest_cores
    core_price = ledger.assumed("api_core_price")
    parts = {
        "nodes of shards": nodes * ledger.assumed("node_price") * _HOURS_A_MONTH,
        "API and ingest": api_cores * core_price * _HOURS_A_MONTH,
        "GPUs": gpus * ledger.assumed("gpu_price") * _HOURS_A_MONTH,
        "brokers": brokers * ledger.assumed("broker_price") * _HOURS_A_MONTH
        + logs / _GB * ledger.assumed("disk_price"),
        "objects": objects / _GB * ledger.assumed("object_price"),
    }
    ledger.add(
        "cost a month", sum(parts.values()), "$", " + ".join(f"{name} {value:,.0f}" for name, value in parts.items())
    )
    backfill = _value(ledger, "GPU hours of a backfill")
    ledger.add(
        "cost of a backfill", backfill * ledger.assumed("gpu_price"), "$", "its GPU hours; decoding comes on top"
    )


def _value(ledger: Ledger, name: str) -> float:
    return next(one.value for one in ledger.figures if one.name == name)
