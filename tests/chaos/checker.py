"""Proves from a history alone that nothing acknowledged was lost, doubled or brought back. Pure: no I/O, no clock.

Writes of one id follow each other, so its possible states are a small set: one state after every
acknowledged write, and two after one whose outcome nobody knows (the one before it, or its own).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

from tests.chaos.history import Event, FinalImage, FinalListing, Receipt, Search, Write

ABSENT = 0
"""The version of an id that is not there."""


def check(events: Iterable[Event]) -> list[str]:
    """Every promise that the history shows broken, in words; empty if all were kept."""
    events = list(events)
    writes: dict[str, list[Write]] = {}
    for event in events:
        if isinstance(event, Write):
            writes.setdefault(event.image_id, []).append(event)
    for of_one in writes.values():
        of_one.sort(key=lambda write: write.start_s)
    broken = [problem for of_one in writes.values() for problem in _check_writes(of_one)]
    for event in events:
        if isinstance(event, Search):
            broken += _check_search(event, writes.get(event.image_id, []), writes)
    return broken + _check_end(events, writes)


def _check_writes(writes: Sequence[Write]) -> list[str]:
    broken = [
        f"{write.kind} of {write.image_id} was answered {write.status} {write.code}, which is not retryable"
        for write in writes
        if write.outcome != "ok" and write.status is not None and not write.retryable
    ]
    for before, after in itertools.pairwise(writes):
        if after.start_s < before.end_s:
            broken.append(f"the workload is wrong: writes of {before.image_id} overlap")
    acknowledged = [write for write in writes if write.outcome == "ok"]
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


def _check_search(search: Search, writes: Sequence[Write], all_writes: dict[str, list[Write]]) -> list[str]:
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
        if _is_surely_gone(search, all_writes.get(image_id, []))
    ]
    if not partial and _must_be_found(search, writes) and search.image_id not in search.hits:
        broken.append(f"{told} does not have it, though it says its receipt is applied: {search.applied_offsets}")
    return broken


def _is_applied(search: Search, receipt: Receipt) -> bool:
    return search.applied_offsets.get(receipt.partition, -1) >= receipt.offset


def _settled(search: Search, writes: Sequence[Write]) -> Write | None:
    """The last write before the search if it was acknowledged and its effect is claimed; None if in doubt."""
    if any(write.start_s < search.end_s and write.end_s > search.start_s for write in writes):
        return None
    before = [write for write in writes if write.end_s <= search.start_s and write.outcome != "refused"]
    if not before or before[-1].outcome != "ok":
        return None
    last = before[-1]
    return last if last.receipt is not None and _is_applied(search, last.receipt) else None


def _must_be_found(search: Search, writes: Sequence[Write]) -> bool:
    last = _settled(search, writes)
    return last is not None and last.kind != "delete" and last.picture == search.picture


def _is_surely_gone(search: Search, writes: Sequence[Write]) -> bool:
    last = _settled(search, writes)
    return last is not None and last.kind == "delete"


def _possible_versions(writes: Sequence[Write]) -> set[int]:
    """Versions an id may have after its writes; ABSENT where it may be gone."""
    possible = {ABSENT}
    for write in writes:
        match write.outcome:
            case "ok":
                possible = {write.version}
            case "unknown":
                possible |= {write.version}
            case "refused":
                pass
    return possible


def _check_end(events: Sequence[Event], writes: dict[str, list[Write]]) -> list[str]:
    finals = {event.image_id: event for event in events if isinstance(event, FinalImage)}
    listings = [event for event in events if isinstance(event, FinalListing)]
    if not listings:
        return ["the history has no end: the system was not looked at when it was whole again"]
    broken = []
    there = set()
    for image_id, of_one in writes.items():
        possible = _possible_versions(of_one)
        final = finals.get(image_id)
        if final is None:
            broken.append(f"{image_id} was not looked at in the end")
            continue
        version = ABSENT if final.version is None else final.version
        if version not in possible:
            broken.append(_told_of_end(image_id, version, possible))
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
