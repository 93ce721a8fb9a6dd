"""What a call of the client can end in, as one tree.

    ClientError
    ├── ServerUnreachable    no answer: nobody listens, or the connection broke
    ├── DeadlineExceeded     the call's time is over
    ├── UnexpectedAnswer     an answer that is none of this API
    └── ApiError             a problem the server answered with; one class per `code`, as in docs/errors.md

A problem with a `code` this version does not know is an ApiError with that `code`.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from contract.events import Receipt

# Answers of a proxy that has no server behind it, or of one that sends too much load away.
# Source: RFC 9110, sections 15.6.3 to 15.6.5; RFC 6585, section 4.
_RETRYABLE_STATUS = frozenset({429, 502, 503, 504})


class ClientError(Exception):
    """Base of everything the client raises on purpose.

    `retryable` says whether the same call may succeed later without a change; `request_id` is the
    `X-Request-ID` of the call, under which the server's log has it.
    """

    code: str = "client_error"
    retryable: bool = False

    def __init__(self, detail: str, *, request_id: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.request_id = request_id

    def __str__(self) -> str:
        return self.detail


class ServerUnreachable(ClientError):
    """Nobody answers at the address, or the connection broke before an answer."""

    code = "server_unreachable"
    retryable = True


class DeadlineExceeded(ClientError):
    """The call was not done within its deadline; a change it asked for may have taken effect."""

    code = "deadline_exceeded"
    retryable = True


class UnexpectedAnswer(ClientError):
    """An answer without a problem document, or not of the promised shape: is this address Riverlens?"""

    code = "unexpected_answer"

    def __init__(self, detail: str, *, status: int, request_id: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(detail, request_id=request_id)
        self.status = status
        self.retryable = status in _RETRYABLE_STATUS
        self.retry_after_s = retry_after_s


class ApiError(ClientError):
    """A problem the server answered with.

    `members` has what the problem says beyond the usual, such as `errors` of an invalid request.
    """

    code = "internal"
    http_status: int = 500

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        code: str | None = None,
        retryable: bool | None = None,
        request_id: str = "",
        retry_after_s: float | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail, request_id=request_id)
        self.status = self.http_status if status is None else status
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.members = dict(members or {})

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"

    @property
    def receipt(self) -> Receipt | None:
        """Where the event stands that the failed call has logged nevertheless; None if it logged none."""
        try:
            return msgspec.convert(self.members.get("receipt"), Receipt | None)
        except msgspec.ValidationError:
            return None


class InvalidRequest(ApiError):
    """A request that can never succeed as it stands."""

    code = "invalid_request"
    http_status = 400


class InvalidImage(ApiError):
    """Bytes that are no picture, or a picture outside the limits."""

    code = "invalid_image"
    http_status = 422


class ImageTooLarge(InvalidImage):
    """More bytes or pixels than the server's settings allow."""

    code = "image_too_large"
    http_status = 413


class Unauthenticated(ApiError):
    """No key was sent, or one that does not exist or was revoked."""

    code = "unauthenticated"
    http_status = 401


class Forbidden(ApiError):
    """The key is good, but it lacks the scope, or the image belongs to another owner."""

    code = "forbidden"
    http_status = 403


class BodyTooLarge(ApiError):
    """A body, or a part of it, has more bytes than the server reads."""

    code = "body_too_large"
    http_status = 413


class UrlRefused(ApiError):
    """A URL that the server does not fetch: its scheme, port or credentials, or it leads into a private network."""

    code = "url_refused"
    http_status = 422


class NotFound(ApiError):
    """A collection or an image that is not there."""

    code = "not_found"
    http_status = 404


class CollectionExists(ApiError):
    """A collection of this name exists with other parameters."""

    code = "collection_exists"
    http_status = 409


class FingerprintMismatch(ApiError):
    """Vectors of two encoders were about to meet."""

    code = "fingerprint_mismatch"
    http_status = 409


class StoreIncompatible(ApiError):
    """A shard's store has another format version, dimension or fingerprint."""

    code = "store_incompatible"


class TopicShapeMismatch(ApiError):
    """A topic exists with another number of partitions or another clean-up policy."""

    code = "topic_shape_mismatch"


class LogGap(ApiError):
    """The log no longer holds the shard's next offset and no snapshot bridges the gap."""

    code = "log_gap"


class ModelUnavailable(ApiError):
    """Weights of the requested encoder cannot be had or do not match their checksum."""

    code = "model_unavailable"


class SettingsInvalid(ApiError):
    """A setting of the server has a value that cannot work."""

    code = "settings_invalid"


class Unavailable(ApiError):
    """A part of the system does not answer now; the same call may succeed later."""

    code = "unavailable"
    retryable = True
    http_status = 503


