"""How old the oldest event is that a shard has not applied, from what it sees of the source topic. Plain Python."""

from __future__ import annotations

import threading
from collections import deque

from msgspec import Struct

# So much later than the look before, a look says nothing about when the events came that it shows.
RHYTHM_S = 1.0
_SAMPLES_MAX = 4096


class Sample(Struct, frozen=True):
    """image-events had this high watermark at this time (Unix seconds)."""

    high_watermark: int
    at_s: float


class SourceWatch:
    """High watermarks of one partition of image-events over time, as far as they are not applied.

    Events that come between two looks count from the later one, which is exact to the time between
    them. Where that is more than RHYTHM_S (the shard was down, busy applying, or cut off from the
    broker) they count from the earlier one: staleness is then an upper bound, never too small.
    Thread-safe.
    """

    def __init__(self, complete_at_s: float | None = None) -> None:
        """`complete_at_s`: when everything was applied for the last time, as far as is known; Unix seconds."""
        self.high_watermark = 0
        self._samples: deque[Sample] = deque()
        self._looked_at_s = complete_at_s
        self._applied_event_at_s = float("-inf")
        self._lock = threading.Lock()

    def observe(self, high_watermark: int, at_s: float) -> None:
        """Take a look. A watermark below the last one is that of a new log, and starts over."""
        with self._lock:
            before_s, self._looked_at_s = self._looked_at_s, at_s
            if high_watermark == self.high_watermark:
                return
            if high_watermark < self.high_watermark:
                self._samples.clear()
            self.high_watermark = high_watermark
            if len(self._samples) == _SAMPLES_MAX:
                # The oldest decides the staleness, so the newest gives way.
                self._samples.pop()
            since_s = at_s if before_s is None or at_s - before_s <= RHYTHM_S else before_s
            self._samples.append(Sample(high_watermark, since_s))

    def applied(self, event_at_s: float) -> None:
        """An event of this time (Unix seconds) is applied; those that are not came later."""
        with self._lock:
            self._applied_event_at_s = max(event_at_s, self._applied_event_at_s)

    def staleness_s(self, applied_offset: int, now_s: float) -> float:
        """Age in seconds of the oldest event above `applied_offset`; 0.0 when caught up.

        Whoever has not looked for more than RHYTHM_S cannot know that it is caught up: then it is
        the time since the last look.
        """
        with self._lock:
            while self._samples and self._samples[0].high_watermark <= applied_offset + 1:
                self._samples.popleft()
            if self._samples:
                since_s = max(self._samples[0].at_s, self._applied_event_at_s)
            elif self._looked_at_s is not None and now_s - self._looked_at_s > RHYTHM_S:
                since_s = self._looked_at_s
            else:
                return 0.0
        return max(0.0, now_s - since_s)

    def lag(self, applied_offset: int) -> int:
        """Events that are not applied."""
        return max(0, self.high_watermark - applied_offset - 1)
