"""Listing images over HTTP, on fakes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from serving.app import create_app
from serving.listing import ImageList
from tests.unit.serving_fakes import FakeSystem, make_spec, make_system, picture
from tests.unit.test_serving_api_images import assert_problem, upload

LIST = "/v1/collections/images/images"
IDS = [f"image-{n:02}" for n in range(11)]


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return make_system(tmp_path, list_limit_max=50)


@pytest.fixture
async def http(system: FakeSystem) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(system.dependencies()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for number, image_id in enumerate(IDS):
            payload = json.dumps({"even": number % 2 == 0})
            assert (await upload(client, picture("red"), id=image_id, payload=payload)).is_success
        yield client


async def page(http: httpx.AsyncClient, **parameters: Any) -> dict[str, Any]:
    response = await http.get(LIST, params=parameters)
    assert response.status_code == 200, response.text
    ImageList.model_validate(response.json())
    return dict(response.json())


async def test_pages_put_together_are_all_images_by_id(http: httpx.AsyncClient) -> None:
    seen, cursor = [], ""
    while cursor is not None:
        answer = await page(http, limit=3, **({"cursor": cursor} if cursor else {}))
        seen += [image["id"] for image in answer["images"]]
        cursor = answer["next_cursor"]
    assert seen == IDS
    assert (await page(http))["next_cursor"] is None, "a page that holds all ends the listing"


async def test_an_image_is_shown_with_what_is_known_of_it(http: httpx.AsyncClient) -> None:
    (image,) = (await page(http, limit=1))["images"]
    assert set(image) == {
        "id", "payload", "sha256", "content_type", "file_name", "width", "height", "source_offset"
    }  # fmt: skip
    assert (image["payload"], image["width"], image["content_type"]) == ({"even": True}, 32, "image/png")
    (bare,) = (await page(http, limit=1, with_payload=False))["images"]
    assert bare["payload"] is None


async def test_a_filter_keeps_what_satisfies_it_and_deleted_images_are_gone(http: httpx.AsyncClient) -> None:
    even = json.dumps({"must": [{"key": "even", "match": {"value": True}}]})
    await http.delete(f"{LIST}/{IDS[0]}", params={"wait": "searchable"})
    assert [image["id"] for image in (await page(http, filter=even))["images"]] == IDS[2::2]
    first = await page(http, filter=even, limit=2)
    rest = await page(http, filter=even, limit=50, cursor=first["next_cursor"])
    assert [image["id"] for image in first["images"] + rest["images"]] == IDS[2::2]


async def test_a_cursor_that_is_not_of_this_listing_says_why(http: httpx.AsyncClient, system: FakeSystem) -> None:
    cursor = (await page(http, limit=2))["next_cursor"]
    changed = ("A" if cursor[5] != "A" else "B").join((cursor[:5], cursor[6:]))
    for wrong, word in (("nonsense", "not one this server gave"), (changed, "changed on its way")):
        problem = assert_problem(await http.get(LIST, params={"cursor": wrong}), 400, "invalid_request")
        assert word in problem["detail"]
    other = await http.get(LIST, params={"cursor": cursor, "filter": "{}"})
    assert "another `filter`" in assert_problem(other, 400, "invalid_request")["detail"]
    system.add(msgspec.structs.replace(make_spec(), name="other", incarnation="another"))
    moved = await http.get("/v1/collections/other/images", params={"cursor": cursor})
    assert "begin without a cursor" in assert_problem(moved, 400, "invalid_request")["detail"]


async def test_a_page_has_a_bound_that_is_named(http: httpx.AsyncClient) -> None:
    problem = assert_problem(await http.get(LIST, params={"limit": 51}), 400, "invalid_request")
    assert "at most 50 (RIVERLENS_LIST_LIMIT_MAX)" in problem["detail"]
    for wrong in ({"limit": 0}, {"limit": "x"}, {"filter": "{"}, {"filter": '{"most": []}'}):
        assert_problem(await http.get(LIST, params=wrong), 400, "invalid_request")


async def test_no_image_is_passed_over_when_a_shard_is_away(http: httpx.AsyncClient, system: FakeSystem) -> None:
    first = await page(http, limit=2)
    system.shards["images", 3, 0].down = True
    response = await http.get(LIST, params={"cursor": first["next_cursor"]})
    assert_problem(response, 503, "shard_unavailable", retryable=True)
    system.shards["images", 3, 0].down = False
    rest = await page(http, cursor=first["next_cursor"])
    assert [image["id"] for image in first["images"] + rest["images"]] == IDS


async def test_an_empty_collection_has_one_empty_page(http: httpx.AsyncClient, system: FakeSystem) -> None:
    system.add(make_spec("empty"))
    assert (await http.get("/v1/collections/empty/images")).json() == {"images": [], "next_cursor": None}
