"""Whose an image is: what uploads and changes may say of it, and who may make them."""

from __future__ import annotations

from typing import Any

import msgspec

from contract.errors import Forbidden, InvalidRequest
from contract.filters import Match, matches
from contract.keys import OWNER_FIELD, PRIVATE, VISIBILITY_FIELD, check_owner
from serving.access.caller import Caller

_VISIBILITIES = ("public", PRIVATE)


def owned_payload(caller: Caller, payload: dict[str, Any], existing: bytes | None) -> dict[str, Any]:
    """The payload of an upload or a change, with its owner.

    Args:
        caller: Who makes it. Where no keys are asked for, the payload stays as it is.
        payload: As it was sent.
        existing: The payload of the image that it replaces, as JSON bytes; None without one.

    Raises:
        Forbidden: the image belongs to another owner, or the payload names one; an admin may do both.
        InvalidRequest: an owner that cannot be, or a `visibility` that is neither "public" nor "private": a mistyped
            one would publish the image.
    """
    if caller.sees_all:
        return payload
    if payload.get(VISIBILITY_FIELD, _VISIBILITIES[0]) not in _VISIBILITIES:
        raise InvalidRequest(f"payload: `{VISIBILITY_FIELD}` is either {' or '.join(map(repr, _VISIBILITIES))}")
    check_change(caller, existing)
    given = payload.get(OWNER_FIELD)
    former = owner_of(existing)
    if given is None:
        owner = former or caller.owner
        return payload if owner is None else {**payload, OWNER_FIELD: owner}
    if not isinstance(given, str):
        raise InvalidRequest(f"payload: `{OWNER_FIELD}` is a text")
    if not caller.is_admin and given != caller.owner:
        raise Forbidden(f"payload: `{OWNER_FIELD}` is set from the key; only an admin may name another")
    check_owner(given)
    return payload


def check_change(caller: Caller, existing: bytes | None) -> None:
    """Raise Forbidden if an image with this payload belongs to another owner, unless the caller is an admin.

    Without an owner, as uploaded while no keys were asked for, an image may be changed by anybody who may write.
    """
    if caller.sees_all or caller.is_admin or existing is None:
        return
    payload = msgspec.json.decode(existing)
    if payload.get(OWNER_FIELD) is not None and not matches(Match(OWNER_FIELD, (caller.owner or "",)), payload):
        raise Forbidden("the image belongs to another owner")


def owner_of(payload: bytes | None) -> str | None:
    """The owner a payload names, as JSON bytes; None if it names none."""
    owner = None if payload is None else msgspec.json.decode(payload).get(OWNER_FIELD)
    return owner if isinstance(owner, str) else None
