"""Back-pressure on uploads: the lag that is told, and what is refused when there is no room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from actors.messages import Freshness, ShardStatus
from contract.errors import TooManyUploads
from contract.events import Receipt
from contract.settings import Settings
from serving.app import create_app
from serving.client import AsyncClient, Retry
from serving.client import TooManyUploads as TooManyUploadsError
from serving.lag import Lag, Lags
from serving.metrics import Metrics
from serving.problems import ProblemError
from serving.upload_admission import UploadAdmission
from tests.unit.serving_fakes import FakeSystem, make_system, picture

PATH = "/v1/collections/images/images"


def report(applied: dict[int, int], ends: dict[int, int]) -> ShardStatus:
    return ShardStatus(
        collection="c",
        shard=0,
        replica=0,
        state="ready",
        error=None,
        pid=1,
        points=0,
        deleted=0,
        growing=0,
        fingerprint="",
        log_offsets={},
        high_watermarks=ends,
        freshness=Freshness(applied, 0.0),
        consumer_lag=0,
        store_bytes=0,
    )


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_lag_is_what_is_logged_and_not_applied_and_its_time_follows_the_pace() -> None:
    clock = Clock()
    lags = Lags(clock)
    assert lags.needs_look("c", "1")
    assert lags.observe("c", "1", [report({0: -1, 1: 4}, {0: 0, 1: 5})]) == Lag(0, 0.0)
    assert not lags.needs_look("c", "1")
    # Receipts count before anybody has looked again.
    assert lags.logged("c", "1", Receipt(0, 99)) == Lag(99, None)
    assert lags.lag("c", "1") == Lag(100, None)
    clock.now += 2.0
    assert lags.needs_look("c", "1")
    assert lags.observe("c", "1", [report({0: 19}, {0: 100})]) == Lag(80, 8.0)
    assert lags.logged("c", "1", Receipt(0, 100)) == Lag(80, 8.0)
    clock.now += 8.0
    assert lags.observe("c", "1", [report({0: 100}, {0: 101})]) == Lag(0, 0.0)
    # At rest for long: the next burst is measured by itself, and until then by the pace of the last one.
    clock.now += 1000.0
    lags.observe("c", "1", [report({0: 100}, {0: 101})])
    assert lags.logged("c", "1", Receipt(0, 201)).messages == 100
    clock.now += 1.0
    told = lags.observe("c", "1", [report({0: 151}, {0: 202})])
    assert told.messages == 50
    assert told.drain_s == pytest.approx(1.0, rel=0.2)


def test_of_a_partition_the_farthest_replica_counts_and_another_incarnation_is_another_log() -> None:
    lags = Lags(Clock())
    assert lags.observe("c", "1", [report({0: 5}, {0: 10}), report({0: 9}, {0: 8})]).messages == 0
    assert lags.observe("c", "2", [report({0: -1}, {0: 3})]).messages == 3
    lags.keep([("c", "2")])
    assert lags.lag("c", "1") == Lag(0, 0.0)
    assert lags.lag("c", "2").messages == 3


def test_a_pace_is_never_seen_where_nothing_moves() -> None:
    clock = Clock()
    lags = Lags(clock)
    for _ in range(100):
        clock.now += 1.0
        assert lags.observe("c", "1", [report({0: 3}, {0: 1000})]) == Lag(996, None)


def admission(**settings: int) -> UploadAdmission:
    return UploadAdmission(Settings(**settings), Metrics())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lag", "wait_s"),
    [(Lag(100, None), 30), (Lag(100, 20.0), 2), (Lag(1000, 100.0), 30), (Lag(100, 0.5), 1), (Lag(200, 20.0), 11)],
)
def test_past_the_lag_one_is_sent_away_for_about_as_long_as_it_takes(lag: Lag, wait_s: int) -> None:
    gate = admission(upload_lag_max=100)
    with pytest.raises(ProblemError) as refused, gate.admit(lag, 1):
        raise AssertionError("let in")
    assert isinstance(refused.value.error, TooManyUploads)
    assert refused.value.members == {"retry_after_s": wait_s}
    with gate.admit(Lag(99, None), 1):
        pass
    with admission(upload_lag_max=0).admit(Lag(10**9, None), 1):
        pass


def test_uploads_and_their_bytes_are_bounded_and_come_back() -> None:
    gate = admission(uploads_in_flight_max=3, upload_bytes_in_flight_max=100)
    idle = Lag(0, 0.0)
    with gate.admit(idle, 60):
        with pytest.raises(ProblemError, match="41 more"), gate.admit(idle, 41):
            pass
        with (
            gate.admit(idle, 30),
            gate.admit(idle, 10),
            pytest.raises(ProblemError, match="3 uploads"),
            gate.admit(idle, 0),
        ):
            pass
        with pytest.raises(ZeroDivisionError), gate.admit(idle, 40):
            raise ZeroDivisionError
        with gate.admit(idle, 40):
            pass
    # One alone may be larger than all the room: it could never be let in otherwise.
    with gate.admit(idle, 1000), pytest.raises(ProblemError), gate.admit(idle, 1):
        pass
    with gate.admit(idle, 100):
        pass


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return make_system(tmp_path, upload_lag_max=5, uploads_in_flight_max=2, wait_searchable_timeout_s=0.5)


@pytest.fixture
async def http(system: FakeSystem) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=create_app(system.dependencies()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def upload(http: httpx.AsyncClient, image_id: str, **params: Any) -> httpx.Response:
    files = {"file": ("a.png", picture("red"))}
    return await http.post(PATH, params=params, files=files, data={"id": image_id})


async def test_uploads_are_refused_past_the_lag_and_taken_again_when_it_is_gone(
    http: httpx.AsyncClient, system: FakeSystem
) -> None:
    system.applying = False
    taken: list[dict[str, Any]] = []
    while (answer := await upload(http, f"image-{len(taken)}")).status_code == 202:
        taken.append(answer.json())
        assert len(taken) < 50, "nothing is ever refused"
    assert len(taken) == 5
    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (429, "too_many_uploads", True)
    assert answer.headers["retry-after"] == str(answer.json()["retry_after_s"]) == "30"
    assert sum(len(records) for records in system.log.values()) == 5
    assert len(system.objects.stored) == 1, "a refused upload stores nothing"
    by_place = {one["receipt"]["partition"]: one["receipt"]["offset"] for one in taken}
    for one in taken:
        assert one["lag"] == {
            "messages": one["receipt"]["offset"],
            "drain_s": None if one["receipt"]["offset"] else 0.0,
        }
    statistics = (await http.get("/v1/collections/images")).json()
    assert statistics["lag"] == {"messages": 5, "drain_s": None}
    page = (await http.get("/metrics")).text
    assert 'riverlens_lag_messages{collection="images"} 5.0' in page
    assert 'riverlens_uploads_refused_total{reason="lag"} 1.0' in page
    assert "riverlens_uploads_in_flight 0.0" in page

    # Deletes and searches go on: they make no lag worth speaking of, and a deletion must never wait for uploads.
    for place in by_place:
        system.apply("images", place)
    system.applying = True
    await http.get("/v1/collections/images")
    accepted = await upload(http, "after", wait="searchable")
    assert (accepted.status_code, accepted.json()["lag"]) == (201, None)


async def test_no_more_than_so_many_uploads_are_held_at_a_time(http: httpx.AsyncClient, system: FakeSystem) -> None:
    system.applying = False
    waiting = [asyncio.create_task(upload(http, f"image-{n}", wait="searchable")) for n in range(4)]
    answers = [answer.status_code for answer in await asyncio.gather(*waiting)]
    assert sorted(answers) == [429, 429, 504, 504]
    assert sum(len(records) for records in system.log.values()) == 2


async def test_the_client_comes_back_when_it_is_told_to_until_its_deadline() -> None:
    slept: list[float] = []
    refusals = 8

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal refusals
        if refusals:
            refusals -= 1
            problem = {"code": "too_many_uploads", "detail": "busy", "retryable": True, "status": 429}
            return httpx.Response(429, json=problem, headers={"Retry-After": "7"})
        receipt = {"partition": 0, "offset": 1}
        lag = {"messages": 3, "drain_s": None}
        return httpx.Response(202, json={"id": "a", "sha256": "", "status": "logged", "receipt": receipt, "lag": lag})

    made = {"transport": httpx.MockTransport(answer), "sleep": sleep, "clock": lambda: sum(slept)}
    async with AsyncClient("http://test", retry=Retry(attempts=2), deadline_s=100, **made) as client:  # type: ignore[arg-type]
        uploaded = await client.upload("images", b"bytes")
        assert uploaded.lag is not None
        assert (uploaded.lag.messages, uploaded.lag.drain_s) == (3, None)
        assert len(slept) == 8
        assert min(slept) >= 7
        refusals = 1000
        with pytest.raises(TooManyUploadsError):
            await client.upload("images", b"bytes", deadline_s=50)
        assert sum(slept) < 200
