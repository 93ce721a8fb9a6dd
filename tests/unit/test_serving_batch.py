"""Many searches in one request, on fakes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from contract.telemetry import LogField
from serving.app import create_app
from serving.schemas import BatchAnswer
from tests.unit.serving_fakes import FakeSystem, make_system, picture
from tests.unit.test_serving_api_images import assert_problem, upload

BATCH = "/v1/collections/images/search/batch"
SEARCH = "/v1/collections/images/search"
COLOURS = ("red", "green", "blue", "white")


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return make_system(tmp_path, min_receipt_timeout_s=0.05, search_batch_max=8)


@pytest.fixture
async def http(system: FakeSystem) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(system.dependencies()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for colour in COLOURS:
            assert (await upload(client, picture(colour), id=colour)).is_success
        yield client


async def search_all(http: httpx.AsyncClient, *searches: dict[str, Any]) -> list[dict[str, Any]]:
    response = await http.post(BATCH, json={"searches": list(searches)})
    assert response.status_code == 200, response.text
    BatchAnswer.model_validate(response.json())
    return list(response.json()["answers"])


def calls(system: FakeSystem) -> list[int]:
    return [len(shard.searches) for _, shard in sorted(system.shards.items())]


async def test_answers_are_those_of_the_searches_alone_in_their_order(http: httpx.AsyncClient) -> None:
    searches: list[dict[str, Any]] = [
        {"text": "blue", "limit": 2},
        {"image_id": "red", "limit": 3, "offset": 1},
        {"positive": ["red", "white"], "negative": ["blue"], "with_payload": False},
    ]
    answers = await search_all(http, *searches)
    for body, answer in zip(searches, answers, strict=True):
        alone = (await http.post(SEARCH, json=body)).json()
        assert answer["hits"] == alone["hits"]
        assert answer["coverage"] == alone["coverage"]


async def test_one_encode_batch_and_one_call_per_shard(http: httpx.AsyncClient, system: FakeSystem) -> None:
    encoder = system.embedder("fake", "query", 1)
    await http.post(SEARCH, json={"text": "green"})
    asked: list[list[str]] = []
    encode = encoder.encode_texts

    async def watched(texts: Any) -> Any:
        asked.append(list(texts))
        return await encode(texts)

    encoder.encode_texts = watched  # type: ignore[method-assign]
    before = calls(system)
    await search_all(http, {"text": "red"}, {"text": "green"}, {"image_id": "blue"}, {"text": "white"}, {"text": "red"})
    assert asked == [["red", "white"]], "the cached text is not encoded again, and the repeated one once"
    assert [after - was for was, after in zip(before, calls(system), strict=True)] == [1, 1, 1, 1]


async def test_what_is_wrong_with_one_search_is_its_own_problem(http: httpx.AsyncClient, system: FakeSystem) -> None:
    answers = await search_all(
        http,
        {"text": "red", "limit": 1},
        {"image_id": "nobody"},
        {"text": "red", "colour": 1},
        {},
        {"text": "red", "min_receipt": {"partition": 0, "offset": 10**9}},
        {"text": "blue", "limit": 1},
    )
    assert [answer.get("code") for answer in answers] == [
        None, "not_found", "invalid_request", "invalid_request", "not_searchable_in_time", None
    ]  # fmt: skip
    assert [answer["hits"][0]["id"] for answer in (answers[0], answers[-1])] == ["red", "blue"]
    assert answers[2]["errors"][0]["location"] == "colour"
    assert answers[4]["retryable"] is True


async def test_a_failure_nobody_expected_costs_one_search(http: httpx.AsyncClient, system: FakeSystem) -> None:
    for shard in system.owners("images", "nobody"):

        async def fail(*_: object, **__: object) -> None:
            raise RuntimeError("secret inner words")

        shard.fetch = fail  # type: ignore[method-assign,assignment]
    with structlog.testing.capture_logs() as lines:
        answers = await search_all(http, {"text": "red"}, {"image_id": "nobody"})
    assert "hits" in answers[0]
    assert (answers[1]["code"], answers[1]["status"]) == ("internal", 500)
    assert "secret" not in json.dumps(answers)
    assert [line[LogField.REQUEST_ID] for line in lines if line["event"] == "search failed"] == [
        answers[1]["request_id"]
    ]


async def test_each_answer_has_an_id_of_its_own_that_a_click_can_name(http: httpx.AsyncClient) -> None:
    given = "x" * 64
    response = await http.post(
        BATCH, json={"searches": [{"text": "red"}, {"text": "blue"}]}, headers={"X-Request-ID": given}
    )
    body = response.json()
    names = [answer["request_id"] for answer in body["answers"]]
    assert body["request_id"] == given
    assert len(set(names)) == 2
    for name in names:
        click = {"request_id": name, "image_id": "red", "rank": 0}
        assert (await http.post("/v1/collections/images/clicks", json=click)).status_code == 202


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "searches"),
        ({"searches": []}, "searches"),
        ({"searches": [1]}, "searches"),
        ({"searches": [{"text": "x"}] * 9}, "at most 8 (RIVERLENS_SEARCH_BATCH_MAX)"),
        ({"searches": [{"text": "x"}], "more": 1}, "more"),
    ],
)
async def test_requests_that_cannot_succeed_say_why(http: httpx.AsyncClient, body: Any, word: str) -> None:
    problem = assert_problem(await http.post(BATCH, json=body), 400, "invalid_request")
    assert word in problem["detail"]
