"""Access over the whole app, with the world around it faked: every way to an image, for its owner and for others."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from contract.keys import Scope
from serving.access.keys import make_key
from serving.app import create_app
from tests.unit.serving_fakes import FakeSystem, make_spec, make_system, picture

BASE = "/v1/collections/images"


class World:
    """An app that asks for keys, and a client per key."""

    def __init__(self, system: FakeSystem) -> None:
        self.system = system
        self.app = create_app(system.dependencies())
        self.clients: list[httpx.AsyncClient] = []

    def client(self, key: str | None = None) -> httpx.AsyncClient:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        transport = httpx.ASGITransport(app=self.app)
        self.clients.append(httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers))
        return self.clients[-1]

    def key(self, owner: str, *scopes: Scope) -> str:
        record, key = make_key(owner, scopes or ("read", "write"), 1)
        self.system.keys[record.key_id] = record
        return key

    async def of(self, owner: str, *scopes: Scope) -> httpx.AsyncClient:
        client = self.client(self.key(owner, *scopes))
        await self.app.state.parts.keys.refresh()
        return client


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(make_system(tmp_path, auth="on"))
    yield made
    for client in made.clients:
        await client.aclose()


async def upload(http: httpx.AsyncClient, image_id: str, colour: str, **payload: object) -> httpx.Response:
    return await http.post(
        f"{BASE}/images",
        params={"wait": "searchable"},
        files={"file": ("a.png", picture(colour))},
        data={"id": image_id, "payload": json.dumps(payload)},
    )


async def hits(http: httpx.AsyncClient, **body: Any) -> list[str]:
    answer = await http.post(f"{BASE}/search", json=body)
    assert answer.status_code == 200, answer.text
    return [hit["id"] for hit in answer.json()["hits"]]


# --- keys and scopes


async def test_without_a_good_key_there_is_no_answer(world: World) -> None:
    for http, error in ((world.client(), None), (world.client("rl_" + "0" * 12 + "_" + "A" * 43), "invalid_token")):
        for method, path in (
            ("GET", "/v1/collections"),
            ("POST", f"{BASE}/search"),
            ("GET", "/metrics"),
            ("GET", "/x"),
        ):
            answer = await http.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert (error or "realm") in answer.headers["www-authenticate"]
            assert answer.json()["request_id"] == answer.headers["x-request-id"]
    for path in ("/", "/docs", "/openapi.json", "/healthz", "/web/app.js"):
        assert (await world.client().get(path)).status_code == 200
        assert (await world.client("nonsense").get(path)).status_code == 200


async def test_both_headers_are_taken_and_no_other_scheme(world: World) -> None:
    key = world.key("ada")
    http = world.client()
    for headers, status in (
        ({"X-API-Key": key}, 200),
        ({"Authorization": f"bearer {key}"}, 200),
        ({"Authorization": f"Basic {key}"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Basic x", "X-API-Key": key}, 401),
    ):
        assert (await http.get("/v1/collections", headers=headers)).status_code == status, headers


async def test_a_scope_allows_what_it_says_and_no_more(world: World) -> None:
    reader, writer, admin = (
        await world.of("ada", "read"),
        await world.of("ada", "write"),
        await world.of("root", "admin"),
    )
    assert (await upload(writer, "a", "red")).status_code == 201
    assert await hits(reader, text="red") == ["a"]
    refused = await upload(reader, "b", "red")
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert 'scope="write"' in refused.headers["www-authenticate"]
    assert (await writer.post(f"{BASE}/search", json={"text": "red"})).status_code == 403
    for http in (reader, writer):
        assert (await http.put("/v1/collections/new", json={})).status_code == 403
        assert (await http.get("/v1/keys")).status_code == 403
    assert await hits(admin, text="red") == ["a"]
    assert (await admin.get("/v1/keys")).status_code == 200


async def test_keys_are_made_and_revoked_over_http(world: World) -> None:
    admin = await world.of("root", "admin")
    made = await admin.post("/v1/keys", json={"owner": "eve", "scopes": ["write", "read"]})
    assert made.status_code == 201
    body = made.json()
    eve = world.client(body["key"])
    assert (await eve.get("/v1/collections")).status_code == 200
    listed = (await admin.get("/v1/keys")).json()["keys"]
    assert {one["owner"]: one["scopes"] for one in listed} == {"root": ["admin"], "eve": ["read", "write"]}
    assert body["key"].rsplit("_", 1)[-1] not in json.dumps(listed)
    assert "key" not in listed[0]
    assert (await admin.delete(f"/v1/keys/{body['key_id']}")).json()["revoked_at_ms"] is not None
    assert (await eve.get("/v1/collections")).status_code == 401
    assert (await admin.delete("/v1/keys/nothing")).status_code == 404


async def test_neither_the_log_nor_an_error_has_a_key(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    admin = await world.of("root", "admin")
    made = (await admin.post("/v1/keys", json={"owner": "eve", "scopes": ["read"]})).json()
    wrong = "rl_" + made["key_id"] + "_" + "B" * 43
    for key in (made["key"], wrong):
        answer = await world.client(key).post(f"{BASE}/search", json={"text": 7, "image_id": key})
        assert key not in answer.text
    printed = capsys.readouterr()
    logged = printed.out + printed.err
    assert made["key_id"] in logged
    assert made["key"] not in logged
    assert "B" * 43 not in logged


# --- private images


async def _private(world: World) -> tuple[httpx.AsyncClient, httpx.AsyncClient, httpx.AsyncClient]:
    """Ada with a private red image, Bob, and an admin."""
    ada, bob, admin = await world.of("ada"), await world.of("bob"), await world.of("root", "admin")
    assert (await upload(ada, "hers", "red", visibility="private", caption="my secret red")).status_code == 201
    assert (await upload(bob, "his", "red", caption="red for all")).status_code == 201
    return ada, bob, admin


@pytest.mark.parametrize(
    "query",
    [
        {"text": "red"},
        {"text": "red", "exact": True},
        {"text": "red", "hybrid": True},
        {"text": "red", "rerank": True},
        {"text": "red", "with_payload": False},
        {"image_id": "his"},
        {"positive": ["his"]},
        {"text": "red", "filter": {"must": [{"key": "visibility", "match": {"value": "private"}}]}},
        {"text": "red", "filter": {"should": [{"key": "owner", "match": {"value": "ada"}}]}},
    ],
)
async def test_no_search_shows_what_is_private_to_others(world: World, query: dict[str, Any]) -> None:
    ada, bob, admin = await _private(world)
    assert "hers" in await hits(ada, **query)
    for http in (bob, admin):
        answer = await http.post(f"{BASE}/search", json=query)
        assert answer.status_code == 200
        assert "hers" not in answer.text
        batch = await http.post(f"{BASE}/search/batch", json={"searches": [query, query]})
        assert batch.status_code == 200
        assert "hers" not in batch.text
    sent = await bob.post(f"{BASE}/search", files={"image": ("q.png", picture("red"))})
    assert [hit["id"] for hit in sent.json()["hits"]] == ["his"]
    got = await bob.get(f"{BASE}/search", params={"text": "red"})
    assert [hit["id"] for hit in got.json()["hits"]] == ["his"]


@pytest.mark.parametrize("broken", ["embedder", "vectors"])
async def test_words_alone_show_nothing_private_either(world: World, broken: str) -> None:
    ada, bob, _ = await _private(world)
    for embedder in world.system.embedders.values():
        embedder.down = broken == "embedder"
    for shard in world.system.shards.values():
        shard.vectorless = broken == "vectors"
    assert set(await hits(ada, text="secret red")) == {"hers", "his"}
    assert await hits(bob, text="secret red") == ["his"]


async def test_a_page_is_as_long_as_ever(world: World) -> None:
    ada, bob = await world.of("ada"), await world.of("bob")
    for number in range(8):
        assert (await upload(ada, f"hers-{number}", "red", visibility="private")).status_code == 201
    for number in range(4):
        assert (await upload(bob, f"his-{number}", "white")).status_code == 201
    assert len(await hits(bob, text="red", limit=4)) == 4


@pytest.mark.parametrize("fields", [(), ("caption",), ("visibility",)])
async def test_a_collection_without_the_fields_leaks_nothing(tmp_path: Path, fields: tuple[str, ...]) -> None:
    system = make_system(tmp_path, auth="on")
    system.specs["images"] = make_spec(filter_fields=fields)
    world = World(system)
    ada, bob, _ = await _private(world)
    assert set(await hits(ada, text="red")) == {"hers", "his"}
    for query in ({"text": "red"}, {"text": "red", "hybrid": True}, {"text": "red", "rerank": True}):
        assert await hits(bob, **query) == ["his"]
    for client in world.clients:
        await client.aclose()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/images/ID", None),
        ("DELETE", "/images/ID", None),
        ("PATCH", "/images/ID", {"payload": {}}),
        ("GET", "/images/ID/content", None),
        ("GET", "/images/ID/content?size=64", None),
        ("POST", "/search", {"image_id": "ID"}),
        ("POST", "/search", {"image_id": "ID", "crop": {"x": 0, "y": 0, "width": 1, "height": 1}}),
        ("POST", "/search", {"positive": ["ID"]}),
        ("POST", "/search", {"text": "red", "negative": [{"image_id": "ID"}]}),
        ("POST", "/search", {"image_id": "ID", "rerank": {"verify": {}}}),
    ],
)
@pytest.mark.parametrize("behind", [False, True])
async def test_a_private_image_is_not_there(
    world: World, method: str, path: str, body: dict[str, Any] | None, behind: bool
) -> None:
    _, bob, admin = await _private(world)
    if behind:
        # Something is logged that no shard has applied, so it waits before it calls an id unknown.
        world.system.settings = world.system.settings.model_copy(update={"min_receipt_timeout_s": 0.01})
        world = World(world.system)
        bob, admin = await world.of("bob"), await world.of("root", "admin")
        world.system.applying = False
        for image_id in ("hers", "none"):
            event = {"type": "image_deleted.v1", "collection": "images", "image_id": f"x{image_id}", "deleted_at_ms": 1}
            for partition in range(4):
                world.system.log.setdefault(("image-events.images", partition), []).append(msgspec.json.encode(event))

    def filled(image_id: str) -> Any:
        return None if body is None else json.loads(json.dumps(body).replace("ID", image_id))

    for http in (bob, admin):
        seen, unseen = [
            await http.request(method, BASE + path.replace("ID", image_id), json=filled(image_id))
            for image_id in ("hers", "none")
        ]
        assert seen.status_code == unseen.status_code
        assert seen.status_code != 200 or behind
        left, right = seen.json(), unseen.json()
        for one in (left, right):
            one.pop("request_id", None)
            one.pop("partition", None)
        assert json.dumps(left).replace("hers", "none") == json.dumps(right)
    for client in world.clients:
        await client.aclose()


async def test_the_owner_sees_it_everywhere(world: World) -> None:
    ada, bob, _ = await _private(world)
    other_key = await world.of("ada", "read")
    for http in (ada, other_key):
        described = await http.get(f"{BASE}/images/hers")
        assert described.json()["payload"]["owner"] == "ada"
        content = await http.get(f"{BASE}/images/hers/content", params={"size": 64})
        assert content.status_code == 200
        assert "private" in content.headers["cache-control"]
        assert "hers" in (await http.get(f"{BASE}/images")).text
    assert "hers" not in (await bob.get(f"{BASE}/images")).text
    # The picture's own tag gives nothing away.
    known = {"If-None-Match": content.headers["etag"]}
    assert (await bob.get(f"{BASE}/images/hers/content", params={"size": 64}, headers=known)).status_code == 404


async def test_lists_pass_over_what_is_private_and_miss_nothing_else(world: World) -> None:
    ada, bob = await world.of("ada"), await world.of("bob")
    for number in range(9):
        http, more = (ada, {"visibility": "private"}) if number % 2 else (bob, {})
        assert (await upload(http, f"image-{number}", "red", **more)).status_code == 201
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = (await bob.get(f"{BASE}/images", params={"limit": 2, **({"cursor": cursor} if cursor else {})})).json()
        seen += [one["id"] for one in page["images"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == [f"image-{number}" for number in range(0, 9, 2)]


async def test_nobody_takes_anothers_image_over(world: World) -> None:
    ada, bob, admin = await _private(world)
    assert (await upload(ada, "hers-too", "blue")).status_code == 201
    for image_id in ("hers", "hers-too"):
        taken = await upload(bob, image_id, "green")
        assert (taken.status_code, taken.json()["code"]) == (403, "forbidden")
    assert (await bob.patch(f"{BASE}/images/hers-too", json={"payload": {}})).status_code == 403
    assert (await bob.delete(f"{BASE}/images/hers-too")).status_code == 403
    assert (await upload(bob, "new", "green", owner="ada")).status_code == 403
    assert (await ada.patch(f"{BASE}/images/hers-too", json={"payload": {"owner": "bob"}})).status_code == 403
    # An admin acts for others, and the image stays whose it was.
    assert (await admin.patch(f"{BASE}/images/hers-too", json={"payload": {"caption": "x"}})).status_code == 202
    described = (await ada.get(f"{BASE}/images/hers-too")).json()
    assert described["payload"] == {"caption": "x", "owner": "ada"}
    assert (await admin.delete(f"{BASE}/images/hers-too")).status_code == 202


async def test_made_private_it_is_gone_at_once_and_comes_back(world: World) -> None:
    ada, bob = await world.of("ada"), await world.of("bob")
    assert (await upload(ada, "a", "red")).status_code == 201
    assert await hits(bob, text="red") == ["a"]
    for visibility, found in (("private", []), ("public", ["a"])):
        await ada.patch(f"{BASE}/images/a", json={"payload": {"visibility": visibility}})
        assert await hits(bob, text="red") == found


async def test_a_mistyped_visibility_publishes_nothing(world: World) -> None:
    ada = await world.of("ada")
    assert (await upload(ada, "a", "red", visibility="Private")).status_code == 400
    assert (await ada.get(f"{BASE}/images/a")).status_code == 404


async def test_bytes_of_the_store_are_for_admins(world: World) -> None:
    world.system.objects.stored["incoming/a.png"] = picture("red")
    body = {"id": "a", "object_key": "incoming/a.png"}
    assert (await (await world.of("bob")).post(f"{BASE}/images", json=body)).status_code == 403
    assert (await (await world.of("root", "admin")).post(f"{BASE}/images", json=body)).status_code == 202


async def test_without_keys_the_one_user_sees_everything(tmp_path: Path) -> None:
    world = World(make_system(tmp_path))
    http = world.client("any key at all")
    assert (await upload(http, "a", "red", visibility="private", owner="ada")).status_code == 201
    assert await hits(http, text="red") == ["a"]
    assert (await http.get(f"{BASE}/images/a")).json()["payload"] == {"visibility": "private", "owner": "ada"}
    # Nothing is added to what the shards are asked.
    asked = [search for shard in world.system.shards.values() for search in shard.searches]
    assert asked
    assert all(query.filter is None for search in asked for query in search.queries)
    await http.aclose()


# --- rates, bodies, headers


async def test_a_key_has_its_rate_and_no_other_suffers(tmp_path: Path) -> None:
    world = World(make_system(tmp_path, auth="on", rate_limit_per_s=0.01, rate_limit_burst=3))
    ada, bob, nobody = await world.of("ada"), await world.of("bob"), world.client()
    assert [(await ada.get("/v1/collections")).status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = await ada.get("/v1/collections")
    assert (refused.json()["code"], refused.json()["retryable"]) == ("rate_limited", True)
    assert 1 <= int(refused.headers["retry-after"]) <= 100
    assert (await bob.get("/v1/collections")).status_code == 200
    assert [(await nobody.get("/v1/collections")).status_code for _ in range(4)] == [401, 401, 401, 429]
    assert (await nobody.get("/healthz")).status_code == 200
    for client in world.clients:
        await client.aclose()


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b'{"text": "' + b"x" * 1_100_000 + b'"}', 413, "body_too_large"),
        (b"[" * 500_000, 400, "invalid_request"),
        (b'{"filter": ' + b'{"must": [' * 50_000, 400, "invalid_request"),
        (b'{"text": "\\ud800"}', 400, "invalid_request"),
        (b'{"limit": true}', 400, "invalid_request"),
        (b'{"limit": "3"}', 400, "invalid_request"),
        (b'{"text": "a", "limit": 1e999}', 400, "invalid_request"),
        (b'{"text": "a", "limit": 1' + b"0" * 400 + b"}", 400, "invalid_request"),
    ],
)
async def test_json_that_is_too_much_is_refused(world: World, content: bytes, status: int, code: str) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await (await world.of("ada")).post(f"{BASE}/search", content=content, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_a_body_that_says_it_is_too_large_is_not_read(world: World) -> None:
    http = await world.of("ada")
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield b"x" * 65536

    headers = {"Content-Type": "application/json", "Content-Length": str(10**9)}
    answer = await http.post(f"{BASE}/images", content=endless(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert read <= 1


async def test_a_form_has_one_file_and_few_fields(world: World) -> None:
    http = await world.of("ada")
    files = [("file", ("a.png", picture("red"))), ("file", ("b.png", picture("red")))]
    assert (await http.post(f"{BASE}/images", files=files)).status_code == 400
    fields = {f"field-{number}": "x" for number in range(200)}
    assert (await http.post(f"{BASE}/images", data=fields)).status_code == 400


async def test_every_answer_has_its_headers(world: World) -> None:
    ada = await world.of("ada")
    assert (await upload(ada, "a", "red")).status_code == 201
    paths = ("/v1/collections", "/v1/nothing", "/healthz", "/", "/docs", "/openapi.json", f"{BASE}/images/a/content")
    for http in (ada, world.client()):
        for path in paths:
            answer = await http.get(path)
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            policy = answer.headers["content-security-policy"]
            assert "default-src" in policy
            assert "frame-ancestors 'none'" in policy or "sandbox" in policy
            assert "access-control-allow-origin" not in answer.headers
            if path.startswith("/v1"):
                assert any(word in answer.headers["cache-control"] for word in ("no-store", "private"))


async def test_the_description_says_where_a_key_is_needed(world: World) -> None:
    described = (await world.client().get("/openapi.json")).json()
    assert set(described["components"]["securitySchemes"]) == {"bearer", "api_key"}
    for path, operations in described["paths"].items():
        for operation in operations.values():
            is_open = path in ("/healthz", "/readyz")
            assert ("security" in operation) is not is_open, path
            if not is_open:
                assert {"401", "403", "429"} <= operation["responses"].keys(), path
