"""Re-ranking and the policy over HTTP, on fakes."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from actors.messages import PointState
from contract.errors import ObjectStoreUnavailable, ShardUnavailable
from serving.app import create_app
from serving.schemas import SearchAnswer
from tests.unit.serving_fakes import FakeSystem, make_spec, make_system, picture
from tests.unit.test_rerank_geometry import sample
from tests.unit.test_serving_api_images import assert_problem, upload

SEARCH = "/v1/collections/images/search"
REDS = {"red-1": (230, 20, 20), "red-2": (230, 20, 21), "red-3": (229, 20, 20)}


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return make_system(tmp_path, search_limit_max=500, rerank_candidates_max=50)


@pytest.fixture
async def http(system: FakeSystem) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(system.dependencies()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for name, colour in {**REDS, "green": (20, 200, 20), "orange": (230, 140, 20)}.items():
            await put(client, picture(colour), name)
        yield client


async def put(http: httpx.AsyncClient, data: bytes, image_id: str, **payload: Any) -> None:
    assert (await upload(http, data, id=image_id, payload=json.dumps(payload))).is_success


async def search(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await http.post(SEARCH, json=body)
    assert response.status_code == 200, response.text
    answer = dict(response.json())
    SearchAnswer.model_validate(answer)
    return answer


def ids(answer: dict[str, Any]) -> list[str]:
    return [hit["id"] for hit in answer["hits"]]


# Near-duplicates


async def test_near_duplicates_stand_as_one_with_a_count(http: httpx.AsyncClient) -> None:
    answer = await search(http, text="red", rerank=True)
    assert [hit["id"] for hit in answer["hits"]].count("green") == 1
    (red,) = [hit for hit in answer["hits"] if hit["id"] in REDS]
    assert red["group"]["count"] == 3
    assert {red["id"], *red["group"]["ids"]} == set(REDS)
    (green,) = [hit for hit in answer["hits"] if hit["id"] == "green"]
    assert green["group"] == {"count": 1, "ids": []}
    assert answer["rerank"] == {
        "candidates": 5, "collapsed": 2, "verified": 0, "without_vector": 0, "without_picture": 0
    }  # fmt: skip
    assert list(answer["took_ms"]["rerank_stages"]) == ["fetch", "dedupe", "fuse"]
    assert answer["took_ms"]["rerank"] >= sum(answer["took_ms"]["rerank_stages"].values()) - 0.01


async def test_collapsing_does_not_shorten_the_page(http: httpx.AsyncClient) -> None:
    assert len(ids(await search(http, text="red", limit=3, rerank=True))) == 3
    whole = ids(await search(http, text="red", limit=3, rerank=True))
    assert ids(await search(http, text="red", limit=2, offset=1, rerank=True)) == whole[1:]


async def test_pictures_decide_where_embeddings_do_not(http: httpx.AsyncClient) -> None:
    """Every pair is left to the hashes; what the fake encoder holds for alike is told apart by its structure."""
    drawing, other = sample("acoustic-guitar"), sample("ambulance")
    await put(http, png(drawing), "drawing")
    await put(http, png(drawing.resize((drawing.width // 2, drawing.height // 2))), "drawing-small")
    await put(http, png(other), "other")
    wanted = {"dedupe": {"same_cosine": 1, "similar_cosine": -1, "hash_bits": 10}}
    answer = await search(http, image_id="drawing", rerank=wanted)
    first = answer["hits"][0]
    assert (first["id"], first["group"]) == ("drawing", {"count": 2, "ids": ["drawing-small"]})
    assert "other" in ids(answer)


async def test_without_dedupe_every_hit_stands_for_itself(http: httpx.AsyncClient) -> None:
    answer = await search(http, text="red", rerank={"dedupe": False})
    assert set(REDS) <= set(ids(answer))
    assert all("group" not in hit for hit in answer["hits"])
    assert list(answer["took_ms"]["rerank_stages"]) == ["fuse"]


async def test_a_group_names_a_bounded_number_of_ids(http: httpx.AsyncClient) -> None:
    for number in range(30):
        await put(http, picture("blue"), f"blue-{number:02}")
    answer = await search(http, text="blue", limit=1, rerank=True)
    assert answer["hits"][0]["group"]["count"] == 30
    assert len(answer["hits"][0]["group"]["ids"]) == 20


async def test_what_a_shard_or_the_object_store_does_not_give_is_passed_over_and_counted(
    http: httpx.AsyncClient, system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_object(key: str, max_bytes: int | None = None) -> bytes:
        raise ObjectStoreUnavailable("the fake object store is down")

    monkeypatch.setattr(system.objects, "get", no_object)
    wanted = {"dedupe": {"same_cosine": 1, "similar_cosine": -1}}
    answer = await search(http, text="red", rerank=wanted)
    assert (len(answer["hits"]), answer["rerank"]["without_picture"]) == (5, 5)

    async def no_vectors(image_ids: Sequence[str], with_vector: bool = False) -> list[PointState | None]:
        raise ShardUnavailable("the fake shard is down")

    (shard,) = system.owners("images", "red-1")
    monkeypatch.setattr(shard, "fetch", no_vectors)
    answer = await search(http, text="red", rerank=True)
    assert "red-1" in [one for hit in answer["hits"] for one in (hit["id"], *hit["group"]["ids"])]
    assert answer["rerank"]["without_vector"] == len(shard.points)


async def test_slow_shards_hold_re_ranking_up_to_its_deadline_only(
    system: FakeSystem, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(image_ids: Sequence[str], with_vector: bool = False) -> list[PointState | None]:
        await asyncio.Event().wait()
        return []

    for image_id in (*REDS, "green", "orange"):
        for shard in system.owners("images", image_id):
            monkeypatch.setattr(shard, "fetch", never)
    quick = system.settings.model_copy(update={"rerank_deadline_ms": 20})
    monkeypatch.setattr(system, "settings", quick)
    transport = httpx.ASGITransport(create_app(system.dependencies()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await search(client, text="red", rerank=True)
    assert (len(answer["hits"]), answer["rerank"]["without_vector"]) == (5, 5)


async def test_an_image_deleted_between_search_and_re_ranking_is_gone(
    http: httpx.AsyncClient, system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shard,) = system.owners("images", "green")
    fetch = shard.fetch

    async def late(image_ids: Sequence[str], with_vector: bool = False) -> list[PointState | None]:
        gone = PointState(image_id="green", state="deleted", source_offset=99)
        return [gone if point is not None and point.image_id == "green" else point for point in await fetch(image_ids)]

    monkeypatch.setattr(shard, "fetch", late)
    assert "green" not in ids(await search(http, text="green", rerank=True))


# Policy


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[tuple[httpx.AsyncClient, FakeSystem]]:
    system = make_system(tmp_path, blocked_tags=["private"])  # type: ignore[arg-type]
    system.add(make_spec("narrow", filter_fields=("owner",)))
    transport = httpx.ASGITransport(create_app(system.dependencies()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for collection in ("images", "narrow"):
            for number in range(12):
                tags = ["private", "red"] if number % 2 else ["red"]
                response = await client.post(
                    f"/v1/collections/{collection}/images",
                    params={"wait": "searchable"},
                    files={"file": ("a.png", picture((230, 20, number)))},
                    data={"id": f"red-{number}", "payload": json.dumps({"tags": tags, "owner": "ada"})},
                )
                assert response.is_success, response.text
        yield client, system


@pytest.mark.parametrize("collection", ["images", "narrow"])
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"rerank": True},
        {"rerank": {"dedupe": False}},
        {"with_payload": False},
        {"exact": True, "offset": 1},
        {"filter": {"must": [{"key": "owner", "match": {"value": "ada"}}]}},
        {"filter": {"should": [{"key": "owner", "match": {"value": "ada"}}]}, "rerank": True},
        {"filter": {"must_not": [{"key": "owner", "match": {"value": "bob"}}]}},
    ],
    ids=json.dumps,
)
async def test_what_is_blocked_is_never_returned_and_the_page_is_full(
    guarded: tuple[httpx.AsyncClient, FakeSystem], collection: str, body: dict[str, Any]
) -> None:
    http, _ = guarded
    response = await http.post(f"/v1/collections/{collection}/search", json={"text": "red", "limit": 5, **body})
    assert response.status_code == 200, response.text
    answer = response.json()
    named = [one for hit in answer["hits"] for one in (hit["id"], *hit.get("group", {"ids": []})["ids"])]
    assert named
    assert all(int(one.removeprefix("red-")) % 2 == 0 for one in named)
    if body.get("rerank") is not True:
        assert len(answer["hits"]) == 5
    if body.get("with_payload") is False:
        assert all(hit["payload"] is None for hit in answer["hits"])
    assert ("rerank" in answer) == ("rerank" in body)


@pytest.mark.parametrize("collection", ["images", "narrow"])
async def test_what_is_blocked_is_not_found_by_its_words_either(
    guarded: tuple[httpx.AsyncClient, FakeSystem], collection: str
) -> None:
    http, system = guarded
    body = {"text": "red", "limit": 12}
    hybrid = (await http.post(f"/v1/collections/{collection}/search", json={**body, "hybrid": True})).json()
    system.embedder("fake", "query", 1).down = True
    words = (await http.post(f"/v1/collections/{collection}/search", json={**body, "text": "red ada"})).json()
    assert words["coverage"]["degraded"] == "metadata"
    for answer in (hybrid, words):
        assert {hit["id"] for hit in answer["hits"]} == {f"red-{number}" for number in range(0, 12, 2)}


async def test_the_shards_leave_out_what_is_blocked(guarded: tuple[httpx.AsyncClient, FakeSystem]) -> None:
    http, system = guarded
    await search(http, text="red", limit=3)
    (query,) = system.shard(system.specs["images"], 0, 0).searches[-1].queries
    assert query.k == 3
    assert query.filter is not None
    assert query.filter.must_not[0].values == ("private",)  # type: ignore[union-attr]


# Signals, diversity


async def test_recent_and_popular_hits_rise(http: httpx.AsyncClient) -> None:
    await put(http, picture((20, 20, 230)), "old", taken_at="2001-01-01T00:00:00Z", clicks=0)
    await put(http, picture((22, 22, 228)), "new", taken_at="2200-01-01T00:00:00Z", clicks=0)
    await put(http, picture((24, 24, 226)), "liked", stats={"likes": 500})
    plain = {"dedupe": False}
    assert ids(await search(http, text="blue", limit=3, rerank=plain)) == ["old", "new", "liked"]
    recent = {"field": "taken_at", "half_life_s": 86400, "weight": 1}
    answer = await search(http, text="blue", limit=3, with_payload=False, rerank={**plain, "recency": recent})
    assert ids(answer) == ["new", "old", "liked"]
    assert answer["hits"][0]["payload"] is None
    scores = [hit["rerank_score"] for hit in answer["hits"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    popular = {"field": "stats.likes", "weight": 1}
    assert ids(await search(http, text="blue", limit=3, rerank={**plain, "popularity": popular}))[0] == "liked"


async def test_diversity_brings_the_different_picture_forward(http: httpx.AsyncClient) -> None:
    plain = {"dedupe": False}
    assert set(ids(await search(http, text="red", limit=3, rerank=plain))) == set(REDS)
    diverse = ids(await search(http, text="red", limit=3, rerank={**plain, "diversify": {"lambda": 0.3}}))
    assert diverse[0] in REDS
    assert set(diverse) - set(REDS)
    assert ids(await search(http, text="red", limit=3, rerank={**plain, "diversify": {"lambda": 1}})) == ids(
        await search(http, text="red", limit=3, rerank=plain)
    )


# Geometric verification


async def test_verification_brings_the_same_object_first(http: httpx.AsyncClient) -> None:
    """A turned drawing is nearer, for the fake encoder, to a plain colour than to the drawing it is a copy of."""
    drawing = sample("acoustic-guitar")
    await put(http, png(drawing), "drawing")
    await put(http, png(sample("ambulance")), "other")
    turned = png(drawing.rotate(40, expand=True, fillcolor="white").crop((60, 60, drawing.width, drawing.height)))
    form = {"limit": "3", "rerank": json.dumps({"verify": True})}
    response = await http.post(SEARCH, files={"image": ("q.png", turned)}, data=form)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["hits"][0]["id"] == "drawing"
    assert answer["hits"][0]["inliers"] >= 10
    assert answer["rerank"]["verified"] == 1
    assert "verify" in answer["took_ms"]["rerank_stages"]

    by_id = await search(
        http, image_id="drawing", crop={"x": 0, "y": 0, "width": 0.5, "height": 1}, rerank={"verify": True}
    )
    assert by_id["hits"][0]["id"] == "drawing"
    assert by_id["hits"][0]["inliers"] >= 10


async def test_a_deadline_costs_the_last_hits_not_the_first(
    http: httpx.AsyncClient, system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        await put(http, picture((20, 20, 230 - 4 * number)), f"blue-{number:02}")
    get, asked = system.objects.get, 0

    async def first_ten(key: str, max_bytes: int | None = None) -> bytes:
        nonlocal asked
        if key.startswith("thumbnails/"):
            asked += 1
            if asked > 10:
                await asyncio.Event().wait()
        return await get(key, max_bytes)

    monkeypatch.setattr(system.objects, "get", first_ten)
    monkeypatch.setattr(system, "settings", system.settings.model_copy(update={"rerank_deadline_ms": 1500}))
    transport = httpx.ASGITransport(create_app(system.dependencies()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await search(client, image_id="blue-00", limit=20, rerank={"dedupe": False, "verify": True})
    looked_at = ["inliers" in hit for hit in answer["hits"]]
    assert looked_at == sorted(looked_at, reverse=True)
    assert sum(looked_at) == 10
    assert answer["rerank"]["without_picture"] == 10


async def test_only_so_many_hits_are_compared(http: httpx.AsyncClient) -> None:
    answer = await search(http, image_id="red-1", rerank={"dedupe": False, "verify": {"candidates": 2}})
    assert sum("inliers" in hit for hit in answer["hits"]) == 2


# Requests


async def test_get_re_ranks_too(http: httpx.AsyncClient) -> None:
    response = await http.get(SEARCH, params={"text": "red", "rerank": "true"})
    assert [hit["id"] for hit in response.json()["hits"]] == ids(await search(http, text="red", rerank=True))


async def test_false_and_null_ask_for_nothing(http: httpx.AsyncClient) -> None:
    for nothing in (False, None):
        assert "rerank" not in await search(http, text="red", rerank=nothing)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"rerank": {"verify": True}}, "verify"),
        ({"rerank": {"candidates": 51}}, "at most 50"),
        ({"rerank": True, "limit": 40, "offset": 11}, "at most 50"),
        ({"rerank": {"diversify": {"lambda": 1.5}}}, "lambda"),
        ({"rerank": {"recency": {"field": "t"}}}, "half_life_s"),
        ({"rerank": {"dedupe": {"bits": 3}}}, "bits"),
        ({"rerank": "yes"}, "rerank"),
    ],
)
async def test_a_faulty_request_says_what_is_wrong(http: httpx.AsyncClient, body: dict[str, Any], detail: str) -> None:
    response = await http.post(SEARCH, json={"text": "red", **body})
    assert detail in assert_problem(response, 400, "invalid_request")["detail"]


async def test_stages_are_timed_in_the_metrics(http: httpx.AsyncClient) -> None:
    await search(http, text="red", rerank=True)
    page = (await http.get("/metrics")).text
    for stage in ("rerank", "rerank_fetch", "rerank_dedupe", "rerank_fuse"):
        assert f'riverlens_search_stage_seconds_count{{stage="{stage}"}} 1.0' in page