class BrokerUnavailable(Unavailable):
    """The server cannot reach Kafka."""

    code = "broker_unavailable"


class ObjectStoreUnavailable(Unavailable):
    """The server cannot reach the object store."""

    code = "object_store_unavailable"


class ObjectMissing(ApiError):
    """The object store holds no bytes under the key."""

    code = "object_missing"
    http_status = 404


class DecoderUnavailable(Unavailable):
    """The server can start no process that decodes pictures."""

    code = "decoder_unavailable"


class UrlUnavailable(Unavailable):
    """The server behind a URL cannot be reached, is too slow, or answers with an error."""

    code = "url_unavailable"
    http_status = 502


class ObjectDamaged(Unavailable):
    """The bytes under the key of an upload are not those it was logged with."""

    code = "object_damaged"


class EmbedderUnavailable(Unavailable):
    """No embedder answers."""

    code = "embedder_unavailable"


class ShardUnavailable(Unavailable):
    """No shard answers."""

    code = "shard_unavailable"


class Overloaded(Unavailable):
    """As many searches as the server allows are under way; this one was refused before any work."""

    code = "overloaded"


class TooManyUploads(Unavailable):
    """Uploads come faster than they become searchable; this one was refused before it was stored."""

    code = "too_many_uploads"
    http_status = 429


class TooManySearchBytes(Unavailable):
    """The bodies of the searches under way take all the room there is; this one was refused before its was read."""

    code = "too_many_search_bytes"
    http_status = 429


class RateLimited(Unavailable):
    """More requests of one key or address than the server allows; `retry_after_s` says when there is room again."""

    code = "rate_limited"
    http_status = 429


class NotSearchableInTime(Unavailable):
    """Not searchable within the bounded wait; with a `receipt`, it is logged and will be."""

    code = "not_searchable_in_time"
    http_status = 504


class ImageRejected(ApiError):
    """The upload was logged, but its picture was rejected; the detail has the reason."""

    code = "image_rejected"
    http_status = 422


class EventInvalid(ApiError):
    """A record on `image-events` that cannot be decoded or lies in the wrong partition."""

    code = "event_invalid"


class RedriveRefused(ApiError):
    """A dead letter that cannot be sent again: its image has a newer event, or its event can never succeed."""

    code = "redrive_refused"
    http_status = 409


class EncodingFailed(ApiError):
    """The encoder failed on this very picture."""

    code = "encoding_failed"


class _Problem(Struct):
    """The members every problem document has."""

    code: str
    detail: str
    retryable: bool
    status: int
    request_id: str = ""


_MEMBERS = frozenset({"type", "title", "status", "detail", "code", "retryable", "request_id"})


def _classes(base: type[ApiError]) -> Iterator[type[ApiError]]:
    yield base
    for child in base.__subclasses__():
        yield from _classes(child)


_BY_CODE = {kind.code: kind for kind in _classes(ApiError)}


def problem_of(fields: dict[str, Any], *, request_id: str = "", retry_after_s: float | None = None) -> ApiError:
    """The error that a problem document stands for; raises msgspec.ValidationError if it is none."""
    problem = msgspec.convert(fields, _Problem)
    return _BY_CODE.get(problem.code, ApiError)(
        problem.detail,
        status=problem.status,
        code=problem.code,
        retryable=problem.retryable,
        request_id=problem.request_id or request_id,
        retry_after_s=retry_after_s,
        members={name: value for name, value in fields.items() if name not in _MEMBERS},
    )


def error_of(status: int, headers: Mapping[str, str], content: bytes, request_id: str) -> ApiError | UnexpectedAnswer:
    """The error that an unsuccessful answer stands for. `headers` are looked up in lower case."""
    wait_s = retry_after_s(headers.get("retry-after"))
    try:
        fields = msgspec.json.decode(content, type=dict[str, Any])
        return problem_of({"status": status, **fields}, request_id=request_id, retry_after_s=wait_s)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        detail = f"the server answered {status} without a problem document"
        return UnexpectedAnswer(detail, status=status, request_id=request_id, retry_after_s=wait_s)


def retry_after_s(header: str | None, now: Callable[[], float] = time.time) -> float | None:
    """Seconds to wait that a `Retry-After` header asks for, never negative; None for none or nonsense.

    Source: RFC 9110, section 10.2.3: a number of seconds, or a date.
    """
    text = (header or "").strip()
    if text.isdecimal() and text.isascii():
        # Nobody waits for a month; the bound keeps an absurd number from overflowing a sleep.
        return float(min(int(text[:9]), 30 * 86400))
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now())
    except ValueError:
        return None
