"""Batches: who leaves with whom, how many are under way, and who is not asked for any more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.gathering import Gathering
from tests.unit.virtual_time import in_virtual_time, now, turns


class Shards:
    """Answers a question with its negative, after `takes_s`."""

    def __init__(self, takes_s: float = 0.01) -> None:
        self.takes_s = takes_s
        self.batches: list[list[int]] = []
        self.left_at: list[float] = []
        self.under_way = self.most_under_way = self.cancelled = 0

    async def send(self, questions: Sequence[int]) -> list[int]:
        self.batches.append(list(questions))
        self.left_at.append(now())
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(self.takes_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1
        return [-question for question in questions]


@in_virtual_time
async def test_a_lone_question_leaves_at_once_and_those_of_its_turn_with_it() -> None:
    shards, began = Shards(), now()
    gathering = Gathering(shards.send)
    assert await gathering.ask(1) == -1
    assert await asyncio.gather(*(gathering.ask(n) for n in (2, 3, 4))) == [-2, -3, -4]
    assert shards.batches == [[1], [2, 3, 4]]
    assert [at - began for at in shards.left_at] == pytest.approx([0.0, 0.01])


@in_virtual_time
async def test_while_one_is_under_way_questions_gather_for_the_window() -> None:
    shards, began = Shards(), now()
    gathering = Gathering(shards.send, window_s=0.002, under_way_max=2)
    first = asyncio.create_task(gathering.ask(1))
    await turns()
    rest = [asyncio.create_task(gathering.ask(2))]
    await asyncio.sleep(0.001)
    rest.append(asyncio.create_task(gathering.ask(3)))
    await asyncio.gather(first, *rest)
    assert shards.batches == [[1], [2, 3]]
    assert shards.left_at[1] - began == pytest.approx(0.002)


@pytest.mark.parametrize("under_way_max", [1, 2])
@in_virtual_time
async def test_while_enough_are_under_way_questions_gather_until_one_returns(under_way_max: int) -> None:
    shards = Shards(takes_s=0.01)
    gathering = Gathering(shards.send, window_s=0.001, under_way_max=under_way_max)
    asked = []
    for number in range(40):
        asked.append(asyncio.create_task(gathering.ask(number)))
        await asyncio.sleep(0.0005)
    assert await asyncio.gather(*asked) == [-number for number in range(40)]
    assert shards.most_under_way == under_way_max
    assert len(shards.batches) <= 4 * under_way_max, "40 questions in 20 ms, and so many calls at a time of 10 ms each"


@in_virtual_time
async def test_a_full_batch_never_waits() -> None:
    shards = Shards(takes_s=1.0)
    gathering = Gathering(shards.send, batch_max=4)
    asked = [asyncio.create_task(gathering.ask(number)) for number in range(14)]
    await turns()
    assert [len(batch) for batch in shards.batches] == [4, 4, 4]
    await asyncio.gather(*asked)
    assert [len(batch) for batch in shards.batches] == [4, 4, 4, 2]


@in_virtual_time
async def test_batches_that_do_not_return_hold_nobody_up_for_long() -> None:
    shards, began = Shards(takes_s=0.2), now()
    gathering = Gathering(shards.send, window_s=0.001, under_way_max=2)
    asked = []
    for number in range(3):
        asked.append(asyncio.create_task(gathering.ask(number)))
        await asyncio.sleep(0.002)
    await asyncio.gather(*asked)
    assert shards.left_at[2] - began == pytest.approx(0.004 + 0.025)


@in_virtual_time
async def test_a_question_whose_caller_went_away_is_not_sent() -> None:
    shards = Shards()
    gathering = Gathering(shards.send)
    first = asyncio.create_task(gathering.ask(1))
    await turns()
    gone, stays = (asyncio.create_task(gathering.ask(number)) for number in (2, 3))
    await turns()
    gone.cancel()
    assert (await first, await stays) == (-1, -3)
    assert shards.batches == [[1], [3]]
    assert gone.cancelled()


@in_virtual_time
async def test_a_batch_is_cancelled_when_its_last_caller_goes_away() -> None:
    shards = Shards(takes_s=3600.0)
    gathering = Gathering(shards.send)
    began = now()
    asked = [asyncio.create_task(gathering.ask(number)) for number in (1, 2)]
    await turns()
    asked[0].cancel()
    await turns()
    assert shards.cancelled == 0, "one caller waits"
    asked[1].cancel()
    await turns()
    assert (shards.cancelled, shards.under_way) == (1, 0)
    shards.takes_s = 0.0
    assert await gathering.ask(3) == -3
    assert now() == began, "nothing is under way any more, so it left at once"


@in_virtual_time
async def test_what_goes_wrong_belongs_to_every_caller_of_the_batch() -> None:
    async def fail(_: Sequence[int]) -> list[int]:
        raise RuntimeError("on purpose")

    gathering = Gathering(fail)
    outcomes = await asyncio.gather(*(gathering.ask(n) for n in (1, 2)), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["on purpose", "on purpose"]


CALLER = st.tuples(
    st.integers(0, 60),  # comes, in ms
    st.none() | st.integers(0, 40),  # goes away after so many ms
)


@settings(max_examples=25, deadline=None)
@given(st.lists(CALLER, max_size=40), st.integers(0, 50), st.integers(1, 5))
def test_whatever_comes_and_goes_everybody_who_stays_is_answered(
    callers: list[tuple[int, int | None]], takes_ms: int, batch_max: int
) -> None:
    @in_virtual_time
    async def run() -> None:
        shards = Shards(takes_ms / 1000)
        gathering = Gathering(shards.send, batch_max=batch_max)

        async def call(number: int, comes_ms: int, patience_ms: int | None) -> int | None:
            await asyncio.sleep(comes_ms / 1000)
            try:
                async with asyncio.timeout(None if patience_ms is None else patience_ms / 1000):
                    return await gathering.ask(number)
            except TimeoutError:
                return None

        outcomes = await asyncio.gather(*(call(number, *caller) for number, caller in enumerate(callers)))
        for number, outcome in enumerate(outcomes):
            assert outcome == -number or (outcome is None and callers[number][1] is not None)
        assert all(0 < len(batch) <= batch_max for batch in shards.batches)
        sent = [question for batch in shards.batches for question in batch]
        assert len(sent) == len(set(sent))
        await asyncio.sleep(1.0)
        assert shards.under_way == 0
        began = now()
        await gathering.ask(1000)
        assert shards.left_at[-1] == began, "it counts none under way, so a lone question leaves at once"

    run()
