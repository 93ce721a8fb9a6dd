"""Uploads by URL: what is fetched, from where, and what never is."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpcore
import httpx
import pytest

from contract.errors import ImageTooLarge, UrlRefused, UrlUnavailable
from contract.settings import Settings
from serving.app import create_app
from serving.fetching import UrlFetcher, is_public
from tests.unit.serving_fakes import make_system, picture
from tests.unit.test_serving_api_images import assert_problem

PUBLIC = "93.184.216.34"
Handle = Callable[[str], bytes]
Looked = Awaitable[Sequence[str]]


def ok(body: bytes, **headers: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body


def moved(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


@asynccontextmanager
async def server(handle: Handle, hold: asyncio.Event | None = None) -> AsyncIterator[tuple[int, list[str]]]:
    """An HTTP server of few words on loopback: its port, and the requests it saw."""
    seen: list[str] = []
    serving: list[asyncio.Task[object] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        try:
            await respond(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
            # The other side leaves when it has seen enough.
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readexactly(1)
        if first == b"\x16":
            return  # the beginning of TLS, which this server does not speak
        request = (first + await reader.readuntil(b"\r\n\r\n")).decode()
        seen.append(request)
        writer.write(handle(request.split()[1]))
        if hold is not None:
            await hold.wait()

    running = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield running.sockets[0].getsockname()[1], seen
    finally:
        running.close()
        await running.wait_closed()
        await asyncio.gather(*(task for task in serving if task is not None))


async def to_loopback(host: str, port: int) -> Sequence[str]:
    del host, port
    return ["127.0.0.1"]


def fetcher(port: int, resolve: Callable[[str, int], Looked] = to_loopback, **more: object) -> UrlFetcher:
    values = {"url_ports": [port], "url_allow_networks": ["127.0.0.0/8"], **more}
    return UrlFetcher(Settings(**values), resolve)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1",
        "255.255.255.255", "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:93.184.216.34", "64:ff9b::7f00:1",
        "64:ff9b:1::1", "fe80::1", "fec0::1", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1", "2001::1",
        "2002:7f00:1::1", "100::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_of_the_public_internet(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "1.1.1.1", "2606:2800:220:1:248:1893:25c8:1946"])
def test_addresses_of_the_public_internet(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/a.png", "file:///etc/passwd", "gopher://example.org/", "data:image/png;base64,AAAA", "a.png",
        "//example.org/a.png", "http://", "http:///a.png", "http://user:secret@example.org/a.png",
        "http://user@example.org/", "http://example.org:22/", "https://example.org:8443/", "http://[::1",
        "http://example.org:99999/", "", "http://example.org/" + "a" * 2048,
    ],
)  # fmt: skip
async def test_urls_that_are_refused_before_anything_is_asked(url: str) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        raise AssertionError(f"{host}:{port} was looked up")

    with pytest.raises(UrlRefused):
        await UrlFetcher(Settings(), resolve).fetch(url)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "169.254.169.254", "[::ffff:127.0.0.1]", "[fe80::1]", "2130706433"],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_this_machine_and_its_networks_are_refused_by_the_real_resolver(scheme: str, host: str) -> None:
    with pytest.raises(UrlRefused, match="nothing is fetched"):
        await UrlFetcher(Settings()).fetch(f"{scheme}://{host}/a.png")


async def test_bytes_are_fetched_with_the_name_and_nothing_else_told() -> None:
    async with server(lambda _: ok(b"picture")) as (port, seen):
        assert await fetcher(port).fetch(f"http://pictures.example:{port}/a%20b.png?x=1#part") == b"picture"
    lines = seen[0].split("\r\n")
    assert lines[0] == "GET /a%20b.png?x=1 HTTP/1.1"
    assert {line.split(":")[0].lower() for line in lines[1:] if line} == {
        "host",
        "user-agent",
        "accept",
        "accept-encoding",
    }
    assert f"Host: pictures.example:{port}" in lines


async def test_redirects_are_followed_thrice_and_no_further() -> None:
    def answer(path: str) -> bytes:
        left = int(path[1:])
        return moved(f"/{left - 1}", 307) if left else ok(b"end")

    async with server(answer) as (port, seen):
        assert await fetcher(port).fetch(f"http://a.example:{port}/3") == b"end"
        assert len(seen) == 4
        with pytest.raises(UrlRefused, match="more than 3"):
            await fetcher(port).fetch(f"http://a.example:{port}/4")
        assert len(seen) == 8


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "http://u:p@a.example/",
        "http://a.example:22/",
    ],
)
async def test_a_redirect_is_checked_as_the_first_url(location: str) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return [host] if host[0].isdigit() else ["127.0.0.1"]

    async with server(lambda _: moved(location)) as (port, seen):
        with pytest.raises(UrlRefused):
            await fetcher(port, resolve, url_ports=[port, 80]).fetch(f"http://a.example:{port}/")
        assert len(seen) == 1


async def test_a_redirect_to_nowhere_is_refused() -> None:
    async with server(lambda _: b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n") as (port, _):
        with pytest.raises(UrlRefused, match="nowhere"):
            await fetcher(port).fetch(f"http://a.example:{port}/")


class _Recording(httpcore.AsyncMockBackend):
    """A network that answers, and notes to which addresses somebody connected."""

    def __init__(self, answers: list[bytes]) -> None:
        super().__init__([])
        self.connected: list[str] = []
        self._answers = answers

    async def connect_tcp(self, host: str, *_: object, **__: object) -> httpcore.AsyncNetworkStream:
        self.connected.append(host)
        return httpcore.AsyncMockStream([self._answers.pop(0)])


async def test_a_name_that_changes_its_address_gains_nothing() -> None:
    """DNS rebinding: public at the first look, loopback at the second."""
    looks: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        del port
        looks.append(host)
        return [PUBLIC] if len(looks) == 1 else ["127.0.0.1"]

    one = UrlFetcher(Settings(), resolve)
    network = _Recording([ok(b"picture")])
    one._backend._network = network  # type: ignore[assignment]
    assert await one.fetch("http://rebinding.example/a.png") == b"picture"
    assert looks == ["rebinding.example"]
    assert network.connected == [PUBLIC]
    with pytest.raises(UrlRefused):
        await one.fetch("http://rebinding.example/a.png")
    assert network.connected == [PUBLIC]


async def test_a_redirect_looks_the_name_up_again() -> None:
    looks: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        del port
        looks.append(host)
        return [PUBLIC] if len(looks) == 1 else ["10.0.0.1"]

    one = UrlFetcher(Settings(), resolve)
    network = _Recording([moved("/again")])
    one._backend._network = network  # type: ignore[assignment]
    with pytest.raises(UrlRefused):
        await one.fetch("http://rebinding.example/a.png")
    assert network.connected == [PUBLIC]


async def test_private_addresses_among_public_ones_are_passed_over() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        del host, port
        return ["10.0.0.1", "::1", PUBLIC, "127.0.0.1"]

    one = UrlFetcher(Settings(), resolve)
    network = _Recording([ok(b"picture")])
    one._backend._network = network  # type: ignore[assignment]
    assert await one.fetch("http://mixed.example/") == b"picture"
    assert network.connected == [PUBLIC]


@pytest.mark.parametrize("announced", [True, False])
async def test_more_bytes_than_allowed_are_not_read(announced: bool) -> None:
    body = b"x" * 5000
    answer = ok(body) if announced else b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body
    async with server(lambda _: answer) as (port, _):
        with pytest.raises(ImageTooLarge):
            await fetcher(port, max_image_bytes=4999).fetch(f"http://a.example:{port}/")
        assert await fetcher(port, max_image_bytes=5000).fetch(f"http://a.example:{port}/") == body


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (204, UrlRefused),
        (206, UrlRefused),
        (401, UrlRefused),
        (404, UrlRefused),
        (429, UrlUnavailable),
        (503, UrlUnavailable),
    ],
)
async def test_other_statuses_are_no_picture(status: int, error: type[Exception]) -> None:
    async with server(lambda _: f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode()) as (port, _):
        with pytest.raises(error, match=str(status)):
            await fetcher(port).fetch(f"http://a.example:{port}/")


@pytest.mark.parametrize(
    "answer", [b"", b"\x15\x03\x01", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", b"A" * 200_000]
)
async def test_a_server_that_breaks_off_or_talks_nonsense(answer: bytes) -> None:
    async with server(lambda _: answer) as (port, _):
        with pytest.raises(UrlUnavailable):
            await fetcher(port).fetch(f"http://a.example:{port}/")


async def test_a_server_that_is_slow_or_not_there_or_has_no_name() -> None:
    hold = asyncio.Event()
    async with server(lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\na", hold) as (port, _):
        with pytest.raises(UrlUnavailable, match=r"within 0\.2 s"):
            await fetcher(port, url_timeout_s=0.2).fetch(f"http://a.example:{port}/")
        hold.set()
    with pytest.raises(UrlUnavailable):
        await fetcher(port).fetch(f"http://a.example:{port}/")

    async def unknown(host: str, port: int) -> Sequence[str]:
        raise OSError(f"no such name as {host}:{port}")

    with pytest.raises(UrlUnavailable, match="cannot be resolved"):
        await UrlFetcher(Settings(), unknown).fetch("http://nowhere.example/")


async def test_tls_is_spoken_and_checked() -> None:
    async with server(lambda _: ok(b"picture")) as (port, _):
        with pytest.raises(UrlUnavailable):
            await fetcher(port).fetch(f"https://a.example:{port}/")


async def test_a_picture_is_uploaded_by_url(tmp_path: Path) -> None:
    async with server(lambda path: ok(picture("red") if path == "/birds/red.png" else b"<html>")) as (port, _):
        system = make_system(tmp_path)
        allowed = {"url_ports": [port], "url_allow_networks": [ipaddress.ip_network("127.0.0.0/8")]}
        system.settings = system.settings.model_copy(update=allowed)
        app = create_app(system.dependencies())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            images = "/v1/collections/images/images"
            body = {"id": "by-url", "url": f"http://127.0.0.1:{port}/birds/red.png"}
            answer = await http.post(images, params={"wait": "searchable"}, json=body)
            assert answer.status_code == 201, answer.text
            known = (await http.get(f"{images}/by-url")).json()
            assert (known["content_type"], known["file_name"]) == ("image/png", "red.png")
            page = await http.post(images, json={"url": f"http://127.0.0.1:{port}/index.html"})
            assert_problem(page, 422, "invalid_image")
            inside = await http.post(images, json={"url": "http://169.254.169.254/latest/meta-data"})
            assert_problem(inside, 422, "url_refused")
