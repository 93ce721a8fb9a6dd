"""Before any route: who calls, whether they may, how often, and how much they send."""

from __future__ import annotations

import math

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contract.errors import BodyTooLarge, Forbidden, ImageTooLarge, RateLimited, RiverlensError, Unauthenticated
from contract.telemetry import LogField
from serving.access.caller import EVERYBODY, NOBODY, Caller, acting_as
from serving.access.headers import add_headers
from serving.access.keys import KeyRing
from serving.access.rates import Rates
from serving.access.rules import scope_of
from serving.problems import problem_of, request_id_of
from serving.request_line import note

_BEARER = "bearer "
# Source: RFC 6750, section 3, with its error codes.
_CHALLENGE = 'Bearer realm="riverlens"'
# Asked by machines that have no key and must not be turned away.
_UNLIMITED = frozenset({"/healthz", "/readyz"})


class _Refusal(Exception):
    """The answer to a request that is not let through."""

    def __init__(self, error: RiverlensError, headers: dict[str, str]) -> None:
        super().__init__(error.detail)
        self.error = error
        self.headers = headers


class Access:
    """Lets requests through on behalf of their caller, or answers them with a problem."""

    def __init__(self, app: ASGIApp, *, keys: KeyRing | None, rates: Rates, max_body_bytes: int) -> None:
        """Without `keys` none are asked for. `max_body_bytes` is of any body; routes have lower limits of their own."""
        self._app = app
        self._keys = keys
        self._rates = rates
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                add_headers(MutableHeaders(scope=message), scope["path"], scope["scheme"])
            await send(message)

        headers = Headers(scope=scope)
        try:
            caller = await self._admit(scope, headers)
        except _Refusal as refusal:
            response = problem_of(refusal.error, request_id_of(Request(scope)))
            response.headers.update(refusal.headers)
            await response(scope, receive, send_with_headers)
            return
        if caller.key_id is not None:
            note({LogField.KEY_ID: caller.key_id})
        with acting_as(caller):
            await self._app(scope, receive, send_with_headers)

    async def _admit(self, scope: Scope, headers: Headers) -> Caller:
        """Who calls, if they may; raises _Refusal."""
        path: str = scope["path"]
        needed = scope_of(scope["method"], path)
        caller, refusal = await self._identify(headers, is_needed=needed is not None)
        if path not in _UNLIMITED:
            self._limit(caller, scope)
        if refusal is not None:
            raise refusal
        if needed is not None and needed not in caller.scopes and not caller.is_admin:
            challenge = f'{_CHALLENGE}, error="insufficient_scope", scope="{needed}"'
            raise _Refusal(Forbidden(f"this needs the scope `{needed}`"), {"WWW-Authenticate": challenge})
        announced = headers.get("content-length", "")
        if announced.isdigit() and int(announced) > self._max_body_bytes:
            # A form brings a picture, and nothing else in it is large.
            is_form = headers.get("content-type", "").startswith("multipart/form-data")
            kind = ImageTooLarge if is_form else BodyTooLarge
            # The connection stays, and the server passes over the body: closed, it could cut this answer off.
            raise _Refusal(kind(f"the body has {announced} bytes; at most {self._max_body_bytes} are read"), {})
        return caller

    async def _identify(self, headers: Headers, *, is_needed: bool) -> tuple[Caller, _Refusal | None]:
        """Who calls, and the refusal of one who would need to be known and is not."""
        if self._keys is None:
            return EVERYBODY, None
        presented = _presented(headers)
        if presented is None:
            missing = Unauthenticated("a key is needed: send `Authorization: Bearer KEY`")
            return NOBODY, _Refusal(missing, {"WWW-Authenticate": _CHALLENGE}) if is_needed else None
        try:
            return await self._keys.caller(presented), None
        except RiverlensError as error:
            # A page is there for a browser with an old key, too.
            challenge = {"WWW-Authenticate": f'{_CHALLENGE}, error="invalid_token"'}
            how = challenge if isinstance(error, Unauthenticated) else {}
            return NOBODY, _Refusal(error, how) if is_needed else None

    def _limit(self, caller: Caller, scope: Scope) -> None:
        """Raise _Refusal beyond the rate of the key, or of the address where there is none."""
        client = scope.get("client")
        name = f"key {caller.key_id}" if caller.key_id is not None else f"address {client[0] if client else ''}"
        wait_s = self._rates.take(name)
        if wait_s > 0:
            seconds = math.ceil(wait_s)
            raise _Refusal(RateLimited(f"too many requests; again in {seconds} s"), {"Retry-After": str(seconds)})


def _presented(headers: Headers) -> str | None:
    """The key that was sent; None without one."""
    authorization = headers.get("authorization")
    if authorization is None:
        return headers.get("x-api-key")
    if authorization.lower().startswith(_BEARER):
        return authorization[len(_BEARER) :].strip()
    # Another way to authenticate: no key of ours.
    return ""
