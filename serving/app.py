"""The FastAPI app, built from its dependencies: no Ray, Kafka or disk of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, Literal

import structlog
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.call_context import on_behalf_of
from contract.errors import RiverlensError
from contract.telemetry import LogField
from serving import (
    problems,
    routes_collections,
    routes_dead_letters,
    routes_images,
    routes_keys,
    routes_search,
    routes_system,
)
from serving.access.middleware import Access
from serving.access.rates import Rates
from serving.access.rules import scope_of
from serving.dead_letter_bodies import SettleRequest
from serving.dependencies import Dependencies
from serving.metrics import Metrics
from serving.parts import assemble
from serving.problems import problem_response
from serving.request_line import request_line
from serving.requests import FORM_SLACK_BYTES, request_id_from
from serving.routes_keys import KeyRequest
from serving.schemas import (
    BatchAnswer,
    Click,
    CollectionRequest,
    PayloadBody,
    Problem,
    SearchRequest,
    UploadReference,
)
from serving.shortcut import SearchShortcut

_log = structlog.get_logger()

_DESCRIPTION = """\
A picture is findable, by words or by another picture, about a second after it is uploaded.

Every error is an RFC 9457 problem document with a stable `code`, `retryable` and the `request_id`,
which is also in the `X-Request-ID` header of every answer.
"""
_WITHOUT_BODY = frozenset({"GET", "HEAD"})
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, where the server asks for one."},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same, in another header."},
}
# Nobody reads it; it stands in logs and metrics. Source: nginx, "client closed request".
_CLOSED = 499
# Asked every second by machines; a line each would drown the others.
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def create_app(dependencies: Dependencies) -> FastAPI:
    """The app; it closes its dependencies when it shuts down."""

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
    app.state.routes = []
    for module in (routes_collections, routes_images, routes_dead_letters, routes_search, routes_keys, routes_system):
        app.include_router(module.router)
        app.state.routes += module.router.routes
    problems.install(app)
    metrics, settings = app.state.parts.metrics, dependencies.settings
    app.add_middleware(SearchShortcut, parts=app.state.parts)
    app.add_middleware(
        Access,
        keys=app.state.parts.keys if settings.asks_for_keys else None,
        rates=Rates(settings.rate_limit_per_s, settings.rate_limit_burst),
        max_body_bytes=settings.max_image_bytes + FORM_SLACK_BYTES,
    )
    app.add_middleware(RequestRecord, metrics=metrics, access_log=settings.access_log)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


class _Caller:
    """Who waits for an answer. When it closes its connection, the task that works for it is cancelled."""

    def __init__(self, receive: Receive) -> None:
        """For the running task."""
        self.is_gone = False
        self._receive = receive
        self._working = asyncio.current_task()
        self._watching: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """From now on, when nobody else receives; idempotent."""
        if self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.is_gone = True
        if self._working is not None:
            self._working.cancel()

    def leave(self) -> None:
        """The answer is given."""
        if self._watching is not None:
            self._watching.cancel()


class RequestRecord:
    """Gives every request its id, answers unexpected errors, counts, and logs the lines that `access_log` asks for."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, access_log: Literal["all", "failed", "none"]) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        request_id = request_id_from(request.headers.get("x-request-id"))
        request.state.request_id = request_id
        started = time.perf_counter()
        status = received = sent = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if not message.get("more_body"):
                caller.watch()
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            sent += len(message.get("body", b""))
            await send(message)

        caller = _Caller(receive)
        if request.method in _WITHOUT_BODY:
            caller.watch()
        with on_behalf_of(request_id), request_line() as line, self._metrics.http_in_flight.track_inprogress():
            try:
                await self._app(scope, receive_counted, send_with_id)
            except asyncio.CancelledError:
                if not caller.is_gone:
                    raise
                status = _CLOSED
            except Exception:
                # The trace stays in the log; the caller gets the request id to name it by.
                _log.exception("request failed", **{LogField.REQUEST_ID: request_id})
                if status:
                    raise
                failure = problem_response(
                    request_id, code=RiverlensError.code, status=500, detail="the server failed; its log has the reason"
                )
                await failure(scope, receive_counted, send_with_id)
            finally:
                caller.leave()
                line |= {
                    LogField.STATUS: status,
                    LogField.REQUEST_ID: request_id,
                    LogField.REQUEST_BYTES: received,
                    LogField.BYTES: sent,
                }
                self._record(request, status, line, time.perf_counter() - started)

    def _record(self, request: Request, status: int, line: Mapping[str, object], duration_s: float) -> None:
        # The pattern of the path, so that neither ids nor scanners make a series each.
        route = getattr(request.scope.get("route"), "path", None)
        method = request.method if request.method in _METHODS else "other"
        self._metrics.http_requests.labels(method, route or "none", str(status)).inc()
        self._metrics.http_seconds.labels(method, route or "none").observe(duration_s)
        if request.url.path in _QUIET and status != 500:
            return
        failed = status == 0 or status >= 500
        if self._access_log == "none" or (self._access_log == "failed" and not failed):
            return
        fields: dict[str, object] = {
            LogField.METHOD: request.method,
            LogField.ROUTE: route or request.url.path,
            LogField.COLLECTION: request.path_params.get("collection"),
            LogField.DURATION_S: round(duration_s, 6),
            **line,
        }
        (_log.warning if failed else _log.info)("request", **fields)


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
            KeyRequest,
            SettleRequest,
        )
        for model in by_hand:
            described = model.model_json_schema(ref_template="#/components/schemas/{model}")
            components.update(described.pop("$defs", {}))
            components[model.__name__] = described
        # The routes answer an invalid request with a problem and 400, not with FastAPI's own 422.
        for name in ("HTTPValidationError", "ValidationError"):
            components.pop(name, None)
        schema["components"]["securitySchemes"] = _SECURITY
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                if scope_of(method.upper(), path) is not None:
                    operation["security"] = [{name: []} for name in _SECURITY]
                answer = operation["responses"].get("422", {})
                if "HTTPValidationError" in str(answer.get("content", {})):
                    del operation["responses"]["422"]
        app.openapi_schema = schema
    return app.openapi_schema
