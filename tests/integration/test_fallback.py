"""Words answer while embedders and shards are killed; the index of words follows the log and survives."""

from __future__ import annotations

import itertools
import json
import os
import signal
import uuid
from typing import Any

import pytest

from tests.integration.pictures import new_picture
from tests.integration.system import RunningSystem, eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

BY_WORDS = {"lexical_weight": 1.0}


@pytest.fixture(scope="module")
def worded(system: RunningSystem) -> dict[str, Any]:
    """Pictures with words that nothing else in the system has: id → payload."""
    payloads: dict[str, Any] = {
        "zeppelin": {"caption": "A zeppelin over the harbour", "tags": ["airship"], "owner": "ada"},
        "marmalade": {"caption": "Breakfast", "tags": ["marmalade", "toast"], "owner": "bob"},
        "harbour": {"caption": "Boats in a harbour", "file_name": "IMG_4711_quay.png", "owner": "bob"},
    }
    for number, (image_id, payload) in enumerate(payloads.items()):
        uploaded = system.upload(new_picture(62900 + number), id=image_id, payload=json.dumps(payload))
        assert uploaded.json()["status"] == "searchable", uploaded.text
    return payloads


def ids(answer: dict[str, Any]) -> list[str]:
    return [hit["id"] for hit in answer["hits"]]


def found(system: RunningSystem, words: str, **body: Any) -> list[str]:
    """What the words of a hybrid search find, as soon as every index has them."""
    answer = eventually(
        lambda: next(
            (a for a in [system.search(text=words, hybrid=BY_WORDS, **body)] if not a["coverage"]["degraded"]), None
        ),
        60,
    )
    return ids(answer)


def test_words_of_caption_tags_and_file_name_are_found(system: RunningSystem, worded: dict[str, Any]) -> None:
    assert found(system, "zeppelins") == ["zeppelin"]
    assert found(system, "marmalade") == ["marmalade"]
    assert found(system, "4711 quay") == ["harbour"]
    assert sorted(found(system, "harbour")) == ["harbour", "zeppelin"]
    ada = {"must": [{"key": "owner", "match": {"value": "ada"}}]}
    assert found(system, "harbour", filter=ada) == ["zeppelin"]
    both = system.search(text="zeppelin", hybrid=True, limit=100)
    assert ids(both)[0] == "zeppelin"
    assert set(worded) <= set(ids(both)), "the half by vector finds what has none of the words"


def test_changes_and_deletions_reach_the_words(system: RunningSystem, worded: dict[str, Any]) -> None:
    data = new_picture(62950)
    assert system.upload(data, id="changing", payload='{"caption": "obelisk"}').json()["status"] == "searchable"
    assert found(system, "obelisk") == ["changing"]
    path = "/v1/collections/images/images/changing"
    changed = system.http.patch(path, json={"payload": {"caption": "pagoda"}}).json()
    receipt = changed["receipt"]
    assert found(system, "pagoda", min_receipt=receipt) == ["changing"]
    assert found(system, "obelisk", min_receipt=receipt) == []
    deleted = system.http.delete(path).json()
    assert found(system, "pagoda", min_receipt=deleted["receipt"]) == []


def with_words(system: RunningSystem) -> dict[int, int]:
    """Points with words, by shard."""
    return {shard["shard"]: shard["lexical_points"] for shard in system.collection()["shards"]}


def test_words_answer_while_embedders_and_a_shard_are_killed(system: RunningSystem, worded: dict[str, Any]) -> None:
    # Words that stand nowhere: the collection holds pictures of other tests, too.
    others = (uuid.uuid4().hex for _ in itertools.count())

    def kill_embedders() -> None:
        for embedder in system.collection()["embedders"]:
            if embedder["role"] == "query" and embedder["pid"] is not None:
                os.kill(embedder["pid"], signal.SIGKILL)

    def by_words() -> dict[str, Any] | None:
        # Never the same text twice: what was encoded before needs no embedder.
        answer = system.search(text=f"zeppelin harbour {next(others)}", limit=3)
        if answer["coverage"]["degraded"] != "metadata":
            kill_embedders()
            return None
        return answer

    # Not the points: those of other tests may have no words.
    worded_points = with_words(system)
    kill_embedders()
    answer = eventually(by_words, 120)
    assert answer["coverage"] == {"shards_total": 4, "shards_answered": 4, "degraded": "metadata"}
    assert ids(answer)[:2] == ["zeppelin", "harbour"]
    assert answer["hits"][0]["payload"] == worded["zeppelin"]

    # A shard dies as well: the words of the others go on answering.
    again = system.upload(new_picture(62900), wait="logged", id="zeppelin", payload=json.dumps(worded["zeppelin"]))
    partition = again.json()["receipt"]["partition"]

    def kill_owner() -> None:
        for shard in system.collection()["shards"]:
            if str(partition) in shard["applied_offsets"] and shard["pid"] is not None:
                os.kill(shard["pid"], signal.SIGKILL)

    def partial() -> dict[str, Any] | None:
        # Killed again each time: the shard may be back before the embedders are dead.
        kill_owner()
        answer = by_words()
        return answer if answer is not None and answer["coverage"]["shards_answered"] < 4 else None

    answer = eventually(partial, 60)
    assert answer["coverage"] == {"shards_total": 4, "shards_answered": 3, "degraded": "metadata"}
    assert "zeppelin" not in ids(answer)

    # Both come back by themselves, and the shard has made its index of words anew.
    def whole() -> bool:
        answer = system.search(text=f"zeppelin harbour {next(others)}", hybrid=BY_WORDS, limit=3)
        return bool(answer["coverage"] == {"shards_total": 4, "shards_answered": 4, "degraded": False})

    eventually(whole, 180, 0.5)
    assert found(system, "zeppelin") == ["zeppelin"]
    assert with_words(system) == worded_points
