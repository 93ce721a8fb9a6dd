"""What the client sends and how it reads the answers: on the API itself with fakes below it, and on odd answers."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_type_hints

import httpx
import pytest

from contract.events import Receipt
from serving import schemas
from serving.app import create_app
from serving.client import (
    AsyncClient,
    Changed,
    Client,
    CollectionExists,
    CollectionParameters,
    Crop,
    Example,
    InvalidRequest,
    NotFound,
    SearchAnswer,
    SearchOptions,
    SearchQuery,
    Uploaded,
    UploadItem,
)
from serving.client.options import body_of
from tests.unit.client_world import URL, World
from tests.unit.serving_fakes import FINGERPRINT, FakeSystem, make_system, picture

ROOT = Path(__file__).parents[2]


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return make_system(tmp_path)


@pytest.fixture
async def client(system: FakeSystem) -> AsyncIterator[AsyncClient]:
    transport = httpx.ASGITransport(create_app(system.dependencies()))
    async with AsyncClient(URL, transport=transport) as made:
        yield made


async def test_one_finds_ones_own_upload_by_its_receipt(client: AsyncClient) -> None:
    uploaded = await client.upload("images", picture("red"), payload={"caption": "ein rotes Bild"})
    answer = await client.search("images", "red", min_receipt=uploaded, limit=1)
    assert [(hit.id, hit.payload) for hit in answer.hits] == [(uploaded.id, {"caption": "ein rotes Bild"})]
    assert answer.freshness.applied_offsets[uploaded.receipt.partition] >= uploaded.receipt.offset
    assert answer.took_ms.total > 0
    assert (answer.coverage.shards_answered, bool(answer.coverage.degraded)) == (4, False)
    assert answer.raw["hits"][0]["id"] == uploaded.id


async def test_every_kind_of_query_reaches_the_server_as_it_was_meant(
    client: AsyncClient, system: FakeSystem, tmp_path: Path
) -> None:
    file = tmp_path / "red picture.png"
    file.write_bytes(picture("red"))
    report = await client.upload_many("images", [file, picture("green"), picture("blue")])
    report.raise_for_failures()
    red, green, blue = (result.id for result in report.results)
    receipts = report.receipts

    async def first(*text: str, **query: Any) -> str:
        return (await client.search("images", *text, limit=1, min_receipt=receipts, **query)).hits[0].id

    assert await first("blue") == blue
    assert await first(image=file) == red
    assert await first(image=str(file), crop=Crop(0, 0, 0.5, 0.5)) == red
    assert await first(image=picture("green"), crop=(0.1, 0.1, 0.5, 0.5), exact=True) == green
    assert await first(image_id=blue, ef_search=32) == blue
    assert await first(image_id=blue, image_id_weight=0.1, image=file, image_weight=2.0) == red
    assert await first(positive=[red], negative=[green]) == red
    assert await first(positive=[Example(image_id=green, weight=2.0), Example(text="green")]) == green
    assert await first("blue", image=picture("blue"), positive=[Example(image_id=green)], text_weight=5.0) == blue
    point = system.owners("images", blue)[0].points[blue]
    assert point.vector is not None
    for vector in (point.vector, point.vector.tolist(), tuple(7 * point.vector.astype(float)), iter(point.vector)):
        assert await first(vector=vector, fingerprint=FINGERPRINT) == blue
    assert await first("red", vector=point.vector, vector_weight=-0.5, image=picture("red")) == red
    wanted = {"must": [{"key": "file_name", "match": {"value": "x"}}]}
    for query in ({"text": "red"}, {"image": file}):
        assert (await client.search("images", filter=wanted, **query)).hits == ()
    few = await client.search("images", "red", limit=5, offset=2, with_payload=False, score_threshold=-1.0)
    assert [hit.payload for hit in few.hits] == [None]
    with pytest.raises(InvalidRequest, match="colour"):
        await client.search("images", "red", extra={"colour": "red"})


async def test_an_image_from_upload_to_delete(client: AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "Ü b.png").write_bytes(picture("red"))
    await client.upload("images", tmp_path / "Ü b.png", id="a~+=@:b", payload={"n": 1}, wait="searchable")
    image = await client.image("images", "a~+=@:b")
    assert (image.state, image.payload, image.file_name, image.width) == ("searchable", {"n": 1}, "Ü b.png", 32)
    changed = await client.update_payload("images", "a~+=@:b", {"n": 2}, wait="searchable")
    assert (changed.status, (await client.image("images", "a~+=@:b")).payload) == ("applied", {"n": 2})
    assert (await client.content("images", "a~+=@:b")).data == picture("red")
    assert (await client.content("images", "a~+=@:b", size=64)).content_type == "image/webp"
    answer = await client.search("images", "red")
    await client.click("images", answer.request_id, answer.hits[0].id, 0)
    deleted = await client.delete("images", "a~+=@:b")
    assert deleted.receipt is not None
    await client.wait_applied("images", [deleted.receipt])
    with pytest.raises(NotFound):
        await client.image("images", "a~+=@:b")


async def test_all_images_are_listed_page_by_page(client: AsyncClient) -> None:
    items = [UploadItem(picture("red"), id=f"i{n}", payload={"even": n % 2 == 0}) for n in range(7)]
    (await client.upload_many("images", items)).raise_for_failures()
    assert [image.id async for image in client.images("images", page=3)] == [f"i{n}" for n in range(7)]
    even = {"must": [{"key": "even", "match": {"value": True}}]}
    listed = [image async for image in client.images("images", filter=even, with_payload=False)]
    assert [(image.id, image.payload) for image in listed] == [(f"i{n}", None) for n in (0, 2, 4, 6)]
    page = await client.image_page("images", limit=5)
    assert len(page.images) == 5
    assert page.next_cursor is not None
    assert [one.id for one in (await client.image_page("images", cursor=page.next_cursor)).images] == ["i5", "i6"]


async def test_collections_are_made_once_listed_and_dropped(client: AsyncClient) -> None:
    made = await client.create_collection("birds", shards=2, partitions=4, quantization="sq8")
    assert (made.name, made.shards_total, made.partitions) == ("birds", 2, 4)
    assert await client.create_collection("birds", shards=2) == made
    with pytest.raises(CollectionExists):
        await client.create_collection("birds", shards=4)
    assert [one.name for one in await client.collections()] == ["birds", "images"]
    assert (await client.collection("birds")).points == 0
    assert (await client.drop_collection("birds")).state == "dropped"
    with pytest.raises(NotFound):
        await client.collection("birds")
    assert (await client.readiness()).ready


async def test_a_part_that_is_not_ready_is_named(client: AsyncClient, system: FakeSystem) -> None:
    system.embedder("fake", "query", 1).down = True
    readiness = await client.readiness()
    assert not readiness.ready
    assert any("fake embedder" in sentence for sentence in readiness.missing)


def test_an_answer_of_a_later_version_is_read_and_kept_whole() -> None:
    body = {
        "hits": [{"id": "a", "score": 1, "payload": None, "colour": "red"}],
        "coverage": {"shards_total": 4, "shards_answered": 0, "degraded": "metadata"},
        "freshness": {"applied_offsets": {"3": 9}, "staleness_s": 0},
        "took_ms": {"total": 2, "dream": 1},
        "model": "m",
        "mood": 0.9,
    }
    answer = World(httpx.Response(200, json=body)).run("blocking", lambda client: client.search("images", "x"))
    assert isinstance(answer, SearchAnswer)
    assert (answer.coverage.degraded, answer.freshness.applied_offsets) == ("metadata", {3: 9})
    assert (answer.raw["mood"], answer.raw["hits"][0]["colour"]) == (0.9, "red")
    assert "raw" not in repr(answer)


async def test_many_searches_are_answered_in_their_order(client: AsyncClient) -> None:
    report = await client.upload_many("images", [UploadItem(picture(c), id=c) for c in ("red", "green")])
    searches: list[SearchQuery] = [{"text": "green", "limit": 1}, {"image_id": "nobody"}, {"text": "red", "limit": 1}]
    searches = [{**search, "min_receipt": report.receipts} for search in searches]
    green, nobody, red = await client.search_many("images", searches)
    assert isinstance(green, SearchAnswer)
    assert isinstance(red, SearchAnswer)
    assert (green.hits[0].id, red.hits[0].id) == ("green", "red")
    assert isinstance(nobody, NotFound)


def test_many_searches_are_one_request_with_an_answer_or_an_error_each() -> None:
    hits = {
        "hits": [{"id": "a", "score": 1}],
        "coverage": {"shards_total": 1, "shards_answered": 1, "degraded": False},
        "freshness": {"applied_offsets": {}, "staleness_s": 0},
        "took_ms": {"total": 2},
        "model": "m",
    }
    wrong = {"code": "not_found", "detail": "no image 'b'", "retryable": False, "status": 404, "request_id": "r.1"}
    world = World(httpx.Response(200, json={"answers": [hits, wrong]}))
    found, missing = world.run(
        "blocking", lambda client: client.search_many("images", [{"text": "x"}, {"image_id": "b", "limit": 3}])
    )
    assert world.requests[0].url.path.endswith("/search/batch")
    assert world.requests[0].content == b'{"searches":[{"text":"x"},{"image_id":"b","limit":3}]}'
    assert found.hits[0].id == "a"
    assert isinstance(missing, NotFound)
    assert (missing.request_id, missing.detail) == ("r.1", "no image 'b'")


def test_a_vector_is_sent_as_little_endian_float32() -> None:
    assert body_of({"vector": [1, -2.5]}) == {"vector": "AACAPwAAIMA="}
    assert body_of({"vector": None, "text": "x"}) == {"text": "x"}
    for wrong in ("AACAPwAAIMA=", b"1234", [[1.0]], ["1"], [None], 5):
        with pytest.raises(TypeError):
            body_of({"vector": wrong})


def test_of_several_receipts_the_last_of_each_partition_is_waited_for() -> None:
    uploaded = Uploaded(id="a", sha256="0", status="logged", receipt=Receipt(1, 5))
    lost = Changed(id="b", status="applied", receipt=None)
    body = body_of({"text": "x", "min_receipt": [Receipt(1, 3), uploaded, Receipt(0, 2), lost]})
    assert body["min_receipt"] == [Receipt(1, 5), Receipt(0, 2)]
    assert body_of({"text": "x", "min_receipt": uploaded})["min_receipt"] == Receipt(1, 5)
    assert body_of({"text": "x", "min_receipt": lost}) == {"text": "x"}


def test_the_keywords_are_the_fields_of_the_api() -> None:
    by_hand = {"text", "extra"}
    assert set(get_type_hints(SearchOptions)) ^ set(schemas.SearchRequest.model_fields) == by_hand
    assert set(get_type_hints(CollectionParameters)) == set(schemas.CollectionRequest.model_fields)


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    def arguments(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(m).parameters) for name, m in methods if not name.startswith("_")}

    assert arguments(Client) == arguments(AsyncClient)


def test_importing_the_client_loads_nothing_of_the_engine() -> None:
    heavy = ("ray", "torch", "fastapi", "faiss", "numpy", "pydantic", "actors", "confluent_kafka", "serving.app")
    code = f"import sys; import serving.client; print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
