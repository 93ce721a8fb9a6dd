"""A worker that stood still knows that it may not publish any more."""

from __future__ import annotations

import pytest

from contract.errors import Unavailable
from streams.lease import Lease


class Time:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_worker_that_runs_may_publish_for_ever() -> None:
    time = Time()
    lease = Lease(9.0, time)
    for _ in range(100):
        time.now_s += 8.9
        lease.check()
    assert lease.lost is None


def test_a_worker_that_stood_still_never_publishes_again() -> None:
    time = Time()
    lease = Lease(9.0, time)
    time.now_s += 9.1
    with pytest.raises(Unavailable, match=r"stood still for 9\.1 s"):
        lease.check()
    time.now_s += 0.1
    with pytest.raises(Unavailable, match=r"stood still for 9\.1 s"):
        lease.check()
    assert lease.lost is not None


async def test_whoever_looks_first_after_the_gap_finds_it() -> None:
    """The task that keeps the lease may run before the one that publishes; neither hides the gap from the other."""
    time = Time()
    lease = Lease(9.0, time)
    time.now_s += 60.0
    with pytest.raises(Unavailable):
        await lease.keep()
    with pytest.raises(Unavailable):
        lease.check()
