"""What the one canonical log line of a request says, collected where it is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from contract.telemetry import LogField

_line: ContextVar[dict[str, object] | None] = ContextVar("request_line", default=None)


@contextmanager
def request_line() -> Iterator[dict[str, object]]:
    """Collect the fields that are noted in this task, and in those it starts, until the block ends."""
    fields: dict[str, object] = {}
    token = _line.set(fields)
    try:
        yield fields
    finally:
        _line.reset(token)


def note(fields: Mapping[LogField, object]) -> None:
    """Put fields into the line of the running request; outside of one there is nothing to do."""
    line = _line.get()
    if line is not None:
        line.update({str(name): value for name, value in fields.items()})
