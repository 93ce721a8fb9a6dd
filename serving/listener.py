"""The HTTP server inside a replica: requests reach the app without a proxy between."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from contract.errors import SettingsInvalid, Unavailable

_BACKLOG = 2048
# Longer than clients keep their connections in a pool, so that none is closed under a request.
_KEEP_ALIVE_S = 75


class Listener:
    """One uvicorn server in the running event loop."""

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        grace_s: float,
        *,
        certificate: Path | None = None,
        private_key: Path | None = None,
        alone: bool = False,
    ) -> None:
        """Nothing listens until `start`; `grace_s` is how long a stop waits for requests under way.

        With `certificate` and `private_key`, both PEM files, connections are TLS. `alone`: the port is not
        shared with other replicas, and the app is one that another listener starts and ends.
        """
        self._address = (host, port)
        self._alone = alone
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                ssl_certfile=certificate,
                ssl_keyfile=private_key,
                ssl_version=ssl.PROTOCOL_TLS_SERVER,
                http="httptools",
                lifespan="off" if alone else "auto",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=round(grace_s),
            )
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return when connections are accepted.

        Raises Unavailable if the address cannot be had, SettingsInvalid for a certificate or key that cannot be used.
        """
        try:
            self._server.config.load()
        except OSError as error:
            # Errors of TLS are of this kind, too.
            raise SettingsInvalid(f"http_tls_cert and http_tls_key cannot be used: {error}") from error
        listening = _listen(*self._address, shared=not self._alone)
        self._serving = asyncio.get_running_loop().create_task(self._serve(listening))
        while not self._server.started:
            self.check()
            await asyncio.sleep(0.01)

    async def _serve(self, listening: socket.socket) -> None:
        # `serve` would take the signals of a process that is not its own.
        await self._server._serve([listening])

    def check(self) -> None:
        """Raise Unavailable if the server has ended."""
        if self._serving is not None and self._serving.done():
            reason = None if self._serving.cancelled() else self._serving.exception()
            raise Unavailable(f"the HTTP server has ended: {reason}") from reason

    async def stop(self) -> None:
        """Accept nothing more, let requests under way finish within the grace, and end. Idempotent."""
        if self._serving is not None:
            self._server.should_exit = True
            await asyncio.wait([self._serving])


async def start_on_first_free(make: Callable[[int], Listener], ports: Iterable[int]) -> Listener | None:
    """Start the listener that `make` builds for the first of the ports that is free; None if none is."""
    for port in ports:
        listener = make(port)
        try:
            await listener.start()
        except Unavailable:
            continue
        return listener
    return None


def _listen(host: str, port: int, *, shared: bool) -> socket.socket:
    """A listening socket; replicas on one machine share its port, and the kernel deals connections out to them."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared and hasattr(socket, "SO_REUSEPORT"):
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise Unavailable(f"{host}:{port} is taken ({error.strerror}); set RIVERLENS_HTTP_PORT") from error
    listening.setblocking(False)
    return listening
