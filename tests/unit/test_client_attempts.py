"""What the client sends again and when, what it raises, and that a deadline ends it; both clients."""

from __future__ import annotations

import asyncio
import datetime
import socket
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from contract import errors as contract_errors
from contract.events import Receipt
from serving import client as package
from serving.client import (
    ApiError,
    AsyncClient,
    Client,
    DeadlineExceeded,
    NotFound,
    NotSearchableInTime,
    Retry,
    ServerUnreachable,
    ShardUnavailable,
    UnexpectedAnswer,
)
from serving.client.errors import retry_after_s
from tests.unit.client_world import KINDS, URL, World, busy, problem

READY = httpx.Response(200, json={"name": "images", "shards": []})
both = pytest.mark.parametrize("kind", KINDS)


def statistics(client: Any) -> Any:
    return client.collection("images")


def _tree(base: type[contract_errors.RiverlensError]) -> Iterator[type[contract_errors.RiverlensError]]:
    yield base
    for child in base.__subclasses__():
        yield from _tree(child)


def test_every_code_of_the_server_has_a_class_and_the_trees_agree() -> None:
    for theirs in _tree(contract_errors.RiverlensError):
        if theirs is contract_errors.RiverlensError:
            continue
        ours = getattr(package, theirs.__name__)
        assert theirs.__name__ in package.__all__
        assert (ours.code, ours.retryable, ours.http_status) == (theirs.code, theirs.retryable, theirs.http_status)
        (parent,) = theirs.__bases__
        assert ours.__bases__ == (getattr(package, parent.__name__, ApiError),)


@both
def test_a_problem_becomes_the_error_of_its_code(kind: str) -> None:
    world = World(problem("not_found", 404, retryable=False, near=["a"]))
    with pytest.raises(NotFound) as caught:
        world.run(kind, statistics)
    error = caught.value
    assert (error.status, error.code, error.retryable, error.request_id) == (404, "not_found", False, "of-the-server")
    assert (error.detail, error.members) == ("the detail of not_found", {"near": ["a"]})
    assert str(error) == "not_found: the detail of not_found"
    assert len(world.requests) == 1


@both
def test_a_code_of_a_later_version_is_an_api_error_that_says_what_the_server_says(kind: str) -> None:
    world = World(problem("too_wet", 418, retryable=False))
    with pytest.raises(ApiError) as caught:
        world.run(kind, statistics)
    assert type(caught.value) is ApiError
    assert (caught.value.code, caught.value.status) == ("too_wet", 418)


@both
def test_only_a_retryable_error_is_sent_again(kind: str) -> None:
    world = World(busy(), httpx.ConnectError("refused"), READY)
    assert world.run(kind, statistics).name == "images"
    assert len(world.requests) == 3
    assert len({request.headers["x-request-id"] for request in world.requests}) == 1
    with pytest.raises(ShardUnavailable):
        (world := World(busy())).run(kind, statistics, retry=Retry(attempts=3))
    assert len(world.requests) == 3


@both
def test_pauses_double_to_a_cap_and_add_to_what_the_server_asks_for(kind: str) -> None:
    world = World(busy())
    with pytest.raises(ShardUnavailable):
        world.run(kind, statistics, retry=Retry(attempts=5, first_s=0.2, cap_s=1.0))
    assert world.pauses == pytest.approx([0.1, 0.2, 0.4, 0.5])
    world = World(busy(**{"Retry-After": "3"}), READY)
    world.run(kind, statistics)
    assert world.pauses == pytest.approx([3.1])


@both
def test_a_pause_that_would_pass_the_deadline_ends_the_call_with_its_error(kind: str) -> None:
    world = World(busy(**{"Retry-After": "30"}))
    with pytest.raises(ShardUnavailable):
        world.run(kind, lambda client: client.collection("images", deadline_s=20))
    assert world.pauses == []


@both
def test_one_deadline_holds_for_all_attempts(kind: str) -> None:
    world = World(busy(), took_s=4.0)
    with pytest.raises(ShardUnavailable):
        world.run(kind, statistics, deadline_s=12, retry=Retry(attempts=99, first_s=4.0))
    assert (len(world.requests), world.pauses) == (2, [2.0])
    cut = World(httpx.ReadTimeout("late"), took_s=10.0)
    with pytest.raises(DeadlineExceeded, match="did not answer within 10 s"):
        cut.run(kind, statistics, deadline_s=10)
    assert len(cut.requests) == 1


@both
def test_nobody_at_the_address_is_said_with_the_address(kind: str) -> None:
    world = World(httpx.ConnectError("refused"))
    with pytest.raises(ServerUnreachable, match=f"{URL} does not answer"):
        world.run(kind, statistics, retry=Retry(attempts=2))
    assert len(world.requests) == 2


@both
def test_a_click_is_never_counted_twice(kind: str) -> None:
    def click(client: Any) -> Any:
        return client.click("images", "r1", "a", 0)

    for lost in (httpx.ReadError("lost"), busy(), problem("broker_unavailable", 503, retryable=True)):
        with pytest.raises((ServerUnreachable, ApiError)):
            (world := World(lost)).run(kind, click)
        assert len(world.requests) == 1
    accepted = httpx.Response(202, json={"status": "logged"})
    for harmless in (httpx.ConnectError("refused"), problem("overloaded", 429, retryable=True)):
        (world := World(harmless, accepted)).run(kind, click)
        assert len(world.requests) == 2


@both
def test_an_answer_that_is_no_problem_document_is_unexpected(kind: str) -> None:
    for status, tries in ((404, 1), (502, 2), (200, 1)):
        world = World(httpx.Response(status, text="<html>proxy</html>"))
        with pytest.raises(UnexpectedAnswer) as caught:
            world.run(kind, statistics, retry=Retry(attempts=2))
        assert (caught.value.status, len(world.requests)) == (status, tries)
        assert caught.value.request_id == world.requests[0].headers["x-request-id"]


