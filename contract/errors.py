"""The one error tree: every error on purpose has a stable `code` and says whether a retry helps."""

from __future__ import annotations

from typing import ClassVar


class RiverlensError(Exception):
    """Base of every error Riverlens raises on purpose.

    `code` is stable and documented in docs/errors.md; `retryable` says whether the same call may
    succeed later without a change; `http_status` is the status an HTTP answer carries.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    http_status: ClassVar[int] = 500

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __reduce__(self) -> tuple[type[RiverlensError], tuple[str]]:
        return (type(self), (self.detail,))


class InvalidRequest(RiverlensError):
    """A request that can never succeed as it stands."""

    code = "invalid_request"
    http_status = 400


class InvalidImage(RiverlensError):
    """Bytes that are no picture, or a picture outside the limits."""

    code = "invalid_image"
    http_status = 422


class ImageTooLarge(InvalidImage):
    """More bytes or pixels than the settings allow."""

    code = "image_too_large"
    http_status = 413


class UrlRefused(RiverlensError):
    """A URL that is not fetched: its scheme, port or credentials, or it leads into a private network."""

    code = "url_refused"
    http_status = 422


class Unauthenticated(RiverlensError):
    """No key was sent, or one that does not exist or was revoked."""

    code = "unauthenticated"
    http_status = 401


class Forbidden(RiverlensError):
    """The key is good, but it lacks the scope, or the image belongs to another owner."""

    code = "forbidden"
    http_status = 403


class BodyTooLarge(RiverlensError):
    """A body, or a part of it, has more bytes than are read."""

    code = "body_too_large"
    http_status = 413


class NotFound(RiverlensError):
    """A collection or an image that is not there."""

    code = "not_found"
    http_status = 404


class CollectionExists(RiverlensError):
    """A collection of this name exists with other parameters."""

    code = "collection_exists"
    http_status = 409


class FingerprintMismatch(RiverlensError):
    """Vectors of two encoders were about to meet."""

    code = "fingerprint_mismatch"
    http_status = 409


class StoreIncompatible(RiverlensError):
    """A shard store on disk has another format version, dimension or fingerprint."""

    code = "store_incompatible"


class TopicShapeMismatch(RiverlensError):
    """A topic exists with another number of partitions or another clean-up policy."""

    code = "topic_shape_mismatch"


class LogGap(RiverlensError):
    """The log no longer holds the shard's next offset and no snapshot bridges the gap."""

    code = "log_gap"


class ModelUnavailable(RiverlensError):
    """Weights of the requested encoder cannot be had or do not match their checksum."""

    code = "model_unavailable"


class SettingsInvalid(RiverlensError):
    """A setting has a value that cannot work; the detail names it."""

    code = "settings_invalid"


class Unavailable(RiverlensError):
    """A part of the system does not answer now; the same call may succeed later."""

    code = "unavailable"
    retryable = True
    http_status = 503


class BrokerUnavailable(Unavailable):
    """Kafka cannot be reached."""

    code = "broker_unavailable"


class ObjectStoreUnavailable(Unavailable):
    """The object store cannot be reached or answered with a server error."""

    code = "object_store_unavailable"


class ObjectMissing(RiverlensError):
    """The object store holds no bytes under the key that an event names."""

    code = "object_missing"
    http_status = 404


class DecoderUnavailable(Unavailable):
    """No process that decodes pictures can be started."""

    code = "decoder_unavailable"


class UrlUnavailable(Unavailable):
    """The server behind a URL cannot be reached, is too slow, or answers with an error."""

    code = "url_unavailable"
    http_status = 502


class ObjectDamaged(Unavailable):
    """The bytes under the key that an event names are not those it was logged with: they have another SHA-256."""

    code = "object_damaged"


class EmbedderUnavailable(Unavailable):
    """No embedder actor answers."""

    code = "embedder_unavailable"


class ShardUnavailable(Unavailable):
    """A shard actor does not answer."""

    code = "shard_unavailable"


class Overloaded(Unavailable):
    """As many searches as are allowed are under way; this one was refused before any work."""

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
    """More requests of one key or address than the settings allow; `Retry-After` says when there is room again."""

    code = "rate_limited"
    http_status = 429


class NotSearchableInTime(Unavailable):
    """The receipt was not searchable within the bounded wait; it is logged and will be."""

    code = "not_searchable_in_time"
    http_status = 504


class ImageRejected(RiverlensError):
    """An event was accepted into the log, but its picture was rejected; the detail has the reason."""

    code = "image_rejected"
    http_status = 422


class EventInvalid(RiverlensError):
    """A record on `image-events` that cannot be decoded or lies in the wrong partition."""

    code = "event_invalid"


class RedriveRefused(RiverlensError):
    """A dead letter that cannot be sent again: its image has a newer event, or its event can never succeed."""

    code = "redrive_refused"
    http_status = 409


class EncodingFailed(RiverlensError):
    """The encoder failed on this very picture."""

    code = "encoding_failed"
