"""Answers by words over HTTP, on fakes: where vectors cannot, and together with them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from actors.messages import Candidate, Freshness, LexicalQuery, LexicalSearch, ShardSearchResult
from contract.errors import ShardUnavailable
from serving.app import create_app
from serving.dependencies import Shard
from serving.gathering import BATCH_MAX
from serving.lexical import LexicalFanOut
from serving.schemas import SearchAnswer
from tests.unit.serving_fakes import FakeSystem, make_system, picture
from tests.unit.test_serving_api_images import assert_problem, upload
from tests.unit.virtual_time import in_virtual_time

SEARCH = "/v1/collections/images/search"
CAPTIONS = {"red": "a fire engine", "green": "a frog", "blue": "the sea and a boat", "white": "snow on a red roof"}
WHOLE = {"shards_total": 4, "shards_answered": 4}


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return make_system(tmp_path, search_limit_max=50)


@pytest.fixture
async def http(system: FakeSystem) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(system.dependencies()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for colour, caption in CAPTIONS.items():
            payload = json.dumps({"caption": caption, "owner": "ada" if colour == "red" else "bob"})
            assert (await upload(client, picture(colour), id=colour, payload=payload)).is_success
        yield client


async def search(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await http.post(SEARCH, json=body)
    assert response.status_code == 200, response.text
    answer = dict(response.json())
    SearchAnswer.model_validate(answer)
    return answer


def ids(answer: dict[str, Any]) -> list[str]:
    return [hit["id"] for hit in answer["hits"]]


def embedder(system: FakeSystem) -> Any:
    return system.embedder("fake", "query", 1)


async def test_without_an_encoder_the_words_answer_and_the_answer_says_so(
    http: httpx.AsyncClient, system: FakeSystem
) -> None:
    embedder(system).down = True
    answer = await search(http, text="red roof", limit=2)
    assert answer["coverage"] == {**WHOLE, "degraded": "metadata"}
    assert ids(answer) == ["white"]
    assert answer["hits"][0]["payload"]["caption"] == CAPTIONS["white"]
    assert answer["confidence"]["reason"] == "not_calibrated"
    assert answer["freshness"]["applied_offsets"].keys() == {"0", "1", "2", "3"}
    got = await http.get(SEARCH, params={"text": "boat"})
    assert (ids(got.json()), got.json()["coverage"]["degraded"]) == (["blue"], "metadata")
    metrics = (await http.get("/metrics")).text
    assert 'riverlens_searches_total{degraded="metadata",kind="text"} 2.0' in metrics
    embedder(system).down = False
    whole = await search(http, text="red", limit=1)
    assert (ids(whole), whole["coverage"]["degraded"]) == (["red"], False)


async def test_answers_by_words_honour_filter_limit_offset_and_payload(
    http: httpx.AsyncClient, system: FakeSystem
) -> None:
    embedder(system).down = True
    everything = ids(await search(http, text="a on the"))
    assert sorted(everything) == sorted(CAPTIONS)
    assert ids(await search(http, text="a on the", limit=2, offset=1)) == everything[1:3]
    ada = {"must": [{"key": "owner", "match": {"value": "ada"}}]}
    assert ids(await search(http, text="a on the", filter=ada)) == ["red"]
    bare = await search(http, text="frog", with_payload=False)
    assert [hit["payload"] for hit in bare["hits"]] == [None]
    # A threshold is meant for cosines.
    assert ids(await search(http, text="frog", score_threshold=7.0)) == ["green"]
    assert (await search(http, text="nothing"))["no_confident_match"]


async def test_an_encoder_that_hangs_is_not_waited_for_for_long(http: httpx.AsyncClient, system: FakeSystem) -> None:
    cached = await search(http, text="red", limit=1)
    assert cached["coverage"]["degraded"] is False
    hanging = embedder(system)

    async def never(texts: Any) -> Any:
        await asyncio.Event().wait()

    hanging.encode_texts = never
    transport = httpx.ASGITransport(create_app(make_hurried(system)))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as hurried:
        for text in ("frog", "boat"):
            assert (await search(hurried, text=text))["coverage"]["degraded"] == "metadata"
    # What lies in the cache needs no encoder.
    assert (await search(http, text="red", limit=1))["coverage"]["degraded"] is False


def make_hurried(system: FakeSystem) -> Any:
    object.__setattr__(system.settings, "encode_deadline_ms", 20)
    return system.dependencies()


@pytest.mark.parametrize("body", [{"text": "red", "image_id": "blue"}, {"text": "red", "negative": [{"text": "sea"}]}])
async def test_words_answer_only_what_is_asked_in_words_alone(
    http: httpx.AsyncClient, system: FakeSystem, body: dict[str, Any]
) -> None:
    embedder(system).down = True
    assert_problem(await http.post(SEARCH, json=body), 503, "embedder_unavailable", retryable=True)
    form = await http.post(SEARCH, files={"image": picture("red")})
    assert_problem(form, 503, "embedder_unavailable", retryable=True)


async def test_where_no_shard_searches_by_vector_the_words_answer(http: httpx.AsyncClient, system: FakeSystem) -> None:
    for shard in system.shards.values():
        shard.vectorless = True
    answer = await search(http, text="frog")
    assert (ids(answer), answer["coverage"]) == (["green"], {**WHOLE, "degraded": "metadata"})
    assert answer["confidence"] == {"probability": None, "reason": "not_calibrated"}
    assert_problem(await http.post(SEARCH, json={"image_id": "red"}), 503, "shard_unavailable", retryable=True)


async def test_one_shard_of_many_makes_a_partial_answer_of_either_kind(
    http: httpx.AsyncClient, system: FakeSystem
) -> None:
    (owner,) = system.owners("images", "red")
    owner.down = True
    by_vector = await search(http, text="red")
    assert by_vector["coverage"] == {"shards_total": 4, "shards_answered": 3, "degraded": True}
    embedder(system).down = True
    by_words = await search(http, text="a on the")
    assert by_words["coverage"] == {"shards_total": 4, "shards_answered": 3, "degraded": "metadata"}
    assert "red" not in ids(by_words)


async def test_with_nothing_left_the_answer_is_a_retryable_problem(http: httpx.AsyncClient, system: FakeSystem) -> None:
    for shard in system.shards.values():
        shard.down = True
    assert_problem(await http.post(SEARCH, json={"text": "red"}), 503, "shard_unavailable", retryable=True)
    embedder(system).down = True
    assert_problem(await http.post(SEARCH, json={"text": "blue"}), 503, "shard_unavailable", retryable=True)


async def test_a_search_with_a_receipt_has_the_words_take_it_in(http: httpx.AsyncClient, system: FakeSystem) -> None:
    embedder(system).down = True
    receipt = (await upload(http, picture("red"), "logged", id="fresh", payload='{"caption": "brandnew"}')).json()
    assert ids(await search(http, text="brandnew", min_receipt=receipt["receipt"])) == ["fresh"]
    assert all(shard.lexical_searches[-1].fresh for shard in system.shards.values())
    await search(http, text="brandnew")
    assert not any(shard.lexical_searches[-1].fresh for shard in system.shards.values())


async def test_a_hybrid_search_finds_by_vector_and_by_words(http: httpx.AsyncClient) -> None:
    by_vector = await search(http, text="red", limit=4)
    assert ids(by_vector)[0] == "red"
    assert "white" not in ids(by_vector)[:2]
    hybrid = await search(http, text="red", hybrid=True, limit=4)
    # First by vector, and first by words: the caption of the white picture has the word.
    assert set(ids(hybrid)[:2]) == {"red", "white"}
    assert hybrid["coverage"] == {**WHOLE, "degraded": False}
    assert hybrid["hits"][0]["score"] < 1 / 60
    words = await search(http, text="red", hybrid={"fusion": "weighted", "lexical_weight": 1.0})
    assert ids(words) == ["white"]
    got = await http.get(SEARCH, params={"text": "red", "hybrid": '{"lexical_weight": 1}'})
    assert ids(got.json()) == ["white"]
    form = await http.post(SEARCH, data={"text": "red", "hybrid": "true", "limit": "4"})
    assert ids(form.json()) == ids(hybrid)
    off = await search(http, text="red", hybrid=False, limit=4)
    assert ids(off) == ids(by_vector)


async def test_the_threshold_of_a_hybrid_search_is_of_its_fused_scores(http: httpx.AsyncClient) -> None:
    scores = [hit["score"] for hit in (await search(http, text="red", hybrid=True))["hits"]]
    some = await search(http, text="red", hybrid=True, score_threshold=scores[1])
    assert [hit["score"] for hit in some["hits"]] == [score for score in scores if score >= scores[1]]


async def test_what_a_hybrid_search_lacks_it_says(http: httpx.AsyncClient, system: FakeSystem) -> None:
    (owner,) = system.owners("images", "white")
    owner.wordless = True
    partly = await search(http, text="red", hybrid=True)
    assert partly["coverage"] == {"shards_total": 4, "shards_answered": 3, "degraded": True}
    for shard in system.shards.values():
        shard.wordless = True
    without_words = await search(http, text="red", hybrid=True, limit=4)
    assert without_words["coverage"] == {**WHOLE, "degraded": True}
    assert ids(without_words)[0] == "red"
    for shard in system.shards.values():
        shard.wordless, shard.vectorless = False, True
    without_vectors = await search(http, text="red", hybrid=True)
    assert (ids(without_vectors), without_vectors["coverage"]["degraded"]) == (["white"], "metadata")
    for shard in system.shards.values():
        shard.vectorless = False
    embedder(system).down = True
    without_encoder = await search(http, text="frog", hybrid=True)
    assert (ids(without_encoder), without_encoder["coverage"]["degraded"]) == (["green"], "metadata")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"image_id": "red", "hybrid": True}, "hybrid"),
        ({"text": "x", "text_weight": -1, "image_id": "red", "hybrid": True}, "hybrid"),
        ({"text": "x", "hybrid": {"fusion": "sum"}}, "fusion"),
        ({"text": "x", "hybrid": {"lexical_weight": 1.5}}, "lexical_weight"),
        ({"text": "x", "hybrid": {"weight": 1}}, "weight"),
        ({"text": "x", "hybrid": "yes"}, "hybrid"),
    ],
)
async def test_hybrid_searches_that_cannot_be_say_why(http: httpx.AsyncClient, body: dict[str, Any], word: str) -> None:
    assert word in assert_problem(await http.post(SEARCH, json=body), 400, "invalid_request")["detail"]


class GatedShard:
    """Answers when its gate is open."""

    def __init__(self, name: str, *, open_gate: bool = True, error: Exception | None = None) -> None:
        self.name = name
        self.gate = asyncio.Event()
        if open_gate:
            self.gate.set()
        self.error = error
        self.requests: list[LexicalSearch] = []

    async def search_lexical(self, request: LexicalSearch) -> ShardSearchResult:
        self.requests.append(request)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        rows = tuple((Candidate(f"{self.name}-{query.text}", 1.0, None),) for query in request.queries)
        return ShardSearchResult(rows, Freshness({int(self.name): 7}, 0.0))


def fan_out(*shards: list[GatedShard], deadline_s: float = 3600.0) -> LexicalFanOut:
    typed: list[list[Shard]] = [list(replicas) for replicas in shards]  # type: ignore[arg-type]
    return LexicalFanOut(typed, deadline_s)


async def test_queries_that_come_meanwhile_share_the_next_call() -> None:
    shard = GatedShard("0", open_gate=False)
    asking = fan_out([shard])
    first = [asyncio.create_task(asking.search(LexicalQuery(f"{n}", 1))) for n in range(2)]
    for _ in range(5):
        await asyncio.sleep(0)
    rest = [asyncio.create_task(asking.search(LexicalQuery(f"{n}", 1))) for n in range(2, 2 + BATCH_MAX + 3)]
    for _ in range(5):
        await asyncio.sleep(0)
    before = len(shard.requests)
    assert before <= 2
    shard.gate.set()
    answers = await asyncio.gather(*first, *rest)
    assert [answer.candidates[0][0].image_id for answer in answers] == [f"0-{n}" for n in range(len(answers))]
    assert len(shard.requests) <= before + 2
    assert (await asking.search(LexicalQuery("later", 1))).candidates[0][0].image_id == "0-later"


@in_virtual_time
async def test_replicas_stand_in_for_each_other_and_gaps_are_counted() -> None:
    dead, broken = GatedShard("0", error=ShardUnavailable("gone")), GatedShard("1", error=RuntimeError("a bug"))
    late = GatedShard("2", open_gate=False)
    asking = fan_out([dead, GatedShard("0")], [broken], [late], deadline_s=0.05)
    for _ in range(3):
        answer = await asking.search(LexicalQuery("x", 1))
        assert (answer.coverage.shards_total, answer.coverage.shards_answered) == (3, 1)
        assert answer.freshness.applied_offsets == {0: 7}
    with pytest.raises(ShardUnavailable):
        await fan_out([broken], [late], deadline_s=0.05).search(LexicalQuery("x", 1))


async def test_a_caller_that_goes_away_leaves_the_others_alone() -> None:
    shard = GatedShard("0", open_gate=False)
    asking = fan_out([shard])
    tasks = [asyncio.create_task(asking.search(LexicalQuery(text, 1))) for text in ("a", "b")]
    for _ in range(5):
        await asyncio.sleep(0)
    tasks[0].cancel()
    shard.gate.set()
    assert (await tasks[1]).candidates[0][0].image_id == "0-b"


async def test_searches_of_one_request_fall_back_each_for_itself(http: httpx.AsyncClient, system: FakeSystem) -> None:
    await search(http, text="red", limit=1)
    embedder(system).down = True
    searches = [{"text": "red", "limit": 1}, {"text": "frog"}, {"text": "boat", "hybrid": True}]
    response = await http.post(f"{SEARCH}/batch", json={"searches": searches})
    answers = response.json()["answers"]
    assert [ids(answer) for answer in answers] == [["red"], ["green"], ["blue"]]
    assert [answer["coverage"]["degraded"] for answer in answers] == [False, "metadata", "metadata"]
