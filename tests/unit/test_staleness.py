"""How old what a shard has not applied is, and how long uploads took: with a clock that only the test moves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.replica import SAMPLE_EVERY_S
from actors.staleness import RHYTHM_S, SourceWatch
from contract.telemetry import DELAY_BUCKETS_S
from tests.unit.test_replica_follows_log import TWO, Shard


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    one = Shard(tmp_path / "store")
    yield one
    one.end()


def run(shard: Shard, seconds: float) -> None:
    """Let time pass while the shard follows its log in its rhythm."""
    for _ in range(int(seconds / SAMPLE_EVERY_S)):
        shard.clock.now += SAMPLE_EVERY_S
        shard.replica.step(0.0)


def staleness_s(shard: Shard) -> float:
    return shard.replica.freshness().staleness_s


def test_it_grows_while_events_wait_and_is_zero_when_caught_up(shard: Shard) -> None:
    run(shard, 1)
    assert staleness_s(shard) == 0.0
    shard.log.source_end = 3  # logged, and not embedded yet
    grown = []
    for _ in range(20):
        run(shard, 1)
        grown.append(staleness_s(shard))
    assert grown == pytest.approx([n + 0.75 for n in range(20)])
    assert shard.replica.consumer_lag() == 3
    shard.log.upsert("a", 0, event_at_s=shard.clock.now - 20)
    shard.log.upsert("b", 2, event_at_s=shard.clock.now - 20)
    run(shard, 0.25)
    assert (staleness_s(shard), shard.replica.consumer_lag()) == (0.0, 0)


def test_under_a_steady_load_it_is_the_age_of_the_oldest_event_that_waits(shard: Shard) -> None:
    """An event every quarter of a second, each applied two seconds after it came."""
    run(shard, 1)
    came: list[float] = []
    for _ in range(40):
        came.append(shard.clock.now + SAMPLE_EVERY_S)
        shard.log.source_end = len(came)
        if len(came) > 8:
            offset = len(came) - 9
            shard.log.upsert(f"id-{offset}", offset, event_at_s=came[offset])
            shard.log.source_end = len(came)
        run(shard, SAMPLE_EVERY_S)
        waiting = came[shard.replica.applied_offset(0) + 1 :]
        assert staleness_s(shard) == pytest.approx(shard.clock.now - waiting[0], abs=SAMPLE_EVERY_S)


def test_a_shard_that_is_busy_applying_does_not_claim_to_be_fresh(shard: Shard) -> None:
    """While a batch is applied nobody looks at image-events, where more arrives meanwhile."""
    run(shard, 1)
    shard.clock.now += 5
    assert staleness_s(shard) == 5.0, "nobody knows what came since the last look"
    shard.log.source_end = 1
    shard.replica.step(0.0)
    assert staleness_s(shard) == 5.0, "the event came at some time since the look before"
    shard.log.upsert("a", 0, event_at_s=shard.clock.now)
    run(shard, 0.25)
    assert staleness_s(shard) == 0.0


def test_a_shard_that_was_down_counts_from_when_it_was_complete(shard: Shard) -> None:
    shard.log.upsert("a", 0, event_at_s=shard.clock.now)
    run(shard, 1)
    shard.clock.now += 100
    for offset in range(1, 400):
        shard.log.upsert(f"id-{offset}", offset, event_at_s=shard.clock.now - 50 + offset / 10)
    shard.clock.now += 1
    shard.restart()
    shard.replica.step(0.0)
    assert shard.replica.applied_offset(0) < 399
    partly = shard.replica.positions()[0].source_offset
    assert staleness_s(shard) == pytest.approx(51 - partly / 10), "what waits came after what is applied"
    run(shard, 1)
    assert staleness_s(shard) == 0.0


def test_a_shard_that_is_cut_off_does_not_claim_to_be_fresh(shard: Shard) -> None:
    run(shard, 1)
    shard.log.away = True
    for _ in range(10):
        run(shard, 1)
    assert staleness_s(shard) == pytest.approx(10, abs=SAMPLE_EVERY_S)
    shard.log.away = False
    shard.clock.now += 30
    run(shard, 1)
    assert staleness_s(shard) == 0.0


def test_a_log_made_anew_starts_over(shard: Shard) -> None:
    shard.log.source_end = 7
    run(shard, 3)
    assert staleness_s(shard) > 2
    shard.log.log_identity, shard.log.source_end = TWO, 0
    run(shard, 15)
    assert staleness_s(shard) == 0.0


def test_a_watch_keeps_the_oldest_of_very_many_samples() -> None:
    watch = SourceWatch()
    for n in range(1, 10_000):
        watch.observe(n, float(n))
    assert watch.staleness_s(-1, 10_000.0) == 9_999.0
    assert watch.staleness_s(9_998, 10_000.0) == 0.0


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("wait"), st.floats(0.01, 5)),
            st.tuples(st.just("event"), st.just(0.0)),
            st.tuples(st.just("look"), st.just(0.0)),
            st.tuples(st.just("apply"), st.just(0.0)),
        ),
        max_size=60,
    )
)
def test_it_is_never_too_small_by_more_than_the_rhythm(steps: list[tuple[str, float]]) -> None:
    now, applied, looked_at = 1000.0, -1, 1000.0
    came: list[float] = []
    looked_before: list[float] = []
    watch = SourceWatch(now)
    for what, seconds in steps:
        if what == "wait":
            now += seconds
        elif what == "event":
            came.append(now)
            looked_before.append(looked_at)
        elif what == "look":
            watch.observe(len(came), now)
            looked_at = now
        elif applied + 1 < len(came):
            applied += 1
            watch.applied(came[applied])
        told = watch.staleness_s(applied, now)
        waiting = came[applied + 1 :]
        if waiting:
            assert told >= now - waiting[0] - RHYTHM_S - 1e-6
            assert told <= now - looked_before[applied + 1] + 1e-6
        elif now - looked_at <= RHYTHM_S:
            assert told == 0.0


def test_searches_that_ask_at_once_do_not_disturb_each_other() -> None:
    watch = SourceWatch(0.0)
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            for n in range(3000):
                watch.staleness_s(n, float(n))
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    for n in range(1, 3000):
        watch.observe(n, n / 10)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_live_uploads_are_timed_and_replays_are_not(shard: Shard) -> None:
    shard.log.upsert("before the start", 0, event_at_s=shard.clock.now - 3600)
    run(shard, 1)
    assert sum(shard.replica.delays().counts) == 0, "it was searchable elsewhere long ago, or never awaited"
    shard.log.upsert("live", 1, event_at_s=shard.clock.now - 0.15)
    shard.log.upsert("live", 1, event_at_s=shard.clock.now - 0.15)
    shard.log.change("live", 2, 1)
    shard.log.delete("live", 3)
    shard.log.upsert("of a clock ahead", 4, event_at_s=shard.clock.now + 60)
    shard.replica.step(0.0)
    histogram = shard.replica.delays()
    assert histogram.bounds_s == DELAY_BUCKETS_S
    assert [bound for bound, count in zip(histogram.bounds_s, histogram.counts, strict=False) if count] == [0.05, 0.2]
    assert sum(histogram.counts) == 2, "one upload each, however often its record came"
    assert histogram.sum_s == pytest.approx(0.15)


def test_a_delay_beyond_every_bucket_is_counted(shard: Shard) -> None:
    run(shard, 1)
    shard.log.upsert("late", 0, event_at_s=shard.clock.now - 1000)
    run(shard, 0.25)
    assert shard.replica.delays().counts[-1] == 1
