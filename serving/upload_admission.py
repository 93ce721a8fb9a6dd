"""Back-pressure on uploads: refused with 429 where their bytes, or the way behind them, have no room.

Nothing is read of a refused upload's body, and nothing of it is stored, so it may simply be sent again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from contract.errors import TooManyUploads
from contract.settings import Settings
from serving.lag import Lag
from serving.metrics import Metrics
from serving.problems import ProblemError

# A refused uploader comes back when a part of the backlog is gone, within these bounds.
_RETRY_MIN_S, _RETRY_MAX_S = 1, 30
_ROOM_SHARE = 0.1


class UploadAdmission:
    """Counts the uploads of one replica of the API: each holds its bytes until it is answered. For one event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._uploads = 0
        self._bytes = 0
        # So that the page has a zero before the first refusal.
        self._refused = {reason: metrics.uploads_refused.labels(reason) for reason in ("lag", "uploads", "bytes")}

    @contextmanager
    def admit(self, lag: Lag, size_bytes: int) -> Iterator[None]:
        """Around an upload whose body has so many bytes at most; `lag` is that of its collection.

        Raises TooManyUploads (retryable), in a problem that says when to come back.
        """
        self._check_lag(lag)
        most, most_bytes = self._settings.uploads_in_flight_max, self._settings.upload_bytes_in_flight_max
        if self._uploads >= most:
            self._refuse("uploads", f"{most} uploads are under way (RIVERLENS_UPLOADS_IN_FLIGHT_MAX)", _RETRY_MIN_S)
        # One that is larger than all the room is let in alone.
        if self._bytes and self._bytes + size_bytes > most_bytes:
            self._refuse(
                "bytes",
                f"{self._bytes} bytes of uploads are under way; with {size_bytes} more they were above {most_bytes} "
                "(RIVERLENS_UPLOAD_BYTES_IN_FLIGHT_MAX)",
                _RETRY_MIN_S,
            )
        self._uploads += 1
        self._bytes += size_bytes
        self._tell()
        try:
            yield
        finally:
            self._uploads -= 1
            self._bytes -= size_bytes
            self._tell()

    def _check_lag(self, lag: Lag) -> None:
        most = self._settings.upload_lag_max
        if most == 0 or lag.messages < most:
            return
        wait_s = _RETRY_MAX_S
        if lag.drain_s is not None:
            room = lag.messages - most * (1 - _ROOM_SHARE)
            wait_s = min(_RETRY_MAX_S, max(_RETRY_MIN_S, math.ceil(lag.drain_s * room / lag.messages)))
        detail = f"{lag.messages} events wait to be searchable; at most {most} (RIVERLENS_UPLOAD_LAG_MAX)"
        self._refuse("lag", detail, wait_s)

    def _refuse(self, reason: str, detail: str, wait_s: int) -> None:
        self._refused[reason].inc()
        raise ProblemError(TooManyUploads(detail), retry_after_s=wait_s)

    def _tell(self) -> None:
        self._metrics.uploads_in_flight.set(self._uploads)
        self._metrics.upload_bytes_in_flight.set(self._bytes)


def most_bytes(request: Request, settings: Settings) -> int:
    """How many bytes an upload may take up: its body's, or of one that names bytes elsewhere the most there may be."""
    announced = request.headers.get("content-length", "")
    if request.headers.get("content-type", "").startswith("multipart/") and announced.isdecimal():
        return min(int(announced[:18]), settings.max_image_bytes)
    return settings.max_image_bytes
