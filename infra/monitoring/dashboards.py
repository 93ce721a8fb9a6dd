"""The dashboards: one for whoever is on call, one for searches, one for ingest and shards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from grafana_foundation_sdk.models.dashboard import Dashboard

from contract import telemetry as t
from infra.monitoring import objectives as o
from infra.monitoring.panels import (
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
    number,
)
from infra.monitoring.promql import API_JOB, INGEST_JOB, mean, over, quantile, rate, select, share

# The dashboards' variable; one or several collections.
_C = "~$collection"
# Metrics that no panel shows, each with why.
NOT_SHOWN: Final[Mapping[str, str]] = {}

_SHARD = ("collection", "shard")
_REPLICA = ("collection", "shard", "replica")
_SHARD_LEGEND = "{{collection}}/{{shard}}"
_REPLICA_LEGEND = "{{collection}}/{{shard}}/{{replica}}"


def _now(metric: t.Metric, *by: str, operation: Literal["max", "min"] = "max") -> str:
    """A gauge, whichever replica of the API tells it."""
    series = select(metric, collection=_C) if "collection" in metric.labels else select(metric)
    return over(operation, series, *by)


def _quantiles(metric: t.Metric, *by: str, legend: str = "", **labels: str) -> list[Query]:
    return [Query(quantile(q, metric, *by, **labels), f"{legend}p{100 * q:g}") for q in (0.5, 0.95, 0.99)]


def _searchable_p99() -> str:
    return quantile(0.99, t.UPLOAD_TO_SEARCHABLE_SECONDS, collection=_C)


def _search_p99() -> str:
    return quantile(0.99, t.SEARCH_STAGE_SECONDS, stage="total")


def _available(free: t.Metric, whole: t.Metric) -> str:
    return share(_now(free, *_REPLICA, operation="min"), _now(whole, *_REPLICA))


def _up(job: str) -> Query:
    # Prometheus's own series of a scrape: 1 where it succeeded.
    return Query(f'up{{job="{job}"}}', "{{job}} {{instance}}")


def overview() -> Dashboard:
    """What whoever is on call looks at first."""
    return dashboard(
        "riverlens-overview",
        "Riverlens: overview",
        "Is it fresh, whole, quick, and will it stay so. Its lines are those of the alerts; docs/runbook.md goes on.",
        t.SHARDS_TOTAL,
        [
            Row("Now", _now_row()),
            Row("Freshness", _freshness_row()),
            Row("Searches", _search_summary_row()),
            Row("Refused and failed", _refused_row()),
            Row("Parts", _parts_row()),
        ],
    )


def _now_row() -> tuple[AnyPanel, ...]:
    shards, answering = (over("sum", _now(metric, "collection")) for metric in (t.SHARDS_TOTAL, t.SHARDS_ANSWERING))
    letters = over("sum", f"increase({select(t.DEAD_LETTERS, window='1h')})")
    return (
        number(
            "Staleness",
            SECONDS,
            Query(_now(t.STALENESS_SECONDS)),
            about="Age of the oldest event that is not searchable yet, of the worst shard.",
            limits=Limits(o.SEARCHABLE_WITHIN_S, o.STALE_S),
        ),
        number(
            "Upload until searchable, p99",
            SECONDS,
            Query(_searchable_p99()),
            about=f"The objective: {o.SEARCHABLE_SHARE:.0%} within {o.SEARCHABLE_WITHIN_S:g} s.",
            limits=Limits(None, o.SEARCHABLE_WITHIN_S),
        ),
        number(
            "Shards missing",
            SHORT,
            Query(f"{shards} - {answering}"),
            about="Shards of which no replica answers.",
            limits=Limits(None, 1),
        ),
        number(
            "Search p99",
            SECONDS,
            Query(_search_p99()),
            about="The whole of a search, with the wait for a receipt where one is demanded.",
            limits=Limits(None, o.SEARCH_P99_S),
        ),
        number("Searches", PER_SECOND, Query(rate(t.SEARCHES)), about="Searches answered a second."),
        number(
            "Dead letters in an hour",
            SHORT,
            Query(letters),
            about="Events that led to nothing. See them with `riverlens dead-letter list`.",
            limits=Limits(1, None),
        ),
    )


def _freshness_row() -> tuple[AnyPanel, ...]:
    fast = select(
        t.UPLOAD_TO_SEARCHABLE_SECONDS, part="_bucket", window="1h", collection=_C, le=str(o.SEARCHABLE_WITHIN_S)
    )
    in_time = share(
        over("sum", f"increase({fast})", "collection"),
        over(
            "sum",
            f"increase({select(t.UPLOAD_TO_SEARCHABLE_SECONDS, part='_count', window='1h', collection=_C)})",
            "collection",
        ),
    )
    return (
        graph(
            "Staleness",
            SECONDS,
            Query(_now(t.STALENESS_SECONDS, *_SHARD), _SHARD_LEGEND),
            about="Age of the oldest event a shard has not applied; 0 when it is caught up.",
            limits=Limits(o.SEARCHABLE_WITHIN_S, o.STALE_S),
        ),
        graph(
            "Upload until searchable",
            SECONDS,
            *_quantiles(t.UPLOAD_TO_SEARCHABLE_SECONDS, collection=_C),
            about="From an upload's event to when a replica has applied it. Live uploads only.",
            limits=Limits(None, o.SEARCHABLE_WITHIN_S),
        ),
        graph(
            f"Searchable within {o.SEARCHABLE_WITHIN_S:g} s, over an hour",
            SHARE,
            Query(in_time, "{{collection}}"),
            about="The share that the freshness objective is about; what is below the line burns its budget.",
            limits=Limits(None, o.SEARCHABLE_SHARE, falling=True),
            top=1,
        ),
        graph(
            "Logged and not searchable",
            SHORT,
            Query(_now(t.LAG_MESSAGES, "collection"), "{{collection}}"),
            about="Events that wait. Uploads are refused at RIVERLENS_UPLOAD_LAG_MAX.",
            limits=Limits(o.LAG_MESSAGES, 2 * o.LAG_MESSAGES),
        ),
        graph(
            "Time until they are searchable",
            SECONDS,
            Query(_now(t.DRAIN_SECONDS, "collection"), "{{collection}}"),
            about="At the pace of late. No line while events wait means that nothing moves.",
        ),
        graph(
            "Consumer lag",
            SHORT,
            Query(_now(t.CONSUMER_LAG, *_SHARD), _SHARD_LEGEND),
            about="The same by shard: one shard that lags is ill, all of them mean too little ingest.",
        ),
    )


def _search_summary_row() -> tuple[AnyPanel, ...]:
    return (
        graph("Searches", PER_SECOND, Query(rate(t.SEARCHES, "kind"), "{{kind}}"), about="Answered, by kind."),
        graph(
            "Search time",
            SECONDS,
            *_quantiles(t.SEARCH_STAGE_SECONDS, stage="total"),
            about="Of the whole search. Its stages are on the dashboard of searches.",
            limits=Limits(None, o.SEARCH_P99_S),
        ),
        graph(
            "Coverage",
            SHARE,
            Query(mean(t.COVERAGE_RATIO, "collection", collection=_C), "{{collection}}"),
            about="Share of the shards that searches cover; below 1 answers lack hits, and say so.",
            limits=Limits(None, o.COVERAGE, falling=True),
            top=1,
        ),
    )


def _refused_row() -> tuple[AnyPanel, ...]:
    return (
        graph(
            "Refused",
            PER_SECOND,
            Query(rate(t.SEARCH_ADMISSIONS, outcome="refused"), "searches (503, 429)"),
            Query(rate(t.UPLOADS_REFUSED, "reason"), "uploads (429), {{reason}}"),
            Query(rate(t.HTTP_REQUESTS, status="429"), "all 429"),
            about="Searches: too many, or too many bytes. Uploads: by what has no room. All 429 adds rate limits.",
        ),
        graph(
            "Answers that failed",
            PER_SECOND,
            Query(rate(t.HTTP_REQUESTS, "route", "status", status="~5.."), "{{status}} {{route}}"),
            about="Answers of status 5xx, by route.",
        ),
        graph(
            "Dead letters",
            EVENTS_PER_SECOND,
            Query(rate(t.DEAD_LETTERS, "stage", "code", "retryable"), "{{stage}} {{code}} (retryable: {{retryable}})"),
            about="Retryable ones are of a fault that passes: redrive them when it has.",
        ),
    )


def _parts_row() -> tuple[AnyPanel, ...]:
    restarts = f"changes({select(t.PROCESS_START_TIME, job=f'~{API_JOB}|{INGEST_JOB}', window='15m')})"
    shards = over("max", f"changes({select(t.SHARD_START_TIME, collection=_C, window='15m')})", *_REPLICA)
    return (
        graph(
            "Parts that answer",
            SHORT,
            _up(API_JOB),
            _up(INGEST_JOB),
            Query(_now(t.REPLICA_READY, *_REPLICA), _REPLICA_LEGEND),
            Query(_now(t.EMBEDDER_READY, "model", "role", "index"), "{{model}} {{role}} {{index}}"),
            about="1 for each process, shard replica and embedder that answers.",
            top=1,
        ),
        graph(
            "Restarts in 15 minutes",
            SHORT,
            Query(restarts, "{{job}} {{instance}}"),
            Query(shards, _REPLICA_LEGEND),
            about="How often a process or a replica's actor has started anew.",
            limits=Limits(1, o.RESTARTS + 1),
        ),
        graph(
            "Disk free where the stores are",
            SHARE,
            Query(_available(t.DISK_FREE, t.DISK), _REPLICA_LEGEND),
            about="Of the file system that holds a replica's store. Replicas of one machine share it.",
            limits=Limits(o.DISK_FREE_LOW, o.DISK_FREE_CRITICAL, falling=True),
            top=1,
        ),
        graph(
            "Memory available where the shards are",
            SHARE,
            Query(_available(t.MACHINE_MEMORY_AVAILABLE, t.MACHINE_MEMORY), _REPLICA_LEGEND),
            about="Of the machine, or of the container where it has less.",
            limits=Limits(o.MEMORY_LOW, o.MEMORY_CRITICAL, falling=True),
            top=1,
        ),
        graph(
            "Recall@10",
            SHARE,
            Query(_now(t.RECALL, *_SHARD, operation="min"), _SHARD_LEGEND),
            about="Of sampled searches, against exact ones.",
            limits=Limits(None, o.RECALL, falling=True),
            top=1,
        ),
        graph(
            "Age of the newest snapshot",
            SECONDS,
            Query(_now(t.SNAPSHOT_AGE_SECONDS, *_SHARD), _SHARD_LEGEND),
            about="A shard that does not change takes none, so an old one alone is no fault.",
            limits=Limits(o.SNAPSHOT_AGE_S, None),
        ),
    )
