"""A collection with `duplicates: alias` over HTTP, on fakes: equal bytes are one hit, in every kind of search."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from actors.duplicates import alone, join
from contract.events import CollectionSpec, decode_collection, encode_json
from serving.app import create_app
from serving.confidence import top_scores
from serving.schemas import SearchAnswer
from tests.unit.serving_fakes import FakeSystem, make_spec, make_system, picture
from tests.unit.test_access_api import World
from tests.unit.test_serving_api_images import assert_problem, upload

SEARCH = "/v1/collections/images/search"
# In the order in which they come; their ids are in another one, and lie in three of four shards.
REDS = ("red-z", "red-a", "red-d", "red-b")
OTHERS = {"green-1": "green", "green-0": "green", "blue": "blue", "white": "white"}


def came_in_order(system: FakeSystem, *image_ids: str) -> None:
    for moment, image_id in enumerate(image_ids):
        for shard in system.owners("images", image_id):
            shard.points[image_id] = msgspec.structs.replace(shard.points[image_id], uploaded_at_ms=moment)


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    made = make_system(tmp_path)
    made.add(make_spec(duplicates="alias"))
    return made


@pytest.fixture
async def http(system: FakeSystem) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(system.dependencies()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for image_id in REDS:
            payload = json.dumps({"n": REDS.index(image_id), "caption": "a fox" if image_id == "red-b" else "a bird"})
            assert (await upload(client, picture("red"), id=image_id, payload=payload)).is_success
        for image_id, colour in OTHERS.items():
            assert (await upload(client, picture(colour), id=image_id, payload='{"n": 9}')).is_success
        came_in_order(system, *REDS, *OTHERS)
        yield client


async def search(http: httpx.AsyncClient, **body: Any) -> list[tuple[str, tuple[int, list[str]] | None]]:
    """Ids of the hits, each with its group."""
    response = await http.post(SEARCH, json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    SearchAnswer.model_validate(answer)
    return told(answer)


def told(answer: dict[str, Any]) -> list[tuple[str, tuple[int, list[str]] | None]]:
    return [
        (hit["id"], (hit["group"]["count"], hit["group"]["ids"]) if "group" in hit else None) for hit in answer["hits"]
    ]


RED = ("red-z", (4, ["red-a", "red-d", "red-b"]))
GREEN = ("green-1", (2, ["green-0"]))


async def test_equal_bytes_are_one_hit_that_names_the_others(http: httpx.AsyncClient) -> None:
    for exact in (False, True):
        hits = await search(http, text="red", exact=exact)
        assert hits[0] == RED
        assert sorted(hits, key=str) == sorted([RED, GREEN, ("blue", None), ("white", None)], key=str)
    # Whichever of them is asked with, and whatever page is asked for.
    hits = await search(http, image_id="red-b", limit=4)
    assert hits[0] == RED
    for page in range(4):
        assert await search(http, image_id="red-b", limit=1, offset=page) == [hits[page]]
    assert await search(http, image_id="red-b", score_threshold=0.99) == [RED]


async def test_a_filter_chooses_who_is_in_the_group(http: httpx.AsyncClient) -> None:
    later = {"must": [{"key": "n", "range": {"gte": 1}}]}
    assert (await search(http, text="red", filter=later))[0] == ("red-a", (3, ["red-d", "red-b"]))
    last = {"must": [{"key": "n", "match": {"value": 3}}]}
    assert await search(http, text="red", filter=last) == [("red-b", None)]


async def test_deleting_one_keeps_the_others(http: httpx.AsyncClient, system: FakeSystem) -> None:
    for image_id, then in (("red-z", ("red-a", (3, ["red-d", "red-b"]))), ("red-a", ("red-d", (2, ["red-b"])))):
        await http.delete(f"/v1/collections/images/images/{image_id}", params={"wait": "searchable"})
        assert (await search(http, text="red", limit=1)) == [then]
    await http.delete("/v1/collections/images/images/red-d", params={"wait": "searchable"})
    assert (await search(http, text="red", limit=1)) == [("red-b", None)]


async def test_words_and_hybrid_searches_know_pictures_too(http: httpx.AsyncClient, system: FakeSystem) -> None:
    for weight in (0.0, 0.5):
        hits = await search(http, text="red fox", hybrid={"lexical_weight": weight})
        assert hits.count(RED) == 1
        assert not {"red-a", "red-d", "red-b"} & {image_id for image_id, _ in hits}
    # Where words alone decide, the group has those that hold them.
    assert await search(http, text="fox", hybrid={"lexical_weight": 1.0}) == [("red-b", None)]
    system.embedder("fake", "query", 1).down = True
    assert await search(http, text="bird") == [("red-z", (3, ["red-a", "red-d"]))]


async def test_searches_of_a_batch_and_over_get(http: httpx.AsyncClient) -> None:
    response = await http.post(f"{SEARCH}/batch", json={"searches": [{"text": "red", "limit": 1}, {"text": "green"}]})
    red, green = (told(answer) for answer in response.json()["answers"])
    assert (red, green[0]) == ([RED], GREEN)
    assert told((await http.get(SEARCH, params={"text": "red", "limit": 1})).json()) == [RED]


async def test_reranking_adds_near_duplicates_to_the_group(http: httpx.AsyncClient, system: FakeSystem) -> None:
    assert (await upload(http, picture((230, 20, 21)), id="reddish")).is_success
    came_in_order(system, *REDS, *OTHERS, "reddish")
    hits = await search(http, image_id="red-a", rerank=True)
    assert hits[0] == ("red-z", (5, ["red-a", "red-d", "red-b", "reddish"]))
    assert ("blue", (1, [])) in hits
    # Without the collapsing of near-duplicates, equal bytes are one hit all the same.
    hits = await search(http, image_id="red-a", rerank={"dedupe": False, "diversify": True})
    assert RED in hits
    assert ("reddish", None) in hits


def test_the_confidence_passes_over_the_query_itself_whoever_stands_for_it() -> None:
    copies = [alone(name, 0.9, None, sha256="ab" * 32, duplicate_of=None, uploaded_at_ms=0) for name in "ab"]
    other = alone("c", 0.4, None, sha256="cd" * 32, duplicate_of=None, uploaded_at_ms=0)
    pictures = [join([*copies, other])]
    assert top_scores(pictures) == [0.9, 0.4]
    assert top_scores(pictures, ("b",)) == [0.4]


@pytest.mark.parametrize("fields", [None, ("n",)])
async def test_who_may_not_see_an_image_never_learns_of_it(tmp_path: Path, fields: tuple[str, ...] | None) -> None:
    system = make_system(tmp_path, auth="on")
    spec = make_spec(duplicates="alias")
    # Of shards that do not index who owns an image, nobody gets to know more.
    system.add(msgspec.structs.replace(spec, filter_fields=fields))
    world = World(system)
    ann, bob = await world.of("ann"), await world.of("bob")
    try:
        for http, image_id, payload in (
            (ann, "private-1", {"visibility": "private"}),
            (bob, "public-2", {}),
            (ann, "private-3", {"visibility": "private"}),
            (bob, "public-4", {}),
        ):
            assert (await upload(http, picture("red"), id=image_id, payload=json.dumps(payload))).is_success
        came_in_order(system, "private-1", "public-2", "private-3", "public-4")
        for body in ({"text": "red"}, {"text": "red", "rerank": True}, {"text": "red", "with_payload": False}):
            assert await search(bob, **body) == [("public-2", (2, ["public-4"]))]
            assert await search(ann, **body) == [("private-1", (4, ["public-2", "private-3", "public-4"]))]
    finally:
        await ann.aclose()
        await bob.aclose()


async def test_the_setting_is_a_parameter_of_the_collection(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/collections/images")).json()["duplicates"] == "alias"
    made = await http.put("/v1/collections/birds", json={"duplicates": "alias"})
    assert (made.status_code, made.json()["duplicates"]) == (201, "alias")
    assert (await http.put("/v1/collections/plain", json={})).json()["duplicates"] == "keep"
    assert_problem(await http.put("/v1/collections/birds", json={"duplicates": "keep"}), 409, "collection_exists")
    assert_problem(await http.put("/v1/collections/new", json={"duplicates": "drop"}), 400, "invalid_request")


def test_a_record_of_an_earlier_release_keeps_duplicates() -> None:
    spec = make_spec(duplicates="alias")
    assert decode_collection(encode_json(spec)) == spec
    older = msgspec.json.decode(encode_json(spec))
    del older["duplicates"]
    decoded: CollectionSpec = decode_collection(msgspec.json.encode(older))
    assert decoded.duplicates == "keep"
