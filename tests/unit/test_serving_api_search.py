"""Searches over HTTP, on fakes."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from PIL import Image

from contract.events import ResultClicked
from contract.topics import CLICKS_TOPIC, partition_of
from serving.app import create_app
from serving.schemas import SearchAnswer
from tests.unit.serving_fakes import FakeSystem, make_spec, make_system, picture
from tests.unit.test_serving_api_images import assert_problem, upload

SEARCH = "/v1/collections/images/search"
COLOURS = ("red", "green", "blue", "white")


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return make_system(tmp_path, min_receipt_timeout_s=0.05, search_limit_max=50)


@pytest.fixture
async def http(system: FakeSystem) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(system.dependencies()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for colour in COLOURS:
            assert (
                await upload(client, picture(colour), id=colour, payload=json.dumps({"caption": colour}))
            ).is_success
        yield client


async def search(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await http.post(SEARCH, json=body)
    assert response.status_code == 200, response.text
    answer = dict(response.json())
    SearchAnswer.model_validate(answer)
    assert answer["request_id"] == response.headers["x-request-id"]
    return answer


def ids(answer: dict[str, Any]) -> list[str]:
    return [hit["id"] for hit in answer["hits"]]


@pytest.mark.parametrize("colour", COLOURS)
async def test_words_find_pictures(http: httpx.AsyncClient, colour: str) -> None:
    answer = await search(http, text=f"something {colour}", limit=2)
    assert ids(answer)[0] == colour
    assert answer["hits"][0]["payload"] == {"caption": colour}
    assert answer["hits"][0]["score"] == pytest.approx(1.0, abs=1e-5)
    assert len(answer["hits"]) == 2


async def test_the_answer_has_exactly_the_agreed_shape(http: httpx.AsyncClient) -> None:
    answer = await search(http, text="red")
    assert set(answer) == {
        "hits", "no_confident_match", "confidence", "coverage", "freshness", "took_ms", "model", "request_id"
    }  # fmt: skip
    assert answer["coverage"] == {"shards_total": 4, "shards_answered": 4, "degraded": False}
    assert set(answer["freshness"]) == {"applied_offsets", "staleness_s"}
    assert set(answer["freshness"]["applied_offsets"]) == {"0", "1", "2", "3"}
    assert set(answer["took_ms"]) == {"encode", "fan_out", "merge", "rerank", "total"}
    assert set(answer["hits"][0]) == {"id", "score", "payload"}
    assert (answer["model"], answer["no_confident_match"]) == ("fake", False)


async def test_get_is_the_same_search(http: httpx.AsyncClient) -> None:
    posted = await search(http, text="red", limit=3, offset=1)
    got = await http.get(SEARCH, params={"text": "red", "limit": 3, "offset": 1})
    assert got.json()["hits"] == posted["hits"]
    like = await http.get(SEARCH, params={"image_id": "blue", "limit": 1})
    assert ids(like.json()) == ["blue"]


async def test_a_picture_finds_itself_in_a_form(http: httpx.AsyncClient) -> None:
    response = await http.post(
        SEARCH, files={"image": ("q.png", picture("green"))}, data={"limit": "1", "exact": "true"}
    )
    assert ids(response.json()) == ["green"]


@pytest.mark.parametrize("as_json", [True, False])
async def test_a_crop_is_what_is_searched_for(http: httpx.AsyncClient, as_json: bool) -> None:
    sheet = Image.new("RGB", (64, 32), (20, 20, 230))
    sheet.paste(Image.open(io.BytesIO(picture("red"))), (32, 0))
    out = io.BytesIO()
    sheet.save(out, "PNG")
    for (x, width), expected in (((0.0, 0.5), "blue"), ((0.5, 0.5), "red")):
        crop = json.dumps({"x": x, "y": 0, "width": width, "height": 1}) if as_json else f"{x},0,{width},1"
        answer = await http.post(SEARCH, files={"image": out.getvalue()}, data={"crop": crop, "limit": "1"})
        assert ids(answer.json()) == [expected]
    uploaded = await upload(http, out.getvalue(), id="sheet")
    assert uploaded.is_success
    cropped = await search(http, image_id="sheet", crop={"x": 0.5, "y": 0, "width": 0.5, "height": 1}, limit=1)
    assert ids(cropped) == ["red"]


async def test_examples_pull_and_push(http: httpx.AsyncClient) -> None:
    assert ids(await search(http, image_id="red"))[0] == "red"
    both = await search(http, positive=["red", "blue"], limit=2)
    assert set(ids(both)) == {"red", "blue"}
    away = await search(http, positive=["red", "blue"], negative=["blue"], limit=4)
    assert ids(away)[0] == "red"
    form = await http.post(SEARCH, data={"positive": ["red"], "negative": '["blue", "green"]', "limit": "1"})
    assert ids(form.json()) == ["red"]


async def test_weights_shift_a_mixed_query(http: httpx.AsyncClient) -> None:
    for text_weight, expected in ((5.0, "red"), (0.2, "blue")):
        answer = await search(http, text="red", image_id="blue", text_weight=text_weight, limit=1)
        assert ids(answer) == [expected]


async def test_limit_offset_and_threshold(http: httpx.AsyncClient) -> None:
    everything = await search(http, text="red", limit=10)
    assert len(everything["hits"]) == len(COLOURS)
    assert ids(await search(http, text="red", limit=2, offset=1)) == ids(everything)[1:3]
    high = await search(http, text="red", score_threshold=0.99)
    assert ids(high) == ["red"]
    nothing = await search(http, text="red", offset=10)
    assert (nothing["hits"], nothing["no_confident_match"]) == ([], True)


async def test_payloads_can_be_left_out(http: httpx.AsyncClient, system: FakeSystem) -> None:
    answer = await search(http, text="red", with_payload=False)
    assert {hit["payload"] for hit in answer["hits"]} == {None}
    assert not system.shards["images", 0, 0].searches[-1].with_payload


async def test_exact_reaches_the_shards(http: httpx.AsyncClient, system: FakeSystem) -> None:
    await search(http, text="red", exact=True, limit=7, offset=2)
    (query,) = system.shards["images", 1, 0].searches[-1].queries
    assert (query.exact, query.k) == (True, 9)


async def test_a_filter_keeps_what_satisfies_it(http: httpx.AsyncClient) -> None:
    warm = {"should": [{"key": "caption", "match": {"value": "red"}}, {"key": "caption", "match": {"value": "white"}}]}
    assert sorted(ids(await search(http, text="blue", filter=warm))) == ["red", "white"]
    assert ids(await search(http, text="blue", filter={"must": [warm], "must_not": warm["should"]})) == []
    assert len(ids(await search(http, text="blue", filter={}))) == len(COLOURS)
    form = await http.post(SEARCH, files={"image": picture("blue")}, data={"filter": json.dumps(warm)})
    assert sorted(ids(form.json())) == ["red", "white"]
    got = await http.get(SEARCH, params={"text": "blue", "filter": json.dumps(warm)})
    assert sorted(ids(got.json())) == ["red", "white"]
    for wrong in ("{", "[]", '{"most": []}'):
        assert_problem(await http.get(SEARCH, params={"text": "blue", "filter": wrong}), 400, "invalid_request")


async def test_a_filter_names_indexed_fields_and_costs_nobody_elses_query(
    http: httpx.AsyncClient, system: FakeSystem
) -> None:
    system.add(make_spec("narrow", filter_fields=("owner", "camera.model")))
    path = "/v1/collections/narrow/search"
    asked = {"text": "red", "filter": {"must": [{"key": "tags", "match": {"value": "x"}}]}}
    problem = assert_problem(await http.post(path, json=asked), 400, "invalid_request")
    assert "'tags' is not indexed; indexed fields: camera.model, owner" in problem["detail"]
    assert all(not shard.searches for (name, _, _), shard in system.shards.items() if name == "narrow")
    asked["filter"] = {"must": [{"key": "owner", "match": {"value": "x"}}]}
    assert (await http.post(path, json=asked)).json()["hits"] == []


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "needs"),
        ({"text": ""}, "text"),
        ({"text": "x", "limit": 0}, "limit"),
        ({"text": "x", "limit": 40, "offset": 11}, "at most 50"),
        ({"text": "x", "offset": -1}, "offset"),
        ({"text": "x", "filter": "owner = ada"}, "filter"),
        ({"text": "x", "filter": {"must": [{"key": "a", "match": {"value": None}}]}}, "filter.must[0].match.value"),
        ({"text": "x", "rerank": {"sort": 1}}, "rerank"),
        ({"text": "x", "colour": "red"}, "colour"),
        ({"text": "x", "text_weight": -1}, "weight"),
        ({"text": "x", "text_weight": 11}, "text_weight"),
        ({"text": "x", "crop": {"x": 0, "y": 0, "width": 1, "height": 1}}, "crop"),
        ({"image_id": "red", "crop": {"x": 0.6, "y": 0, "width": 0.6, "height": 1}}, "crop"),
        ({"image_id": "red", "crop": {"x": 0, "y": 0, "width": 0, "height": 1}}, "crop"),
        ({"text": "x", "min_receipt": {"partition": 9, "offset": 0}}, "partition"),
        ({"negative": ["red"]}, "above 0"),
    ],
)
async def test_requests_that_cannot_succeed_say_why(http: httpx.AsyncClient, body: dict[str, Any], word: str) -> None:
    problem = assert_problem(await http.post(SEARCH, json=body), 400, "invalid_request")
    assert word in problem["detail"]


async def test_forms_that_cannot_succeed_say_why(http: httpx.AsyncClient) -> None:
    for data in ({"crop": "1,2"}, {"crop": "a,b,c,d"}, {"min_receipt": "no"}, {"limit": "many"}):
        response = await http.post(SEARCH, files={"image": picture("red")}, data=data)
        assert_problem(response, 400, "invalid_request")
    assert_problem(await http.post(SEARCH, files={"image": b"no picture"}), 422, "invalid_image")
    for path in (SEARCH, f"{SEARCH}?limit=x", f"{SEARCH}?text=a&limit=0"):
        assert_problem(await http.get(path), 400, "invalid_request")


async def test_an_unknown_example_is_not_found(http: httpx.AsyncClient) -> None:
    for body in ({"image_id": "nobody"}, {"text": "red", "negative": ["nobody"]}):
        assert_problem(await http.post(SEARCH, json=body), 404, "not_found")


async def test_a_missing_shard_is_counted_never_hidden(http: httpx.AsyncClient, system: FakeSystem) -> None:
    (owner,) = system.owners("images", "red")
    owner.down = True
    answer = await search(http, text="red")
    assert answer["coverage"] == {"shards_total": 4, "shards_answered": 3, "degraded": True}
    assert "red" not in ids(answer)
    metrics = (await http.get("/metrics")).text
    assert 'riverlens_searches_total{degraded="true",kind="text"} 1.0' in metrics


async def test_with_no_shard_left_the_answer_is_a_retryable_problem(
    http: httpx.AsyncClient, system: FakeSystem
) -> None:
    for shard in system.shards.values():
        shard.down = True
    assert_problem(await http.post(SEARCH, json={"text": "red"}), 503, "shard_unavailable", retryable=True)


async def test_an_embedder_that_is_down_is_retryable_for_pictures_but_cached_texts_still_work(
    http: httpx.AsyncClient, system: FakeSystem
) -> None:
    await search(http, text="red")
    system.embedders["fake", "query"].down = True
    assert ids(await search(http, text="red"))[0] == "red"
    response = await http.post(SEARCH, files={"image": picture("blue")})
    assert_problem(response, 503, "embedder_unavailable", retryable=True)


async def test_min_receipt_waits_until_it_is_searchable(http: httpx.AsyncClient, system: FakeSystem) -> None:
    object.__setattr__(system.settings, "min_receipt_timeout_s", 30.0)
    system.applying = False
    receipt = (await upload(http, picture((250, 250, 10)), "logged", id="fresh")).json()["receipt"]
    body = {"image_id": "white", "limit": 10, "min_receipt": receipt}
    searching = asyncio.create_task(http.post(SEARCH, json=body))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not searching.done()
    system.apply("images", receipt["partition"])
    answer = (await searching).json()
    assert "fresh" in ids(answer)
    assert answer["freshness"]["applied_offsets"][str(receipt["partition"])] >= receipt["offset"]


async def test_min_receipt_has_a_bound(http: httpx.AsyncClient) -> None:
    body = {"text": "red", "min_receipt": {"partition": 0, "offset": 10**9}}
    assert_problem(await http.post(SEARCH, json=body), 504, "not_searchable_in_time", retryable=True)


async def test_concurrent_searches_share_their_calls(http: httpx.AsyncClient, system: FakeSystem) -> None:
    await asyncio.gather(*(search(http, text=colour) for colour in COLOURS))
    shard = system.shards["images", 0, 0]
    shard.searches.clear()
    shard.asked.clear()
    shard.gate = asyncio.Event()
    tasks = [asyncio.create_task(search(http, text=colour)) for colour in COLOURS * 4]
    await asyncio.wait_for(shard.asked.wait(), 20)
    shard.gate.set()
    answers = await asyncio.gather(*tasks)
    assert [ids(answer)[0] for answer in answers] == list(COLOURS * 4)
    assert len(shard.searches) < len(tasks) / 2


async def test_a_collection_that_is_being_created_is_retryable(http: httpx.AsyncClient, system: FakeSystem) -> None:
    system.add(make_spec("young", fingerprint="", dimension=0))
    response = await http.post("/v1/collections/young/search", json={"text": "red"})
    assert_problem(response, 503, "unavailable", retryable=True)


async def test_clicks_are_logged(http: httpx.AsyncClient, system: FakeSystem) -> None:
    body = {"request_id": "abc", "image_id": "red", "rank": 3}
    response = await http.post("/v1/collections/images/clicks", json=body)
    assert (response.status_code, response.json()) == (202, {"status": "logged"})
    (record,) = system.log[CLICKS_TOPIC, 0]
    click = msgspec.json.decode(record, type=ResultClicked)
    assert (click.collection, click.request_id, click.image_id, click.rank) == ("images", "abc", "red", 3)
    for bad in ({**body, "rank": -1}, {"request_id": "abc"}, {**body, "more": 1}):
        assert_problem(await http.post("/v1/collections/images/clicks", json=bad), 400, "invalid_request")


def test_every_shard_holds_a_picture_or_none() -> None:
    """The fakes spread the colours over more than one shard, or coverage would mean nothing here."""
    assert len({partition_of(colour, 4) for colour in COLOURS}) > 1
