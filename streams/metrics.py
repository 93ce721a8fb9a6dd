"""Prometheus metrics of the ingest process; their names stand in contract/telemetry.py."""

from __future__ import annotations

from contextlib import AbstractContextManager

from prometheus_client import Counter, Histogram

from contract.telemetry import EVENTS, INGEST_STAGE_SECONDS

_events = Counter(EVENTS.name, EVENTS.help, EVENTS.labels)
_stages = Histogram(INGEST_STAGE_SECONDS.name, INGEST_STAGE_SECONDS.help, INGEST_STAGE_SECONDS.labels)


def count_event(outcome: str) -> None:
    """One event of `image-events` is durable as `published` or `rejected`."""
    _events.labels(outcome).inc()


def stage_timer(stage: str) -> AbstractContextManager[object]:
    """Times one stage of one batch."""
    return _stages.labels(stage).time()
