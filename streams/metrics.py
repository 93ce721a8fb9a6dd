"""Prometheus metrics of the ingest process; their names stand in contract/telemetry.py."""

from __future__ import annotations

from contextlib import AbstractContextManager

from prometheus_client import Counter, Histogram

from contract.telemetry import EVENTS, INGEST_STAGE_SECONDS, INGEST_UPLOADS

_events = Counter(EVENTS.name, EVENTS.help, EVENTS.labels)
_uploads = Counter(INGEST_UPLOADS.name, INGEST_UPLOADS.help, INGEST_UPLOADS.labels)
_stages = Histogram(INGEST_STAGE_SECONDS.name, INGEST_STAGE_SECONDS.help, INGEST_STAGE_SECONDS.labels)


def count_event(outcome: str) -> None:
    """One event of `image-events` is durable as `published` or `rejected`."""
    _events.labels(outcome).inc()


def count_upload(outcome: str) -> None:
    """One upload was `embedded`, or `saved` its embedding; it is a `duplicate` if another image came before it."""
    _uploads.labels(outcome).inc()


def stage_timer(stage: str) -> AbstractContextManager[object]:
    """Times one stage of one batch."""
    return _stages.labels(stage).time()
