"""Keys: made, taken apart, looked up.

A key is `rl_<id>_<secret>`: the id is 12 hexadecimal digits and no secret, the secret 256 random bits as 43 of
A-Z, a-z, 0-9, - and _.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from contract.errors import InvalidRequest, NotFound, RiverlensError, Unauthenticated
from contract.keys import SCOPES, ApiKey, Scope, check_owner
from contract.telemetry import LogField
from serving.access.caller import Caller

_log = structlog.get_logger()

# A request meets no list of keys that is older, so a revoked key ends within this time while the broker answers.
FRESH_S = 1.0
_REFRESH_AHEAD_S = 0.5
# While it does not answer, requests go on with the keys known so far after this time.
_REFRESH_WAIT_S = 0.5
_KEY = re.compile(r"rl_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_SECRET_BYTES = 32
# Compared with where there is no such id, so that an unknown id takes as long as a wrong secret.
_NO_DIGEST = "0" * 64


class KeyStore(Protocol):
    """Where keys are kept; `actors.log.keys.KeyRegistry`. Calls block and raise BrokerUnavailable (retryable)."""

    def refresh(self) -> dict[str, ApiKey]:
        """Every key by its id, as of now."""

    def put(self, key: ApiKey) -> None:
        """Write a key durably; the last one per id counts."""

    def close(self) -> None:
        """Release the connection."""


def make_key(owner: str, scopes: tuple[Scope, ...], now_ms: int) -> tuple[ApiKey, str]:
    """A new key as it is kept, and the key itself, which is shown once and kept nowhere.

    Raises InvalidRequest for an owner that cannot be, or no scopes.
    """
    if not scopes:
        raise InvalidRequest(f"a key needs at least one scope of {', '.join(SCOPES)}")
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(_SECRET_BYTES)
    ordered = tuple(scope for scope in SCOPES if scope in scopes)
    record = ApiKey(
        key_id=key_id, digest=_digest(secret), scopes=ordered, owner=check_owner(owner), created_at_ms=now_ms
    )
    return record, f"rl_{key_id}_{secret}"


def revoked(keys: Mapping[str, ApiKey], key_id: str, now_ms: int) -> ApiKey:
    """The record that ends a key; one that has ended stays as it is. Raises NotFound."""
    known = keys.get(key_id)
    if known is None:
        raise NotFound(f"there is no key {key_id!r}")
    if known.revoked_at_ms is not None:
        return known
    return ApiKey(
        key_id=key_id,
        digest=known.digest,
        scopes=known.scopes,
        owner=known.owner,
        created_at_ms=known.created_at_ms,
        revoked_at_ms=now_ms,
    )


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class KeyRing:
    """The keys as a replica of the API knows them. For one event loop."""

    def __init__(self, store: KeyStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._keys: dict[str, ApiKey] | None = None
        # When the last reading began, and when that of the known keys did.
        self._asked_at = self._read_at = float("-inf")
        self._reading: asyncio.Task[dict[str, ApiKey]] | None = None

    async def caller(self, presented: str) -> Caller:
        """Who a key stands for.

        Raises Unauthenticated for one that is none, is unknown or was revoked; BrokerUnavailable (retryable) while
        no list of keys was ever read.
        """
        match = _KEY.fullmatch(presented)
        if match is None:
            raise Unauthenticated("this is no key of Riverlens")
        key_id, secret = match.groups()
        known = (await self._fresh()).get(key_id)
        is_right = hmac.compare_digest(_digest(secret), _NO_DIGEST if known is None else known.digest)
        if known is None or not is_right or known.revoked_at_ms is not None:
            raise Unauthenticated("the key does not exist or was revoked")
        return Caller(known.key_id, known.owner, frozenset(known.scopes))

    async def refresh(self) -> dict[str, ApiKey]:
        """Every key as of now, for this replica too. Raises BrokerUnavailable (retryable)."""
        if self._reading is not None:
            # It may have begun before what the caller wants to see was written.
            await asyncio.wait([self._reading])
        return await asyncio.shield(self._start())

    async def _fresh(self) -> dict[str, ApiKey]:
        now = self._clock()
        if self._reading is None and now - self._asked_at >= _REFRESH_AHEAD_S:
            self._start()
        if self._keys is None:
            return await asyncio.shield(self._start())
        if self._reading is not None and now - self._read_at >= FRESH_S:
            await asyncio.wait([self._reading], timeout=max(0.0, self._asked_at + _REFRESH_WAIT_S - now))
        return self._keys

    def _start(self) -> asyncio.Task[dict[str, ApiKey]]:
        if self._reading is None:
            self._asked_at = self._clock()
            self._reading = asyncio.create_task(asyncio.to_thread(self._store.refresh))
            self._reading.add_done_callback(self._read)
        return self._reading

    def _read(self, task: asyncio.Task[dict[str, ApiKey]]) -> None:
        self._reading = None
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._keys, self._read_at = task.result(), self._asked_at
        elif isinstance(error, RiverlensError):
            _log.warning("keys not refreshed", **{LogField.CODE: error.code, LogField.ERROR: error.detail})
        else:
            _log.error("keys not refreshed", exc_info=error)
