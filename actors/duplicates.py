"""Images with equal bytes as one candidate: what a collection with `duplicates = alias` answers. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from actors.messages import Candidate, Group, Member
from contract.topics import digest_of

GROUP_IDS_MAX: Final = 20
"""Ids a group names beside the one that stands for it; its count is of all."""


def alone(
    image_id: str, score: float, payload: bytes | None, *, sha256: str, duplicate_of: str | None, uploaded_at_ms: int
) -> Candidate:
    """A point as a group of itself; without a group if its `sha256` is none, since nothing is known to equal it."""
    digest = digest_of(sha256)
    if digest is None:
        return Candidate(image_id, score, payload)
    return Candidate(
        image_id, score, payload, Group(digest, 1, (Member(duplicate_of is not None, uploaded_at_ms, image_id),))
    )


def picture_of(candidate: Candidate) -> bytes | str:
    """What candidates of the same picture have in common."""
    return candidate.image_id if candidate.group is None else candidate.group.digest


def named(candidate: Candidate) -> list[str]:
    """The ids a candidate names, its own first, the others in the order they came."""
    return [candidate.image_id] if candidate.group is None else [one.image_id for one in candidate.group.members]


def joined(same: Sequence[Candidate]) -> Candidate:
    """One candidate for several of the same picture: the one that came first, with the best score of them.

    An id that several of them name counts once. The result does not depend on their order.
    """
    score = max(one.score for one in same)
    grouped = [(one.group, one) for one in same if one.group is not None]
    if not grouped:
        return msgspec.structs.replace(same[0], score=score)
    # On the move between shards, an id may be known to two of them as of different uploads.
    members: dict[str, Member] = {}
    for member in sorted(member for group, _ in grouped for member in group.members):
        members.setdefault(member.image_id, member)
    repeated = sum(len(group.members) for group, _ in grouped) - len(members)
    group = Group(
        grouped[0][0].digest,
        sum(group.count for group, _ in grouped) - repeated,
        tuple(members.values())[: GROUP_IDS_MAX + 1],
    )
    _, leader = min(grouped, key=lambda pair: pair[0].members[0])
    return msgspec.structs.replace(leader, score=score, group=group)


def join(candidates: Iterable[Candidate]) -> list[Candidate]:
    """One candidate per picture, by falling score; equal scores stand in order of the id."""
    pictures: dict[bytes | str, list[Candidate]] = {}
    for one in candidates:
        pictures.setdefault(picture_of(one), []).append(one)
    ranked = [same[0] if len(same) == 1 else joined(same) for same in pictures.values()]
    ranked.sort(key=lambda candidate: (-candidate.score, candidate.image_id))
    return ranked
