"""Many uploads at once: how many, what is told, and that no failure is hidden; both clients."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.client import (
    AsyncClient,
    BatchProgress,
    Client,
    DeadlineExceeded,
    ImageRejected,
    InvalidImage,
    NotFound,
    Retry,
    ServerUnreachable,
    UploadItem,
    UploadReport,
)
from tests.unit.client_world import KINDS, URL, World, problem

both = pytest.mark.parametrize("kind", KINDS)


class Shelf:
    """Takes uploads into one partition; a picture is applied as soon as somebody asks, unless `stuck`."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.busy = self.most_busy = 0
        self.stuck = False
        self.down_after: int | None = None
        self.dropped = False
        self._lock = threading.Lock()

    def answer(self, request: httpx.Request) -> httpx.Response:
        """Just enough of the API."""
        with self._lock:
            return self._answer(request)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            if self.down_after is not None and len(self.ids) >= self.down_after:
                raise httpx.ConnectError("refused")
            body = request.content
            if b"broken" in body:
                return problem("invalid_image", 422, retryable=False)
            image_id = body.split(b'name="id"')[1].split(b"\r\n")[2].decode()
            self.ids.append(image_id)
            receipt = {"partition": 0, "offset": len(self.ids) - 1}
            return httpx.Response(202, json={"id": image_id, "sha256": "0", "status": "logged", "receipt": receipt})
        if request.url.path.endswith("/images/images"):
            raise AssertionError("there is no such call")
        if "/images/images/" in request.url.path:
            image_id = request.url.path.rsplit("/", 1)[1]
            if image_id.startswith("gone"):
                return problem("not_found", 404, retryable=False)
            rejection = {"code": "invalid_image", "reason": "torn", "offset": self.ids.index(image_id)}
            torn = image_id.startswith("torn")
            return httpx.Response(
                200, json={"id": image_id, "state": "searchable", "rejection": rejection if torn else None}
            )
        if self.dropped:
            return problem("not_found", 404, retryable=False)
        applied = -1 if self.stuck else len(self.ids) - 1
        return httpx.Response(200, json={"name": "images", "shards": [{"applied_offsets": {"0": applied}}]})


def upload_many(kind: str, shelf: Shelf, items: Any, **options: Any) -> UploadReport:
    world = World(shelf.answer)
    report = world.run(
        kind,
        lambda client: client.upload_many("images", items, **options),
        retry=Retry(attempts=2, first_s=0.0),
    )
    assert isinstance(report, UploadReport)
    return report


@both
def test_every_picture_has_its_result_in_order(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    items = [
        tmp_path / "a.png",
        UploadItem(b"picture", id="b"),
        UploadItem(b"broken", id="c"),
        tmp_path / "missing.png",
        UploadItem(b"picture", id="torn"),
        UploadItem(b"picture", id="gone"),
    ]
    told: list[BatchProgress] = []
    report = upload_many(kind, Shelf(), items, progress=told.append)
    states = [result.state for result in report.results]
    assert states == ["searchable", "searchable", "failed", "failed", "failed", "searchable"]
    errors = [type(result.error) for result in report.results]
    assert errors == [type(None), type(None), InvalidImage, FileNotFoundError, ImageRejected, type(None)]
    assert [result.reason for result in report.failed] == [
        "the detail of invalid_image",
        "No such file or directory",
        "invalid_image: torn",
    ]
    assert [result.id for result in report.results][1:] == ["b", "c", report.results[3].id, "torn", "gone"]
    assert len(report.receipts) == 4
    with pytest.raises(ExceptionGroup, match="3 of 6 uploads failed") as caught:
        report.raise_for_failures()
    assert len(caught.value.exceptions) == 3
    last = told[-1]
    assert (last.total, last.sent, last.searchable, last.failed) == (6, 4, 3, 3)
    assert report.searchable_histogram()[float("inf")] == 3
    assert list(report.searchable_histogram().values()) == sorted(report.searchable_histogram().values())


@both
def test_logged_is_enough_where_nobody_waits(kind: str) -> None:
    shelf = Shelf()
    shelf.stuck = True
    report = upload_many(kind, shelf, (b"picture" for _ in range(5)), wait="logged")
    assert {result.state for result in report.results} == {"logged"}
    assert report.failed == ()
    report.raise_for_failures()
    assert upload_many(kind, shelf, []).results == ()
    with pytest.raises(ValueError, match="never end"):
        upload_many(kind, shelf, [b"picture"], parallel=0)


@both
def test_a_server_that_is_gone_stops_the_batch_and_every_picture_says_so(kind: str) -> None:
    shelf = Shelf()
    shelf.down_after = 3
    report = upload_many(kind, shelf, [UploadItem(b"picture", id=f"p{n}") for n in range(50)], parallel=2)
    assert isinstance(report.stopped_by, ServerUnreachable)
    states = [result.state for result in report.results]
    assert len(states) == 50
    assert states.count("searchable") == 3
    assert 1 <= states.count("failed") <= 2
    assert states.count("not_sent") == 50 - 3 - states.count("failed")
    assert all((result.error is None) == (result.state == "searchable") for result in report.results)


@both
def test_shards_that_stand_still_fail_what_waits_and_keep_the_receipts(kind: str) -> None:
    shelf = Shelf()
    shelf.stuck = True
    report = upload_many(kind, shelf, [b"one", b"two"], stalled_after_s=5)
    assert {type(result.error) for result in report.results} == {DeadlineExceeded}
    assert "nothing became searchable for 5 s" in str(report.results[0].reason)
    assert len(report.receipts) == 2
    shelf.dropped = True
    dropped = upload_many(kind, shelf, [b"one"])
    assert [type(result.error) for result in dropped.results] == [NotFound]


@both
def test_an_exception_of_the_callback_ends_the_batch(kind: str) -> None:
    class Enough(Exception):
        pass

    def stop(progress: BatchProgress) -> None:
        raise Enough

    shelf = Shelf()
    with pytest.raises(Enough):
        upload_many(kind, shelf, (b"picture" for _ in range(1000)), parallel=2, progress=stop)
    assert len(shelf.ids) < 10


def test_no_more_than_asked_for_are_under_way_in_threads() -> None:
    parallel, lock = 3, threading.Lock()
    together = threading.Barrier(parallel, timeout=30)
    shelf = Shelf()

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            with lock:
                shelf.busy += 1
                shelf.most_busy = max(shelf.most_busy, shelf.busy)
            together.wait()
            with lock:
                shelf.busy -= 1
        return shelf.answer(request)

    with Client(URL, transport=httpx.MockTransport(answer)) as client:
        report = client.upload_many("images", [b"picture"] * 9, parallel=parallel)
    assert report.failed == ()
    assert shelf.most_busy == parallel


async def test_no_more_than_asked_for_are_under_way_in_tasks_and_cancelling_ends_them() -> None:
    parallel = 3
    full, ended = asyncio.Event(), 0
    shelf = Shelf()

    async def answer(_: httpx.Request) -> httpx.Response:
        nonlocal ended
        shelf.busy += 1
        shelf.most_busy = max(shelf.most_busy, shelf.busy)
        if shelf.busy == parallel:
            full.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended += 1
        raise AssertionError("unreachable")

    async with AsyncClient(URL, transport=httpx.MockTransport(answer)) as client:
        batch = asyncio.create_task(client.upload_many("images", [b"picture"] * 9, parallel=parallel))
        await full.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
    assert (shelf.most_busy, ended) == (parallel, parallel)
