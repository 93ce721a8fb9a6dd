"""PromQL over the metrics of contract/telemetry.py. A label that a metric lacks is an error here, not an empty panel.

Every replica of the API tells the same gauges of the shards, so these are taken as their maximum or minimum over the
instances, never as their sum.
"""

from __future__ import annotations

from typing import Final, Literal

from contract.telemetry import Metric

# Grafana's: at least four scrapes wide, and as wide as a point of the graph.
WINDOW: Final = "$__rate_interval"
# Beside a metric's own labels: those of the scrape, and of a histogram's buckets.
SCRAPE_LABELS: Final = frozenset({"job", "instance", "le"})

API_JOB: Final = "riverlens-api"
INGEST_JOB: Final = "riverlens-ingest"


def select(
    metric: Metric,
    *,
    part: Literal["", "_bucket", "_sum", "_count"] = "",
    window: str = "",
    offset: str = "",
    **labels: str,
) -> str:
    """Series of a metric. A label's value is exact, a regular expression after `~`, or must differ after `!`.

    Raises ValueError for a label or a part that the metric does not have.
    """
    if (part != "") != (metric.kind == "histogram"):
        raise ValueError(f"{metric.name} is a {metric.kind} and has no series {metric.name}{part}")
    unknown = labels.keys() - {*metric.labels, *SCRAPE_LABELS}
    if unknown:
        raise ValueError(f"{metric.name} has no label {', '.join(sorted(unknown))}")
    matchers = ", ".join(f'{name}{_matcher(value)}"' for name, value in labels.items())
    selector = f"{metric.name}{part}" + (f"{{{matchers}}}" if matchers else "")
    return selector + (f"[{window}]" if window else "") + (f" offset {offset}" if offset else "")


def _matcher(value: str) -> str:
    match value[:1]:
        case "~":
            return f'=~"{value[1:]}'
        case "!":
            return f'!="{value[1:]}'
        case _:
            return f'="{value}'


def over(operation: Literal["sum", "max", "min", "avg", "count"], expression: str, *by: str) -> str:
    """An aggregation that keeps the labels `by`."""
    return f"{operation} by ({', '.join(by)}) ({expression})" if by else f"{operation}({expression})"


def rate(metric: Metric, *by: str, window: str = WINDOW, **labels: str) -> str:
    """Sum of the rates per second of a counter, or of how often a histogram was observed."""
    part: Literal["", "_count"] = "_count" if metric.kind == "histogram" else ""
    return over("sum", f"rate({select(metric, part=part, window=window, **labels)})", *by)


def mean(metric: Metric, *by: str, window: str = WINDOW, **labels: str) -> str:
    """Mean of what a histogram observed."""
    total = over("sum", f"rate({select(metric, part='_sum', window=window, **labels)})", *by)
    return f"{total} / {rate(metric, *by, window=window, **labels)}"


def quantile(q: float, metric: Metric, *by: str, window: str = WINDOW, **labels: str) -> str:
    """Quantile of what a histogram observed."""
    buckets = over("sum", f"rate({select(metric, part='_bucket', window=window, **labels)})", *by, "le")
    return f"histogram_quantile({q:g}, {buckets})"


def share(part: str, whole: str) -> str:
    """One expression as a share of another."""
    return f"{part} / {whole}"
