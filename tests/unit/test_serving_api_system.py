"""Collections, health, readiness, metrics, pages, problems, request ids; on fakes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from contract import telemetry
from contract.telemetry import LogField
from serving.app import create_app
from serving.readiness import Readiness
from serving.schemas import CollectionStatistics
from tests.unit.serving_fakes import FINGERPRINT, FakeSystem, make_spec, make_system, picture
from tests.unit.test_serving_api_images import assert_problem, upload

COLLECTIONS = "/v1/collections"


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return make_system(tmp_path)


@pytest.fixture
async def http(system: FakeSystem) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(system.dependencies()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def test_collections_are_listed_with_their_parameters(http: httpx.AsyncClient, system: FakeSystem) -> None:
    system.add(make_spec("another", shards=2))
    listed = (await http.get(COLLECTIONS)).json()["collections"]
    assert [(one["name"], one["shards_total"], one["state"]) for one in listed] == [
        ("another", 2, "ready"),
        ("images", 4, "ready"),
    ]


async def test_statistics_count_points_and_show_every_shard(http: httpx.AsyncClient) -> None:
    for image_id in ("a", "b", "c"):
        await upload(http, picture("red"), id=image_id)
    await http.delete(f"{COLLECTIONS}/images/images/c", params={"wait": "searchable"})
    body = (await http.get(f"{COLLECTIONS}/images")).json()
    CollectionStatistics.model_validate(body)
    assert (body["points"], body["deleted"], body["fingerprint"]) == (2, 1, FINGERPRINT)
    assert [shard["shard"] for shard in body["shards"]] == [0, 1, 2, 3]
    assert sum(shard["points"] for shard in body["shards"]) == 2
    assert {e["role"]: e["state"] for e in body["embedders"]} == {"ingest": "ready", "query": "ready"}


async def test_a_shard_that_is_gone_stands_in_the_statistics(http: httpx.AsyncClient, system: FakeSystem) -> None:
    await http.get(COLLECTIONS)
    system.shards["images", 2, 0].down = True
    shard = (await http.get(f"{COLLECTIONS}/images")).json()["shards"][2]
    assert (shard["state"], shard["pid"], shard["staleness_s"]) == ("unavailable", None, None)
    assert "down" in shard["error"]


async def test_create_is_idempotent_and_conflicts_are_named(http: httpx.AsyncClient) -> None:
    body = {"shards": 2, "partitions": 6, "model": "fake", "m": 24}
    created = await http.put(f"{COLLECTIONS}/new", json=body)
    assert created.status_code == 201, created.text
    answer = created.json()
    assert (answer["state"], answer["fingerprint"], answer["partitions"], answer["m"]) == ("ready", FINGERPRINT, 6, 24)
    assert (await http.put(f"{COLLECTIONS}/new", json=body)).status_code == 200
    problem = assert_problem(await http.put(f"{COLLECTIONS}/new", json={**body, "m": 32}), 409, "collection_exists")
    assert "m" in problem["detail"]


async def test_a_new_model_is_completed_by_the_supervisor(http: httpx.AsyncClient, system: FakeSystem) -> None:
    created = await http.put(f"{COLLECTIONS}/new", json={"model": "openclip:ViT-B-32:x"})
    assert (created.status_code, created.json()["state"]) == (201, "creating")
    assert (system.specs["new"].fingerprint, system.specs["new"].dimension) == ("", 0)
    assert_problem(await http.get("/readyz"), 503, "unavailable", retryable=True)


@pytest.mark.parametrize(
    "body", [{"shards": 5, "partitions": 4}, {"shards": 0}, {"colour": 1}, {"m": 2}, {"model": ""}]
)
async def test_impossible_collections_are_refused(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    assert_problem(await http.put(f"{COLLECTIONS}/new", json=body), 400, "invalid_request")


@pytest.mark.parametrize("name", ["Images", "a b", "-a", "a" * 64])
async def test_impossible_names_are_refused(http: httpx.AsyncClient, name: str) -> None:
    for method in ("GET", "PUT", "DELETE"):
        assert_problem(await http.request(method, f"{COLLECTIONS}/{name}", json={}), 400, "invalid_request")


async def test_a_dropped_collection_is_gone(http: httpx.AsyncClient, system: FakeSystem) -> None:
    assert (await http.delete(f"{COLLECTIONS}/images")).json() == {"name": "images", "state": "dropped"}
    assert_problem(await http.get(f"{COLLECTIONS}/images"), 404, "not_found")
    assert_problem(await http.delete(f"{COLLECTIONS}/images"), 404, "not_found")
    assert system.specs == {}


async def test_health_asks_nobody(http: httpx.AsyncClient, system: FakeSystem) -> None:
    system.broker_down = True
    assert (await http.get("/healthz")).json() == {"status": "ok"}


async def test_ready_when_every_part_answers(http: httpx.AsyncClient, system: FakeSystem) -> None:
    run = system.settings.home_path / "run"
    run.mkdir(parents=True)
    (run / "up.json").write_text(json.dumps({"pid": 1, "processes": {"broker": 1, "gone": 2**22 + 1}}))
    response = await http.get("/readyz")
    assert response.status_code == 200
    readiness = Readiness.model_validate(response.json())
    assert (len(readiness.shards), len(readiness.embedders), readiness.missing) == (4, 2, [])
    assert [(process.name, process.alive) for process in readiness.processes] == [("broker", True), ("gone", False)]


@pytest.mark.parametrize("break_it", ["shard", "recovering", "query embedder", "ingest embedder", "no collection"])
async def test_not_ready_says_what_is_missing(http: httpx.AsyncClient, system: FakeSystem, break_it: str) -> None:
    assert (await http.get("/readyz")).status_code == 200
    if break_it == "shard":
        system.shards["images", 1, 0].down = True
    elif break_it == "recovering":
        system.shards["images", 1, 0].state = "recovering"
    elif break_it == "no collection":
        await http.delete(f"{COLLECTIONS}/images")
    else:
        role: Any = break_it.split(maxsplit=1)[0]
        system.embedders["fake", role].down = True
    problem = assert_problem(await http.get("/readyz"), 503, "unavailable", retryable=True)
    assert len(problem["missing"]) == 1
    expected = {"shard": "shard 1", "recovering": "recovering", "no collection": "no collection"}.get(
        break_it, "embedder"
    )
    assert expected in problem["missing"][0]


async def test_metrics_bear_the_agreed_names(http: httpx.AsyncClient) -> None:
    await upload(http, picture("red"), id="one")
    await http.post(f"{COLLECTIONS}/images/search", json={"text": "red"})
    text = (await http.get("/metrics")).text
    for metric in (
        telemetry.UPLOADS,
        telemetry.SEARCHES,
        telemetry.SEARCH_STAGE_SECONDS,
        telemetry.QUERY_CACHE,
        telemetry.SHARDS_TOTAL,
        telemetry.SHARDS_ANSWERING,
        telemetry.POINTS,
        telemetry.STALENESS_SECONDS,
        telemetry.CONSUMER_LAG,
        telemetry.APPLIED_OFFSET,
    ):
        assert f"# HELP {metric.name} {metric.help}" in text
        assert f"\n{metric.name}" in text, metric.name
    assert 'riverlens_shards_answering{collection="images"} 4.0' in text


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/docs", "text/html"),
        ("/web/app.js", "text/javascript"),
        ("/web/filter.js", "text/javascript"),
        ("/web/style.css", "text/css"),
        ("/web/docs.js", "text/javascript"),
        ("/web/swagger-ui-bundle.js", "text/javascript"),
        ("/web/swagger-ui.css", "text/css"),
        ("/web/icon.svg", "image/svg+xml"),
    ],
)
async def test_pages_work_without_a_network(http: httpx.AsyncClient, path: str, kind: str) -> None:
    response = await http.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith(kind)
    assert "default-src 'self'" in response.headers["content-security-policy"]
    if kind == "text/html":
        assert "http://" not in response.text
        assert "https://" not in response.text


@pytest.mark.parametrize("name", ["app.py", "../app.py", "%2e%2e/app.py", "index.html.bak"])
async def test_no_other_file_is_served(http: httpx.AsyncClient, name: str) -> None:
    assert_problem(await http.get(f"/web/{name}"), 404, "not_found")


async def test_unknown_paths_and_methods_are_problems(http: httpx.AsyncClient) -> None:
    assert_problem(await http.get("/v2/collections"), 404, "not_found")
    response = await http.post("/healthz")
    assert_problem(response, 405, "invalid_request")
    assert response.headers["allow"] == "GET"


async def test_an_unexpected_error_shows_no_trace(http: httpx.AsyncClient, system: FakeSystem) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("secret inner words")

    system.objects.put = fail  # type: ignore[method-assign,assignment]
    with structlog.testing.capture_logs() as lines:
        response = await upload(http, picture("red"))
    problem = assert_problem(response, 500, "internal")
    assert "secret" not in json.dumps(problem)
    (failure,) = [line for line in lines if line["event"] == "request failed"]
    assert failure[LogField.REQUEST_ID] == problem["request_id"]
    assert failure["exc_info"] is True


@pytest.mark.parametrize("given", ["abc-1.2_Z", "x" * 64])
async def test_a_request_id_travels_through(http: httpx.AsyncClient, given: str) -> None:
    with structlog.testing.capture_logs() as lines:
        response = await http.post(
            f"{COLLECTIONS}/images/search", json={"text": "red"}, headers={"X-Request-ID": given}
        )
    assert response.headers["x-request-id"] == response.json()["request_id"] == given
    (line,) = [line for line in lines if line["event"] == "request"]
    assert line[LogField.REQUEST_ID] == given
    assert line[LogField.STATUS] == 200
    assert line[LogField.ROUTE] == "/v1/collections/{collection}/search"
    assert line[LogField.COLLECTION] == "images"


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\tb", "<script>", "a;b"])
async def test_a_harmful_request_id_is_replaced(http: httpx.AsyncClient, given: str) -> None:
    response = await http.get("/v1/collections", headers={"X-Request-ID": given})
    assert response.headers["x-request-id"] != given
    assert len(response.headers["x-request-id"]) == 32


async def test_the_description_names_bodies_forms_and_problems(http: httpx.AsyncClient) -> None:
    described = (await http.get("/openapi.json")).json()
    paths = described["paths"]
    assert set(paths) == {
        "/v1/collections",
        "/v1/collections/{collection}",
        "/v1/collections/{collection}/images",
        "/v1/collections/{collection}/images/{image_id}",
        "/v1/collections/{collection}/images/{image_id}/content",
        "/v1/collections/{collection}/dead-letters",
        "/v1/collections/{collection}/dead-letters/redrive",
        "/v1/collections/{collection}/dead-letters/drop",
        "/v1/collections/{collection}/dead-letters/{letter_id}",
        "/v1/collections/{collection}/dead-letters/{letter_id}/redrive",
        "/v1/collections/{collection}/search",
        "/v1/collections/{collection}/search/batch",
        "/v1/collections/{collection}/clicks",
        "/v1/keys",
        "/v1/keys/{key_id}",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    for path in ("images", "search"):
        body = paths[f"/v1/collections/{{collection}}/{path}"]["post"]["requestBody"]["content"]
        assert set(body) == {"multipart/form-data", "application/json"}
    for path, operations in paths.items():
        if path.startswith("/v1"):
            for operation in operations.values():
                assert {"400", "503"} <= operation["responses"].keys()
                problem = operation["responses"]["400"]["content"]
                assert set(problem) == {"application/problem+json"}
    text = json.dumps(described)
    references = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert references <= described["components"]["schemas"].keys()
    assert "HTTPValidationError" not in text


async def test_the_app_closes_what_it_depends_on(system: FakeSystem) -> None:
    app = create_app(system.dependencies())
    async with app.router.lifespan_context(app):
        assert system.closed == []
    assert sorted(system.closed) == ["admin", "events", "keys", "letters", "registry"]
