"""A real HTTP proxy before the object store, which can answer 503, slowly, or with half a body."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Mode = Literal["pass", "5xx", "slow", "half"]
_SLOW_S = 3.0
_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "keep-alive", "content-length"})


class ObjectProxy:
    """Listens on a free port of 127.0.0.1 and passes everything on to `endpoint`, as `mode` says."""

    def __init__(self, endpoint: str) -> None:
        self.mode: Mode = "pass"
        self.harmed = 0
        """Answers that were not passed on as they were."""
        upstream = urlsplit(endpoint)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                mode = proxy.mode
                if mode != "pass":
                    proxy.harmed += 1
                if mode == "5xx":
                    self._answer(503, {}, b"<Error><Code>ServiceUnavailable</Code></Error>")
                    return
                if mode == "slow":
                    threading.Event().wait(_SLOW_S)
                connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=30)
                try:
                    connection.request(self.command, self.path, body, dict(self.headers))
                    response = connection.getresponse()
                    answer = response.read()
                finally:
                    connection.close()
                self._answer(response.status, dict(response.getheaders()), answer, half=mode == "half")

            def _answer(self, status: int, headers: Mapping[str, str], body: bytes, *, half: bool = False) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in _HOP_BY_HOP:
                        self.send_header(name, value)
                length = headers.get("Content-Length", str(len(body))) if self.command == "HEAD" else str(len(body))
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command == "HEAD":
                    return
                self.wfile.write(body[: len(body) // 2] if half else body)
                if half:
                    # The length that was promised never comes.
                    self.close_connection = True

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815 - names the library calls

            def log_message(self, *_: Any) -> None:
                """Nothing: the chaos run has a trace of its own."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
