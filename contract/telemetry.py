"""Every metric name and log field name, and the one set-up of structured logs' names.

Nothing else in the repository spells a metric name: dashboards and alerts are generated from here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from msgspec import Struct


class Metric(Struct, frozen=True):
    """A Prometheus metric: name with its unit, kind, help text and label names."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


# Upper bounds of the buckets of delays from upload to searchable, in seconds.
DELAY_BUCKETS_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)

EVENTS = Metric("riverlens_ingest_events_total", "counter", "Events taken from image-events, by outcome.", ("outcome",))
INGEST_UPLOADS = Metric(
    "riverlens_ingest_uploads_total",
    "counter",
    "Uploads that were embedded, that were saved the embedding, and that are duplicates of another image.",
    ("outcome",),
)
INGEST_STAGE_SECONDS = Metric(
    "riverlens_ingest_stage_seconds", "histogram", "Time of one ingest stage for one batch.", ("stage",)
)
DEAD_LETTERS = Metric(
    "riverlens_ingest_dead_letters_total",
    "counter",
    "Dead letters, by the stage that failed, its error code, and whether a redrive may help.",
    ("stage", "code", "retryable"),
)
DECODERS = Metric("riverlens_decoders", "gauge", "Decoding processes there are.")
DECODINGS_IN_FLIGHT = Metric(
    "riverlens_decodings_in_flight", "gauge", "Pictures that a decoding process works on, or that wait for one."
)
DECODERS_LOST = Metric(
    "riverlens_decoders_lost_total", "counter", "Decoding processes that died or hung under a picture."
)
UPLOADS = Metric("riverlens_uploads_total", "counter", "Uploads over HTTP, by status.", ("status",))
UPLOADS_REFUSED = Metric(
    "riverlens_uploads_refused_total",
    "counter",
    "Uploads refused by back-pressure, by what has no room: lag, uploads or bytes.",
    ("reason",),
)
UPLOADS_IN_FLIGHT = Metric("riverlens_uploads_in_flight", "gauge", "Uploads whose bytes a replica of the API holds.")
UPLOAD_BYTES_IN_FLIGHT = Metric("riverlens_upload_in_flight_bytes", "gauge", "Bytes of those uploads, at most.")
SEARCHES = Metric("riverlens_searches_total", "counter", "Searches, by kind and coverage.", ("kind", "degraded"))
SEARCH_ADMISSIONS = Metric(
    "riverlens_search_admissions_total", "counter", "Searches that were let in or refused.", ("outcome",)
)
SEARCHES_IN_FLIGHT = Metric(
    "riverlens_searches_in_flight", "gauge", "Searches under way: working, or waiting for a receipt.", ("state",)
)
SEARCH_BYTES_IN_FLIGHT = Metric(
    "riverlens_search_in_flight_bytes", "gauge", "Bytes of the bodies of the searches under way, at most."
)
CONFIDENCE = Metric(
    "riverlens_search_confidence_total",
    "counter",
    "Answers to searches, by kind and by why they are not confident.",
    ("kind", "reason"),
)
SEARCH_STAGE_SECONDS = Metric("riverlens_search_stage_seconds", "histogram", "Time of one search stage.", ("stage",))
QUERY_CACHE = Metric(
    "riverlens_query_cache_total", "counter", "Query-vector cache look-ups, by kind and result.", ("kind", "result")
)
QUERY_CACHE_ENTRIES = Metric("riverlens_query_cache_entries", "gauge", "Query vectors in the cache.")
COVERAGE_RATIO = Metric(
    "riverlens_search_coverage_ratio", "histogram", "Share of the shards that a search covers.", ("collection",)
)
SHARD_CALLS = Metric(
    "riverlens_shard_calls_total",
    "counter",
    "Search calls to shards, by outcome: answered, late, abandoned, unavailable or failed.",
    ("collection", "shard", "outcome"),
)
SHARD_CALL_SECONDS = Metric(
    "riverlens_shard_call_seconds",
    "histogram",
    "Time of one search call to a shard, whatever became of it.",
    ("collection", "shard"),
)
SHARD_CALLS_IN_FLIGHT = Metric(
    "riverlens_shard_calls_in_flight", "gauge", "Search calls to shards that wait for their answer.", ("collection",)
)
SHARD_HEDGES = Metric(
    "riverlens_shard_hedges_total",
    "counter",
    "Second replicas asked because the first was slow.",
    ("collection", "shard"),
)
SHARD_HEDGES_WON = Metric(
    "riverlens_shard_hedges_won_total",
    "counter",
    "Second replicas that answered before the first.",
    ("collection", "shard"),
)
FAN_OUT_BATCHES = Metric(
    "riverlens_fan_out_batches_total", "counter", "Batches of queries that went to the shards.", ("collection",)
)
FAN_OUT_QUERIES = Metric(
    "riverlens_fan_out_queries_total", "counter", "Queries in those batches; their ratio is the mean.", ("collection",)
)
HTTP_REQUESTS = Metric(
    "riverlens_http_requests_total", "counter", "Requests that were answered.", ("method", "route", "status")
)
HTTP_REQUEST_SECONDS = Metric(
    "riverlens_http_request_seconds", "histogram", "Time from a request to the end of its answer.", ("method", "route")
)
HTTP_IN_FLIGHT = Metric("riverlens_http_requests_in_flight", "gauge", "Requests that wait for their answer.")
UPLOAD_TO_SEARCHABLE_SECONDS = Metric(
    "riverlens_upload_to_searchable_seconds",
    "histogram",
    "Time from an upload's event to when a shard replica has applied it; what is read again after a start is left out.",
    ("collection", "shard", "replica"),
)
SHARDS_TOTAL = Metric("riverlens_shards", "gauge", "Shards of a collection.", ("collection",))
SHARDS_ANSWERING = Metric("riverlens_shards_answering", "gauge", "Shards that answer.", ("collection",))
POINTS = Metric("riverlens_points", "gauge", "Searchable points of a shard.", ("collection", "shard"))
STALENESS_SECONDS = Metric(
    "riverlens_staleness_seconds", "gauge", "Age of the oldest event a shard has not applied.", ("collection", "shard")
)
CONSUMER_LAG = Metric(
    "riverlens_consumer_lag", "gauge", "Events in image-events a shard has not applied.", ("collection", "shard")
)
LAG_MESSAGES = Metric(
    "riverlens_lag_messages", "gauge", "Events of a collection that are logged and not searchable.", ("collection",)
)
DRAIN_SECONDS = Metric(
    "riverlens_drain_seconds",
    "gauge",
    "Estimated time until they are searchable; absent while nothing moves.",
    ("collection",),
)
APPLIED_OFFSET = Metric(
    "riverlens_applied_offset",
    "gauge",
    "Source offset up to which everything is searchable.",
    ("collection", "partition"),
)
SNAPSHOT_AGE_SECONDS = Metric(
    "riverlens_snapshot_age_seconds", "gauge", "Age of the newest snapshot of a shard.", ("collection", "shard")
)

