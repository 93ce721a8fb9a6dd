"""Privacy and policy: what no search may return, and what none may return to its caller. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from contract.filters import Condition, Filter, Match, matches
from serving.access.caller import EVERYBODY, PRIVACY_FIELDS, Caller


@dataclass(frozen=True, slots=True)
class Policy:
    """Images whose payload bears one of `blocked` at `field`, or that are private to others, are never returned.

    The shards leave them out while they search, so that an answer is as long as ever; what comes back
    is checked once more, since a shard whose index lacks the field cannot leave anything out.
    """

    field: str
    blocked: tuple[str, ...]
    caller: Caller = EVERYBODY

    def towards(self, caller: Caller) -> Policy:
        """The same policy for what this caller is answered."""
        return replace(self, caller=caller)

    @property
    def applies(self) -> bool:
        """Whether anything is blocked or hidden."""
        return bool(self.blocked) or self.caller.hidden is not None

    def _conditions(self) -> list[tuple[Condition, frozenset[str]]]:
        """What must not hold of a hit, each with the payload fields that it looks at."""
        found: list[tuple[Condition, frozenset[str]]] = []
        if self.blocked:
            found.append((Match(self.field, self.blocked), frozenset({self.field})))
        if self.caller.hidden is not None:
            found.append((self.caller.hidden, PRIVACY_FIELDS))
        return found

    def reaches_shards(self, indexed: Collection[str] | None) -> bool:
        """Whether shards that index these payload fields (None: all) can leave out all that may not be returned."""
        return indexed is None or all(fields <= set(indexed) for _, fields in self._conditions())

    def restrict(self, wanted: Filter | None, indexed: Collection[str] | None) -> Filter | None:
        """The filter that lets through what `wanted` does and nothing that is barred, as far as shards can tell."""
        barred = tuple(one for one, fields in self._conditions() if indexed is None or fields <= set(indexed))
        return Filter(must=() if wanted is None else (wanted,), must_not=barred) if barred else wanted

    def allows(self, payload: bytes | None) -> bool:
        """Whether an image with this payload, as JSON bytes, may be returned. No payload bears nothing."""
        return not self.applies or payload is None or self.allows_decoded(msgspec.json.decode(payload))

    def allows_decoded(self, payload: dict[str, Any]) -> bool:
        """The same of a payload as decoded from JSON."""
        return not any(matches(one, payload) for one, _ in self._conditions())


def make_policy(field: str, blocked: Sequence[str]) -> Policy:
    """A policy of the settings `blocked_tags_field` and `blocked_tags`; the order of tags does not matter."""
    return Policy(field, tuple(sorted(set(blocked))))
