"""Look-ups of one turn share a call; each gets its own value, or the failure."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from actors.call_context import current_request_ids, on_behalf_of
from serving.together import Together


class Source:
    """Doubles numbers, and remembers how it was asked and for whom."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.request_ids: list[tuple[str, ...]] = []
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def __call__(self, keys: Sequence[int]) -> list[int]:
        self.calls.append(list(keys))
        self.request_ids.append(current_request_ids())
        self.asked.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [2 * key for key in keys]


async def test_look_ups_of_one_turn_share_a_call_and_equal_ones_an_answer() -> None:
    source, together = Source(), Together[int, int]()
    values = await asyncio.gather(*(together.get("group", key, source) for key in (3, 1, 3, 2)))
    assert values == [6, 2, 6, 4]
    assert source.calls == [[3, 1, 2]]


async def test_groups_never_share_a_call() -> None:
    source, together = Source(), Together[int, int]()
    await asyncio.gather(together.get("one", 1, source), together.get("other", 1, source))
    assert source.calls == [[1], [1]]


async def test_who_asks_for_what_is_under_way_joins_it() -> None:
    source, together = Source(), Together[int, int]()
    source.gate.clear()
    first = asyncio.create_task(together.get("group", 1, source))
    await source.asked.wait()
    second = asyncio.create_task(together.get("group", 1, source))
    await asyncio.sleep(0)
    source.gate.set()
    assert (await first, await second) == (2, 2)
    assert source.calls == [[1]]
    assert await together.get("group", 1, source) == 2
    assert source.calls == [[1], [1]], "an answer is shared, not kept"


async def test_a_failure_reaches_everybody_and_is_not_kept() -> None:
    source, together = Source(), Together[int, int]()
    source.error = RuntimeError("on purpose")
    answers = await asyncio.gather(*(together.get("g", key, source) for key in (1, 2)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [RuntimeError, RuntimeError]
    source.error = None
    assert await together.get("g", 1, source) == 2


async def test_a_caller_that_goes_away_leaves_the_others_alone() -> None:
    source, together = Source(), Together[int, int]()
    source.gate.clear()
    tasks = [asyncio.create_task(together.get("g", 1, source)) for _ in range(2)]
    await source.asked.wait()
    tasks[0].cancel()
    source.gate.set()
    assert await tasks[1] == 2
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]


async def test_a_shared_call_is_made_for_all_who_share_it() -> None:
    source, together = Source(), Together[int, int]()

    async def ask(request_id: str, key: int) -> int:
        with on_behalf_of(request_id):
            return await together.get("g", key, source)

    await asyncio.gather(ask("a", 1), ask("b", 2))
    assert source.request_ids == [("a", "b")]
