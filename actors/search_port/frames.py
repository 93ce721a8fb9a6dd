"""What passes through a search port: a token, then requests and answers in turn, each behind its length.

A frame is its length, 4 bytes big-endian, and that many bytes. A request is MessagePack of `_Request`; an answer
one of `ShardSearchResult` or `_Failure`, told apart by the first byte.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec
import numpy as np
from msgspec import Struct

from actors.messages import ShardQuery, ShardSearch, ShardSearchResult
from contract import errors
from contract.errors import InvalidRequest, RiverlensError, Unavailable

LENGTH: Final = struct.Struct(">I")
FRAME_BYTES_MAX: Final = 256 * 1024 * 1024
"""A longer one is of no caller of ours."""

_RESULT, _FAILURE = b"\x00", b"\x01"


class SearchAddress(Struct, frozen=True):
    """Where a shard replica takes searches; whoever shows the token may ask."""

    host: str
    port: int
    token: bytes


class _Request(Struct, array_like=True):
    fingerprint: str
    shape: tuple[int, int]
    vectors: bytes
    queries: tuple[ShardQuery, ...]
    with_payload: bool
    request_ids: tuple[str, ...]


class _Failure(Struct, array_like=True):
    code: str
    detail: str


_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(_Request)
_results = msgspec.msgpack.Decoder(ShardSearchResult)
_failures = msgspec.msgpack.Decoder(_Failure)


def _kinds(kind: type[RiverlensError]) -> dict[str, type[RiverlensError]]:
    return {kind.code: kind} | {code: one for child in kind.__subclasses__() for code, one in _kinds(child).items()}


_KINDS: Final = _kinds(errors.RiverlensError)


def framed(body: bytes) -> bytes:
    """The body behind its length."""
    return LENGTH.pack(len(body)) + body


def encode_request(request: ShardSearch) -> bytes:
    """The body of a request."""
    rows, dimension = request.vectors.shape
    vectors = np.ascontiguousarray(request.vectors, "<f4").tobytes()
    return _encoder.encode(
        _Request(
            request.fingerprint,
            (rows, dimension),
            vectors,
            request.queries,
            request.with_payload,
            request.request_ids,
        )
    )


def decode_request(body: bytes) -> ShardSearch:
    """Raises InvalidRequest."""
    try:
        request = _requests.decode(body)
        vectors = np.frombuffer(request.vectors, "<f4").reshape(request.shape)
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidRequest(f"not a search: {error}") from error
    return ShardSearch(request.fingerprint, vectors, request.queries, request.with_payload, request.request_ids)


def encode_result(result: ShardSearchResult) -> bytes:
    """The body of an answer."""
    return _RESULT + _encoder.encode(result)


def encode_failure(error: RiverlensError) -> bytes:
    """The body of an answer that is an error."""
    return _FAILURE + _encoder.encode(_Failure(error.code, error.detail))


def decode_answer(body: bytes) -> ShardSearchResult:
    """The result; raises the error that it is, or Unavailable for one that cannot be read."""
    view = memoryview(body)
    try:
        if view[:1] == _RESULT:
            return _results.decode(view[1:])
        failure = _failures.decode(view[1:])
    except msgspec.MsgspecError as error:
        raise Unavailable(f"not an answer to a search: {error}") from error
    raise _KINDS.get(failure.code, RiverlensError)(failure.detail)
