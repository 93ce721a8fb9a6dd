"""Uploads by `url`: fetch bytes from a stranger's server without lending him this machine's place in the network.

A name is resolved once, when the connection is made, and the connection goes to the very address that
was checked; so a name that resolves differently the next time gains nothing. Redirects are new
requests, checked as the first one was.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import httpcore
import httpx

from contract.errors import ImageTooLarge, UrlRefused, UrlUnavailable
from contract.settings import Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

REDIRECTS_MAX: Final = 3
_AT_ONCE: Final = 8
_URL_LENGTH_MAX: Final = 2048
_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
# What may pass by itself. Everything else that a server answers is its last word.
_PASSING: Final = frozenset((408, 425, 429))
# Source: IANA IPv6 address space. Mapped, translated (NAT64), unique-local and link-local addresses lie outside.
_IPV6_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
# Source: RFC 3056 (6to4) and RFC 4380 (Teredo): both have an IPv4 address inside, of whatever kind.
_IPV6_TUNNELS: Final = (ipaddress.IPv6Network("2002::/16"), ipaddress.IPv6Network("2001::/32"))
# Source: IANA IPv4 special-purpose registry: protocol assignments, and the relays of 6to4.
_IPV4_SPECIAL: Final = (ipaddress.IPv4Network("192.0.0.0/24"), ipaddress.IPv4Network("192.88.99.0/24"))


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet: no private, shared, local, multicast or translated one."""
    if isinstance(address, ipaddress.IPv6Address) and (
        address not in _IPV6_UNICAST or any(address in tunnel for tunnel in _IPV6_TUNNELS)
    ):
        return False
    if any(address in network for network in _IPV4_SPECIAL):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


async def resolve(host: str, port: int) -> Sequence[str]:
    """Addresses of a name, in the system's order; raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects only to addresses that are public or allowed."""

    def __init__(self, resolve: Resolve, allowed: Sequence[Network]) -> None:
        self._resolve = resolve
        self._allowed = allowed
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # the interface's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address of `host` that accepts one; raises UrlRefused if none may be asked."""
        try:
            addresses = [ipaddress.ip_address(one) for one in dict.fromkeys(await self._resolve(host, port))]
        except (OSError, UnicodeError, ValueError) as error:
            raise httpcore.ConnectError(f"{host} cannot be resolved: {error}") from error
        permitted = [one for one in addresses if self._permits(one)]
        if not permitted:
            raise UrlRefused(f"{host} leads into a network from which nothing is fetched")
        failure: httpcore.ConnectError | None = None
        for address in permitted:
            try:
                return await self._network.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except httpcore.ConnectError as error:
                failure = error
        raise failure or httpcore.ConnectError(f"{host} has no address")

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109  # the interface's
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Never; raises UrlRefused."""
        raise UrlRefused("sockets of this machine are not fetched from")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    def _permits(self, address: Address) -> bool:
        return is_public(address) or any(address in network for network in self._allowed)


class UrlFetcher:
    """Fetches what URLs name. For one event loop."""

    def __init__(self, settings: Settings, resolve: Resolve = resolve) -> None:
        self._timeout_s = settings.url_timeout_s
        self._ports = frozenset(settings.url_ports)
        self._max_bytes = settings.max_image_bytes
        self._backend = _CheckedBackend(resolve, settings.url_allow_networks)
        self._tls = ssl.create_default_context()
        # Each holds a picture in memory.
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def fetch(self, url: str) -> bytes:
        """The bytes a URL names, after at most three redirects.

        Raises:
            UrlRefused: not http or https, with credentials, another port, a private network, or refused there.
            UrlUnavailable: not reached, too slow, or an error of its server; retryable.
            ImageTooLarge: more bytes than a picture may have; noticed while reading.
        """
        try:
            async with asyncio.timeout(self._timeout_s), self._slots:
                return await self._follow(url)
        except TimeoutError as error:
            raise UrlUnavailable(f"the URL was not fetched within {self._timeout_s:g} s") from error
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
            raise UrlUnavailable(f"the URL cannot be fetched: {str(error) or type(error).__name__}") from error

    async def _follow(self, url: str) -> bytes:
        target = self._checked(url)
        for _ in range(REDIRECTS_MAX + 1):
            async with self._answer(target) as response:
                if response.status not in _REDIRECTS:
                    return await self._body(response)
                location = _header(response, b"location")
            if location is None:
                raise UrlRefused("the URL is redirected to nowhere")
            target = self._checked(location, target)
        raise UrlRefused(f"the URL is redirected more than {REDIRECTS_MAX} times")

    def _checked(self, url: str, base: httpx.URL | None = None) -> httpx.URL:
        if len(url) > _URL_LENGTH_MAX:
            raise UrlRefused(f"the URL has more than {_URL_LENGTH_MAX} characters")
        try:
            target = httpx.URL(url) if base is None else base.join(url)
        except (httpx.InvalidURL, UnicodeError, ValueError) as error:
            raise UrlRefused(f"the URL cannot be read: {error}") from error
        if target.scheme not in ("http", "https") or not target.raw_host:
            raise UrlRefused("only http:// and https:// URLs with a host are fetched")
        if target.userinfo:
            raise UrlRefused("URLs with credentials are not fetched")
        if (target.port or {"http": 80, "https": 443}[target.scheme]) not in self._ports:
            raise UrlRefused(f"URLs are fetched from the ports {', '.join(map(str, sorted(self._ports)))} alone")
        return target

    @asynccontextmanager
    async def _answer(self, target: httpx.URL) -> AsyncIterator[httpcore.Response]:
        headers = [
            (b"Host", target.netloc),
            (b"User-Agent", b"riverlens"),
            (b"Accept", b"image/*"),
            # Nothing is unpacked here, so that nothing can be a bomb.
            (b"Accept-Encoding", b"identity"),
        ]
        timeouts = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), self._timeout_s)}
        place = httpcore.URL(scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path)
        # A pool of its own: no request travels on a connection that was checked for another.
        async with (
            httpcore.AsyncConnectionPool(ssl_context=self._tls, network_backend=self._backend) as pool,
            pool.stream("GET", place, headers=headers, extensions=timeouts) as response,
        ):
            yield response

    async def _body(self, response: httpcore.Response) -> bytes:
        status = response.status
        if status in _PASSING or status >= 500:
            raise UrlUnavailable(f"the server behind the URL answers with status {status}")
        if status != 200:
            raise UrlRefused(f"the server behind the URL answers with status {status}")
        announced = _header(response, b"content-length") or ""
        if announced.isdigit() and int(announced) > self._max_bytes:
            raise ImageTooLarge(f"{announced} bytes behind the URL; at most {self._max_bytes} are accepted")
        body = bytearray()
        async for piece in response.aiter_stream():
            body += piece
            if len(body) > self._max_bytes:
                raise ImageTooLarge(f"more than {self._max_bytes} bytes behind the URL")
        return bytes(body)


def _header(response: httpcore.Response, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), None)
