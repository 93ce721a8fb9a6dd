"""Proves from a history alone that nothing acknowledged was lost, doubled or brought back. Pure: no I/O, no clock.

Writes of one id follow each other, so its possible states are a small set: one state after every acknowledged
write, and two after one whose outcome nobody knows (the one before it, or its own) or that has a dead letter.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from tests.chaos.history import Event, FinalImage, FinalLetter, FinalListing, Receipt, Search, Write

ABSENT = 0
"""The version of an id that is not there."""


class State(Struct, frozen=True):
    """What an id may be: the version and picture it shows, and the offset of the rejection that its page tells of."""

    version: int = ABSENT
    picture: int | None = None
    rejection_offset: int | None = None


Letters = Mapping[Receipt, FinalLetter]


def check(events: Iterable[Event]) -> list[str]:
    """Every promise that the history shows broken, in words; empty if all were kept."""
    events = list(events)
    writes: dict[str, list[Write]] = {}
    for event in events:
        if isinstance(event, Write):
            writes.setdefault(event.image_id, []).append(event)
    for of_one in writes.values():
        of_one.sort(key=lambda write: write.start_s)
    letters = {event.receipt: event for event in events if isinstance(event, FinalLetter)}
    broken = [problem for of_one in writes.values() for problem in _check_writes(of_one, letters)]
    broken += [
        f"{letter.image_id} at {letter.receipt} was rejected for good with {letter.code}, and it is a good picture"
        for letter in letters.values()
        if not letter.retryable
    ]
    for event in events:
        if isinstance(event, Search):
            broken += _check_search(event, writes.get(event.image_id, []), writes, letters)
    return broken + _check_end(events, writes, letters)


def _check_writes(writes: Sequence[Write], letters: Letters) -> list[str]:
    broken = [
        f"{write.kind} of {write.image_id} was answered {write.status} {write.code}, which is not retryable"
        for write in writes
        if write.outcome in {"refused", "unknown"} and write.status is not None and not write.retryable
    ]
    broken += [
        f"{write.kind} of {write.image_id} was answered as rejected, and {write.receipt} is no dead letter"
        for write in writes
        if write.outcome == "rejected" and write.receipt not in letters
    ]
    for before, after in itertools.pairwise(writes):
        if after.start_s < before.end_s:
            broken.append(f"the workload is wrong: writes of {before.image_id} overlap")
    acknowledged = [write for write in writes if write.outcome in {"ok", "rejected"}]
    broken += [
        f"{write.kind} of {write.image_id} was acknowledged without a receipt"
        for write in acknowledged
        if write.receipt is None
    ]
    for before, after in itertools.pairwise(acknowledged):
        if before.receipt is not None and after.receipt is not None and not _precedes(before, after):
            broken.append(f"receipts of {before.image_id} go back: {before.receipt}, then {after.receipt}")
    return broken


def _precedes(before: Write, after: Write) -> bool:
    assert before.receipt is not None
    assert after.receipt is not None
    return before.receipt.partition == after.receipt.partition and before.receipt.offset < after.receipt.offset


def _check_search(
    search: Search, writes: Sequence[Write], all_writes: dict[str, list[Write]], letters: Letters
) -> list[str]:
    told = f"the search for {search.image_id} at {search.start_s:.2f} s"
    if search.status is None:
        return []
    if search.status != 200:
        return [] if search.retryable else [f"{told} was answered {search.status} {search.code}, not retryable"]
    broken = []
    doubled = [image_id for image_id, count in Counter(search.hits).items() if count > 1]
    if doubled:
        broken.append(f"{told} has hits twice: {doubled}")
    partial = search.shards_answered < search.shards_total
    if partial and not search.degraded:
        broken.append(f"{told} covers {search.shards_answered} of {search.shards_total} shards and does not say so")
    if search.degraded:
        partial = True
    elif search.min_receipt is not None and not _is_applied(search, search.min_receipt):
        broken.append(f"{told} did not wait for {search.min_receipt}: {search.applied_offsets}")
    broken += [
        f"{told} returned {image_id}, whose deletion it says is applied"
        for image_id in search.hits
        if _is_surely_gone(search, all_writes.get(image_id, []), letters)
    ]
    if not partial and _must_be_found(search, writes, letters) and search.image_id not in search.hits:
        broken.append(f"{told} does not have it, though it says its receipt is applied: {search.applied_offsets}")
    return broken


def _is_applied(search: Search, receipt: Receipt) -> bool:
    return search.applied_offsets.get(receipt.partition, -1) >= receipt.offset


def _settled(search: Search, writes: Sequence[Write]) -> Sequence[Write]:
    """The writes before the search if the last was acknowledged and its effect is claimed; none if in doubt."""
    if any(write.start_s < search.end_s and write.end_s > search.start_s for write in writes):
        return []
    before = [write for write in writes if write.end_s <= search.start_s and write.outcome != "refused"]
    if not before or before[-1].outcome == "unknown":
        return []
    last = before[-1]
    return before if last.receipt is not None and _is_applied(search, last.receipt) else []


def _must_be_found(search: Search, writes: Sequence[Write], letters: Letters) -> bool:
    before = _settled(search, writes)
    return bool(before) and all(
        state.version != ABSENT and state.picture == search.picture for state in _possible_states(before, letters)
    )


def _is_surely_gone(search: Search, writes: Sequence[Write], letters: Letters) -> bool:
    before = _settled(search, writes)
    return bool(before) and all(state.version == ABSENT for state in _possible_states(before, letters))


def _possible_states(writes: Sequence[Write], letters: Letters) -> set[State]:
    """The states an id may be in after its writes."""
    known = {write.receipt for write in writes}
    possible = {State()}
    for write in writes:
        after = {_after(state, write) for state in possible}
        letter = letters.get(write.receipt) if write.receipt is not None else None
        match write.outcome:
            case "refused":
                pass
            case "unknown":
                # A letter that belongs to no receipt may be this one's.
                at = [place for place, other in letters.items() if other.image_id == write.image_id]
                possible |= after | _rejected(possible, [place for place in at if place not in known])
            case "rejected" if letter is not None:
                possible = _rejected(possible, [letter.receipt])
            case "ok" if letter is not None:
                possible = after | _rejected(possible, [letter.receipt])
            case _:
                possible = after
    return possible


def _rejected(possible: Iterable[State], places: Sequence[Receipt]) -> set[State]:
    return {State(state.version, state.picture, place.offset) for state in possible for place in places}


def _after(state: State, write: Write) -> State:
    match write.kind:
        case "delete":
            return State()
        case "upload":
            return State(write.version, write.picture)
        case "patch" if state.version == ABSENT and state.rejection_offset is not None:
            # The payload waits for a picture that never came.
            return state
        case "patch":
            picture = write.picture if state.version == ABSENT else state.picture
            return State(write.version, picture, state.rejection_offset)


def _check_end(events: Sequence[Event], writes: dict[str, list[Write]], letters: Letters) -> list[str]:
    finals = {event.image_id: event for event in events if isinstance(event, FinalImage)}
    listings = [event for event in events if isinstance(event, FinalListing)]
    if not listings:
        return ["the history has no end: the system was not looked at when it was whole again"]
    broken = []
    there = set()
    for image_id, of_one in writes.items():
        possible = _possible_states(of_one, letters)
        final = finals.get(image_id)
        if final is None:
            broken.append(f"{image_id} was not looked at in the end")
            continue
        version = ABSENT if final.version is None else final.version
        versions = {state.version for state in possible}
        if version not in versions:
            broken.append(_told_of_end(image_id, version, versions))
        elif (version, final.rejection_offset) not in {(state.version, state.rejection_offset) for state in possible}:
            broken.append(f"{image_id} has version {version} and tells of a rejection at {final.rejection_offset}")
        if version != ABSENT:
            there.add(image_id)
        if final.found != (version != ABSENT):
            broken.append(f"{image_id} has version {version}, and a search for it finds it: {final.found}")
    listed = Counter(listings[-1].ids)
    broken += [f"the listing has {image_id} {count} times" for image_id, count in listed.items() if count > 1]
    if set(listed) != there:
        only_listed, missing = sorted(set(listed) - there), sorted(there - set(listed))
        broken.append(f"the listing has {only_listed}, which nobody knows, and lacks {missing}")
    if listings[-1].points != len(there):
        broken.append(f"the shards count {listings[-1].points} points for {len(there)} images")
    return broken


def _told_of_end(image_id: str, version: int, possible: set[int]) -> str:
    if version == ABSENT:
        return f"{image_id} is lost: acknowledged with version {sorted(possible)}, and not there"
    if possible == {ABSENT}:
        return f"{image_id} came back with version {version} after its acknowledged deletion"
    return f"{image_id} has version {version}, which cannot be: {sorted(possible)}"
