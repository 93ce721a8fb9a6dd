"""Admission control: past a bound, a search is refused at once instead of joining a queue that only grows.

A replica of the API answers so many searches a second and no more. Whatever comes beyond that waits, and
so does all that comes later; a quick refusal that names the time to come back keeps the others quick. The
same holds for the memory that the bodies of searches take.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from contract.errors import Overloaded, TooManySearchBytes
from contract.settings import Settings
from serving.metrics import Metrics
from serving.requests import FORM_SLACK_BYTES, JSON_BYTES_MAX

_FORM = "application/x-www-form-urlencoded"


class Admission:
    """Counts the searches under way in one replica of the API. For one event loop."""

    def __init__(self, most: int, metrics: Metrics) -> None:
        """A search is let in while fewer than `most` are under way."""
        self._most = most
        self._working = 0
        self._aside = 0
        self._admitted = metrics.search_admissions.labels("admitted")
        self._refused = metrics.search_admissions.labels("refused")
        self._told_working = metrics.searches_in_flight.labels("working")
        self._told_aside = metrics.searches_in_flight.labels("waiting")

    @contextmanager
    def admit(self, searches: int = 1) -> Iterator[None]:
        """Around a request of so many searches.

        It is let in or refused as a whole, so that one with many searches is not refused for its size:
        the bound is then passed by less than one such request.

        Raises Overloaded (retryable) when as many searches as are allowed are under way.
        """
        if self._working >= self._most:
            self._refused.inc(searches)
            raise Overloaded(
                f"{self._working} searches are under way; at most {self._most} (RIVERLENS_SEARCH_IN_FLIGHT_MAX)"
            )
        self._admitted.inc(searches)
        self._work(searches)
        try:
            yield
        finally:
            self._work(-searches)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Around the wait of one admitted search for its receipt, which costs nothing and keeps no other search out.

        Raises Overloaded (retryable) when as many as are allowed wait so.
        """
        if self._aside >= self._most:
            self._refused.inc()
            raise Overloaded(
                f"{self._aside} searches wait for their `min_receipt`; "
                f"at most {self._most} (RIVERLENS_SEARCH_IN_FLIGHT_MAX)"
            )
        self._work(-1)
        self._aside += 1
        self._told_aside.inc()
        try:
            yield
        finally:
            self._aside -= 1
            self._told_aside.dec()
            self._work(1)

    def _work(self, searches: int) -> None:
        self._working += searches
        self._told_working.inc(searches)


class SearchBodies:
    """Counts the bytes of searches that one replica of the API holds. For one event loop.

    A search holds room for its body from before it is read until it is answered.
    """

    def __init__(self, most_bytes: int, metrics: Metrics) -> None:
        """A body is let in while it and those under way have no more than `most_bytes`; a larger one alone."""
        self._most_bytes = most_bytes
        self._bytes = 0
        self._refused = metrics.search_admissions.labels("refused")
        self._told = metrics.search_bytes_in_flight

    @contextmanager
    def admit(self, size_bytes: int) -> Iterator[None]:
        """Around a request whose body has so many bytes at most.

        Raises TooManySearchBytes (retryable) where there is no room.
        """
        if self._bytes and self._bytes + size_bytes > self._most_bytes:
            self._refused.inc()
            raise TooManySearchBytes(
                f"{self._bytes} bytes of searches are under way; with {size_bytes} more they were above "
                f"{self._most_bytes} (RIVERLENS_SEARCH_BYTES_IN_FLIGHT_MAX)"
            )
        self._hold(size_bytes)
        try:
            yield
        finally:
            self._hold(-size_bytes)

    def _hold(self, size_bytes: int) -> None:
        self._bytes += size_bytes
        self._told.set(self._bytes)


def search_bytes(request: Request, settings: Settings) -> int:
    """How many bytes of a search's body are read at most: what it announces, and else what one of its kind may have."""
    kind = request.headers.get("content-type", "").strip().lower()
    most = settings.max_image_bytes + FORM_SLACK_BYTES if kind.startswith(("multipart/", _FORM)) else JSON_BYTES_MAX
    announced = request.headers.get("content-length", "")
    return min(int(announced[:18]), most) if announced.isdecimal() else most
