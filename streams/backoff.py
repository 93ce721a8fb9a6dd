"""How long to wait before trying again."""

from __future__ import annotations

import random
from typing import Protocol

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0


class Clock(Protocol):
    """Time, and waiting for it."""

    def now_ms(self) -> int:
        """Milliseconds since 1970."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


def pause_s(attempts: int) -> float:
    """Seconds to wait after `attempts` failures: exponential, with jitter so that workers do not come back together."""
    longest: float = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(attempts - 1, 20))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311
