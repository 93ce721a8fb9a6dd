"""The search port: what passes through it, who may ask, and what callers see when a shard goes away."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from actors.messages import Candidate, Freshness, ShardQuery, ShardSearch, ShardSearchResult
from actors.search_port.caller import SearchCaller
from actors.search_port.frames import (
    FRAME_BYTES_MAX,
    LENGTH,
    SearchAddress,
    decode_answer,
    decode_request,
    encode_failure,
    encode_request,
    encode_result,
)
from actors.search_port.server import SearchPort
from contract.errors import FingerprintMismatch, InvalidRequest, RiverlensError, ShardUnavailable, Unavailable
from contract.filters import decode_filter

RESULT = ShardSearchResult(
    ((Candidate("ä", 0.5, b'{"n":1}'), Candidate("b", 0.25, None)), ()), Freshness({0: 7, 3: -1}, 1.5)
)
FILTER = decode_filter(
    {
        "must": [{"key": "owner", "match": {"value": "ada"}}],
        "must_not": [{"key": "taken_at", "range": {"gt": 3}}, {"key": "tags", "match": {"any": ["a", "b"]}}],
    }
)


def request(rows: int = 2, fingerprint: str = "f") -> ShardSearch:
    vectors = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    queries = tuple(ShardQuery(k=n + 1, exact=bool(n), ef_search=9, filter=FILTER) for n in range(rows))
    return ShardSearch(fingerprint, vectors, queries, with_payload=False, request_ids=("r",) * rows)


class World:
    """A port whose answers a test decides, and a caller of it."""

    def __init__(self) -> None:
        self.answer: Callable[[ShardSearch], ShardSearchResult] = lambda _: RESULT
        self.asked: list[ShardSearch] = []
        self.looked_up = 0
        self.port = self.open()
        self.address: SearchAddress | None = self.port.address
        self.caller = SearchCaller("shard", self.find)

    def open(self, searches_max: int = 2) -> SearchPort:
        def answer(asked: ShardSearch) -> ShardSearchResult:
            self.asked.append(asked)
            return self.answer(asked)

        return SearchPort("127.0.0.1", answer, searches_max)

    async def find(self) -> SearchAddress | None:
        self.looked_up += 1
        return self.address


@pytest.fixture
async def world() -> AsyncIterator[World]:
    one = World()
    yield one
    one.caller.close()
    one.port.close()
    # The loop closes the sockets in its next turn.
    await asyncio.sleep(0)


def test_requests_and_answers_arrive_as_they_were_sent() -> None:
    sent = request(3)
    got = decode_request(encode_request(sent))
    assert np.array_equal(got.vectors, sent.vectors)
    assert got.vectors.dtype == np.float32
    assert (got.queries, got.fingerprint, got.with_payload, got.request_ids) == (
        sent.queries,
        "f",
        False,
        ("r", "r", "r"),
    )
    assert decode_answer(encode_result(RESULT)) == RESULT
    with pytest.raises(FingerprintMismatch, match="of another"):
        decode_answer(encode_failure(FingerprintMismatch("of another")))


@pytest.mark.parametrize("body", [b"", b"\x00", b"\x93\x01\x02\x03", encode_request(request())[:-3]])
def test_bytes_that_are_no_request_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode_request(body)
    with pytest.raises(Unavailable):
        decode_answer(body)


async def test_a_connection_is_used_again(world: World) -> None:
    for _ in range(3):
        assert await world.caller.search(request()) == RESULT
    assert len(world.asked) == 3
    assert world.asked[0].queries == request().queries
    assert world.looked_up == 1


async def test_answers_of_side_by_side_searches_are_not_mixed_up(world: World) -> None:
    def one_each(asked: ShardSearch) -> ShardSearchResult:
        return ShardSearchResult(((Candidate(asked.fingerprint, 1.0, b"x" * 300_000),),), Freshness({}, 0.0))

    world.answer = one_each
    answers = await asyncio.gather(*(world.caller.search(request(1, str(n))) for n in range(20)))
    assert [one.candidates[0][0].image_id for one in answers if one is not None] == [str(n) for n in range(20)]


async def test_no_more_searches_run_at_once_than_are_allowed(world: World) -> None:
    lock, running, most = threading.Lock(), 0, 0
    go_on, full = threading.Event(), threading.Event()

    def slow(_: ShardSearch) -> ShardSearchResult:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if most == 2:
            full.set()
        go_on.wait(10)
        with lock:
            running -= 1
        return RESULT

    world.answer = slow
    calls = [asyncio.create_task(world.caller.search(request())) for _ in range(6)]
    assert await asyncio.to_thread(full.wait, 10)
    await asyncio.sleep(0.05)
    go_on.set()
    assert await asyncio.gather(*calls) == [RESULT] * 6
    assert most == 2


@pytest.mark.parametrize(
    ("raised", "seen"),
    [(FingerprintMismatch("f"), FingerprintMismatch), (ShardUnavailable("s"), ShardUnavailable)],
)
async def test_errors_of_the_shard_reach_the_caller_as_themselves(
    world: World, raised: RiverlensError, seen: type[RiverlensError]
) -> None:
    def fail(_: ShardSearch) -> ShardSearchResult:
        raise raised

    world.answer = fail
    with pytest.raises(seen, match=raised.detail):
        await world.caller.search(request())
    world.answer = lambda _: RESULT
    assert await world.caller.search(request()) == RESULT


async def test_an_unexpected_error_tells_its_kind_and_nothing_of_its_inside(world: World) -> None:
    def fail(_: ShardSearch) -> ShardSearchResult:
        raise KeyError("/secret/path")

    world.answer = fail
    with pytest.raises(RiverlensError, match="KeyError") as caught:
        await world.caller.search(request())
    assert "secret" not in caught.value.detail


async def test_a_shard_that_lives_again_elsewhere_is_found(world: World) -> None:
    assert await world.caller.search(request()) == RESULT
    world.port.close()
    world.port = world.open()
    world.address = world.port.address
    await asyncio.sleep(0.05)
    assert await world.caller.search(request()) == RESULT
    assert world.looked_up == 2


async def test_a_shard_that_is_gone_is_unavailable(world: World) -> None:
    assert await world.caller.search(request()) == RESULT
    world.port.close()
    await asyncio.sleep(0.05)
    with pytest.raises(ShardUnavailable):
        await world.caller.search(request())


async def test_a_shard_that_dies_while_it_searches_is_unavailable(world: World) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def hang(_: ShardSearch) -> ShardSearchResult:
        entered.set()
        go_on.wait(10)
        return RESULT

    world.answer = hang
    call = asyncio.create_task(world.caller.search(request()))
    assert await asyncio.to_thread(entered.wait, 10)
    await asyncio.to_thread(world.port.close)
    with pytest.raises(ShardUnavailable):
        await call
    go_on.set()


async def test_a_caller_that_is_cancelled_leaves_no_answer_to_the_next(world: World) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def first_slow(asked: ShardSearch) -> ShardSearchResult:
        if asked.fingerprint == "slow":
            entered.set()
            go_on.wait(10)
        return ShardSearchResult(((Candidate(asked.fingerprint, 1.0, None),),), Freshness({}, 0.0))

    world.answer = first_slow
    call = asyncio.create_task(world.caller.search(request(1, "slow")))
    assert await asyncio.to_thread(entered.wait, 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    go_on.set()
    answer = await world.caller.search(request(1, "next"))
    assert answer is not None
    assert answer.candidates[0][0].image_id == "next"


def test_event_loops_one_after_another_may_use_one_caller() -> None:
    world = World()

    async def ask() -> ShardSearchResult | None:
        try:
            return await world.caller.search(request())
        finally:
            world.caller.close()

    for _ in range(2):
        assert asyncio.run(ask()) == RESULT
    world.port.close()


async def test_a_shard_without_a_port_says_so(world: World) -> None:
    world.address = None
    assert await world.caller.search(request()) is None
    assert world.asked == []


@pytest.mark.parametrize("sent", [b"x" * 32 + b"anything", b"short"])
def test_without_the_token_nothing_is_answered(world: World, sent: bytes) -> None:
    address = world.port.address
    with socket.create_connection((address.host, address.port), timeout=10) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert world.asked == []


def test_a_frame_that_is_too_long_ends_the_connection(world: World) -> None:
    address = world.port.address
    with socket.create_connection((address.host, address.port), timeout=10) as connection:
        connection.sendall(address.token + LENGTH.pack(FRAME_BYTES_MAX + 1))
        assert connection.recv(1) == b""
