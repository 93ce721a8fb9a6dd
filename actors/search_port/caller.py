"""The end of a search port in the API: connections that are kept and used in turn."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import cast

from actors.messages import ShardSearch, ShardSearchResult
from actors.search_port.frames import LENGTH, SearchAddress, decode_answer, encode_request, framed
from contract.errors import ShardUnavailable

# Few calls are under way at once, since queries gather into batches.
_IDLE_MAX = 8


class SearchCaller:
    """Asks one shard replica through its search port. For any number of event loops, one after another."""

    def __init__(self, name: str, address: Callable[[], Awaitable[SearchAddress | None]]) -> None:
        """`address` finds the port of the replica as it lives now; None if it has none."""
        self._name = name
        self._find = address
        self._address: SearchAddress | None = None
        self._idle: list[_Connection] = []

    async def search(self, request: ShardSearch) -> ShardSearchResult | None:
        """The answer to one batch; None if the replica takes no searches this way.

        A caller that is cancelled closes its connection, and the shard's answer goes nowhere.
        Raises ShardUnavailable (retryable), and what the shard raises.
        """
        connection = self._kept() or await self._connect()
        if connection is None:
            return None
        try:
            body = await connection.ask(framed(encode_request(request)))
        except OSError as error:
            raise ShardUnavailable(f"{self._name} closed the connection") from error
        finally:
            if connection.is_free and len(self._idle) < _IDLE_MAX:
                self._idle.append(connection)
            else:
                connection.close()
        return decode_answer(body)

    def close(self) -> None:
        """Close the connections that wait, in the event loop they belong to."""
        while self._idle:
            self._idle.pop().close()

    def _kept(self) -> _Connection | None:
        loop = asyncio.get_running_loop()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_free and connection.loop is loop:
                return connection
            connection.close()
        return None

    async def _connect(self) -> _Connection | None:
        """A new connection. An address that nobody is at belongs to an earlier life of the replica."""
        is_new = self._address is None
        if self._address is None:
            self._address = await self._find()
        if self._address is None:
            return None
        address, self._address = self._address, None
        try:
            connection = await _connected(address)
        except OSError as error:
            if is_new:
                raise ShardUnavailable(f"{self._name} does not take connections: {error.strerror}") from error
            return await self._connect()
        # Only now: a caller whose time is up while it connects leaves the address forgotten.
        self._address = address
        return connection


async def _connected(address: SearchAddress) -> _Connection:
    loop = asyncio.get_running_loop()
    transport, connection = await loop.create_connection(lambda: _Connection(loop), address.host, address.port)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    transport.write(address.token)
    return connection


class _Connection(asyncio.Protocol):
    """One question at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._wanted = 0
        self._answer: asyncio.Future[bytes] | None = None

    @property
    def is_free(self) -> bool:
        """Whether a question may be asked."""
        return self._transport is not None and self._answer is None

    async def ask(self, frame: bytes) -> bytes:
        """The body of the answer; raises ConnectionError. Not free any more where it is cancelled."""
        assert self._transport is not None  # noqa: S101
        self._answer = self.loop.create_future()
        self._transport.write(frame)
        body = await self._answer
        self._answer = None
        return body

    def close(self) -> None:
        """Idempotent."""
        if self._transport is not None and not self.loop.is_closed():
            self._transport.abort()
        self._transport = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Of asyncio.Protocol."""
        received = self._received
        received += data
        if not self._wanted and len(received) >= LENGTH.size:
            self._wanted = LENGTH.size + LENGTH.unpack_from(received)[0]
        if self._wanted and len(received) >= self._wanted:
            body = bytes(memoryview(received)[LENGTH.size : self._wanted])
            self._received, self._wanted = bytearray(), 0
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(body)

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio.Protocol."""
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("the connection was closed") if exc is None else exc)
