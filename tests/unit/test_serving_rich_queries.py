"""Examples of any kind, receipts of several partitions, the width of the walk; over HTTP, on fakes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.app import create_app
from tests.unit.serving_fakes import FakeSystem, make_system, picture
from tests.unit.test_serving_api_images import assert_problem, upload

SEARCH = "/v1/collections/images/search"
COLOURS = ("red", "green", "blue", "white")


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return make_system(tmp_path, min_receipt_timeout_s=0.05, ef_search_max=200)


@pytest.fixture
async def http(system: FakeSystem) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(system.dependencies()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for colour in COLOURS:
            assert (await upload(client, picture(colour), id=colour)).is_success
        yield client


async def search(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await http.post(SEARCH, json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def ids(answer: dict[str, Any]) -> list[str]:
    return [hit["id"] for hit in answer["hits"]]


async def test_words_and_regions_are_examples_too(http: httpx.AsyncClient) -> None:
    assert ids(await search(http, positive=[{"text": "green"}], limit=1)) == ["green"]
    away = await search(http, positive=["red", {"text": "blue"}], negative=[{"text": "blue"}])
    assert ids(away)[0] == "red"
    half = {"x": 0, "y": 0, "width": 0.5, "height": 1}
    assert ids(await search(http, positive=[{"image_id": "red", "crop": half}], limit=1)) == ["red"]


@pytest.mark.parametrize(("red", "blue"), [(5.0, 0.2), (0.2, 5.0)])
async def test_examples_weigh_against_each_other(http: httpx.AsyncClient, red: float, blue: float) -> None:
    examples = [{"image_id": "red", "weight": red}, {"text": "blue", "weight": blue}]
    assert ids(await search(http, positive=examples, limit=1)) == ["red" if red > blue else "blue"]


async def test_a_list_of_examples_weighs_against_the_rest_of_the_query(http: httpx.AsyncClient) -> None:
    for weight, expected in ((5.0, "blue"), (0.1, "red")):
        answer = await search(http, text="red", positive=["blue"], positive_weight=weight, limit=1)
        assert ids(answer) == [expected]
    scores = {}
    for weight in (0.1, 2.0):
        answer = await search(http, image_id="white", negative=["white"], negative_weight=weight)
        scores[weight] = {hit["id"]: hit["score"] for hit in answer["hits"]}["white"]
    assert scores[0.1] > 0 > scores[2.0]


async def test_the_score_is_the_weighted_mean_of_the_parts(http: httpx.AsyncClient) -> None:
    async def scores(**body: Any) -> dict[str, float]:
        return {hit["id"]: hit["score"] for hit in (await search(http, **body))["hits"]}

    red, blue, green = (await scores(text="red"), await scores(image_id="blue"), await scores(image_id="green"))
    mixed = await scores(
        text="red", text_weight=2, image_id="blue", image_id_weight=0.5, negative=["green"], negative_weight=0.25
    )
    for name in COLOURS:
        assert mixed[name] == pytest.approx((2 * red[name] + 0.5 * blue[name] - 0.25 * green[name]) / 2.75, abs=1e-5)


async def test_examples_in_a_form(http: httpx.AsyncClient) -> None:
    example = json.dumps({"text": "green", "weight": 9})
    form = await http.post(SEARCH, data={"positive": ["red", example], "limit": "1"})
    assert ids(form.json()) == ["green"]
    listed = await http.post(SEARCH, data={"positive": f'["red", {example}]', "limit": "1"})
    assert ids(listed.json()) == ["green"]
    got = await http.get(SEARCH, params=[("positive", "red"), ("positive", "white"), ("negative", "white")])
    assert ids(got.json())[0] == "red"


@pytest.mark.parametrize(
    ("example", "word"),
    [
        ({}, "either an `image_id` or a `text`"),
        ({"image_id": "red", "text": "red"}, "either an `image_id` or a `text`"),
        ({"text": "red", "crop": {"x": 0, "y": 0, "width": 1, "height": 1}}, "`crop` needs an `image_id`"),
        ({"text": "red", "weight": 0}, "weight"),
        ({"text": "red", "weight": 11}, "weight"),
        ({"image": "red"}, "image"),
        ("", "positive"),
        (7, "positive"),
    ],
)
async def test_examples_that_cannot_be_say_why(http: httpx.AsyncClient, example: Any, word: str) -> None:
    problem = assert_problem(await http.post(SEARCH, json={"positive": [example]}), 400, "invalid_request")
    assert word in problem["detail"]


async def test_ef_search_reaches_the_shards_within_its_bound(http: httpx.AsyncClient, system: FakeSystem) -> None:
    await search(http, text="red", ef_search=150)
    assert system.shards["images", 0, 0].searches[-1].queries[0].ef_search == 150
    await http.get(SEARCH, params={"text": "red", "ef_search": 90})
    assert system.shards["images", 0, 0].searches[-1].queries[0].ef_search == 90
    await search(http, text="red")
    assert system.shards["images", 0, 0].searches[-1].queries[0].ef_search is None
    for body, word in (
        ({"ef_search": 201}, "at most 200 (RIVERLENS_EF_SEARCH_MAX)"),
        ({"ef_search": 0}, "ef_search"),
        ({"ef_search": 100, "exact": True}, "no effect on an exact search"),
    ):
        problem = assert_problem(await http.post(SEARCH, json={"text": "red", **body}), 400, "invalid_request")
        assert word in problem["detail"]


async def test_the_bound_of_the_offset_is_named_and_the_way_beyond_it(http: httpx.AsyncClient) -> None:
    response = await http.post(SEARCH, json={"text": "red", "limit": 10, "offset": 991})
    problem = assert_problem(response, 400, "invalid_request")
    assert "at most 1000 (RIVERLENS_SEARCH_LIMIT_MAX)" in problem["detail"]
    assert "list the images" in problem["detail"]


async def test_receipts_of_several_partitions_are_all_awaited(http: httpx.AsyncClient, system: FakeSystem) -> None:
    object.__setattr__(system.settings, "min_receipt_timeout_s", 30.0)
    system.applying = False
    receipts: dict[str, dict[str, int]] = {}
    number = 0
    while len({receipt["partition"] for receipt in receipts.values()}) < 3:
        image_id = f"fresh-{number}"
        uploaded = await upload(http, picture((250, 250, 10)), "logged", id=image_id)
        receipts[image_id] = uploaded.json()["receipt"]
        number += 1
    body = {"image_id": "white", "limit": 50, "min_receipt": list(receipts.values())}
    searching = asyncio.create_task(http.post(SEARCH, json=body))
    partitions = sorted({receipt["partition"] for receipt in receipts.values()})
    for partition in partitions:
        for _ in range(20):
            await asyncio.sleep(0)
        assert not searching.done(), f"partition {partition} is not applied yet"
        system.apply("images", partition)
    answer = (await searching).json()
    assert set(receipts) <= set(ids(answer))


async def test_a_receipt_that_is_not_reached_is_named(http: httpx.AsyncClient, system: FakeSystem) -> None:
    reached = {"partition": 0, "offset": 0}
    await upload(http, picture("red"), id="red")
    system.shards["images", 0, 0].applied[0] = 5
    body = {"text": "red", "min_receipt": [reached, {"partition": 2, "offset": 10**6}, {"partition": 2, "offset": 1}]}
    problem = assert_problem(await http.post(SEARCH, json=body), 504, "not_searchable_in_time", retryable=True)
    assert "offset 1000000 of partition 2 is not searchable within 0.05 s" in problem["detail"]
    assert "partition 0" not in problem["detail"]
    wrong = await http.post(SEARCH, json={"text": "red", "min_receipt": [reached, {"partition": 4, "offset": 0}]})
    assert "no partition 4" in assert_problem(wrong, 400, "invalid_request")["detail"]


async def test_a_replica_that_is_behind_never_answers_for_a_receipt(
    http: httpx.AsyncClient, system: FakeSystem
) -> None:
    """It was away while the others were asked to wait, and is back for the search."""
    receipt = (await upload(http, picture("red"), id="again")).json()["receipt"]
    shard = system.owners("images", "again")[0]

    async def reached(*_: object) -> bool:
        shard.applied[receipt["partition"]] = -1
        return True

    shard.wait_applied = reached  # type: ignore[method-assign,assignment]
    response = await http.post(SEARCH, json={"text": "red", "min_receipt": receipt})
    problem = assert_problem(response, 504, "not_searchable_in_time", retryable=True)
    assert "replica that catches up" in problem["detail"]


async def test_under_load_every_reader_sees_what_it_uploaded(http: httpx.AsyncClient, system: FakeSystem) -> None:
    """Uploads are applied a few turns later, in bursts, while their uploaders already search."""
    object.__setattr__(system.settings, "min_receipt_timeout_s", 30.0)
    system.applying = False
    done = asyncio.Event()

    async def apply() -> None:
        while not done.is_set():
            await asyncio.sleep(0.002)
            for partition in range(4):
                system.apply("images", partition)

    async def upload_and_search(number: int) -> None:
        image_id = f"mine-{number}"
        uploaded = await upload(http, picture((number, 100, 100)), "logged", id=image_id)
        receipt = uploaded.json()["receipt"]
        answer = await search(http, image_id="red", limit=500, min_receipt=receipt)
        assert image_id in ids(answer)
        assert answer["freshness"]["applied_offsets"][str(receipt["partition"])] >= receipt["offset"]

    applying = asyncio.create_task(apply())
    await asyncio.gather(*(upload_and_search(number) for number in range(60)))
    done.set()
    await applying