RECALL = Metric(
    "riverlens_shard_recall_at_10",
    "gauge",
    "Recall@10 of recent sampled searches of a shard against exact ones.",
    ("collection", "shard"),
)
RECALL_SAMPLES = Metric(
    "riverlens_shard_recall_samples", "gauge", "Searches whose recall a shard has measured.", ("collection", "shard")
)
DEAD_POINTS = Metric(
    "riverlens_dead_points",
    "gauge",
    "Deleted or replaced points that wait in a shard's graph for its rebuild.",
    ("collection", "shard"),
)
REPLICA_READY = Metric(
    "riverlens_shard_replica_ready",
    "gauge",
    "1 for a replica that answers and has caught up with its start, else 0.",
    ("collection", "shard", "replica"),
)
SHARD_START_TIME = Metric(
    "riverlens_shard_start_time_seconds",
    "gauge",
    "Unix time at which a replica's actor started.",
    ("collection", "shard", "replica"),
)
SHARD_MEMORY = Metric(
    "riverlens_shard_memory_bytes",
    "gauge",
    "Resident memory of a replica's process.",
    ("collection", "shard", "replica"),
)
STORE_BYTES = Metric(
    "riverlens_shard_store_bytes", "gauge", "Size of a replica's store on disk.", ("collection", "shard", "replica")
)
MACHINE_MEMORY = Metric(
    "riverlens_machine_memory_bytes",
    "gauge",
    "Memory of the machine or container that a replica runs in.",
    ("collection", "shard", "replica"),
)
MACHINE_MEMORY_AVAILABLE = Metric(
    "riverlens_machine_memory_available_bytes",
    "gauge",
    "Memory that is left there.",
    ("collection", "shard", "replica"),
)
DISK = Metric(
    "riverlens_machine_disk_bytes",
    "gauge",
    "Size of the file system that holds a replica's store.",
    ("collection", "shard", "replica"),
)
DISK_FREE = Metric(
    "riverlens_machine_disk_free_bytes", "gauge", "Bytes that are free there.", ("collection", "shard", "replica")
)
EMBEDDER_READY = Metric(
    "riverlens_embedder_ready", "gauge", "1 for an embedder that answers, else 0.", ("model", "role", "index")
)

# What the Prometheus client library tells of its own process, by its own names and words.
PROCESS_START_TIME = Metric(
    "process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds."
)
PROCESS_MEMORY = Metric("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.")

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


class LogField(StrEnum):
    """Names of the fields of structured log lines."""

    PROCESS = "process"
    COLLECTION = "collection"
    SHARD = "shard"
    REPLICA = "replica"
    PARTITION = "partition"
    OFFSET = "offset"
    IMAGE_ID = "image_id"
    REQUEST_ID = "request_id"
    REQUEST_IDS = "request_ids"
    CALL = "call"
    KIND = "kind"
    K = "k"
    HITS = "hits"
    COVERAGE = "coverage"
    TOOK_MS = "took_ms"
    CACHE_HIT = "cache_hit"
    CACHE_HITS = "cache_hits"
    PROBLEMS = "problems"
    REQUEST_BYTES = "request_bytes"
    KEY_ID = "key_id"
    CODE = "code"
    STAGE = "stage"
    DURATION_S = "duration_s"
    COUNT = "count"
    PID = "pid"
    ERROR = "error"
    METHOD = "method"
    ROUTE = "route"
    STATUS = "status"
    SNAPSHOT = "snapshot"
    PLACE = "place"
    BYTES = "bytes"
