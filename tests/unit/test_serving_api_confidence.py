"""Confident and unconfident answers over HTTP, on fakes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from contract.errors import SettingsInvalid
from contract.settings import Settings
from serving.app import create_app
from serving.confidence import Calibration, CalibrationFile, QueryKind, Weights
from serving.schemas import SearchAnswer
from tests.unit.serving_fakes import FINGERPRINT, FakeSystem, make_system, picture
from tests.unit.test_serving_api_images import upload

SEARCH = "/v1/collections/images/search"
SHADES = {f"red-{number}": (230, number * 8, 20) for number in range(14)} | {"blue": (20, 20, 230)}


def own_file(folder: Path) -> Path:
    """Words and pictures are calibrated, mixes are not: an answer is as confident as its lead is wide."""
    weights = Weights(0.0, 40.0, 0.0)
    kinds: tuple[QueryKind, ...] = ("text", "image")
    known = [Calibration("fake", FINGERPRINT, kind, 0.0, -4.0, weights, 1, "00") for kind in kinds]
    file = folder / "own.json"
    file.write_bytes(msgspec.json.encode(CalibrationFile(tuple(known))))
    return file


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    made = make_system(tmp_path)
    made.settings = Settings(home=tmp_path, search_deadline_ms=2000, confidence_file=own_file(tmp_path))
    return made


@pytest.fixture
async def http(system: FakeSystem) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(system.dependencies()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for name, colour in SHADES.items():
            payload = json.dumps({"tags": [name.partition("-")[0]]})
            assert (await upload(client, picture(colour), id=name, payload=payload)).is_success
        yield client


async def search(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await http.post(SEARCH, json=body)
    assert response.status_code == 200, response.text
    SearchAnswer.model_validate(response.json())
    return dict(response.json())


async def test_a_clear_first_hit_is_confident_and_one_among_many_alike_is_not(http: httpx.AsyncClient) -> None:
    blue = await search(http, text="blue")
    assert blue["hits"][0]["id"] == "blue"
    assert (blue["no_confident_match"], blue["confidence"]["reason"]) == (False, None)
    assert blue["confidence"]["probability"] > 0.9
    red = await search(http, text="red")
    assert len(red["hits"]) == 10
    assert (red["no_confident_match"], red["confidence"]["reason"]) == (True, "below_threshold")
    assert red["confidence"]["probability"] < 0.3


@pytest.mark.parametrize(
    "page", [{"limit": 1}, {"limit": 3}, {"limit": 2, "offset": 3}, {"limit": 50}, {"with_payload": False}]
)
@pytest.mark.parametrize("text", ["red", "blue"])
async def test_it_does_not_depend_on_the_page(http: httpx.AsyncClient, text: str, page: dict[str, Any]) -> None:
    whole, part = await search(http, text=text), await search(http, text=text, **page)
    assert part["confidence"] == whole["confidence"]
    assert part["no_confident_match"] == whole["no_confident_match"]
    assert len(part["hits"]) == min(page.get("limit", 10), len(SHADES) - page.get("offset", 0))


async def test_an_empty_page_has_no_match_whatever_the_whole_list_says(http: httpx.AsyncClient) -> None:
    whole = await search(http, text="blue")
    for body in ({"offset": 40}, {"score_threshold": 1.5}):
        empty = await search(http, text="blue", **body)
        assert empty["hits"] == []
        assert (empty["no_confident_match"], empty["confidence"]["reason"]) == (True, "no_hits")
        assert empty["confidence"]["probability"] == whole["confidence"]["probability"]


async def test_a_filter_changes_what_there_is_to_be_found(http: httpx.AsyncClient) -> None:
    reds = {"must": [{"key": "tags", "match": {"value": "red"}}]}
    answer = await search(http, text="blue", filter=reds)
    assert len(answer["hits"]) == 10
    assert answer["confidence"]["reason"] == "below_threshold"
    nothing = await search(http, text="blue", filter={"must": [{"key": "tags", "match": {"value": "green"}}]})
    assert nothing["confidence"] == {"probability": None, "reason": "no_hits"}
    assert nothing["no_confident_match"]


async def test_a_partial_answer_is_judged_by_what_it_has(http: httpx.AsyncClient, system: FakeSystem) -> None:
    system.owners("images", "blue")[0].down = True
    answer = await search(http, text="blue")
    assert answer["coverage"]["degraded"]
    assert answer["confidence"]["reason"] == "below_threshold"


async def test_an_image_that_finds_itself_is_not_the_match(http: httpx.AsyncClient) -> None:
    by_id = await search(http, image_id="blue")
    assert by_id["hits"][0]["id"] == "blue"
    assert by_id["confidence"]["reason"] == "below_threshold"
    uploaded = await http.post(SEARCH, files={"image": ("q.png", picture("blue"), "image/png")})
    assert uploaded.json()["confidence"]["reason"] is None


@pytest.mark.parametrize(
    "body",
    [
        {"text": "blue", "image_id": "red-3"},
        {"positive": ["blue"]},
        {"text": "blue", "negative": ["red-3"]},
        {"text": "blue", "image_id": "red-3", "text_weight": 10, "image_id_weight": 0.1},
    ],
)
async def test_kinds_of_query_without_a_calibration_are_not_flagged(
    http: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    answer = await search(http, **body)
    assert answer["confidence"] == {"probability": None, "reason": "not_calibrated"}
    assert not answer["no_confident_match"]


async def test_a_model_without_a_calibration_costs_the_shards_nothing(tmp_path: Path) -> None:
    system = make_system(tmp_path)
    transport = httpx.ASGITransport(create_app(system.dependencies()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await upload(client, picture("red"), id="red")).is_success
        answer = await search(client, text="red", limit=1)
    assert answer["confidence"] == {"probability": None, "reason": "not_calibrated"}
    assert {query.k for query in system.shards["images", 0, 0].searches[-1].queries} == {1}


async def test_answers_are_counted_by_reason(http: httpx.AsyncClient) -> None:
    for text in ("red", "blue", "blue"):
        await search(http, text=text)
    page = (await http.get("/metrics")).text
    assert 'riverlens_search_confidence_total{kind="text",reason="below_threshold"} 1.0' in page
    assert 'riverlens_search_confidence_total{kind="text",reason="confident"} 2.0' in page


async def test_what_is_blocked_does_not_show_in_the_confidence(tmp_path: Path) -> None:
    """Also where shards cannot leave blocked images out, since they do not index the field."""
    system = make_system(tmp_path)
    system.settings = Settings(
        home=tmp_path, search_deadline_ms=2000, confidence_file=own_file(tmp_path), blocked_tags=["blue"]
    )
    system.specs["images"] = msgspec.structs.replace(system.specs["images"], filter_fields=("owner",))
    transport = httpx.ASGITransport(create_app(system.dependencies()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for name in ("red-1", "red-2", "blue"):
            payload = json.dumps({"tags": [name.partition("-")[0]]})
            assert (await upload(client, picture(SHADES[name]), id=name, payload=payload)).is_success
        answer = await search(client, text="blue", limit=2)
    assert {hit["id"] for hit in answer["hits"]} == {"red-1", "red-2"}
    assert answer["confidence"]["reason"] == "below_threshold"


async def test_a_wrong_file_stops_the_start(tmp_path: Path) -> None:
    system = make_system(tmp_path)
    system.settings = Settings(home=tmp_path, confidence_file=tmp_path / "missing.json")
    with pytest.raises(SettingsInvalid, match=r"missing\.json"):
        create_app(system.dependencies())
