"""API keys as they stand in their topic: what a key may do and for whom, never the key itself."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias, get_args

import msgspec
from msgspec import Struct

from contract.errors import EventInvalid, InvalidRequest

Scope: TypeAlias = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

# Fields of a payload that say who may see an image.
VISIBILITY_FIELD, OWNER_FIELD, PRIVATE = "visibility", "owner", "private"

_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")


class ApiKey(Struct, frozen=True, tag_field="type", tag="api_key.v1", kw_only=True):
    """One key; the last record per id counts.

    `digest` is the SHA-256 of its secret part, hexadecimal. A secret has 256 random bits, so nobody can guess it
    from its digest, and a slow hash would only slow down every request. `owner` is who uploads with it, and whose
    private images it sees.
    """

    key_id: str
    digest: str
    scopes: tuple[Scope, ...]
    owner: str
    created_at_ms: int
    revoked_at_ms: int | None = None


_decoder = msgspec.json.Decoder(ApiKey)


def decode_api_key(data: bytes) -> ApiKey:
    """Decode a record of the keys topic; raises EventInvalid."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EventInvalid(f"not an API key: {error}") from error


def check_owner(owner: str) -> str:
    """Return `owner` if it can name one; raises InvalidRequest otherwise."""
    if not _OWNER.fullmatch(owner):
        raise InvalidRequest(
            f"owner {owner!r} must be 1 to 100 of A-Z, a-z, 0-9 and . _ @ + -, and start with a letter or digit"
        )
    return owner
