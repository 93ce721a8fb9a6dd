"""Dead letters on the whole running system: poison, redriving, and what redriving may not do."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from actors.log.producer import LogProducer
from actors.objects import ObjectStore
from contract.events import (
    REDRIVE_HEADER,
    ImageDeleted,
    ImageUploaded,
    Redrive,
    encode_json,
)
from contract.settings import Settings
from contract.topics import image_events_topic, partition_of
from tests.integration.pictures import new_picture
from tests.integration.system import RIVERLENS, RunningSystem, eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PATH = "/v1/collections/images/dead-letters"
TOPIC = image_events_topic("images")


class Producing:
    """Another producer on the same log, and the object store."""

    def __init__(self, system: RunningSystem) -> None:
        self.system = system
        self.settings = Settings(home=system.home)
        self.partitions = int(system.collection()["partitions"])
        self.producer = LogProducer(self.settings, "test-dead-letters")

    def place(self, image_id: str) -> int:
        return partition_of(image_id, self.partitions)

    def id_in(self, partition: int, prefix: str) -> str:
        return next(name for n in itertools.count() if self.place(name := f"{prefix}-{n}") == partition)

    def send(
        self, partition: int, value: bytes | None, key: bytes | None = None, headers: Mapping[str, bytes] | None = None
    ) -> str:
        """The id its dead letter will have."""
        offset = asyncio.run(self.producer.send(TOPIC, partition, key, value, headers or {}))
        return f"{partition}-{offset}"

    def without_bytes(self, image_id: str, data: bytes) -> tuple[ImageUploaded, str]:
        """An upload whose bytes are not there yet, and the id of its letter, which is there."""
        key = f"incoming/{image_id}.png"
        event = ImageUploaded("images", image_id, key, hashlib.sha256(data).hexdigest(), len(data), 1)
        letter = self.send(self.place(image_id), encode_json(event), image_id.encode())
        eventually(lambda: self.letters(image_id=image_id), 60)
        return event, letter

    def put(self, event: ImageUploaded, data: bytes) -> None:
        asyncio.run(ObjectStore(self.settings).put(event.object_key, data, "image/png"))

    def letters(self, **match: str) -> list[dict[str, Any]]:
        answer = self.system.http.get(PATH, params={"limit": 500, **match})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["dead_letters"])


@pytest.fixture
def producing(system: RunningSystem) -> Iterator[Producing]:
    made = Producing(system)
    yield made
    made.producer.close()


def test_no_poison_blocks_its_partition(system: RunningSystem, producing: Producing) -> None:
    good = encode_json(ImageUploaded("images", "x", "k", "0" * 64, 1, 1))
    elsewhere = producing.id_in(1, "elsewhere")
    poison: list[tuple[bytes | None, bytes | None]] = [
        (None, b"\x80\x04\x95 no JSON"),
        (None, b""),
        (b"a-key-without-a-value", None),
        (None, good.replace(b"image_uploaded.v1", b"image_uploaded.v9")),
        (b"x", encode_json(ImageUploaded("others", "x", "k", "0" * 64, 1, 1))),
        (elsewhere.encode(), encode_json(ImageUploaded("images", elsewhere, "k", "0" * 64, 1, 1))),
        (b"deep", good.replace(b'"payload":{}', b'"payload":' + b'{"a":' * 5000 + b"1" + b"}" * 5000)),
        (b"large", b"[" + b'"' + b"x" * 1_000_000 + b'"]'),
    ]
    sent = [producing.send(0, value, key) for key, value in poison]
    after = system.upload(new_picture(7100), id=producing.id_in(0, "after-poison"))
    assert after.json()["status"] == "searchable", after.text
    letters = {one["id"]: one for one in producing.letters(code="event_invalid")}
    assert set(sent) <= set(letters)
    assert not any(letters[one]["retryable"] for one in sent)
    large = system.http.get(f"{PATH}/{sent[-1]}").json()
    assert (large["event"], len(large["event_base64"]) > 1_000_000) == (None, True)
    refused = system.http.post(f"{PATH}/redrive", json={"ids": sent}).json()["dead_letters"]
    assert {one["problem"]["code"] for one in refused} == {"redrive_refused"}
    dropped = system.http.post(f"{PATH}/drop", json={"ids": sent}).json()["dead_letters"]
    assert {one["status"] for one in dropped} == {"dropped"}
    assert not set(sent) & {one["id"] for one in producing.letters()}


def test_a_letter_is_redriven_from_the_command_line_and_the_image_found(
    system: RunningSystem, producing: Producing
) -> None:
    data = new_picture(7200)
    event, letter = producing.without_bytes(producing.id_in(2, "healed"), data)

    def riverlens(*words: str) -> str:
        command = [RIVERLENS, "dead-letter", *words, "--url", system.base_url]
        done = subprocess.run(command, env=system.environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    listed = json.loads(riverlens("list", "--image", event.image_id, "--since", "1h", "--json"))
    assert [(one["id"], one["code"], one["attempts"]) for one in listed] == [(letter, "object_missing", 1)]
    assert json.loads(riverlens("show", letter))["event"]["object_key"] == event.object_key
    producing.put(event, data)
    assert "1 redriven" in riverlens("redrive", "--image", event.image_id, "--code", "object_missing")
    found = eventually(lambda: system.search_picture(data, limit="1")["hits"], 60)
    eventually(lambda: system.search_picture(data, limit="1")["hits"][0]["id"] == event.image_id, 60)
    assert found
    assert json.loads(riverlens("list", "--image", event.image_id, "--json")) == []
    (one,) = json.loads(riverlens("list", "--image", event.image_id, "--state", "redriven", "--json"))
    assert one["receipt"]["partition"] == 2


def test_a_redriven_upload_brings_no_deleted_image_back_and_replaces_no_newer_one(
    system: RunningSystem, producing: Producing
) -> None:
    old, new = new_picture(7300), new_picture(7301)
    deleted, deleted_letter = producing.without_bytes("redriven-deleted", old)
    replaced, replaced_letter = producing.without_bytes("redriven-replaced", old)
    gone = system.http.delete(f"/v1/collections/images/images/{deleted.image_id}", params={"wait": "searchable"})
    assert gone.is_success, gone.text
    assert system.upload(new, id=replaced.image_id).json()["status"] == "searchable"
    producing.put(deleted, old)
    producing.put(replaced, old)
    for letter in (deleted_letter, replaced_letter):
        answer = system.http.post(f"{PATH}/{letter}/redrive")
        assert (answer.status_code, answer.json()["code"]) == (409, "redrive_refused"), answer.text
    assert system.http.get(f"/v1/collections/images/images/{deleted.image_id}").status_code == 404
    assert system.search_picture(new, limit="1")["hits"][0]["id"] == replaced.image_id


def test_a_deletion_between_the_look_and_the_redriven_event_wins(system: RunningSystem, producing: Producing) -> None:
    data = new_picture(7400)
    event, letter = producing.without_bytes("raced", data)
    producing.put(event, data)
    place, failed_at = map(int, letter.split("-"))
    # As if the API had looked just before the deletion came, and sent just after it.
    deletion = producing.send(place, encode_json(ImageDeleted("images", "raced", 2)), b"raced")
    header = Redrive(source_offset=failed_at, newer_from=failed_at + 1, attempts=1, redrives=1)
    redriven = producing.send(place, encode_json(event), b"raced", {REDRIVE_HEADER: encode_json(header)})
    (refused,) = eventually(lambda: [one for one in producing.letters(image_id="raced") if one["id"] == redriven], 60)
    assert (refused["code"], refused["stage"], refused["attempts"]) == ("redrive_refused", "redrive", 2)
    assert deletion.split("-")[1] in refused["reason"]
    receipt = {"partition": place, "offset": int(redriven.split("-")[1])}
    system.search(text="anything", limit=1, min_receipt=receipt)
    assert system.http.get("/v1/collections/images/images/raced").status_code == 404
