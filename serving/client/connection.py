"""Requests and answers between the calls and httpx, for both clients."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from serving.client.attempts import Send

DEFAULT_URL = "http://127.0.0.1:8000"
KEY_VARIABLE = "RIVERLENS_API_KEY"
# Above the longest time the server itself waits for an upload to become searchable (60 s unless set).
DEFAULT_DEADLINE_S = 90.0
DEFAULT_CONNECTIONS = 16
_CONNECT_TIMEOUT_S = 5.0
_LEAST_TIMEOUT_S = 0.001
_PIECE_BYTES = 64 * 1024


def check_url(url: str) -> str:
    """The address without its last slash; raises ValueError for one without scheme or host."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no address of a server; it looks like {DEFAULT_URL}")
    return url.rstrip("/")


def http_options(url: str, connections: int, api_key: str | None, tls_ca: Path | None) -> dict[str, Any]:
    """Arguments of an httpx client; `tls_ca` is a PEM file with the only authority it trusts.

    Without `api_key` the key is that of the environment. Raises OSError for an authority that cannot be read.
    """
    if connections < 1:
        raise ValueError("a client needs at least one connection")
    try:
        agent = f"riverlens-client/{version('riverlens')}"
    except PackageNotFoundError:
        agent = "riverlens-client"
    headers = {"User-Agent": agent, "Accept": "application/json, application/problem+json, image/*"}
    key = api_key or os.environ.get(KEY_VARIABLE)
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return {
        "base_url": url,
        "verify": True if tls_ca is None else ssl.create_default_context(cafile=str(tls_ca)),
        "limits": httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        "headers": headers,
    }


def request_of(http: httpx.Client | httpx.AsyncClient, step: Send) -> httpx.Request:
    """A new request of a call; one of its own for every attempt, because sending uses it up."""
    call, left_s = step.call, max(step.left_s, _LEAST_TIMEOUT_S)
    headers = {"X-Request-ID": step.context.request_id}
    if call.content_type is not None:
        headers |= {"Content-Type": call.content_type, "Content-Length": str(len(call.content))}
    timeout = httpx.Timeout(left_s, connect=min(left_s, _CONNECT_TIMEOUT_S))
    content: Iterator[bytes] | AsyncIterator[bytes] | None = None
    if call.content:
        content = _pieces_async(step) if isinstance(http, httpx.AsyncClient) else _pieces(step)
    params = dict(call.params) if call.params else None
    return http.build_request(call.method, call.path, params=params, headers=headers, content=content, timeout=timeout)


def keep_deadline(request: httpx.Request, step: Send) -> None:
    """Bound every phase of a blocking request by what is left then, not by what was left at its start.

    httpx bounds each wait for the network alone, so a request of many waits could take many times
    its timeout; the phases (connect, send, receive) read their bounds from the request as they begin.
    """
    timeouts: dict[str, float | None] = request.extensions["timeout"]

    def tighten(event: str, _: Mapping[str, Any]) -> None:
        if event.endswith(".started"):
            left_s = max(step.context.left_s(), _LEAST_TIMEOUT_S)
            timeouts.update(read=left_s, write=left_s)

    request.extensions["trace"] = tighten


def _pieces(step: Send) -> Iterator[bytes]:
    """The content of a call in pieces; tells its progress, and ends at the deadline."""
    content, tell = step.call.content, step.call.progress
    for start in range(0, len(content), _PIECE_BYTES):
        if step.context.left_s() <= 0:
            raise httpx.WriteTimeout("the deadline is over")
        if tell is not None:
            tell(start, len(content))
        yield content[start : start + _PIECE_BYTES]
    if tell is not None:
        tell(len(content), len(content))


async def _pieces_async(step: Send) -> AsyncIterator[bytes]:
    for piece in _pieces(step):
        yield piece
