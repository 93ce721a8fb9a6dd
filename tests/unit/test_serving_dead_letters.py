"""Dead letters over the API: what is listed, what may be sent again, and what then may not happen."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from contract.errors import InvalidRequest
from contract.events import (
    REDRIVE_HEADER,
    DeadLetter,
    ImageDeleted,
    ImageEvent,
    PayloadUpdated,
    decode_redrive,
    encode_json,
)
from contract.topics import DEAD_LETTER_TOPIC, partition_of
from serving.app import create_app
from serving.cli.dead_letters import parse_age
from serving.client import AsyncClient, NotFound
from tests.unit.ingest_fakes import upload as event_of
from tests.unit.serving_fakes import FakeSystem, make_system, picture

PATH = "/v1/collections/images/dead-letters"


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return make_system(tmp_path, min_receipt_timeout_s=0.05)


@pytest.fixture
async def http(system: FakeSystem) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=create_app(system.dependencies()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


class World:
    """Logs events as producers do, and letters as ingest does."""

    def __init__(self, system: FakeSystem) -> None:
        self.system = system

    def log(self, event: ImageEvent, *, apply: bool = True) -> tuple[int, int]:
        place = partition_of(event.image_id, 4)
        records = self.system.log.setdefault(("image-events.images", place), [])
        records.append(encode_json(event))
        if apply:
            self.system.apply("images", place)
        return place, len(records) - 1

    def fail(self, image_id: str, data: bytes | None = None, **changes: Any) -> str:
        """An upload that led to nothing: its bytes are torn where its shard looks, and there is a letter."""
        event = event_of(image_id, data or picture("red")[:50])
        self.system.objects.stored[event.object_key] = b"torn"
        partition, offset = self.log(event)
        self.letter(partition, offset, encode_json(event), image_id=image_id, **changes)
        if data is not None:
            self.system.objects.stored[event.object_key] = data
        return f"{partition}-{offset}"

    def letter(self, partition: int, offset: int, event: bytes, **changes: Any) -> None:
        fields: dict[str, Any] = {
            "collection": "images",
            "image_id": None,
            "stage": "fetch",
            "code": "object_store_unavailable",
            "reason": "down on purpose",
            "retryable": True,
            "attempts": 5,
            "source_topic": "image-events.images",
            "source_partition": partition,
            "source_offset": offset,
            "event": event,
            "failed_at_ms": 1000 + offset,
            "incarnation": self.system.specs["images"].incarnation,
        }
        self.system.log.setdefault((DEAD_LETTER_TOPIC, 0), []).append(encode_json(DeadLetter(**(fields | changes))))


@pytest.fixture
def world(system: FakeSystem) -> World:
    return World(system)


async def test_letters_are_listed_shown_and_paged(http: httpx.AsyncClient, world: World) -> None:
    ids = [world.fail(f"image-{n}") for n in range(7)]
    page = (await http.get(PATH, params={"limit": 5})).json()
    rest = (await http.get(PATH, params={"limit": 5, "cursor": page["next_cursor"]})).json()
    assert [one["id"] for one in page["dead_letters"] + rest["dead_letters"]] == ids[::-1]
    assert (rest["next_cursor"], rest["unread"]) == (None, 0)
    shown = (await http.get(f"{PATH}/{ids[0]}")).json()
    assert (shown["image_id"], shown["code"], shown["retryable"], shown["attempts"]) == (
        "image-0",
        "object_store_unavailable",
        True,
        5,
    )
    assert shown["event"]["image_id"] == "image-0"
    assert shown["source"] == {"topic": "image-events.images", "partition": int(ids[0][0]), "offset": 0}
    assert (await http.get(f"{PATH}/9-9")).status_code == 404
    for bad in ("nonsense", "1-", "-1", "1-2-3", "٣-1"):
        assert (await http.get(f"{PATH}/{bad}")).status_code == 400
    assert (await http.get(PATH, params={"cursor": "x"})).status_code == 400


async def test_a_redriven_letter_becomes_searchable_and_leaves_the_list(
    http: httpx.AsyncClient, world: World, system: FakeSystem
) -> None:
    letter_id = world.fail("healed", picture("green"))
    answer = await http.post(f"{PATH}/{letter_id}/redrive")
    assert answer.status_code == 202, answer.text
    receipt = answer.json()["receipt"]
    partition, offset = map(int, letter_id.split("-"))
    assert (receipt["partition"], answer.json()["status"]) == (partition, "redriven")
    topic = "image-events.images"
    records = system.log[topic, partition]
    assert records[receipt["offset"]] == records[offset], "not the exact event"
    header = decode_redrive(system.headers[topic, partition, receipt["offset"]][REDRIVE_HEADER])
    assert (header.source_offset, header.newer_from, header.attempts, header.redrives) == (offset, offset + 1, 5, 1)
    image = (await http.get("/v1/collections/images/images/healed")).json()
    assert image["state"] == "searchable"
    assert (await http.get(PATH)).json()["dead_letters"] == []
    (one,) = (await http.get(PATH, params={"state": "redriven"})).json()["dead_letters"]
    assert (one["id"], one["receipt"]) == (letter_id, receipt)
    # Asked again, the same answer and no second event.
    again = await http.post(f"{PATH}/{letter_id}/redrive")
    assert (again.json()["receipt"], len(system.log[topic, partition])) == (receipt, receipt["offset"] + 1)


@pytest.mark.parametrize("newer", ["upload", "delete", "payload", "failed upload"])
async def test_an_image_that_changed_since_is_left_as_it_is(
    http: httpx.AsyncClient, world: World, system: FakeSystem, newer: str
) -> None:
    first = await http.post(
        "/v1/collections/images/images", files={"file": ("a.png", picture("red"))}, data={"id": "a"}
    )
    assert first.is_success
    letter_id = world.fail("a", picture("green"))
    if newer == "upload":
        await http.post("/v1/collections/images/images", files={"file": ("a.png", picture("blue"))}, data={"id": "a"})
    elif newer == "failed upload":
        world.fail("a", picture("white"))
    else:
        world.log(ImageDeleted("images", "a", 1) if newer == "delete" else PayloadUpdated("images", "a", {"n": 2}, 1))
    before = await http.get("/v1/collections/images/images/a")
    logged = sum(len(records) for (topic, _), records in system.log.items() if topic.startswith("image-events"))
    answer = await http.post(f"{PATH}/{letter_id}/redrive")
    assert (answer.status_code, answer.json()["code"]) == (409, "redrive_refused")
    assert "newer" in answer.json()["detail"]
    after = await http.get("/v1/collections/images/images/a")
    assert {**after.json(), "request_id": 0} == {**before.json(), "request_id": 0}
    assert logged == sum(len(records) for (topic, _), records in system.log.items() if topic.startswith("image-events"))
    assert letter_id in [one["id"] for one in (await http.get(PATH)).json()["dead_letters"]], "it is no longer listed"


async def test_what_can_never_succeed_or_cannot_be_known_is_refused(
    http: httpx.AsyncClient, world: World, system: FakeSystem
) -> None:
    world.letter(0, 500, b"no event")
    misplaced = event_of("m", b"x")
    world.letter((partition_of("m", 4) + 1) % 4, 501, encode_json(misplaced), image_id="m")
    world.letter(1, 502, b"", event_left_out=True)
    forgotten = event_of("forgotten", b"x")
    world.letter(partition_of("forgotten", 4), 503, encode_json(forgotten), image_id="forgotten")
    page = (await http.get(PATH)).json()["dead_letters"]
    assert len(page) == 4
    for one in page:
        answer = await http.post(f"{PATH}/{one['id']}/redrive")
        assert (answer.status_code, answer.json()["code"]) == (409, "redrive_refused"), answer.text
    shown = (await http.get(f"{PATH}/0-500")).json()
    assert (shown["event"], shown["event_base64"]) == (None, "bm8gZXZlbnQ=")

    # A shard that has not applied everything cannot say; the same call may succeed later.
    letter_id = world.fail("later", picture("green"))
    system.applying = False
    place = int(letter_id.split("-")[0])
    system.log["image-events.images", place].append(encode_json(ImageDeleted("images", "whoever", 1)))
    behind = await http.post(f"{PATH}/{letter_id}/redrive")
    assert (behind.status_code, behind.json()["retryable"]) == (504, True)
    assert "receipt" not in behind.json()
    system.apply("images", place)
    system.applying = True
    assert (await http.post(f"{PATH}/{letter_id}/redrive")).status_code == 202


async def test_many_are_redriven_in_pieces_and_of_two_of_one_image_the_newer(
    http: httpx.AsyncClient, world: World, system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.dead_letters.SETTLE_MAX", 10)
    older = world.fail("twice", picture("red"))
    ids = [world.fail(f"image-{n}", picture("green")) for n in range(23)]
    newest = world.fail("twice", picture("blue"))
    others = [world.fail(f"bad-{n}", code="invalid_image", retryable=False) for n in range(3)]
    became: dict[str, str] = {}
    cursor, rounds = None, 0
    while rounds == 0 or cursor:
        body = {"match": {"retryable": True}, **({"cursor": cursor} if cursor else {})}
        answer = await http.post(f"{PATH}/redrive", json=body)
        assert answer.status_code == 202, answer.text
        assert len(answer.json()["dead_letters"]) <= 10
        became |= {one["id"]: one["status"] for one in answer.json()["dead_letters"]}
        cursor, rounds = answer.json()["next_cursor"], rounds + 1
    assert rounds == 3
    assert became == {older: "refused", newest: "redriven", **dict.fromkeys(ids, "redriven")}
    assert {one["id"] for one in (await http.get(PATH)).json()["dead_letters"]} == {older, *others}

    dropped = (await http.post(f"{PATH}/drop", json={"match": {"code": "invalid_image"}})).json()
    assert {one["id"]: one["status"] for one in dropped["dead_letters"]} == dict.fromkeys(others, "dropped")
    assert (await http.delete(f"{PATH}/{older}")).json()["status"] == "dropped"
    assert (await http.delete(f"{PATH}/{older}")).status_code == 200
    assert (await http.get(PATH)).json()["dead_letters"] == []
    refused = await http.post(f"{PATH}/redrive", json={"ids": [older, "3-99999"]})
    assert [one["problem"]["code"] for one in refused.json()["dead_letters"]] == ["redrive_refused", "not_found"]


async def test_a_request_names_letters_or_a_match(http: httpx.AsyncClient, world: World) -> None:
    bodies: tuple[dict[str, Any], ...] = (
        {},
        {"ids": ["1-1"], "match": {}},
        {"ids": []},
        {"cursor": "1-2"},
        {"match": {"no": 1}},
    )
    for body in bodies:
        assert (await http.post(f"{PATH}/redrive", json=body)).status_code == 400
    assert (await http.post(f"{PATH}/redrive", json={"match": {}, "cursor": "a-b"})).status_code == 400


async def test_without_a_broker_it_says_so(http: httpx.AsyncClient, system: FakeSystem, world: World) -> None:
    letter_id = world.fail("a")
    assert (await http.get(PATH)).status_code == 200
    system.broker_down = True
    for answer in (await http.get(PATH), await http.post(f"{PATH}/{letter_id}/redrive")):
        assert (answer.status_code, answer.json()["code"]) == (503, "broker_unavailable")


async def test_the_client_lists_shows_redrives_and_drops(system: FakeSystem, world: World) -> None:
    healed, bad = world.fail("healed", picture("green")), world.fail("bad", code="invalid_image", retryable=False)
    transport = httpx.ASGITransport(app=create_app(system.dependencies()))
    async with AsyncClient("http://test", transport=transport) as client:
        page = await client.dead_letters("images", retryable=False)
        assert [(one.id, one.image_id, one.state) for one in page.dead_letters] == [(bad, "bad", "waiting")]
        shown = await client.dead_letter("images", healed)
        assert shown.event is not None
        assert (shown.event["image_id"], base64.b64decode(shown.event_base64 or "")[:1]) == ("healed", b"{")
        answer = await client.redrive("images", retryable=True)
        assert [(one.id, one.status) for one in answer.dead_letters] == [(healed, "redriven")]
        assert answer.dead_letters[0].receipt is not None
        await client.wait_applied("images", [answer.dead_letters[0].receipt])
        refused = (await client.redrive("images", ["0-77"])).dead_letters
        assert [one.problem.code for one in refused if one.problem] == ["not_found"]
        assert [one.status for one in (await client.drop_dead_letters("images", [healed, bad])).dead_letters] == [
            "redriven",
            "dropped",
        ]
        assert (await client.dead_letters("images")).dead_letters == ()
        with pytest.raises(NotFound):
            await client.dead_letter("images", "0-77")


def test_an_age_is_a_number_and_a_unit() -> None:
    ages = {"90s": 910_000, "2m": 880_000, "1h": 0, None: None}
    assert {age: parse_age(age, lambda: 1000.0) for age in ages} == ages
    for wrong in ("2", "h", "-1h", "1w", "1.5h"):
        with pytest.raises(InvalidRequest):
            parse_age(wrong)
