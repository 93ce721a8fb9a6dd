"""The dashboard of searches and of HTTP."""

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
from infra.monitoring.promql import API_JOB, mean, over, quantile, rate, select, share

_C = "~$collection"


def searches() -> Dashboard:
    """Where the time of a search goes, what is cached, what is refused, and what each shard does."""
    return dashboard(
        "riverlens-search",
        "Riverlens: searches",
        "Where the time of a search goes, what each shard does for it, what is refused, and all of HTTP.",
        t.SHARDS_TOTAL,
        [
            Row("Stages", _stages_row()),
            Row("Answers", _answers_row()),
            Row("Fan-out", _fan_out_row()),
            Row("Admission", _admission_row()),
            Row("HTTP", _http_row()),
        ],
    )


def _stages_row() -> tuple[AnyPanel, ...]:
    return tuple(
        graph(
            f"Stages, p{100 * q:g}",
            SECONDS,
            Query(quantile(q, t.SEARCH_STAGE_SECONDS, "stage"), "{{stage}}"),
            about="`total`: all of them and the wait for a receipt. `fan_out`: until the last shard or the deadline.",
            limits=Limits(None, o.SEARCH_P99_S) if q == 0.99 else None,
        )
        for q in (0.5, 0.95, 0.99)
    )


def _answers_row() -> tuple[AnyPanel, ...]:
    return (
        graph(
            "Query vectors from the cache",
            SHARE,
            Query(share(rate(t.QUERY_CACHE, "kind", result="hit"), rate(t.QUERY_CACHE, "kind")), "{{kind}}"),
            about="A hit needs no encoder.",
            top=1,
        ),
        graph(
            "Query vectors in the cache",
            SHORT,
            Query(over("sum", select(t.QUERY_CACHE_ENTRIES), "instance"), "{{instance}}"),
            about="At most RIVERLENS_TEXT_CACHE in each replica of the API.",
        ),
        graph(
            "Degraded answers",
            PER_SECOND,
            Query(rate(t.SEARCHES, "kind", "degraded", degraded="!false"), "{{kind}}: {{degraded}}"),
            about="`true`: a shard is missing. `metadata`: words answered, because vectors could not.",
        ),
        graph(
            "Confidence of answers",
            PER_SECOND,
            Query(rate(t.CONFIDENCE, "reason"), "{{reason}}"),
            about="Why answers are not confident. A change without one of the model or the data is a fault.",
        ),
    )


def _fan_out_row() -> tuple[AnyPanel, ...]:
    return (
        graph(
            "Shard calls, p99",
            SECONDS,
            Query(quantile(0.99, t.SHARD_CALL_SECONDS, "shard", collection=_C), "shard {{shard}}"),
            about="A search waits for its slowest shard.",
        ),
        graph(
            "Shard calls that did not answer",
            EVENTS_PER_SECOND,
            Query(
                rate(t.SHARD_CALLS, "shard", "outcome", collection=_C, outcome="!answered"),
                "shard {{shard}}: {{outcome}}",
            ),
            about="`late`: missed the deadline. `abandoned`: nobody waits any more. The others are errors.",
        ),
        graph(
            "Hedges",
            SHARE,
            Query(share(rate(t.SHARD_HEDGES, collection=_C), rate(t.SHARD_CALLS, collection=_C)), "calls added"),
            Query(share(rate(t.SHARD_HEDGES_WON, collection=_C), rate(t.SHARD_HEDGES, collection=_C)), "of them, won"),
            about="Second replicas asked because the first was slow. Needs replicas.",
        ),
        graph(
            "Calls under way",
            SHORT,
            Query(over("sum", select(t.SHARD_CALLS_IN_FLIGHT, collection=_C), "collection"), "{{collection}}"),
            about="Calls to shards that wait for their answer, over all replicas of the API.",
        ),
        graph(
            "Queries in a batch",
            SHORT,
            Query(
                share(
                    rate(t.FAN_OUT_QUERIES, "collection", collection=_C),
                    rate(t.FAN_OUT_BATCHES, "collection", collection=_C),
                ),
                "{{collection}}",
            ),
            about="Queries that arrive together go to the shards together.",
        ),
        graph(
            "Coverage",
            SHARE,
            Query(mean(t.COVERAGE_RATIO, "collection", collection=_C), "{{collection}}"),
            about="Share of the shards that searches cover.",
            limits=Limits(None, o.COVERAGE, falling=True),
            top=1,
        ),
    )


def _admission_row() -> tuple[AnyPanel, ...]:
    return (
        graph(
            "Searches let in and refused",
            PER_SECOND,
            Query(rate(t.SEARCH_ADMISSIONS, "outcome"), "{{outcome}}"),
            about="Refused ones get 503 `overloaded` or 429 `too_many_search_bytes`, and `Retry-After`.",
        ),
        graph(
            "Searches under way",
            SHORT,
            Query(over("sum", select(t.SEARCHES_IN_FLIGHT), "state"), "{{state}}"),
            about="`waiting`: for a receipt. Working ones are bounded by RIVERLENS_SEARCH_IN_FLIGHT_MAX.",
        ),
        graph(
            "Bodies in memory",
            BYTES,
            Query(over("sum", select(t.UPLOAD_BYTES_IN_FLIGHT), "instance"), "uploads, {{instance}}"),
            Query(over("sum", select(t.SEARCH_BYTES_IN_FLIGHT), "instance"), "searches, {{instance}}"),
            about="RIVERLENS_UPLOAD_BYTES_IN_FLIGHT_MAX and RIVERLENS_SEARCH_BYTES_IN_FLIGHT_MAX bound them.",
        ),
    )


def _http_row() -> tuple[AnyPanel, ...]:
    return (
        graph(
            "Requests",
            PER_SECOND,
            Query(rate(t.HTTP_REQUESTS, "method", "route"), "{{method}} {{route}}"),
            about="Answered, by route.",
        ),
        graph(
            "Requests by status",
            PER_SECOND,
            Query(rate(t.HTTP_REQUESTS, "status"), "{{status}}"),
            about="499: the caller went away.",
        ),
        graph(
            "Requests, p99",
            SECONDS,
            Query(quantile(0.99, t.HTTP_REQUEST_SECONDS, "method", "route"), "{{method}} {{route}}"),
            about="To the end of the answer.",
        ),
        graph(
            "Requests under way",
            SHORT,
            Query(over("sum", select(t.HTTP_IN_FLIGHT), "instance"), "{{instance}}"),
            about="Requests that wait for their answer.",
        ),
        graph(
            "Memory of the API",
            BYTES,
            Query(over("max", select(t.PROCESS_MEMORY, job=API_JOB), "instance"), "{{instance}}"),
            about="Resident.",
        ),
    )
