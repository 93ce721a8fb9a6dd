"""RFC 9457 problem documents: every error of the API has one shape.

Source: RFC 9457, Problem Details for HTTP APIs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from contract.errors import InvalidRequest, NotFound, RiverlensError

_log = structlog.get_logger()

PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_S = 1


class ProblemError(Exception):
    """An error that carries members beyond those of every problem, such as the receipt of an upload."""

    def __init__(self, error: RiverlensError, **members: Any) -> None:
        super().__init__(error.detail)
        self.error = error
        self.members = members


def _document(
    request_id: str, code: str, status: int, detail: str, retryable: bool, members: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "type": f"urn:riverlens:problem:{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "detail": detail,
        "code": code,
        "retryable": retryable,
        "request_id": request_id,
        **(members or {}),
    }


def problem_body(error: RiverlensError, request_id: str, members: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The members of the problem document of a Riverlens error."""
    return _document(request_id, error.code, error.http_status, error.detail, error.retryable, members)


def problem_response(
    request_id: str,
    *,
    code: str,
    status: int,
    detail: str,
    retryable: bool = False,
    members: Mapping[str, Any] | None = None,
) -> Response:
    """A problem document with its status; `Retry-After` when a retry may help: `retry_after_s`, or a second."""
    body = _document(request_id, code, status, detail, retryable, members)
    headers = {"Retry-After": str((members or {}).get("retry_after_s", RETRY_AFTER_S))} if retryable else {}
    return Response(msgspec.json.encode(body), status, headers, PROBLEM_TYPE)


def problem_of(error: RiverlensError, request_id: str, members: Mapping[str, Any] | None = None) -> Response:
    """The problem document of a Riverlens error."""
    return problem_response(
        request_id,
        code=error.code,
        status=error.http_status,
        detail=error.detail,
        retryable=error.retryable,
        members=members,
    )


def request_id_of(request: Request) -> str:
    """The id this request bears in the answer and in the logs."""
    return str(getattr(request.state, "request_id", ""))


def invalid_request(error: RequestValidationError, request_id: str) -> Response:
    """A 400 that names every faulty field."""
    body = invalid_request_body(error, request_id)
    return Response(msgspec.json.encode(body), body["status"], media_type=PROBLEM_TYPE)


def invalid_request_body(error: RequestValidationError, request_id: str) -> dict[str, Any]:
    """The members of a problem that names every faulty field, without its value, which may be large or secret."""
    faults = [_fault(item) for item in error.errors()]
    detail = "; ".join(f"{fault['location']}: {fault['message']}" for fault in faults)
    return problem_body(InvalidRequest(detail), request_id, {"errors": faults})


def _fault(item: Mapping[str, Any] | Any) -> dict[str, str]:
    location: Sequence[object] = item["loc"]
    return {"location": ".".join(map(str, location)) or "body", "message": str(item["msg"])}


# What is answered with a problem document; everything else is a fault of the server.
PROBLEMS = (RiverlensError, ProblemError, RequestValidationError, HTTPException)


def problem_for(request: Request, error: Exception) -> Response:
    """The answer to a request that ended in one of PROBLEMS."""
    request_id = request_id_of(request)
    match error:
        case RiverlensError():
            return problem_of(error, request_id)
        case ProblemError():
            return problem_of(error.error, request_id, error.members)
        case RequestValidationError():
            return invalid_request(error, request_id)
        case HTTPException():
            status = error.status_code
            code = NotFound.code if status == HTTPStatus.NOT_FOUND else InvalidRequest.code
            path = f"{request.method} {request.url.path}"
            response = problem_response(request_id, code=code, status=status, detail=f"{error.detail}: {path}")
            response.headers.update(error.headers or {})
            if status == HTTPStatus.METHOD_NOT_ALLOWED:
                response.headers["Allow"] = ", ".join(_methods_of(request))
            return response
    raise TypeError(f"{type(error).__name__} has no problem document") from error


def _methods_of(request: Request) -> list[str]:
    """The methods a path has; each is a route of its own, and the error names those of one alone."""
    routes = [route for route in request.app.state.routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in routes for method in getattr(route, "methods", None) or ()})


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem document."""

    async def on_problem(request: Request, error: Exception) -> Response:
        return problem_for(request, error)

    for kind in PROBLEMS:
        app.add_exception_handler(kind, on_problem)
