"""Which first image an answer names: one that stands with the same bytes, and that the caller may know of."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from actors.messages import PointState
from contract.errors import ShardUnavailable
from contract.keys import Scope
from serving.access.caller import EVERYBODY, Caller, acting_as
from serving.catalog import ServedCollection
from serving.duplicates import first_with_these_bytes


class _Shard:
    def __init__(self, *points: PointState, gone: bool = False) -> None:
        self._points = {point.image_id: point for point in points}
        self._gone = gone

    async def fetch(self, image_ids: list[str]) -> list[PointState | None]:
        if self._gone:
            raise ShardUnavailable("gone on purpose")
        return [self._points.get(image_id) for image_id in image_ids]


def _collection(shard: _Shard) -> ServedCollection:
    async def ask(partition: int, call: Callable[[Any], Awaitable[Any]]) -> Any:
        return await call(shard)

    return cast(ServedCollection, SimpleNamespace(partition=lambda _: 0, ask=ask))


def _point(
    image_id: str, sha256: str = "x", state: Any = "searchable", of: str | None = None, **payload: Any
) -> PointState:
    data = json.dumps(payload).encode()
    return PointState(image_id=image_id, state=state, source_offset=1, sha256=sha256, payload=data, duplicate_of=of)


@pytest.mark.parametrize(
    ("first", "named"),
    [
        (_point("a"), True),
        (_point("a", "other bytes"), False),
        (_point("a", state="deleted"), False),
        (_point("a", state="rejected"), False),
        (_point("elsewhere"), False),
    ],
)
async def test_a_first_image_is_named_while_it_stands_with_these_bytes(first: PointState, named: bool) -> None:
    answer = await first_with_these_bytes(_collection(_Shard(first)), _point("b", of="a"))
    assert answer == ("a" if named else None)


async def test_what_is_no_duplicate_or_no_picture_has_no_first() -> None:
    collection = _collection(_Shard(_point("a")))
    assert await first_with_these_bytes(collection, _point("b")) is None
    assert await first_with_these_bytes(collection, _point("b", state="rejected", of="a")) is None


async def test_a_shard_that_does_not_answer_holds_up_no_answer_of_another() -> None:
    assert await first_with_these_bytes(_collection(_Shard(gone=True)), _point("b", of="a")) is None


_READ: frozenset[Scope] = frozenset({"read"})


@pytest.mark.parametrize(
    ("first", "caller", "named"),
    [
        ({}, Caller("key", "bob", _READ), True),
        ({"owner": "ada"}, Caller("key", "bob", _READ), True),
        ({"visibility": "private", "owner": "ada"}, Caller("key", "bob", _READ), False),
        ({"visibility": "private", "owner": "ada"}, Caller("key", None, _READ), False),
        ({"visibility": "private", "owner": "ada"}, Caller("key", "ada", _READ), True),
        ({"visibility": "private", "owner": "ada"}, EVERYBODY, True),
    ],
)
async def test_a_private_picture_is_named_to_those_who_see_it(
    first: dict[str, str], caller: Caller, named: bool
) -> None:
    collection = _collection(_Shard(_point("a", **first)))
    with acting_as(caller):
        answer = await first_with_these_bytes(collection, _point("b", of="a"))
    assert answer == ("a" if named else None)
