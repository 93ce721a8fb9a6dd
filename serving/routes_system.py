"""Health, readiness, metrics, the API page and the web page."""

from __future__ import annotations

import asyncio
import importlib.resources
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from actors.messages import ShardStatus
from contract.errors import NotFound, Unavailable
from serving.parts import InParts, problems
from serving.problems import problem_of, request_id_of
from serving.readiness import Health, Readiness

router = APIRouter()

_WEB = Path(__file__).parent / "web"
# The files a browser may ask for by name; nothing else of the folders can be reached.
_PAGES = {"/": "index.html", "/docs": "docs.html"}
_ASSETS = {
    "style.css": "text/css",
    "app.js": "text/javascript",
    "filter.js": "text/javascript",
    "key.js": "text/javascript",
    "docs.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
_API_PAGE_ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
_POLICY = "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
_PAGE_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
# The API page's library sets styles on its elements.
_API_PAGE_HEADERS = {**_PAGE_HEADERS, "Content-Security-Policy": f"{_POLICY}; style-src 'self' 'unsafe-inline'"}


@router.get("/healthz", tags=["system"], summary="Whether this process answers")
async def healthz() -> Health:
    """Always `ok` while the process lives; asks nobody else."""
    return Health(status="ok")


@router.get("/readyz", tags=["system"], summary="Whether every part answers and has caught up", responses=problems())
async def readyz(request: Request, parts: InParts) -> Readiness:
    """200 when every shard of every collection has recovered and every embedder answers.

    Else 503 with `missing`, and the same members beside it.
    """
    readiness = await parts.state.readiness()
    if readiness.missing:
        members = readiness.model_dump(exclude={"status"})
        response = problem_of(Unavailable("; ".join(readiness.missing)), request_id_of(request), members)
        return response  # type: ignore[return-value]  # FastAPI passes a Response on as it is
    return readiness


@router.get(
    "/metrics",
    tags=["system"],
    summary="Metrics in Prometheus's text format",
    response_class=Response,
    responses={
        **problems(),
        200: {"description": "Samples.", "content": {"text/plain": {"schema": {"type": "string"}}}},
    },
)
async def metrics(parts: InParts) -> Response:
    """Counters of this process, and gauges of the shards and embedders as they are now."""
    collections = await parts.catalog.list()
    embedders, reports = await asyncio.gather(
        parts.state.embedders(collection.spec.model for collection in collections),
        asyncio.gather(*(parts.state.shards(collection) for collection in collections)),
    )
    # Nothing is awaited from here on: another scrape would clear what this one is about to show.
    parts.metrics.clear_parts()
    parts.metrics.observe_embedders(embedders)
    for collection, shards in zip(collections, reports, strict=True):
        answering: dict[int, ShardStatus] = {}
        for shard, replica, report in shards:
            status = report if isinstance(report, ShardStatus) else None
            parts.metrics.observe_replica(collection.spec.name, shard, replica, status)
            if status is not None:
                answering.setdefault(shard, status)
        parts.metrics.observe_shards(collection.spec.name, collection.spec.shards, answering)
        lag = parts.state.lags.lag(collection.spec.name, collection.spec.incarnation)
        parts.metrics.observe_lag(collection.spec.name, lag.messages, lag.drain_s)
    return Response(parts.metrics.render(), media_type=parts.metrics.content_type)


@router.get("/", include_in_schema=False)
@router.get("/docs", include_in_schema=False)
async def page(request: Request) -> Response:
    """The web page, and the API page."""
    path = request.url.path
    headers = _API_PAGE_HEADERS if path == "/docs" else _PAGE_HEADERS
    return FileResponse(_WEB / _PAGES[path], headers=headers, media_type="text/html; charset=utf-8")


@router.get("/web/{name}", include_in_schema=False)
async def asset(name: str) -> Response:
    """Scripts and styles of the pages, all from this server: they work without a network."""
    if name in _ASSETS:
        return FileResponse(_WEB / name, headers=_PAGE_HEADERS, media_type=_ASSETS[name])
    if name in _API_PAGE_ASSETS:
        folder = Path(str(importlib.resources.files("fastapi_offline"))) / "static"
        return FileResponse(folder / name, headers=_PAGE_HEADERS, media_type=_API_PAGE_ASSETS[name])
    raise NotFound(f"there is no page asset {name!r}")
