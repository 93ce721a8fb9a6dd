"""The dashboard of ingest and of the shards."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from contract import telemetry as t
from infra.monitoring import objectives as o
from infra.monitoring.panels import (
    BYTES,
    EVENTS_PER_SECOND,
    PER_SECOND,
    SECONDS,
    SHARE,
    SHORT,
    AnyPanel,
    Limits,
    Query,
    Row,
    dashboard,
    graph,
)
from infra.monitoring.promql import INGEST_JOB, over, quantile, rate, select, share

_C = "~$collection"
_SHARD = ("collection", "shard")
_REPLICA = ("collection", "shard", "replica")
_SHARD_LEGEND = "{{collection}}/{{shard}}"
_REPLICA_LEGEND = "{{collection}}/{{shard}}/{{replica}}"


def ingest_and_shards() -> Dashboard:
    """What happens to an upload on its way, and how each shard is."""
    return dashboard(
        "riverlens-ingest",
        "Riverlens: ingest and shards",
        "What happens to an upload on its way, how pictures are decoded, and how each shard is.",
        t.SHARDS_TOTAL,
        [
            Row("Uploads", _uploads_row()),
            Row("Ingest", _ingest_row()),
            Row("Decoding", _decoding_row()),
            Row("Shards", _shards_row()),
            Row("Machines of the shards", _machines_row()),
        ],
    )


def _uploads_row() -> tuple[AnyPanel, ...]:
    return (
        graph("Uploads", PER_SECOND, Query(rate(t.UPLOADS, "status"), "{{status}}"), about="Over HTTP, by status."),
        graph(
            "Uploads refused",
            PER_SECOND,
            Query(rate(t.UPLOADS_REFUSED, "reason"), "{{reason}}"),
            about="By back-pressure (429): too far behind, too many at a time, or too many bytes.",
        ),
        graph(
            "Uploads in memory",
            SHORT,
            Query(over("sum", select(t.UPLOADS_IN_FLIGHT), "instance"), "{{instance}}"),
            about="Bounded by RIVERLENS_UPLOADS_IN_FLIGHT_MAX in each replica of the API.",
        ),
    )


def _ingest_row() -> tuple[AnyPanel, ...]:
    return (
        graph(
            "Events",
            EVENTS_PER_SECOND,
            Query(rate(t.EVENTS, "outcome"), "{{outcome}}"),
            about="Taken from image-events; `rejected` ones are dead letters.",
        ),
        graph(
            "Pictures",
            EVENTS_PER_SECOND,
            Query(rate(t.INGEST_UPLOADS, "outcome"), "{{outcome}}"),
            about="`saved`: the same bytes had been embedded before.",
        ),
        graph(
            "Stages of a batch, p95",
            SECONDS,
            Query(quantile(0.95, t.INGEST_STAGE_SECONDS, "stage"), "{{stage}}"),
            about="The longest stage is what more of would help: decoding processes, embedders, or the broker.",
        ),
        graph(
            "Dead letters",
            EVENTS_PER_SECOND,
            Query(rate(t.DEAD_LETTERS, "stage", "code"), "{{stage}} {{code}}"),
            about="See them with `riverlens dead-letter list`.",
        ),
        graph(
            "Memory of the ingest process",
            BYTES,
            Query(over("max", select(t.PROCESS_MEMORY, job=INGEST_JOB), "instance"), "{{instance}}"),
            about="Resident, without its decoding processes.",
        ),
        graph(
            "Upload until searchable, p99 by shard",
            SECONDS,
            Query(quantile(0.99, t.UPLOAD_TO_SEARCHABLE_SECONDS, *_SHARD, collection=_C), _SHARD_LEGEND),
            about="One shard that is slower than the others has a slow machine or too many points.",
            limits=Limits(None, o.SEARCHABLE_WITHIN_S),
        ),
    )


def _decoding_row() -> tuple[AnyPanel, ...]:
    return (
        graph(
            "Decoding processes",
            SHORT,
            Query(over("sum", select(t.DECODERS), "job", "instance"), "{{job}} {{instance}}"),
            about="At most RIVERLENS_DECODE_PROCESSES each; they start when they are first needed.",
        ),
        graph(
            "Pictures being decoded or waiting",
            SHORT,
            Query(over("sum", select(t.DECODINGS_IN_FLIGHT), "job", "instance"), "{{job}} {{instance}}"),
            about="More than there are processes for a long time: decoding is the bottleneck.",
        ),
        graph(
            "Decoding processes lost",
            SHORT,
            Query(
                over("sum", f"increase({select(t.DECODERS_LOST, window='15m')})", "job", "instance"),
                "{{job}} {{instance}}",
            ),
            about="In 15 minutes: died or hung under a picture, which was rejected.",
            limits=Limits(1, o.DECODERS_LOST),
        ),
    )


def _gauge(title: str, unit: str, metric: t.Metric, about: str, limits: Limits | None = None) -> AnyPanel:
    """A gauge of a shard or of a replica, whichever replica of the API tells it."""
    by, legend = (_REPLICA, _REPLICA_LEGEND) if "replica" in metric.labels else (_SHARD, _SHARD_LEGEND)
    return graph(
        title, unit, Query(over("max", select(metric, collection=_C), *by), legend), about=about, limits=limits
    )


def _shards_row() -> tuple[AnyPanel, ...]:
    points, dead = (over("max", select(m, collection=_C), *_SHARD) for m in (t.POINTS, t.DEAD_POINTS))
    applied = over("max", select(t.APPLIED_OFFSET, collection=_C), "collection", "partition")
    return (
        _gauge("Points", SHORT, t.POINTS, "Searchable."),
        graph(
            "Dead points",
            SHARE,
            Query(f"{dead} / clamp_min({points}, 1)", _SHARD_LEGEND),
            about="Deleted or replaced points in the graph, as a share of the searchable; a rebuild sweeps them.",
        ),
        graph(
            "Events applied",
            EVENTS_PER_SECOND,
            Query(f"clamp_min(deriv(({applied})[5m:]), 0)", "{{collection}} partition {{partition}}"),
            about="How fast the applied offset moves.",
        ),
        _gauge(
            "Recall@10",
            SHARE,
            t.RECALL,
            "Of sampled searches, against exact ones.",
            Limits(None, o.RECALL, falling=True),
        ),
        _gauge("Recall samples", SHORT, t.RECALL_SAMPLES, "Searches behind that figure, since the shard started."),
        _gauge(
            "Age of the newest snapshot", SECONDS, t.SNAPSHOT_AGE_SECONDS, "A shard that does not change takes none."
        ),
    )


def _machines_row() -> tuple[AnyPanel, ...]:
    free, disk, available, memory = (
        over("max", select(metric, collection=_C), *_REPLICA)
        for metric in (t.DISK_FREE, t.DISK, t.MACHINE_MEMORY_AVAILABLE, t.MACHINE_MEMORY)
    )
    return (
        _gauge("Memory of a shard", BYTES, t.SHARD_MEMORY, "Resident memory of a replica's process."),
        _gauge("Store on disk", BYTES, t.STORE_BYTES, "Snapshots and the graph's files come on top."),
        graph(
            "Disk used",
            SHARE,
            Query(f"1 - {share(free, disk)}", _REPLICA_LEGEND),
            about="Of the file system that holds a replica's store.",
            limits=Limits(1 - o.DISK_FREE_LOW, 1 - o.DISK_FREE_CRITICAL),
            top=1,
        ),
        graph(
            "Memory used",
            SHARE,
            Query(f"1 - {share(available, memory)}", _REPLICA_LEGEND),
            about="Of the machine or container that a replica runs in.",
            limits=Limits(1 - o.MEMORY_LOW, 1 - o.MEMORY_CRITICAL),
            top=1,
        ),
        graph(
            "Time since a replica started",
            SECONDS,
            Query(f"time() - {over('max', select(t.SHARD_START_TIME, collection=_C), *_REPLICA)}", _REPLICA_LEGEND),
            about="A line that falls to 0 is a restart.",
        ),
    )
