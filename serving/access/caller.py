"""Who a request is from, and which images exist for them.

An image is private if its payload has `visibility: "private"`. It exists for whom `owner` names, and for nobody else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import msgspec

from contract.filters import Filter, Match, matches
from contract.keys import OWNER_FIELD, PRIVATE, SCOPES, VISIBILITY_FIELD, Scope

_IS_PRIVATE = Match(VISIBILITY_FIELD, (PRIVATE,))
# What `Caller.hidden` looks at.
PRIVACY_FIELDS = frozenset({VISIBILITY_FIELD, OWNER_FIELD})


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. `owner` is None where nobody is known; `sees_all` where no keys are asked for."""

    key_id: str | None
    owner: str | None
    scopes: frozenset[Scope]
    sees_all: bool = False

    @property
    def is_admin(self) -> bool:
        """Whether the caller may act for any owner. It makes no private image of another visible."""
        return "admin" in self.scopes

    @property
    def hidden(self) -> Filter | None:
        """What the payload of an image that does not exist for the caller satisfies; None if nothing is hidden."""
        if self.sees_all:
            return None
        own = () if self.owner is None else (Match(OWNER_FIELD, (self.owner,)),)
        return Filter(must=(_IS_PRIVATE,), must_not=own)

    def sees(self, payload: bytes | None) -> bool:
        """Whether an image with this payload, as JSON bytes, exists for the caller. No payload says nothing private."""
        hidden = self.hidden
        return hidden is None or payload is None or not matches(hidden, msgspec.json.decode(payload))


EVERYBODY = Caller(None, None, frozenset(SCOPES), sees_all=True)
"""The one user of a server that asks for no keys: every image is theirs."""

NOBODY = Caller(None, None, frozenset())
"""A request without a key to a server that asks for keys, and whatever runs outside of a request."""

# As the id of a request, it goes along with the context of what is done for the request.
_caller: ContextVar[Caller] = ContextVar("riverlens_caller", default=NOBODY)


def current_caller() -> Caller:
    """Who the request that is served is from; NOBODY, who sees nothing private, outside of one."""
    return _caller.get()


@contextmanager
def acting_as(caller: Caller) -> Iterator[None]:
    """What runs inside is done for this caller."""
    token = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(token)
