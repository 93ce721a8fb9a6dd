"""Privacy and policy: what no search may return. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from contract.filters import Filter, Match, matches


@dataclass(frozen=True, slots=True)
class Policy:
    """Images whose payload bears one of `blocked` at `field` are never returned.

    The shards leave them out while they search, so that an answer is as long as ever; what comes back
    is checked once more, since a shard whose index lacks the field cannot leave anything out.
    """

    field: str
    blocked: tuple[str, ...]

    @property
    def applies(self) -> bool:
        """Whether anything is blocked."""
        return bool(self.blocked)

    @property
    def _condition(self) -> Match:
        return Match(self.field, self.blocked)

    def reaches_shards(self, indexed: Collection[str] | None) -> bool:
        """Whether shards that index these payload fields (None: all) can leave out what is blocked."""
        return indexed is None or self.field in indexed

    def restrict(self, wanted: Filter | None, indexed: Collection[str] | None) -> Filter | None:
        """The filter that lets through what `wanted` does and nothing that is blocked, as far as shards can tell."""
        if not self.applies or not self.reaches_shards(indexed):
            return wanted
        return Filter(must=() if wanted is None else (wanted,), must_not=(self._condition,))

    def allows(self, payload: bytes | None) -> bool:
        """Whether an image with this payload, as JSON bytes, may be returned. No payload bears no tag."""
        return not self.applies or payload is None or self.allows_decoded(msgspec.json.decode(payload))

    def allows_decoded(self, payload: dict[str, Any]) -> bool:
        """The same of a payload as decoded from JSON."""
        return not self.applies or not matches(self._condition, payload)


def make_policy(field: str, blocked: Sequence[str]) -> Policy:
    """A policy of the settings `blocked_tags_field` and `blocked_tags`; the order of tags does not matter."""
    return Policy(field, tuple(sorted(set(blocked))))
