"""The end of a search port in the shard: threads that read a batch, search, and answer."""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import socketserver
import threading
from collections.abc import Callable

import structlog

from actors.messages import ShardSearch, ShardSearchResult
from actors.search_port.frames import (
    FRAME_BYTES_MAX,
    LENGTH,
    SearchAddress,
    decode_request,
    encode_failure,
    encode_result,
    framed,
)
from contract.errors import RiverlensError

_log = structlog.get_logger()

# Who connects shows the token at once.
_TOKEN_WITHIN_S = 5.0
_TOKEN_BYTES = 32

Answer = Callable[[ShardSearch], ShardSearchResult]


class SearchPort:
    """Listens from the start until `close`. A connection is a thread, and its requests are answered in turn.

    At most `searches_max` of them search at the same time; the others wait.
    """

    def __init__(self, host: str, answer: Answer, searches_max: int) -> None:
        """`answer` is called in threads; a RiverlensError it raises reaches the caller as itself.

        Raises OSError if there is no port to be had on `host`.
        """
        token = secrets.token_bytes(_TOKEN_BYTES)
        self._server = _Server(host, answer, token, searches_max)
        name, port = self._server.server_address[:2]
        self.address = SearchAddress(str(name), int(port), token)
        self._thread = threading.Thread(target=self._server.serve_forever, name="search-port", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more connections, and end those there are."""
        self._server.shutdown()
        self._server.server_close()
        self._server.end_connections()
        self._thread.join()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    # The threads of connections end when these are closed, not before.
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host: str, answer: Answer, token: bytes, searches_max: int) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, 0), _Connection)
        self.answer = answer
        self.token = token
        self.turn = threading.BoundedSemaphore(searches_max)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)

    def end_connections(self) -> None:
        with self._lock:
            for connection in self._open:
                # One that its caller has reset is ended already, and its thread about to say so.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Connection(socketserver.BaseRequestHandler):
    server: _Server
    request: socket.socket

    def setup(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.server.opened(self.request)

    def finish(self) -> None:
        self.server.closed(self.request)

    def handle(self) -> None:
        try:
            self.request.settimeout(_TOKEN_WITHIN_S)
            token = self._read(_TOKEN_BYTES)
            if token is None or not hmac.compare_digest(token, self.server.token):
                _log.warning("a caller of the search port has no token")
                return
            self.request.settimeout(None)
            while (body := self._read_frame()) is not None:
                self.request.sendall(framed(self._answered(body)))
        except (ConnectionError, TimeoutError):
            # The caller is gone; there is nobody to tell.
            return

    def _answered(self, body: bytes) -> bytes:
        try:
            with self.server.turn:
                return encode_result(self.server.answer(decode_request(body)))
        except RiverlensError as error:
            return encode_failure(error)
        # Whatever it is, the caller shall not wait for an answer that never comes.
        except Exception as error:  # noqa: BLE001
            _log.exception("a search failed")
            return encode_failure(RiverlensError(f"the shard failed: {type(error).__name__}"))

    def _read_frame(self) -> bytes | None:
        head = self._read(LENGTH.size)
        if head is None:
            return None
        (length,) = LENGTH.unpack(head)
        if length > FRAME_BYTES_MAX:
            _log.warning("a frame of a search port is too long")
            return None
        return self._read(length)

    def _read(self, count: int) -> bytes | None:
        """So many bytes; None when the caller has closed the connection."""
        data = bytearray(count)
        view = memoryview(data)
        while view:
            received = self.request.recv_into(view)
            if not received:
                return None
            view = view[received:]
        return bytes(data)
