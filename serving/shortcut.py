"""The short way to the search: past routing and dependency injection, which take longer than all else in the app."""

from __future__ import annotations

from types import SimpleNamespace

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.parts import Parts, collection_of
from serving.problems import PROBLEMS, problem_for
from serving.routes_search import post_search

_BEFORE, _AFTER = "/v1/collections/", "/search"
# What metrics and logs call the route; FastAPI's own has the same.
_ROUTE = SimpleNamespace(path=f"{_BEFORE}{{collection}}{_AFTER}")


class SearchShortcut:
    """Answers `POST /v1/collections/{collection}/search` as the app behind it would, and leaves it the rest."""

    def __init__(self, app: ASGIApp, *, parts: Parts) -> None:
        self._app = app
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        name = _collection(scope)
        if name is None:
            await self._app(scope, receive, send)
            return
        scope["route"], scope["path_params"] = _ROUTE, {"collection": name}
        request = Request(scope, receive)
        try:
            response = await post_search(await collection_of(self._parts, name), request, self._parts)
        except PROBLEMS as error:
            response = problem_for(request, error)
        await response(scope, receive, send)


def _collection(scope: Scope) -> str | None:
    """Name of the collection that is searched; None for any other request."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path: str = scope["path"]
    if not path.startswith(_BEFORE) or not path.endswith(_AFTER):
        return None
    name = path[len(_BEFORE) : -len(_AFTER)]
    return None if not name or "/" in name else name
