"""Every metric that is declared is told, and every request leaves one line that says what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import structlog
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from actors.messages import DelayHistogram, MachineState, ShardStatus
from contract import telemetry
from contract.events import DeadLetter
from contract.telemetry import DELAY_BUCKETS_S, METRICS, LogField
from serving.app import create_app
from streams import metrics as ingest_metrics
from tests.unit.serving_fakes import FakeShard, FakeSystem, make_system, picture
from tests.unit.test_serving_api_images import upload

SEARCH = "/v1/collections/images/search"
# Counted in the ingest process, which shows them on a port of its own.
INGEST = {telemetry.EVENTS.name, telemetry.INGEST_STAGE_SECONDS.name, telemetry.DEAD_LETTERS.name}

LETTER = DeadLetter(
    collection="images",
    image_id="a",
    stage="fetch",
    code="object_store_unavailable",
    reason="away",
    retryable=True,
    attempts=5,
    source_topic="t",
    source_partition=0,
    source_offset=0,
    event=b"",
    failed_at_ms=0,
)


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return make_system(tmp_path, search_deadline_ms=500)


@pytest.fixture
async def http(system: FakeSystem) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(system.dependencies()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for colour in ("red", "blue"):
            assert (await upload(client, picture(colour), id=colour)).is_success
        yield client


async def samples(http: httpx.AsyncClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = (await http.get("/metrics")).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def value(http: httpx.AsyncClient, name: str, **labels: str) -> float:
    return (await samples(http)).get((name, frozenset(labels.items())), 0.0)


class FullShard(FakeShard):
    """A shard that has everything to tell."""

    async def status(self) -> ShardStatus:
        counts = (0, 2, 1, *[0] * (len(DELAY_BUCKETS_S) - 3), 1)
        return msgspec.structs.replace(
            await super().status(),
            recall_at_10=0.97,
            recall_samples=4,
            snapshot_at_ms=1,
            upload_to_searchable=DelayHistogram(DELAY_BUCKETS_S, counts, 61.5),
            started_at_ms=1_500,
            machine=MachineState(
                resident_bytes=1, memory_bytes=2, memory_available_bytes=3, disk_bytes=4, disk_free_bytes=5
            ),
        )


async def test_every_declared_metric_is_told_with_its_labels(http: httpx.AsyncClient, system: FakeSystem) -> None:
    for shard in system.shards.values():
        shard.__class__ = FullShard
    await http.post(SEARCH, json={"text": "red"})
    ingest_metrics.count_event("published")
    ingest_metrics.count_upload("embedded")
    ingest_metrics.count_letter(LETTER)
    with ingest_metrics.stage_timer("decode"):
        pass
    served = list(text_string_to_metric_families((await http.get("/metrics")).text))
    families = {family.name: family for family in [*served, *(f for f in REGISTRY.collect() if "riverlens" in f.name)]}
    assert {metric.name for metric in METRICS if metric.name.removesuffix("_total") not in families} == set()
    for metric in METRICS:
        family = families[metric.name.removesuffix("_total")]
        assert family.type == metric.kind
        assert family.documentation == metric.help
        assert family.samples, f"{metric.name} has nothing to say"
        assert set(family.samples[0].labels) - {"le"} == set(metric.labels), metric.name
    # The client library adds the time when each series began.
    told = {family.name for family in served if not family.name.endswith("_created")}
    undeclared = told - {metric.name.removesuffix("_total") for metric in METRICS}
    assert {name for name in undeclared if not name.startswith("process_")} == set(), "the client library's own"
    assert not INGEST & {family.name for family in served}


async def test_delays_of_a_shard_are_a_histogram(http: httpx.AsyncClient, system: FakeSystem) -> None:
    for shard in system.shards.values():
        shard.__class__ = FullShard
    name = telemetry.UPLOAD_TO_SEARCHABLE_SECONDS.name
    place = {"collection": "images", "shard": "1", "replica": "0"}
    found = await samples(http)
    by_bound = {
        dict(labels)["le"]: value
        for (sample, labels), value in found.items()
        if sample == f"{name}_bucket" and place.items() <= dict(labels).items()
    }
    assert (by_bound["0.05"], by_bound["0.1"], by_bound["0.2"], by_bound["+Inf"]) == (0, 2, 3, 4)
    assert found[f"{name}_sum", frozenset(place.items())] == 61.5
    await http.delete("/v1/collections/images")
    assert not any(sample.startswith(name) for sample, _ in await samples(http)), "it leaves with its collection"


async def test_a_replica_that_is_down_is_told_and_has_nothing_else_to_tell(
    http: httpx.AsyncClient, system: FakeSystem
) -> None:
    system.shards["images", 1, 0].down = True
    down, up = ({"collection": "images", "shard": shard, "replica": "0"} for shard in "12")
    assert await value(http, telemetry.REPLICA_READY.name, **up) == 1
    found = await samples(http)
    assert found[telemetry.REPLICA_READY.name, frozenset(down.items())] == 0
    assert (telemetry.STORE_BYTES.name, frozenset(up.items())) in found
    assert (telemetry.STORE_BYTES.name, frozenset(down.items())) not in found
    embedders = {dict(labels)["role"]: count for (name, labels), count in found.items() if "embedder_ready" in name}
    assert embedders == {"ingest": 1, "query": 1}


async def test_scrapes_side_by_side_are_whole(http: httpx.AsyncClient) -> None:
    pages = await asyncio.gather(*(http.get("/metrics") for _ in range(5)))
    assert [page.text.count(f"{telemetry.POINTS.name}{{") for page in pages] == [4] * 5


async def test_the_hit_rate_of_the_query_cache_can_be_told(http: httpx.AsyncClient) -> None:
    for _ in range(3):
        await http.post(SEARCH, json={"text": "red"})
    for _ in range(2):
        await http.post(SEARCH, files={"image": picture("blue")})
    await http.post(SEARCH, files={"image": picture("blue")}, data={"crop": "0,0,0.5,1"})
    name = telemetry.QUERY_CACHE.name
    assert await value(http, name, kind="text", result="hit") == 2
    assert await value(http, name, kind="text", result="miss") == 1
    assert await value(http, name, kind="image", result="hit") == 1
    assert await value(http, name, kind="image", result="miss") == 2, "a crop is another query"
    assert await value(http, telemetry.QUERY_CACHE_ENTRIES.name) == 3


async def test_calls_to_shards_are_told_apart_by_what_became_of_them(
    http: httpx.AsyncClient, system: FakeSystem
) -> None:
    await http.post(SEARCH, json={"text": "red"})
    system.shards["images", 1, 0].down = True
    system.shards["images", 2, 0].gate = asyncio.Event()

    async def fail(_: object) -> None:
        raise RuntimeError("on purpose")

    system.shards["images", 3, 0].search = fail  # type: ignore[method-assign,assignment]
    await http.post(SEARCH, json={"text": "red"})
    found = await samples(http)

    def outcomes(shard: str) -> dict[str, float]:
        name = telemetry.SHARD_CALLS.name
        return {
            dict(labels)["outcome"]: count
            for (sample, labels), count in found.items()
            if sample == name and dict(labels)["shard"] == shard
        }

    assert outcomes("0") == {"answered": 2}
    assert outcomes("1") == {"answered": 1, "unavailable": 1}
    assert outcomes("2") == {"answered": 1, "late": 1}
    assert outcomes("3") == {"answered": 1, "failed": 1}
    labels = frozenset({("collection", "images")})
    coverage = telemetry.COVERAGE_RATIO.name
    assert (found[f"{coverage}_sum", labels], found[f"{coverage}_count", labels]) == (1.25, 2)
    assert found[telemetry.SHARD_CALLS_IN_FLIGHT.name, labels] == 0
    assert found[telemetry.FAN_OUT_BATCHES.name, labels] == found[telemetry.FAN_OUT_QUERIES.name, labels] == 2
    seconds = frozenset({("collection", "images"), ("shard", "2")})
    assert found[f"{telemetry.SHARD_CALL_SECONDS.name}_count", seconds] == 2


async def test_requests_are_counted_by_route_never_by_address(http: httpx.AsyncClient) -> None:
    await http.get("/v1/collections/images/images/red")
    await http.get("/v1/collections/images/images/nobody")
    await http.get("/wp-admin/setup.php")
    await http.request("BREW", "/healthz")
    name, route = telemetry.HTTP_REQUESTS.name, "/v1/collections/{collection}/images/{image_id}"
    assert await value(http, name, method="GET", route=route, status="200") == 1
    assert await value(http, name, method="GET", route=route, status="404") == 1
    assert await value(http, name, method="GET", route="none", status="404") == 1
    assert {dict(labels)["method"] for (sample, labels) in await samples(http) if sample == name} == {
        "GET", "POST", "other"
    }  # fmt: skip
    assert await value(http, telemetry.HTTP_IN_FLIGHT.name) == 1, "the request for the metrics itself"


async def lines_of(http: httpx.AsyncClient, method: str, path: str, **options: Any) -> list[Any]:
    with structlog.testing.capture_logs() as lines:
        await http.request(method, path, **options)
    return [line for line in lines if line["event"] == "request"]


async def test_a_search_leaves_one_line_that_says_all(http: httpx.AsyncClient, system: FakeSystem) -> None:
    await lines_of(http, "POST", SEARCH, json={"text": "red"})
    system.shards["images", 0, 0].down = True
    (line,) = await lines_of(
        http, "POST", SEARCH, json={"text": "red", "limit": 3, "offset": 1}, headers={"X-Request-ID": "mine"}
    )
    took = line.pop(LogField.TOOK_MS)
    assert {"encode", "fan_out", "merge", "rerank", "total"} <= set(took)
    assert line.pop(LogField.DURATION_S) > 0
    assert line.pop(LogField.BYTES) > 100
    assert line.pop(LogField.HITS) <= 1
    assert line == {
        "event": "request",
        "log_level": "info",
        LogField.METHOD: "POST",
        LogField.ROUTE: "/v1/collections/{collection}/search",
        LogField.STATUS: 200,
        LogField.COLLECTION: "images",
        LogField.REQUEST_ID: "mine",
        LogField.REQUEST_BYTES: len(b'{"text":"red","limit":3,"offset":1}'),
        LogField.KIND: "text",
        LogField.K: 4,
        LogField.CACHE_HIT: True,
        LogField.COVERAGE: "3/4",
    }


async def test_a_request_of_many_searches_leaves_one_line(http: httpx.AsyncClient) -> None:
    searches = [{"text": "red"}, {"image_id": "blue"}, {"image_id": "nobody"}]
    await http.post(SEARCH, json={"text": "red"})
    (line,) = await lines_of(http, "POST", f"{SEARCH}/batch", json={"searches": searches})
    assert (line[LogField.KIND], line[LogField.COUNT], line[LogField.PROBLEMS]) == ("batch", 3, 1)
    assert (line[LogField.CACHE_HITS], line[LogField.COVERAGE]) == (1, "4/4")
    assert LogField.TOOK_MS not in line, "each answer has its own times"


@pytest.mark.parametrize(
    ("body", "status"), [({}, 400), ({"image_id": "nobody"}, 404), ({"text": "x", "limit": 10**6}, 400)]
)
async def test_a_request_that_failed_leaves_its_line_too(
    http: httpx.AsyncClient, body: dict[str, Any], status: int
) -> None:
    (line,) = await lines_of(http, "POST", SEARCH, json=body)
    assert line[LogField.STATUS] == status
    assert LogField.COVERAGE not in line


@pytest.mark.parametrize(
    ("access_log", "lines"),
    [
        ("all", [("info", 200), ("info", 404), ("warning", 503)]),
        ("failed", [("warning", 503)]),
        ("none", []),
    ],
)
async def test_a_setting_says_which_requests_leave_a_line(
    tmp_path: Path, access_log: str, lines: list[tuple[str, int]]
) -> None:
    system = make_system(tmp_path, access_log=access_log)
    app = create_app(system.dependencies())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        left = await lines_of(http, "POST", SEARCH, json={"text": "red"})
        left += await lines_of(http, "POST", SEARCH, json={"image_id": "nobody"})
        for shard in system.shards.values():
            shard.down = True
        left += await lines_of(http, "POST", SEARCH, json={"text": "red"})
    assert [(line["log_level"], line[LogField.STATUS]) for line in left] == lines


async def test_side_by_side_requests_never_mix_their_lines(http: httpx.AsyncClient) -> None:
    with structlog.testing.capture_logs() as lines:
        await asyncio.gather(
            *(
                http.post(SEARCH, json={"text": f"red {n}", "limit": n}, headers={"X-Request-ID": str(n)})
                for n in (1, 2, 3)
            )
        )
    found = {line[LogField.REQUEST_ID]: line[LogField.K] for line in lines if line["event"] == "request"}
    assert found == {"1": 1, "2": 2, "3": 3}
