"""Equal bytes on the whole running system: one embedding, two images, and neither hangs on the other."""

from __future__ import annotations

import os
import shutil
import signal
from typing import Any

import pytest

from contract.topics import partition_of
from tests.integration.pictures import new_picture
from tests.integration.system import RunningSystem, eventually
from tests.integration.test_promises import _process

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def _encoded(running: RunningSystem) -> int:
    """Pictures the embedders of the ingest path have embedded since they began."""
    embedders = running.collection()["embedders"]
    return sum(one["images_encoded"] for one in embedders if one["role"] == "ingest")


def _image(running: RunningSystem, image_id: str) -> dict[str, Any]:
    response = running.http.get(f"/v1/collections/images/images/{image_id}")
    assert response.status_code == 200, response.text
    return dict(response.json())


def _delete(running: RunningSystem, image_id: str) -> None:
    response = running.http.delete(f"/v1/collections/images/images/{image_id}", params={"wait": "searchable"})
    assert response.is_success, response.text


def _found(running: RunningSystem, data: bytes) -> set[str]:
    """The best hits of a search by picture: those whose score says that they are that very picture."""
    return {hit["id"] for hit in running.search_picture(data, limit="10")["hits"] if hit["score"] > 0.99}


def test_a_second_upload_is_a_duplicate_and_outlives_the_first(system: RunningSystem) -> None:
    data = new_picture(61100)
    first = system.upload(data, id="dup-1").json()
    assert (first["status"], first["duplicate_of"]) == ("searchable", None)
    before = _encoded(system)

    answer = system.upload(data, id="dup-2", payload='{"caption": "the second"}')
    assert (answer.status_code, answer.json()["status"], answer.json()["duplicate_of"]) == (201, "duplicate", "dup-1")
    image = _image(system, "dup-2")
    assert (image["state"], image["duplicate_of"]) == ("duplicate", "dup-1")
    assert image["payload"] == {"caption": "the second"}
    assert _image(system, "dup-1")["state"] == "searchable"
    assert _found(system, data) >= {"dup-1", "dup-2"}
    # The same id with the same bytes is no duplicate of itself.
    assert system.upload(data, id="dup-1", payload='{"n": 2}').json()["status"] == "searchable"
    assert _encoded(system) == before, "known bytes were embedded again"

    _delete(system, "dup-1")
    assert {"dup-1", "dup-2"} & _found(system, data) == {"dup-2"}
    assert (_image(system, "dup-2")["state"], _image(system, "dup-2")["duplicate_of"]) == ("searchable", None)
    assert system.http.get("/v1/collections/images/images/dup-2/content").content == data
    third = system.upload(data, id="dup-3").json()
    assert (third["status"], third["duplicate_of"]) == ("duplicate", "dup-2")
    assert _encoded(system) == before


def test_a_collection_may_answer_equal_bytes_as_one_hit(system: RunningSystem) -> None:
    path, data = "/v1/collections/alias-dup", new_picture(61105)
    system.http.put(path, json={"shards": 2, "partitions": 2, "duplicates": "alias"}).raise_for_status()
    eventually(lambda: system.http.get(path).json().get("state") == "ready", 60)

    def upload(image_id: str, content: bytes) -> str:
        answer = system.http.post(
            f"{path}/images", params={"wait": "searchable"}, files={"file": ("a.png", content)}, data={"id": image_id}
        )
        return str(answer.json()["status"])

    def found(**form: str) -> list[tuple[str, dict[str, Any] | None]]:
        answer = system.http.post(f"{path}/search", files={"image": ("a.png", data)}, data=form)
        assert answer.status_code == 200, answer.text
        return [(hit["id"], hit.get("group")) for hit in answer.json()["hits"]]

    assert {partition_of(image_id, 2) for image_id in ("z-1", "a-2", "m-3")} == {0, 1}, "in both shards"
    assert upload("z-1", data) == "searchable"
    assert [upload(image_id, data) for image_id in ("a-2", "m-3")] == ["duplicate"] * 2
    assert upload("other", new_picture(61106)) == "searchable"
    whole = [("z-1", {"count": 3, "ids": ["a-2", "m-3"]}), ("other", None)]
    assert found() == found(exact="true") == whole
    assert [found(limit="1", offset=str(page)) for page in range(3)] == [whole[:1], whole[1:], []]
    # Uploaded again, the first one stays the first; deleted, the next one stands, and the rest is as it was.
    assert upload("z-1", data) == "searchable"
    assert found() == whole
    system.http.delete(f"{path}/images/z-1", params={"wait": "searchable"}).raise_for_status()
    assert found() == [("a-2", {"count": 2, "ids": ["m-3"]}), ("other", None)]
    system.http.delete(path).raise_for_status()


def test_a_worker_that_lost_its_disk_still_knows_the_bytes(system: RunningSystem) -> None:
    data = new_picture(61102)
    assert system.upload(data, id="kept").json()["status"] == "searchable"
    before = _encoded(system)
    tables = system.home / "ingest-tables"
    assert list(tables.glob("*/*/**/known-bytes-0.db")), "there is no table to lose"
    killed = _process(system, "streams.worker")
    shutil.rmtree(tables)
    os.kill(killed, signal.SIGKILL)
    answer = system.upload(data, id="kept-again").json()
    assert (answer["status"], answer["duplicate_of"]) == ("duplicate", "kept")
    assert _encoded(system) == before
    assert _process(system, "streams.worker") != killed
    eventually(lambda: list(tables.glob("*/*/**/known-bytes-0.db")), 30)


def test_bytes_that_were_rejected_are_no_first_of_anything(system: RunningSystem) -> None:
    whole = new_picture(61103)
    torn = whole[: len(whole) // 2]
    for image_id in ("torn-1", "torn-2"):
        answer = system.upload(torn, id=image_id)
        assert (answer.status_code, answer.json()["code"]) == (422, "image_rejected"), answer.text


def test_a_collection_of_the_same_name_begins_without_memories(system: RunningSystem) -> None:
    data = new_picture(61104)
    path = "/v1/collections/brief-dup"
    for _ in range(2):
        system.http.put(path, json={"shards": 1, "partitions": 1}).raise_for_status()
        eventually(lambda: system.http.get(path).json().get("state") == "ready", 60)
        answer = system.http.post(
            f"{path}/images", params={"wait": "searchable"}, files={"file": ("a.png", data)}, data={"id": "one"}
        )
        assert answer.json()["status"] == "searchable", answer.text
        system.http.delete(path).raise_for_status()