@both
def test_a_delete_whose_answer_was_lost_is_done_when_the_image_is_gone(kind: str) -> None:
    gone = problem("not_found", 404, retryable=False)
    changed = World(httpx.ReadError("lost"), gone).run(kind, lambda client: client.delete("images", "a"))
    assert (changed.id, changed.status, changed.receipt) == ("a", "applied", None)
    for first in (gone, httpx.ConnectError("refused")):
        with pytest.raises(NotFound):
            World(first, gone).run(kind, lambda client: client.delete("images", "a"))


@both
def test_what_is_logged_already_is_waited_for_and_not_logged_again(kind: str) -> None:
    """The server's own wait ends first; its problem has the receipt."""
    receipt = {"partition": 1, "offset": 7}
    late = problem("not_searchable_in_time", 504, retryable=True, receipt=receipt)

    def shards(offset: int) -> httpx.Response:
        replicas = [{"applied_offsets": {"1": offset}}, {"applied_offsets": {"1": 9}}, {"applied_offsets": {}}]
        return httpx.Response(200, json={"name": "images", "shards": replicas})

    found = httpx.Response(200, json={"id": "a", "state": "searchable"})
    world = World(late, shards(6), shards(7), found)
    uploaded = world.run(kind, lambda client: client.upload("images", b"picture", id="a", wait="searchable"))
    assert (uploaded.status, uploaded.receipt) == ("searchable", Receipt(1, 7))
    assert [request.method for request in world.requests] == ["POST", "GET", "GET", "GET"]

    rejection = {"code": "invalid_image", "reason": "torn", "offset": 7}
    torn = httpx.Response(200, json={"id": "a", "state": "searchable", "rejection": rejection})
    with pytest.raises(package.ImageRejected, match="invalid_image: torn") as rejected:
        World(late, shards(7), torn).run(kind, lambda c: c.upload("images", b"picture", wait="searchable"))
    assert rejected.value.receipt == Receipt(1, 7)

    changed = World(late, shards(7)).run(kind, lambda client: client.delete("images", "a", wait="searchable"))
    assert (changed.status, changed.receipt) == ("applied", Receipt(1, 7))
    with pytest.raises(NotSearchableInTime) as caught:
        World(late, shards(6)).run(kind, lambda client: client.upload("images", b"picture", wait="searchable"))
    assert caught.value.receipt == Receipt(1, 7)


@both
def test_an_upload_without_an_id_stays_one_image_however_often_it_is_sent(kind: str) -> None:
    stored = httpx.Response(
        202, json={"id": "x", "sha256": "0", "status": "logged", "receipt": {"partition": 0, "offset": 0}}
    )
    world = World(httpx.ReadError("lost"), busy(), stored)
    seen: list[tuple[int, int]] = []
    world.run(
        kind, lambda client: client.upload("images", b"x" * 150_000, progress=lambda *bytes_: seen.append(bytes_))
    )
    bodies = {request.content for request in world.requests}
    assert len(world.requests) == 3
    assert len(bodies) == 1
    size = len(bodies.pop())
    assert [sent for sent, _ in seen] == [0, 65536, 131072, size] * 3
    assert {total for _, total in seen} == {size}


def test_retry_after_is_seconds_or_a_date() -> None:
    now = datetime.datetime(2026, 5, 1, tzinfo=datetime.UTC)
    later = format_datetime(now + datetime.timedelta(seconds=90), usegmt=True)
    assert retry_after_s("7") == 7.0
    assert retry_after_s(later, now.timestamp) == 90.0
    assert retry_after_s(later, lambda: now.timestamp() + 500) == 0.0
    assert [retry_after_s(nonsense) for nonsense in (None, "", "soon", "-1", "1.5", "٣")] == [None] * 6


def test_an_address_that_cannot_be_one_is_refused_at_once() -> None:
    for wrong in ("localhost:8000", "ftp://host", "http://", ""):
        with pytest.raises(ValueError, match="no address"):
            Client(wrong)


@pytest.fixture
def stuck_server() -> Iterator[Callable[[bytes], str]]:
    """Listens on a port of its own; sends a first piece, then a byte now and then, and never comes to an end."""
    over = threading.Event()
    threads: list[threading.Thread] = []
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(30)

    def start(first: bytes) -> str:
        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(first)
                while first and not over.wait(0.05):
                    connection.sendall(b" ")
                over.wait(30)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    over.set()
    for thread in threads:
        thread.join()
    listener.close()


@both
@pytest.mark.parametrize(
    "first", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"], ids=["silent", "dripping"]
)
def test_a_server_that_never_comes_to_an_end_does_not_hold_the_call(
    kind: str, first: bytes, stuck_server: Callable[[bytes], str]
) -> None:
    url = stuck_server(first)

    async def ask() -> None:
        async with AsyncClient(url, deadline_s=0.3) as client:
            await client.collection("images")

    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        if kind == "asyncio":
            asyncio.run(ask())
        else:
            with Client(url, deadline_s=0.3) as client:
                client.collection("images")
    # A call that is not cut off would take the minutes the server drips for.
    assert time.monotonic() - started < 20


async def test_a_cancelled_call_ends_its_request_and_leaves_the_client_usable() -> None:
    entered, hold = asyncio.Event(), asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("slow"):
            entered.set()
            await hold.wait()
        return httpx.Response(200, json={"name": "images", "shards": []})

    async with AsyncClient(URL, transport=httpx.MockTransport(answer)) as client:
        call = asyncio.create_task(client.collection("slow"))
        await entered.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await client.collection("images")).name == "images"
