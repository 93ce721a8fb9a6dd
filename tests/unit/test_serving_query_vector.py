"""Searching by a vector of one's own: what is read, what is refused, and what it meets; over HTTP, on fakes."""

from __future__ import annotations

import base64
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from serving.app import create_app
from serving.query_vector import decode_vector
from tests.unit.serving_fakes import DIMENSION, FINGERPRINT, FakeSystem, make_system, picture
from tests.unit.test_serving_api_images import assert_problem, upload

SEARCH = "/v1/collections/images/search"
COLOURS = ("red", "green", "blue", "white")
ONES = [1.0] * DIMENSION


def base64_of(vector: Any) -> str:
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return make_system(tmp_path)


@pytest.fixture
async def http(system: FakeSystem) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(system.dependencies()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for colour in COLOURS:
            assert (await upload(client, picture(colour), id=colour)).is_success
        yield client


def stored(system: FakeSystem, image_id: str) -> list[float]:
    """The vector of an indexed image."""
    point = system.owners("images", image_id)[0].points[image_id]
    assert point.vector is not None
    return [float(number) for number in point.vector]


async def scores(http: httpx.AsyncClient, **body: Any) -> dict[str, float]:
    response = await http.post(SEARCH, json=body)
    assert response.status_code == 200, response.text
    return {hit["id"]: hit["score"] for hit in response.json()["hits"]}


async def test_both_forms_find_what_the_image_itself_finds(http: httpx.AsyncClient, system: FakeSystem) -> None:
    expected = await scores(http, image_id="green")
    vector = stored(system, "green")
    assert await scores(http, vector=vector) == pytest.approx(expected, abs=1e-6)
    assert await scores(http, vector=base64_of(vector)) == pytest.approx(expected, abs=1e-6)
    for form in (base64_of(vector), str(vector)):
        answer = (await http.post(SEARCH, data={"vector": form, "vector_weight": "2", "limit": "1"})).json()
        assert [hit["id"] for hit in answer["hits"]] == ["green"]


async def test_its_length_does_not_count(http: httpx.AsyncClient, system: FakeSystem) -> None:
    vector = np.array(stored(system, "blue"))
    expected = await scores(http, image_id="blue")
    for factor in (1e-300, 1e-3, 7, 1e300):
        assert await scores(http, vector=list(vector * factor)) == pytest.approx(expected, abs=1e-6)
    await scores(http, vector=[3] * DIMENSION)
    sent = system.shards["images", 0, 0].searches[-1].vectors
    assert sent.dtype == np.float32
    assert np.linalg.norm(sent[0]) == pytest.approx(1, abs=1e-6)


async def test_it_is_a_part_like_any_other(http: httpx.AsyncClient, system: FakeSystem) -> None:
    by_text, by_vector = await scores(http, text="red"), await scores(http, image_id="blue")
    mixed = await scores(http, text="red", text_weight=2, vector=stored(system, "blue"), vector_weight=0.5)
    for name in COLOURS:
        assert mixed[name] == pytest.approx((2 * by_text[name] + 0.5 * by_vector[name]) / 2.5, abs=1e-5)
    away = await scores(http, text="red", vector=stored(system, "blue"), vector_weight=-1)
    assert away["red"] > away["blue"]
    for body, word in (
        ({"vector_weight": -1}, "a weight above 0"),
        ({"vector_weight": 11}, "vector_weight"),
        ({"crop": {"x": 0, "y": 0, "width": 1, "height": 1}}, "`crop` needs a picture"),
        ({"hybrid": True}, "`hybrid` needs a `text`"),
        ({"rerank": {"verify": {}}}, "needs `image` or `image_id`"),
    ):
        problem = assert_problem(await http.post(SEARCH, json={"vector": ONES, **body}), 400, "invalid_request")
        assert word in problem["detail"]


async def test_it_needs_no_encoder_and_is_not_calibrated(http: httpx.AsyncClient, system: FakeSystem) -> None:
    system.embedder("fake", "query", 1).down = True
    for embedder in system.embedders.values():
        embedder.down = True
    response = await http.post(SEARCH, json={"vector": stored(system, "red"), "fingerprint": FINGERPRINT})
    answer = response.json()
    assert (answer["hits"][0]["id"], answer["coverage"]["degraded"]) == ("red", False)
    assert answer["confidence"] == {"probability": None, "reason": "not_calibrated"}
    assert 'riverlens_searches_total{degraded="false",kind="vector"} 1.0' in (await http.get("/metrics")).text
    # Words cannot stand in for it.
    for shard in system.shards.values():
        shard.vectorless = True
    both = await http.post(SEARCH, json={"vector": ONES, "text": "red"})
    assert_problem(both, 503, "embedder_unavailable", retryable=True)
    assert_problem(await http.post(SEARCH, json={"vector": ONES}), 503, "shard_unavailable", retryable=True)


async def test_a_vector_of_another_encoder_is_refused(http: httpx.AsyncClient, system: FakeSystem) -> None:
    for part in ({"vector": ONES}, {"text": "red"}):
        response = await http.post(SEARCH, json={**part, "fingerprint": "another"})
        problem = assert_problem(response, 409, "fingerprint_mismatch")
        assert "another" in problem["detail"]
        assert FINGERPRINT in problem["detail"]
    assert not system.shards["images", 0, 0].searches


@pytest.mark.parametrize(
    ("vector", "word"),
    [
        ([1.0, 2.0], f"`vector` has 2 numbers; vectors of collection 'images' have {DIMENSION}"),
        (base64_of([1.0, 2.0]), "`vector` has 2 numbers"),
        ([], "holds no numbers"),
        ("", "holds no numbers"),
        ([0] * DIMENSION, "is zero, which has no direction"),
        (base64_of(ONES)[:-2], "this text is no base64"),
        ("ü", "this text is no base64"),
        (base64.b64encode(b"12345").decode(), "5 bytes are no whole number of float32"),
        (base64_of([math.nan, *ONES[1:]]), "holds a number that is not finite"),
        (base64_of([math.inf, *ONES[1:]]), "holds a number that is not finite"),
        (base64.b64encode(b"\x00\x00\xa0\x7f" * DIMENSION).decode(), "holds a number that is not finite"),
        ([10**400, *ONES[1:]], "holds a number that is not finite"),
        (["1", *ONES[1:]], "takes a list of numbers, or base64"),
        ([True, *ONES[1:]], "takes a list of numbers, or base64"),
        ([None, *ONES[1:]], "takes a list of numbers, or base64"),
        ([ONES], "takes a list of numbers, or base64"),
        ({"values": ONES}, "takes a list of numbers, or base64"),
        (7, "takes a list of numbers, or base64"),
    ],
)
async def test_what_is_no_vector_says_why(http: httpx.AsyncClient, vector: Any, word: str) -> None:
    problem = assert_problem(await http.post(SEARCH, json={"vector": vector}), 400, "invalid_request")
    assert word in problem["detail"]
    assert "vector" in problem["detail"]
    batch = (await http.post(f"{SEARCH}/batch", json={"searches": [{"vector": vector}, {"vector": ONES}]})).json()
    assert word in batch["answers"][0]["detail"]
    assert len(batch["answers"][1]["hits"]) == len(COLOURS)


def test_the_description_names_both_forms(system: FakeSystem) -> None:
    described = create_app(system.dependencies()).openapi()["components"]["schemas"]["SearchRequest"]["properties"]
    forms = described["vector"]["anyOf"]
    assert "array" in str(forms)
    assert "base64" in str(forms)


@given(arrays(np.float32, st.integers(1, 64), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_every_direction_is_read_alike_from_both_forms(vector: Any) -> None:
    if not vector.any():
        with pytest.raises(ValueError, match="is zero"):
            decode_vector(base64_of(vector))
        return
    listed, packed = decode_vector([float(number) for number in vector]), decode_vector(base64_of(vector))
    assert listed.dtype == packed.dtype == np.float32
    np.testing.assert_array_equal(listed, packed)
    assert np.linalg.norm(packed.astype(np.float64)) == pytest.approx(1, abs=1e-6)
