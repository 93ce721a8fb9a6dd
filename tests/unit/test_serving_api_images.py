"""Uploads and single images over HTTP, on fakes."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from contract.events import decode_event
from contract.topics import partition_of
from serving.app import create_app
from serving.schemas import ImageAnswer, UploadAnswer
from tests.unit.serving_fakes import FakeSystem, make_spec, make_system, picture

IMAGES = "/v1/collections/images/images"


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return make_system(tmp_path, max_image_bytes=200_000, min_receipt_timeout_s=0.05, wait_searchable_timeout_s=0.05)


@pytest.fixture
async def http(system: FakeSystem) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(system.dependencies()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def upload(http: httpx.AsyncClient, data: bytes, wait: str = "searchable", **form: str) -> httpx.Response:
    return await http.post(IMAGES, params={"wait": wait}, files={"file": ("a/b\\c.png", data)}, data=form)


def assert_problem(response: httpx.Response, status: int, code: str, *, retryable: bool = False) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert {"type", "title", "status", "detail", "code", "retryable", "request_id"} <= problem.keys()
    assert (problem["status"], problem["code"], problem["retryable"]) == (status, code, retryable)
    assert problem["request_id"] == response.headers["x-request-id"]
    assert ("retry-after" in response.headers) is retryable
    return dict(problem)


async def test_an_upload_is_durable_before_it_is_acknowledged(http: httpx.AsyncClient, system: FakeSystem) -> None:
    data = picture("red")
    response = await upload(http, data, "logged", id="red-one", payload='{"caption": "red"}')
    assert response.status_code == 202
    answer = UploadAnswer.model_validate(response.json())
    assert (answer.id, answer.status) == ("red-one", "logged")
    assert answer.sha256 == hashlib.sha256(data).hexdigest()
    assert answer.receipt.partition == partition_of("red-one", 4)
    event = decode_event(system.log["image-events.images", answer.receipt.partition][answer.receipt.offset])
    assert system.objects.stored[event.object_key] == data  # type: ignore[union-attr]
    assert (event.payload, event.file_name) == ({"caption": "red"}, "c.png")  # type: ignore[union-attr]
    assert (event.content_type, event.size_bytes) == ("image/png", len(data))  # type: ignore[union-attr]
    assert event.request_id == response.headers["x-request-id"]


async def test_an_upload_without_an_id_gets_one(http: httpx.AsyncClient) -> None:
    ids = {(await upload(http, picture("red"))).json()["id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(len(image_id) == 32 for image_id in ids)


async def test_wait_searchable_answers_when_it_is(http: httpx.AsyncClient) -> None:
    response = await upload(http, picture("red"), id="one")
    assert (response.status_code, response.json()["status"]) == (201, "searchable")


async def test_wait_searchable_gives_up_with_the_receipt(http: httpx.AsyncClient, system: FakeSystem) -> None:
    system.applying = False
    problem = assert_problem(
        await upload(http, picture("red"), id="one"), 504, "not_searchable_in_time", retryable=True
    )
    assert problem["receipt"] == {"partition": partition_of("one", 4), "offset": 0}


async def test_a_rejected_upload_says_why_and_leaves_the_good_picture(http: httpx.AsyncClient) -> None:
    data = picture((9, 80, 200), side=64)
    assert (await upload(http, data, id="one")).status_code == 201
    problem = assert_problem(await upload(http, data[: len(data) // 2], id="one"), 422, "image_rejected")
    assert "invalid_image" in problem["detail"]
    image = ImageAnswer.model_validate((await http.get(f"{IMAGES}/one")).json())
    assert image.state == "searchable"
    assert image.rejection is not None
    assert image.rejection.offset == problem["receipt"]["offset"]


async def test_a_picture_that_was_never_good_is_shown_as_rejected(http: httpx.AsyncClient) -> None:
    assert_problem(await upload(http, picture("red", 64)[:90], id="torn"), 422, "image_rejected")
    image = (await http.get(f"{IMAGES}/torn")).json()
    assert (image["state"], image["rejection"]["code"]) == ("rejected", "invalid_image")
    assert_problem(await http.get(f"{IMAGES}/torn/content"), 404, "not_found")


@pytest.mark.parametrize("data", [b"", b"GIF", b"<html><script>alert(1)</script></html>", b"\x89PNG\r\n\x1a\n"])
async def test_bytes_that_are_no_picture_are_refused_before_they_are_logged(
    http: httpx.AsyncClient, system: FakeSystem, data: bytes
) -> None:
    assert_problem(await upload(http, data), 422, "invalid_image")
    assert system.log == {}


async def test_an_upload_beyond_the_limit_is_refused(http: httpx.AsyncClient, system: FakeSystem) -> None:
    assert_problem(await upload(http, picture("red") + bytes(200_000)), 413, "image_too_large")
    assert system.log == {}


async def test_a_body_that_never_ends_is_cut_off(http: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        while sent < 50_000_000:
            sent += 65536
            yield bytes(65536)

    response = await http.post(IMAGES, content=endless(), headers={"content-type": "multipart/form-data; boundary=x"})
    assert_problem(response, 413, "image_too_large")
    assert sent < 3_000_000


async def test_a_picture_of_too_many_pixels_is_refused_by_its_header(http: httpx.AsyncClient) -> None:
    out = io.BytesIO()
    Image.new("1", (12_000, 6_000)).save(out, "PNG")
    assert_problem(await upload(http, out.getvalue()), 413, "image_too_large")


@pytest.mark.parametrize("image_id", ["../etc", "a b", "-x", "", "x" * 201, "a/b", "ü"])
async def test_odd_ids_are_refused(http: httpx.AsyncClient, image_id: str) -> None:
    response = await http.post(IMAGES, json={"id": image_id, "object_key": "k"})
    problem = assert_problem(response, 400, "invalid_request")
    assert problem["errors"][0]["location"] == "id"


@pytest.mark.parametrize(
    ("form", "word"),
    [
        ({"payload": "{"}, "JSON"),
        ({"payload": "[1]"}, "payload"),
        ({"caption": "x"}, "caption"),
        ({"url": "http://127.0.0.1/a.png", "object_key": "a"}, "one of `url` and `object_key`"),
    ],
)
async def test_fields_that_cannot_be_used_are_named(http: httpx.AsyncClient, form: dict[str, str], word: str) -> None:
    assert word in assert_problem(await upload(http, picture("red"), **form), 400, "invalid_request")["detail"]


async def test_an_object_that_is_already_stored_is_uploaded_by_key(http: httpx.AsyncClient, system: FakeSystem) -> None:
    system.objects.stored["incoming/red.png"] = picture("red")
    body = {"id": "by-key", "object_key": "incoming/red.png", "payload": {"a": 1}}
    response = await http.post(IMAGES, params={"wait": "searchable"}, json=body)
    assert response.status_code == 201, response.text
    assert (await http.get(f"{IMAGES}/by-key")).json()["payload"] == {"a": 1}
    missing = await http.post(IMAGES, json={"object_key": "incoming/none.png"})
    assert_problem(missing, 404, "object_missing")


@pytest.mark.parametrize("key", ["/etc/passwd", "../secret", "a/../../b", "a//b", "a\\b", ""])
async def test_object_keys_stay_in_the_store(http: httpx.AsyncClient, key: str) -> None:
    assert_problem(await http.post(IMAGES, json={"object_key": key}), 400, "invalid_request")


async def test_an_upload_needs_one_source_of_bytes(http: httpx.AsyncClient) -> None:
    assert_problem(await http.post(IMAGES, json={"id": "x"}), 400, "invalid_request")
    assert_problem(await http.post(IMAGES, content=b"x", headers={"content-type": "image/png"}), 415, "invalid_request")
    assert_problem(
        await http.post(IMAGES, content=b"{", headers={"content-type": "application/json"}), 400, "invalid_request"
    )
    wrong_field = await http.post(IMAGES, files={"picture": ("a.png", picture("red"))})
    assert_problem(wrong_field, 400, "invalid_request")


async def test_a_broker_that_is_down_is_retryable(http: httpx.AsyncClient, system: FakeSystem) -> None:
    assert (await upload(http, picture("red"), id="one")).status_code == 201
    system.broker_down = True
    assert_problem(await upload(http, picture("red"), id="two"), 503, "broker_unavailable", retryable=True)


async def test_a_fresh_id_is_never_unknown(http: httpx.AsyncClient, system: FakeSystem) -> None:
    """Asked right after its upload, while the shard is behind: the answer waits for the shard."""
    system.applying = False
    receipt = (await upload(http, picture("red"), "logged", id="fresh")).json()["receipt"]
    early = (await http.get(f"{IMAGES}/fresh")).json()
    assert (early["state"], early["partition"]) == ("logged", receipt["partition"])
    assert_problem(await http.get(f"{IMAGES}/fresh/content"), 504, "not_searchable_in_time", retryable=True)
    object.__setattr__(system.settings, "min_receipt_timeout_s", 30.0)
    asking = asyncio.create_task(http.get(f"{IMAGES}/fresh"))
    for _ in range(5):
        await asyncio.sleep(0)
    system.apply("images", receipt["partition"])
    assert (await asking).json()["state"] == "searchable"


async def test_an_id_uploaded_again_after_its_deletion_is_never_unknown(
    http: httpx.AsyncClient, system: FakeSystem
) -> None:
    """The shard, which is behind, knows the deletion only."""
    await upload(http, picture("red"), id="again")
    assert (await http.delete(f"{IMAGES}/again", params={"wait": "searchable"})).status_code == 202
    system.applying = False
    assert (await upload(http, picture("blue"), "logged", id="again")).status_code == 202
    assert (await http.get(f"{IMAGES}/again")).json()["state"] == "logged"
    assert (await http.patch(f"{IMAGES}/again", json={"payload": {"a": 1}})).status_code == 202
    assert (await http.delete(f"{IMAGES}/again")).status_code == 202


async def test_an_unknown_id_is_not_found(http: httpx.AsyncClient, system: FakeSystem) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
        assert_problem(await http.request(method, f"{IMAGES}/nobody{path}"), 404, "not_found")
    assert_problem(await http.patch(f"{IMAGES}/nobody", json={"payload": {}}), 404, "not_found")
    assert_problem(await http.get("/v1/collections/none/images/x"), 404, "not_found")
    assert system.log == {}, "nothing is logged for an id that is not there"


async def test_patch_replaces_the_payload_as_a_whole(http: httpx.AsyncClient) -> None:
    await upload(http, picture("red"), id="one", payload='{"a": 1, "b": 2}')
    response = await http.patch(f"{IMAGES}/one", params={"wait": "searchable"}, json={"payload": {"c": 3}})
    assert (response.status_code, response.json()["status"]) == (202, "applied")
    assert (await http.get(f"{IMAGES}/one")).json()["payload"] == {"c": 3}
    for body in ({}, {"payload": 1}, {"payload": {}, "caption": "x"}):
        assert_problem(await http.patch(f"{IMAGES}/one", json=body), 400, "invalid_request")


async def test_a_deleted_image_is_gone_everywhere_and_may_come_back(http: httpx.AsyncClient) -> None:
    await upload(http, picture("red"), id="one")
    response = await http.delete(f"{IMAGES}/one", params={"wait": "searchable"})
    assert (response.status_code, response.json()["status"]) == (202, "applied")
    for path in ("", "/content", "/content?size=64"):
        assert_problem(await http.get(f"{IMAGES}/one{path}"), 404, "not_found")
    assert_problem(await http.delete(f"{IMAGES}/one"), 404, "not_found")
    assert (await upload(http, picture("blue"), id="one")).status_code == 201
    assert (await http.get(f"{IMAGES}/one")).json()["state"] == "searchable"


async def test_content_is_the_bytes_and_cannot_run(http: httpx.AsyncClient) -> None:
    data = picture("red", kind="JPEG")
    sha256 = (await upload(http, data, id="one")).json()["sha256"]
    response = await http.get(f"{IMAGES}/one/content")
    assert response.content == data
    assert response.headers["content-type"] == "image/jpeg"
    assert response.headers["etag"] == f'"{sha256}"'
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in response.headers["content-security-policy"]
    again = await http.get(f"{IMAGES}/one/content", headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_thumbnails_are_small_upright_cached_and_say_nothing_of_the_camera(
    http: httpx.AsyncClient, system: FakeSystem
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rotate by 90° to show
    exif[0x010F] = "Camera maker"
    exif.get_ifd(0x8825)[1] = "N"
    out = io.BytesIO()
    Image.new("RGB", (400, 200), (200, 30, 30)).save(out, "JPEG", exif=exif)
    await upload(http, out.getvalue(), id="one")
    response = await http.get(f"{IMAGES}/one/content", params={"size": 128})
    assert response.headers["content-type"] == "image/webp"
    with Image.open(io.BytesIO(response.content)) as thumbnail:
        assert thumbnail.size == (64, 128)
        assert len(thumbnail.getexif()) == 0
    assert b"Camera maker" not in response.content
    (key,) = [key for key in system.objects.stored if key.startswith("thumbnails/")]
    system.objects.stored[key] = b"from the cache"
    assert (await http.get(f"{IMAGES}/one/content", params={"size": 128})).content == b"from the cache"
    for size in ("100", "2048", "0", "x"):
        assert_problem(await http.get(f"{IMAGES}/one/content", params={"size": size}), 400, "invalid_request")


async def test_a_small_picture_is_not_blown_up(http: httpx.AsyncClient) -> None:
    await upload(http, picture("red", 32), id="one")
    response = await http.get(f"{IMAGES}/one/content", params={"size": 512})
    with Image.open(io.BytesIO(response.content)) as thumbnail:
        assert thumbnail.size == (32, 32)


async def test_the_other_replica_answers_when_one_is_down(system: FakeSystem) -> None:
    system.add(make_spec(replicas=2))
    transport = httpx.ASGITransport(create_app(system.dependencies()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        await upload(http, picture("red"), id="one")
        system.owners("images", "one")[0].down = True
        assert (await http.get(f"{IMAGES}/one")).json()["state"] == "searchable"
        assert (await upload(http, picture("blue"), id="one")).status_code == 201
        for shard in system.owners("images", "one"):
            shard.down = True
        assert_problem(await http.get(f"{IMAGES}/one"), 503, "shard_unavailable", retryable=True)


async def test_uploads_are_counted_by_status(http: httpx.AsyncClient) -> None:
    await upload(http, picture("red"), "logged")
    await upload(http, picture("red"))
    text = (await http.get("/metrics")).text
    assert 'riverlens_uploads_total{status="logged"} 1.0' in text
    assert 'riverlens_uploads_total{status="searchable"} 1.0' in text


async def test_the_json_payload_of_a_form_keeps_its_types(http: httpx.AsyncClient) -> None:
    payload = {"n": 1, "f": 0.5, "deep": {"list": [1, None, True]}, "text": "é"}
    await upload(http, picture("red"), id="one", payload=json.dumps(payload))
    assert (await http.get(f"{IMAGES}/one")).json()["payload"] == payload
