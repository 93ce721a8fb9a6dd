"""A fixed rate of insertion, and turns at a library that allows one caller at a time. Needs nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType


class Pacer:
    """Lets things through at `per_s` a second on average. One thread.

    Whoever was held up may catch up, but only `burst` things: a pause is not made good by a storm.
    """

    def __init__(
        self,
        per_s: float,
        burst: int,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._seconds_each = 1 / per_s
        self._allowance_s = burst * self._seconds_each
        self._clock = clock
        self._sleep = sleep
        self._due = clock()

    def wait(self, count: int) -> None:
        """Return when the next `count` things are due."""
        now = self._clock()
        self._due = max(self._due, now - self._allowance_s)
        if self._due > now:
            self._sleep(self._due - now)
        self._due += count * self._seconds_each


class Turns:
    """A lock that goes to whoever waits for it, not to its last holder again.

    With a plain lock, a thread that searches without a pause keeps the one that inserts out.
    """

    def __init__(self) -> None:
        self._next = threading.Lock()
        self._held = threading.Lock()

    def __enter__(self) -> None:
        with self._next:
            self._held.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.release()
