"""The whole system, from upload to hits, on both brokers."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from tests.integration.pictures import SAMPLES, new_picture
from tests.integration.system import RunningSystem, eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

INDEXED = 24


@pytest.fixture(scope="module")
def indexed(system: RunningSystem, pictures: list[tuple[str, bytes]]) -> dict[str, tuple[str, bytes]]:
    """Sample pictures, uploaded and searchable: id → (caption, bytes)."""
    known = {}
    receipts: dict[int, int] = {}
    for number, (caption, data) in enumerate(pictures[:: max(1, len(pictures) // INDEXED)][:INDEXED]):
        image_id = f"sample-{number}"
        response = system.upload(data, wait="logged", id=image_id, payload=f'{{"caption": "{caption}"}}')
        assert response.status_code in (200, 201, 202), response.text
        receipt = response.json()["receipt"]
        receipts[receipt["partition"]] = max(receipt["offset"], receipts.get(receipt["partition"], -1))
        known[image_id] = (caption, data)

    def applied() -> bool:
        offsets = system.search(text="anything", limit=1)["freshness"]["applied_offsets"]
        return all(int(offsets.get(str(p), -1)) >= offset for p, offset in receipts.items())

    eventually(applied, 120)
    return known


def test_every_picture_is_the_first_hit_of_its_own_bytes(
    system: RunningSystem, indexed: dict[str, tuple[str, bytes]]
) -> None:
    for image_id, (_, data) in indexed.items():
        answer = system.search_picture(data, limit="3")
        assert answer["hits"][0]["id"] == image_id
        assert answer["hits"][0]["score"] == pytest.approx(1.0, abs=0.02)


def test_words_find_pictures_better_than_chance(system: RunningSystem, indexed: dict[str, tuple[str, bytes]]) -> None:
    found = 0
    for image_id, (caption, _) in indexed.items():
        hits = system.search(text=caption, limit=5)["hits"]
        found += image_id in [hit["id"] for hit in hits]
    assert found >= len(indexed) // 2, f"{found} of {len(indexed)} found among the first 5"


def test_an_answer_says_what_it_covers_and_how_fresh_it_is(
    system: RunningSystem, indexed: dict[str, tuple[str, bytes]]
) -> None:
    answer = system.search(text="a picture", limit=5)
    assert answer["coverage"] == {"shards_total": 4, "shards_answered": 4, "degraded": False}
    assert set(answer["freshness"]["applied_offsets"]) == {"0", "1", "2", "3"}
    assert answer["freshness"]["staleness_s"] >= 0
    assert set(answer["took_ms"]) == {"encode", "fan_out", "merge", "rerank", "total"}
    assert answer["model"]
    assert answer["request_id"]
    assert [hit["score"] for hit in answer["hits"]] == sorted((h["score"] for h in answer["hits"]), reverse=True)


def test_a_crop_finds_the_picture_it_was_cut_from(system: RunningSystem, indexed: dict[str, tuple[str, bytes]]) -> None:
    """Two pictures side by side; the crop names one of them."""
    (left_id, (_, left)), (right_id, (_, right)) = list(indexed.items())[:2]
    sheet = Image.new("RGB", (400, 200), "white")
    for position, data in ((0, left), (200, right)):
        picture = Image.open(io.BytesIO(data)).convert("RGBA").resize((200, 200))
        sheet.paste(picture, (position, 0), picture)
    out = io.BytesIO()
    sheet.save(out, "PNG")
    for expected, crop in (
        (left_id, '{"x": 0, "y": 0, "width": 0.5, "height": 1}'),
        (right_id, '{"x": 0.5, "y": 0, "width": 0.5, "height": 1}'),
    ):
        hits = system.search_picture(out.getvalue(), crop=crop, limit="3")["hits"]
        assert hits[0]["id"] == expected


def test_re_ranking_collapses_copies_and_confirms_a_turned_picture(
    system: RunningSystem, indexed: dict[str, tuple[str, bytes]]
) -> None:
    """Vectors come from the shards, pictures from the object store, both through the processes of the system."""
    drawing = Image.open(SAMPLES / "acoustic-guitar.png").convert("RGBA")
    whole, copy, turned = io.BytesIO(), io.BytesIO(), io.BytesIO()
    white = Image.new("RGB", drawing.size, "white")
    white.paste(drawing, mask=drawing.getchannel("A"))
    white.save(whole, "PNG")
    white.resize((drawing.width * 9 // 10, drawing.height * 9 // 10)).save(copy, "JPEG", quality=80)
    white.rotate(50, expand=True, fillcolor="white").save(turned, "PNG")
    assert system.upload(whole.getvalue(), id="drawing").is_success
    assert system.upload(copy.getvalue(), id="drawing-copy").is_success
    answer = system.search_picture(turned.getvalue(), limit="5", rerank='{"verify": {"candidates": 50}}')
    first = answer["hits"][0]
    assert {"drawing", "drawing-copy"} <= {first["id"], *first["group"]["ids"]}
    assert first["inliers"] >= 10
    assert answer["rerank"]["without_vector"] == answer["rerank"]["without_picture"] == 0
    assert list(answer["took_ms"]["rerank_stages"]) == ["fetch", "dedupe", "verify", "fuse"]
    by_id = system.search(image_id="drawing", limit=50, rerank={"dedupe": False, "diversify": True})
    assert {"drawing", "drawing-copy"} <= {hit["id"] for hit in by_id["hits"]}
    for image_id in ("drawing", "drawing-copy"):
        path = f"/v1/collections/images/images/{image_id}"
        assert system.http.delete(path, params={"wait": "searchable"}).is_success


def test_an_image_id_finds_itself_and_get_equals_post(
    system: RunningSystem, indexed: dict[str, tuple[str, bytes]]
) -> None:
    image_id = next(iter(indexed))
    assert system.search(image_id=image_id, limit=1)["hits"][0]["id"] == image_id
    posted = system.search(text="bird", limit=5)["hits"]
    got = system.http.get("/v1/collections/images/search", params={"text": "bird", "limit": 5}).json()["hits"]
    assert [h["id"] for h in got] == [h["id"] for h in posted]


def test_graph_and_exact_search_agree(system: RunningSystem, indexed: dict[str, tuple[str, bytes]]) -> None:
    by_graph = system.search(text="animal", limit=10)["hits"]
    exact = system.search(text="animal", limit=10, exact=True)["hits"]
    assert [h["id"] for h in by_graph] == [h["id"] for h in exact]


def test_delete_patch_and_content(system: RunningSystem) -> None:
    data = new_picture(7)
    uploaded = system.upload(data, id="short-lived", payload='{"caption": "before"}')
    assert uploaded.json()["status"] == "searchable", uploaded.text
    path = "/v1/collections/images/images/short-lived"
    assert system.http.get(f"{path}/content").content == data
    thumbnail = Image.open(io.BytesIO(system.http.get(f"{path}/content", params={"size": 64}).content))
    assert max(thumbnail.size) == 64

    patched = system.http.patch(path, json={"payload": {"caption": "after"}}, params={"wait": "searchable"})
    assert patched.is_success, patched.text
    assert system.http.get(path).json()["payload"] == {"caption": "after"}

    deleted = system.http.delete(path, params={"wait": "searchable"})
    assert deleted.is_success, deleted.text
    assert "short-lived" not in [h["id"] for h in system.search_picture(data, limit="50")["hits"]]
    for gone in (path, f"{path}/content"):
        response = system.http.get(gone)
        assert response.status_code == 404
        assert response.headers["content-type"].startswith("application/problem+json")


def test_a_replaced_picture_is_found_by_its_new_bytes_only(system: RunningSystem) -> None:
    old, new = new_picture(11), new_picture(12)
    for data in (old, new):
        assert system.upload(data, id="replaced").json()["status"] == "searchable"
    hits = system.search_picture(new, limit="50")["hits"]
    assert hits[0]["id"] == "replaced"
    assert [h["id"] for h in hits].count("replaced") == 1
    assert system.search_picture(old, limit="1")["hits"][0]["score"] < 0.999


def test_a_broken_picture_is_rejected_with_its_reason_and_the_stream_goes_on(system: RunningSystem) -> None:
    whole = new_picture(21)
    torn = system.upload(whole[: len(whole) // 2], id="torn")
    assert torn.status_code == 422, torn.text
    problem = torn.json()
    assert problem["code"] in {"image_rejected", "invalid_image"}
    assert problem["retryable"] is False
    assert system.upload(whole, id="after-torn").json()["status"] == "searchable"
    assert system.search_picture(whole, limit="1")["hits"][0]["id"] == "after-torn"


def test_a_batch_answers_as_its_searches_alone(system: RunningSystem, indexed: dict[str, tuple[str, bytes]]) -> None:
    some = list(indexed)[:3]
    searches: list[dict[str, Any]] = [
        {"text": "a bird", "limit": 3},
        {"image_id": some[0], "limit": 1},
        {"positive": [some[1], {"text": "a tree", "weight": 0.1}], "negative": [some[2]], "limit": 3, "ef_search": 200},
        {"image_id": "nobody-knows"},
    ]
    response = system.http.post("/v1/collections/images/search/batch", json={"searches": searches})
    assert response.status_code == 200, response.text
    answers = response.json()["answers"]
    assert answers[3]["code"] == "not_found"
    for body, answer in zip(searches[:3], answers, strict=False):
        alone = system.search(**body)
        assert [hit["id"] for hit in answer["hits"]] == [hit["id"] for hit in alone["hits"]]
    assert answers[1]["hits"][0]["id"] == some[0]
    assert answers[2]["hits"][0]["id"] == some[1]


def test_a_listing_shows_every_image_once(system: RunningSystem, indexed: dict[str, tuple[str, bytes]]) -> None:
    seen: list[str] = []
    cursor = None
    while True:
        parameters = {"limit": "7", "filter": '{"must_not": [{"key": "none", "match": {"value": 1}}]}'}
        page = system.http.get(
            "/v1/collections/images/images", params=parameters | ({"cursor": cursor} if cursor else {})
        )
        assert page.status_code == 200, page.text
        seen += [image["id"] for image in page.json()["images"]]
        cursor = page.json()["next_cursor"]
        if cursor is None:
            break
    assert set(indexed) <= set(seen)
    assert seen == sorted(set(seen), key=str.encode)
    assert len(seen) == system.collection()["points"]


def test_the_web_page_and_the_api_page_are_served(system: RunningSystem) -> None:
    page = system.http.get("/")
    assert page.status_code == 200
    assert "text/html" in page.headers["content-type"]
    assert system.http.get("/docs").status_code == 200
    paths = system.http.get("/openapi.json").json()["paths"]
    assert "/v1/collections/{collection}/search" in paths
    metrics = system.http.get("/metrics").text
    assert "riverlens_searches_total" in metrics
