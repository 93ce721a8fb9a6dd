"""Many readers or one writer, in turns: neither side can starve the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ReadWriteLock:
    """Held for reading by any number of threads, or for writing by one. Not re-entrant.

    A waiting writer goes before readers that come later; a writer that ends lets in all readers
    that wait. So a search waits for one step of the writer, however many it has to do.
    Source: Brandenburg and Anderson, Spin-Based Reader-Writer Synchronization for Multiprocessor
    Real-Time Systems, 2010 (phase-fair locks).
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = 0
        self._readers_waiting = 0
        self._writing = False
        self._writers_waiting = 0
        self._phase = 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold for reading."""
        with self._condition:
            if self._writing or self._writers_waiting:
                phase = self._phase
                self._readers_waiting += 1
                # The writer that ends this phase counts this reader in.
                self._condition.wait_for(lambda: self._phase != phase)
            else:
                self._readers += 1
        try:
            yield
        finally:
            with self._condition:
                self._readers -= 1
                if not self._readers:
                    self._condition.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold for writing."""
        with self._condition:
            self._writers_waiting += 1
            self._condition.wait_for(lambda: not self._writing and not self._readers)
            self._writers_waiting -= 1
            self._writing = True
        try:
            yield
        finally:
            with self._condition:
                self._writing = False
                self._phase += 1
                self._readers += self._readers_waiting
                self._readers_waiting = 0
                self._condition.notify_all()
