"""The FastAPI app, built from its dependencies: no Ray, Kafka or disk of its own."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contract.errors import RiverlensError
from contract.telemetry import LogField
from serving import problems, routes_collections, routes_images, routes_search, routes_system
from serving.dependencies import Dependencies
from serving.parts import assemble
from serving.problems import problem_response
from serving.requests import request_id_from
from serving.schemas import (
    BatchAnswer,
    Click,
    CollectionRequest,
    PayloadBody,
    Problem,
    SearchRequest,
    UploadReference,
)

_log = structlog.get_logger()

_DESCRIPTION = """\
A picture is findable, by words or by another picture, about a second after it is uploaded.

Every error is an RFC 9457 problem document with a stable `code`, `retryable` and the `request_id`,
which is also in the `X-Request-ID` header of every answer.
"""
# Asked every second by machines; a line each would drown the others.
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})


def create_app(dependencies: Dependencies, *, proxy_adds_request_id: bool = False) -> FastAPI:
    """The app; it closes its dependencies when it shuts down.

    `proxy_adds_request_id`: the proxy in front puts the caller's `X-Request-ID` (or a new one, which
    the app then sees) into every answer, so the app does not do it a second time.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        dependencies.close()

    app = FastAPI(
        title="Riverlens",
        version=version("riverlens"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.parts = assemble(dependencies)
    for module in (routes_collections, routes_images, routes_search, routes_system):
        app.include_router(module.router)
    problems.install(app)
    app.add_middleware(RequestRecord, proxy_adds_request_id=proxy_adds_request_id)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


class RequestRecord:
    """Gives every request its id, answers unexpected errors, and logs one line per request."""

    def __init__(self, app: ASGIApp, *, proxy_adds_request_id: bool) -> None:
        self._app = app
        self._proxy_adds_request_id = proxy_adds_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        given = request.headers.get("x-request-id")
        request_id = request_id_from(given)
        already_added = self._proxy_adds_request_id and given == request_id
        request.state.request_id = request_id
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if not already_added:
                    MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            # The trace stays in the log; the caller gets the request id to name it by.
            _log.exception("request failed", **{LogField.REQUEST_ID: request_id})
            if status:
                raise
            failure = problem_response(
                request_id, code=RiverlensError.code, status=500, detail="the server failed; its log has the reason"
            )
            await failure(scope, receive, send_with_id)
        finally:
            self._record(request, status, request_id, time.perf_counter() - started)

    @staticmethod
    def _record(request: Request, status: int, request_id: str, duration_s: float) -> None:
        if request.url.path in _QUIET and status != 500:
            return
        route = request.scope.get("route")
        _log.info(
            "request",
            **{
                LogField.METHOD: request.method,
                LogField.ROUTE: getattr(route, "path", request.url.path),
                LogField.STATUS: status,
                LogField.DURATION_S: round(duration_s, 6),
                LogField.COLLECTION: request.path_params.get("collection"),
                LogField.REQUEST_ID: request_id,
            },
        )


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The description, with the bodies that the routes read by hand."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        components = schema.setdefault("components", {}).setdefault("schemas", {})
        by_hand: tuple[type[BaseModel], ...] = (
            Problem,
            UploadReference,
            PayloadBody,
            SearchRequest,
            BatchAnswer,
            Click,
            CollectionRequest,
        )
        for model in by_hand:
            described = model.model_json_schema(ref_template="#/components/schemas/{model}")
            components.update(described.pop("$defs", {}))
            components[model.__name__] = described
        # The routes answer an invalid request with a problem and 400, not with FastAPI's own 422.
        for name in ("HTTPValidationError", "ValidationError"):
            components.pop(name, None)
        for operations in schema["paths"].values():
            for operation in operations.values():
                answer = operation["responses"].get("422", {})
                if "HTTPValidationError" in str(answer.get("content", {})):
                    del operation["responses"]["422"]
        app.openapi_schema = schema
    return app.openapi_schema
