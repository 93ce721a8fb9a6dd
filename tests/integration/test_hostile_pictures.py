"""Pictures that look well until their pixels are decoded: rejected with their reason, while the stream goes on."""

from __future__ import annotations

import pytest

from tests.integration.pictures import new_picture
from tests.integration.system import RunningSystem
from tests.unit.bad_pictures import BAD, encoded, jpeg_with, noise

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

HOSTILE = ("png cut to 50%", "webp cut to 50%", "jpeg with broken huffman tables", "tiff whose pixels lie outside")


def test_what_cannot_be_decoded_is_a_dead_letter_and_the_next_picture_is_found(
    system: RunningSystem,
) -> None:
    rejected = set()
    for number, name in enumerate(HOSTILE):
        image_id = f"hostile-{number}"
        answer = system.upload(BAD[name][0](), wait="searchable", id=image_id)
        assert answer.status_code == 422, f"{name}: {answer.text}"
        problem = answer.json()
        if problem["code"] == "image_rejected":
            rejected.add(image_id)
            assert "invalid_image" in problem["detail"]
            known = system.http.get(f"/v1/collections/images/images/{image_id}").json()
            assert known["state"] == "rejected"
            assert known["rejection"]["code"] == "invalid_image"
        else:
            assert problem["code"] == "invalid_image"
        good = system.upload(new_picture(7000 + number), wait="searchable", id=f"after-hostile-{number}")
        assert good.status_code == 201, good.text
    assert len(rejected) >= 2
    letters = system.http.get("/v1/collections/images/dead-letters", params={"limit": 100}).json()["dead_letters"]
    told = {one["image_id"]: one for one in letters if one["image_id"] in rejected}
    assert set(told) == rejected
    assert {(one["stage"], one["code"], one["retryable"]) for one in told.values()} == {
        ("decode", "invalid_image", False)
    }


def test_a_picture_is_served_without_what_it_says_of_its_maker(system: RunningSystem) -> None:
    secret = b"48.2082 N, 16.3738 E"
    data = jpeg_with(0xFE, secret)
    assert secret in data
    assert system.upload(data, wait="searchable", id="located").status_code == 201
    content = system.http.get("/v1/collections/images/images/located/content")
    assert content.headers["content-type"] == "image/jpeg"
    assert content.headers["x-content-type-options"] == "nosniff"
    assert secret not in content.content


def test_a_picture_of_this_machines_network_is_not_fetched(system: RunningSystem) -> None:
    url = f"{system.base_url}/v1/collections/images/images/located/content"
    answer = system.http.post("/v1/collections/images/images", json={"url": url})
    assert answer.status_code == 422
    assert answer.json()["code"] == "url_refused"


def test_avif_is_found_by_its_own_bytes(system: RunningSystem) -> None:
    data = encoded(noise(160, 120), "AVIF")
    assert system.upload(data, wait="searchable", id="an-avif").status_code == 201
    assert "an-avif" in [hit["id"] for hit in system.search_picture(data, limit="3")["hits"]]
