"""What is tried again, how often, and after which pause: the whole policy.

Only what says of itself that a repetition may help is repeated, with pauses that double.

- The object store does not answer: `fetch_attempts` times, then the event becomes a retryable dead letter.
- No embedder answers, or one of another fingerprint: until one does; it says nothing of the picture.
- No decoding process can be started: until one can; that says nothing of the picture either.
- The broker does not answer: until it does; without it nothing can be recorded, a dead letter neither.

Everything else is a dead letter at once.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

import structlog

from contract.errors import RiverlensError, Unavailable
from contract.telemetry import LogField

_log = structlog.get_logger()
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0

Answer = TypeVar("Answer")


class Clock(Protocol):
    """Time, and waiting for it."""

    def now_ms(self) -> int:
        """Milliseconds since 1970."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class Retrying:
    """One call and its repetitions; `attempts` counts them, also when the last one failed."""

    def __init__(
        self,
        clock: Clock,
        notice: str,
        *,
        fields: Mapping[str, object] | None = None,
        attempts_max: int | None = None,
        again_after: tuple[type[RiverlensError], ...] = (Unavailable,),
    ) -> None:
        """`notice` and `fields` are logged at every repetition; without `attempts_max` there is no last one."""
        self._clock = clock
        self._notice = notice
        self._fields = dict(fields or {})
        self._attempts_max = attempts_max
        self._again_after = again_after
        self.attempts = 0

    async def __call__(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer; raises what the last attempt raised."""
        while True:
            self.attempts += 1
            try:
                return await call()
            except self._again_after as error:
                if self.attempts == self._attempts_max:
                    raise
                told = {**self._fields, LogField.CODE: error.code, LogField.ERROR: error.detail}
                _log.warning(self._notice, **told)
            await self._clock.sleep(pause_s(self.attempts))


def pause_s(attempts: int) -> float:
    """Seconds to wait after `attempts` failures: exponential, with jitter so that workers do not come back together."""
    longest: float = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(attempts - 1, 20))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311
