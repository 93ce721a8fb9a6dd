"""Prometheus metrics of the ingest process; their names stand in contract/telemetry.py."""

from __future__ import annotations

from contextlib import AbstractContextManager

from prometheus_client import REGISTRY, Counter, Histogram

from actors.decoding.metrics import DecodingMetrics
from contract.events import DeadLetter
from contract.telemetry import DEAD_LETTERS, EVENTS, INGEST_STAGE_SECONDS, INGEST_UPLOADS

_events = Counter(EVENTS.name, EVENTS.help, EVENTS.labels)
_uploads = Counter(INGEST_UPLOADS.name, INGEST_UPLOADS.help, INGEST_UPLOADS.labels)
_stages = Histogram(INGEST_STAGE_SECONDS.name, INGEST_STAGE_SECONDS.help, INGEST_STAGE_SECONDS.labels)

_letters = Counter(DEAD_LETTERS.name, DEAD_LETTERS.help, DEAD_LETTERS.labels)
decoding = DecodingMetrics()
"""What it tells is asked of its `load`."""
REGISTRY.register(decoding)


def count_event(outcome: str) -> None:
    """One event of `image-events` is durable as `published` or `rejected`."""
    _events.labels(outcome).inc()


def count_letter(letter: DeadLetter) -> None:
    """One dead letter is durable."""
    _letters.labels(letter.stage, letter.code, str(letter.retryable).lower()).inc()


def count_upload(outcome: str) -> None:
    """One upload was `embedded`, or `saved` its embedding; it is a `duplicate` if another image came before it."""
    _uploads.labels(outcome).inc()


def stage_timer(stage: str) -> AbstractContextManager[object]:
    """Times one stage of one batch."""
    return _stages.labels(stage).time()
