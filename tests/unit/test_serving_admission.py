"""Past the bound, searches are refused at once, and nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from contract import telemetry
from contract.errors import Overloaded, TooManySearchBytes
from contract.settings import Settings
from serving.admission import Admission, SearchBodies, search_bytes
from serving.app import create_app
from serving.metrics import Metrics
from serving.requests import FORM_SLACK_BYTES, JSON_BYTES_MAX
from tests.unit.serving_fakes import FakeSystem, make_system, picture
from tests.unit.test_serving_api_images import assert_problem, upload
from tests.unit.test_serving_metrics import value

SEARCH = "/v1/collections/images/search"
MOST = 2


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return make_system(tmp_path, search_in_flight_max=MOST, search_deadline_ms=60_000, min_receipt_timeout_s=60)


@pytest.fixture
async def http(system: FakeSystem) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(system.dependencies()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await upload(client, picture("red"), id="red")).is_success
        yield client


async def in_flight(http: httpx.AsyncClient, state: str = "working") -> float:
    return await value(http, telemetry.SEARCHES_IN_FLIGHT.name, state=state)


async def until(http: httpx.AsyncClient, count: float, state: str = "working") -> None:
    """Return when so many searches are under way; the page itself gives them their turns."""
    while await in_flight(http, state) < count:
        pass


async def occupy(http: httpx.AsyncClient, system: FakeSystem, count: int) -> list[asyncio.Task[httpx.Response]]:
    """Searches that wait for the shards, until `release`."""
    for shard in system.shards.values():
        shard.gate = shard.gate or asyncio.Event()
    before = await in_flight(http)
    tasks = [asyncio.create_task(http.post(SEARCH, json={"image_id": "red"})) for _ in range(count)]
    await until(http, before + count)
    return tasks


def release(system: FakeSystem) -> None:
    for shard in system.shards.values():
        if shard.gate is not None:
            shard.gate.set()
            shard.gate = None


async def test_past_the_bound_a_search_is_refused_before_any_work(http: httpx.AsyncClient, system: FakeSystem) -> None:
    assert (await http.post(SEARCH, json={"text": "blue"})).status_code == 200
    under_way = await occupy(http, system, MOST)
    encoded = len(system.embedder("fake", "query", 1).texts)
    response = await http.post(SEARCH, json={"text": "never encoded"})
    problem = assert_problem(response, 503, "overloaded", retryable=True)
    assert int(response.headers["Retry-After"]) >= 1
    assert "RIVERLENS_SEARCH_IN_FLIGHT_MAX" in problem["detail"]
    assert_problem(await http.get(SEARCH, params={"text": "red"}), 503, "overloaded", retryable=True)
    assert_problem(
        await http.post(f"{SEARCH}/batch", json={"searches": [{"text": "a"}] * 3}), 503, "overloaded", retryable=True
    )
    assert len(system.embedder("fake", "query", 1).texts) == encoded
    assert (await upload(http, picture("blue"), id="blue")).is_success, "uploads are not searches"
    assert (await http.get("/v1/collections/images/images/red")).status_code == 200
    release(system)
    assert [(await one).status_code for one in under_way] == [200] * MOST
    assert (await http.post(SEARCH, json={"text": "red"})).status_code == 200
    assert await value(http, telemetry.SEARCH_ADMISSIONS.name, outcome="refused") == 5
    assert await value(http, telemetry.SEARCH_ADMISSIONS.name, outcome="admitted") == MOST + 2
    assert await in_flight(http) == 0


async def test_a_request_of_more_searches_than_the_bound_is_let_in_whole(http: httpx.AsyncClient) -> None:
    searches = [{"text": "red"}] * (MOST + 3)
    answers = (await http.post(f"{SEARCH}/batch", json={"searches": searches})).json()["answers"]
    assert ["hits" in answer for answer in answers] == [True] * len(searches)


async def test_a_search_that_fails_or_goes_away_leaves_its_place(http: httpx.AsyncClient, system: FakeSystem) -> None:
    for _ in range(MOST + 1):
        assert (await http.post(SEARCH, json={"image_id": "nobody"})).status_code == 404
    under_way = await occupy(http, system, MOST)
    for task in under_way:
        task.cancel()
    await asyncio.gather(*under_way, return_exceptions=True)
    assert await in_flight(http) == 0
    release(system)
    assert (await http.post(SEARCH, json={"text": "red"})).status_code == 200


async def test_searches_that_wait_for_a_receipt_keep_no_other_out(http: httpx.AsyncClient, system: FakeSystem) -> None:
    system.applying = False
    receipt = (await upload(http, picture("blue"), "logged", id="blue")).json()["receipt"]
    body: dict[str, Any] = {"text": "blue", "min_receipt": receipt}
    waiting = [asyncio.create_task(http.post(SEARCH, json=body)) for _ in range(MOST)]
    await until(http, MOST, "waiting")
    assert await in_flight(http) == 0
    assert (await http.post(SEARCH, json={"text": "red"})).status_code == 200
    assert_problem(await http.post(SEARCH, json=body), 503, "overloaded", retryable=True)
    system.apply("images", receipt["partition"])
    assert [(await one).json()["hits"][0]["id"] for one in waiting] == ["blue"] * MOST
    assert (await in_flight(http), await in_flight(http, "waiting")) == (0, 0)


@given(st.integers(1, 5), st.lists(st.tuples(st.booleans(), st.integers(1, 7)), max_size=60))
def test_never_more_are_under_way_than_allowed_and_one_request(most: int, steps: list[tuple[bool, int]]) -> None:
    admission = Admission(most, Metrics())
    inside: list[tuple[int, Any]] = []
    for enters, searches in steps:
        under_way = sum(count for count, _ in inside)
        if not enters and inside:
            inside.pop()[1].__exit__(None, None, None)
        elif enters:
            one = admission.admit(searches)
            if under_way < most:
                one.__enter__()
                inside.append((searches, one))
            else:
                with pytest.raises(Overloaded):
                    one.__enter__()
        assert sum(count for count, _ in inside) <= most - 1 + 7


# --- the bytes of their bodies


def asks(**headers: str) -> Request:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": pairs})


def test_a_search_takes_the_room_that_it_announces_or_all_that_one_of_its_kind_may() -> None:
    settings = Settings(max_image_bytes=1000)
    form_max = 1000 + FORM_SLACK_BYTES
    form = "multipart/form-data; boundary=x"
    assert search_bytes(asks(content_type=form, content_length="700"), settings) == 700
    assert search_bytes(asks(content_type=form, content_length="9" * 30), settings) == form_max
    assert search_bytes(asks(content_type=form.upper()), settings) == form_max
    assert search_bytes(asks(content_type="application/x-www-form-urlencoded"), settings) == form_max
    assert search_bytes(asks(content_type="application/json", content_length="70"), settings) == 70
    assert search_bytes(asks(content_type="application/json", content_length="1e3"), settings) == JSON_BYTES_MAX
    assert search_bytes(asks(), settings) == JSON_BYTES_MAX


@given(st.integers(1, 50), st.lists(st.tuples(st.booleans(), st.integers(0, 70)), max_size=60))
def test_no_more_bytes_are_held_than_allowed_or_of_one_alone(most: int, steps: list[tuple[bool, int]]) -> None:
    bodies = SearchBodies(most, Metrics())
    inside: list[tuple[int, Any]] = []
    for enters, size in steps:
        held = sum(one for one, _ in inside)
        if not enters and inside:
            inside.pop()[1].__exit__(None, None, None)
        elif enters:
            body = bodies.admit(size)
            if not held or held + size <= most:
                body.__enter__()
                inside.append((size, body))
            else:
                with pytest.raises(TooManySearchBytes, match="RIVERLENS_SEARCH_BYTES_IN_FLIGHT_MAX"):
                    body.__enter__()
        held = sum(one for one, _ in inside)
        assert held <= most or sum(1 for one, _ in inside if one) == 1


async def test_a_search_without_room_is_refused_before_its_body_is_read(tmp_path: Path) -> None:
    data = picture("red")
    system = make_system(tmp_path, search_bytes_in_flight_max=2000, search_deadline_ms=60_000)
    transport = httpx.ASGITransport(create_app(system.dependencies()))
    form = {"content-type": "multipart/form-data; boundary=x", "content-length": "1990"}
    held = telemetry.SEARCH_BYTES_IN_FLIGHT.name
    read: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        read.append(b"x")
        yield b"x"

    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        assert (await upload(http, data, id="red")).is_success
        for shard in system.shards.values():
            shard.gate = asyncio.Event()
        under_way = asyncio.create_task(http.post(SEARCH, files={"image": ("a.png", data)}))
        while await value(http, held) == 0:
            pass
        assert len(data) <= await value(http, held) <= 2000
        for path in (SEARCH, f"{SEARCH}/batch"):
            problem = assert_problem(
                await http.post(path, content=body(), headers=form), 429, "too_many_search_bytes", retryable=True
            )
            assert "1990 more" in problem["detail"]
        assert read == [], "the body of a refused search was read"
        small = asyncio.create_task(http.post(SEARCH, json={"image_id": "red"}))
        await until(http, 2)
        release(system)
        for one in (under_way, small):
            assert [hit["id"] for hit in (await one).json()["hits"]] == ["red"]
        assert await value(http, held) == 0
        assert await value(http, telemetry.SEARCH_ADMISSIONS.name, outcome="refused") == 2
        # Also of one that fails nothing is left.
        assert (await http.post(SEARCH, content=b"{")).status_code == 400
        assert await value(http, held) == 0
