"""A listing while images come and go: what lives throughout stands on exactly one page."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages import PointState, ShardScanResult
from contract.settings import Settings
from serving.catalog import Catalog, ServedCollection
from serving.listing import list_images, merge_scans
from tests.unit.serving_fakes import FakeSystem, make_spec, make_system

IDS = st.text(st.sampled_from("abcXYZ019._é😀\uffff"), min_size=1, max_size=4)
EVEN = {"must": [{"key": "even", "match": {"value": True}}]}


def point(image_id: str) -> PointState:
    payload = msgspec.json.encode({"even": len(image_id) % 2 == 0})
    return PointState(image_id=image_id, state="searchable", source_offset=0, payload=payload)


class Collection:
    """The collection `images` of a fake system, changed directly in its shards."""

    def __init__(self, shards: int) -> None:
        self.system: FakeSystem = make_system(Path("unused"))
        self.system.add(make_spec(shards=shards))
        self.settings = Settings(home=Path("unused"))

    async def served(self) -> ServedCollection:
        return await Catalog(self.system.dependencies()).get("images")

    def put(self, image_id: str) -> None:
        (owner,) = self.system.owners("images", image_id)
        owner.points[image_id] = point(image_id)

    def delete(self, image_id: str) -> None:
        (owner,) = self.system.owners("images", image_id)
        owner.points.pop(image_id, None)


@given(
    lasting=st.sets(IDS, max_size=25),
    changes=st.lists(st.tuples(st.booleans(), IDS), max_size=40),
    limit=st.integers(1, 7),
    shards=st.integers(1, 4),
    filtered=st.booleans(),
    data=st.data(),
)
def test_what_lives_throughout_is_listed_exactly_once(
    lasting: set[str], changes: list[tuple[bool, str]], limit: int, shards: int, filtered: bool, data: st.DataObject
) -> None:
    async def run() -> None:
        collection = Collection(shards)
        for image_id in lasting:
            collection.put(image_id)
        served, condition = await collection.served(), EVEN if filtered else None
        seen: list[str] = []
        ever, waiting, cursor = set(lasting), list(changes), None
        while True:
            page = await list_images(
                collection.settings, served, limit=limit, cursor=cursor, condition=condition, with_payload=False
            )
            assert len(page.images) <= limit
            seen += [image.id for image in page.images]
            cursor = page.next_cursor
            if cursor is None:
                break
            for _ in range(data.draw(st.integers(0, 5))):
                if waiting:
                    is_insert, image_id = waiting.pop()
                    if image_id in lasting:
                        continue
                    ever.add(image_id)
                    (collection.put if is_insert else collection.delete)(image_id)
        assert seen == sorted(set(seen), key=str.encode), "by the bytes of the id, none twice"
        assert set(seen) <= ever
        wanted = {image_id for image_id in lasting if not filtered or len(image_id) % 2 == 0}
        assert wanted <= set(seen)

    asyncio.run(run())


@given(
    ids=st.lists(st.sets(IDS, max_size=12), min_size=1, max_size=4),
    limit=st.integers(1, 10),
    data=st.data(),
)
def test_no_point_beyond_what_every_shard_has_shown(ids: list[set[str]], limit: int, data: st.DataObject) -> None:
    results: list[ShardScanResult] = []
    for some in ids:
        ordered = sorted(some)
        cut = data.draw(st.integers(0, len(ordered)))
        shown = [point(image_id) for image_id in ordered[:cut]]
        results.append(ShardScanResult(tuple(shown), ordered[cut - 1] if 0 < cut < len(ordered) else None))
    everything: set[str] = set()
    for some, result in zip(ids, results, strict=True):
        everything |= some if result.scanned_to is not None else {p.image_id for p in result.points}
    found, after = merge_scans(results, limit)
    names = [p.image_id for p in found]
    assert names == sorted(everything)[: len(names)], "nothing is passed over"
    assert len(names) <= limit
    assert after is not None or len(names) == len(everything)


@pytest.mark.parametrize("cursor", ["", "x", "AAAA", "not base64!", "é"])
def test_no_text_but_a_cursor_is_taken(cursor: str) -> None:
    async def run() -> Any:
        collection = Collection(2)
        return await list_images(
            collection.settings,
            await collection.served(),
            limit=1,
            cursor=cursor,
            condition=None,
            with_payload=True,
        )

    with pytest.raises(Exception, match="cursor: it is not one this server gave"):
        asyncio.run(run())
