"""One test per promise of the decisions in docs/architecture.md, on the whole running system."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.pictures import new_picture
from tests.integration.system import RunningSystem, eventually, kafka_can_run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

needs_kafka = pytest.mark.skipif(
    not kafka_can_run(),
    reason="a log that survives a restart needs Apache Kafka: Java 17 and Maven",
)
FreshSystem = Callable[..., RunningSystem]


def _process(running: RunningSystem, module: str) -> int:
    """Pid of one process of this very system, found by its command among the children of `up`."""
    assert running.process is not None
    listing = subprocess.run(
        ["ps", "-eo", "pid=,sid=,args="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for line in listing:
        pid, _, args = line.split(None, 2)
        if f"-m {module}" in args and "sh -c" not in args and _belongs(int(pid), running.home):
            return int(pid)
    raise AssertionError(f"no process runs {module}")


def _belongs(pid: int, home: Path) -> bool:
    return f"RIVERLENS_HOME={home}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def _ids(running: RunningSystem) -> list[str]:
    return sorted(hit["id"] for hit in running.search(text="a shape", limit=100)["hits"])


@needs_kafka
def test_restart_wiped_shard_and_wiped_broker(fresh_system: FreshSystem) -> None:
    """Decisions 1 to 3: a shard is a view of the log; repeats have no effect; a log has an identity."""
    running = fresh_system("promises", "kafka")
    running.start()
    uploads = {f"kept-{n}": new_picture(100 + n) for n in range(8)}
    for image_id, data in uploads.items():
        assert running.upload(data, id=image_id).json()["status"] == "searchable"
    running.http.delete("/v1/collections/images/images/kept-0", params={"wait": "searchable"})
    uploads.pop("kept-0")
    before = _ids(running)
    assert before == sorted(uploads)
    assert running.stop() == 0

    # Decision 1: the stores are gone, the log is not.
    shutil.rmtree(running.home / "shards")
    running.start()
    assert _ids(running) == before

    # Decision 2: the ingest process dies with work on its hands; everything logged becomes searchable, once.
    more = {f"more-{n}": new_picture(200 + n) for n in range(12)}
    for image_id, data in more.items():
        assert running.upload(data, wait="logged", id=image_id).is_success
    killed = _process(running, "streams.worker")
    os.kill(killed, signal.SIGKILL)
    uploads |= more
    eventually(lambda: _ids(running) == sorted(uploads), 120, 0.5)
    assert sum(s["points"] for s in running.collection()["shards"]) == len(uploads)
    for image_id, data in more.items():
        assert running.search_picture(data, limit="1")["hits"][0]["id"] == image_id
    assert _process(running, "streams.worker") != killed, "`up` starts a part that was killed again"
    assert running.stop() == 0

    # Decision 3: another log under the same names. Its offsets mean nothing to the stores that are still there.
    shutil.rmtree(running.home / "kafka")
    running.start()
    assert _ids(running) == []
    assert running.upload(uploads["kept-1"], id="new-life").json()["status"] == "searchable"
    assert _ids(running) == ["new-life"]
    assert running.stop() == 0


def test_receipt_means_findable(system: RunningSystem) -> None:
    """Decision 4: applied_offset >= receipt means the image is findable; a reader may demand it."""
    data = new_picture(301)
    receipt = system.upload(data, wait="logged", id="awaited").json()["receipt"]
    answer = system.search_picture(
        data, limit="1", min_receipt=f'{{"partition": {receipt["partition"]}, "offset": {receipt["offset"]}}}'
    )
    assert answer["hits"][0]["id"] == "awaited"
    assert answer["freshness"]["applied_offsets"][str(receipt["partition"])] >= receipt["offset"]


def test_under_load_every_reader_finds_what_it_uploaded(system: RunningSystem) -> None:
    """Decision 4, with receipts of several partitions at once and many readers side by side."""
    pictures = {f"loaded-{n}": new_picture(330 + n) for n in range(12)}

    def upload_and_search(image_id: str) -> dict[str, int]:
        data = pictures[image_id]
        receipt: dict[str, int] = system.upload(data, wait="logged", id=image_id).json()["receipt"]
        answer = eventually(lambda: _found_by(system, data, receipt), 90)
        assert answer["hits"][0]["id"] == image_id
        assert answer["freshness"]["applied_offsets"][str(receipt["partition"])] >= receipt["offset"]
        return receipt

    with ThreadPoolExecutor(6) as pool:
        receipts = list(pool.map(upload_and_search, pictures))
    assert len({receipt["partition"] for receipt in receipts}) > 1
    answer = system.search(image_id="loaded-0", limit=1000, min_receipt=receipts)
    assert set(pictures) <= {hit["id"] for hit in answer["hits"]}

    def delays() -> float:
        page = system.http.get("/metrics").text
        counts = re.findall(r"^riverlens_upload_to_searchable_seconds_count\{.*\} (.*)$", page, re.M)
        return sum(map(float, counts))

    assert delays() >= len(pictures)
    eventually(lambda: system.search(image_id="loaded-0")["freshness"]["staleness_s"] == 0.0, 30)


def _found_by(system: RunningSystem, data: bytes, receipt: dict[str, int]) -> dict[str, Any] | None:
    """The answer to a search that demands a receipt; None when its bounded wait was too short, which it says."""
    response = system.http.post(
        "/v1/collections/images/search",
        files={"image": ("query.png", data)},
        data={"limit": "1", "min_receipt": json.dumps([receipt])},
    )
    if response.status_code == 504:
        assert response.json()["code"] == "not_searchable_in_time"
        return None
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_a_rejected_reupload_leaves_the_good_picture(system: RunningSystem) -> None:
    """Decision 4: a rejection has a key of its own."""
    data = new_picture(302)
    assert system.upload(data, id="good").json()["status"] == "searchable"
    assert system.upload(data[: len(data) // 2], id="good").status_code == 422
    assert system.search_picture(data, limit="1")["hits"][0]["id"] == "good"


def test_a_dead_shard_is_counted_and_comes_back(system: RunningSystem) -> None:
    """Decision 5: a partial answer says so; the supervisor starts the shard again, and it has lost nothing."""
    data = new_picture(303)
    uploaded = system.upload(data, id="behind-a-shard")
    assert uploaded.json()["status"] == "searchable"
    shards = system.collection()["shards"]
    owner = next(s for s in shards if str(uploaded.json()["receipt"]["partition"]) in s["applied_offsets"])
    os.kill(owner["pid"], signal.SIGKILL)

    partial = eventually(
        lambda: next((a for a in [system.search_picture(data, limit="1")] if a["coverage"]["degraded"]), None), 30
    )
    assert partial["coverage"] == {"shards_total": 4, "shards_answered": 3, "degraded": True}

    whole = eventually(
        lambda: next((a for a in [system.search_picture(data, limit="1")] if not a["coverage"]["degraded"]), None), 60
    )
    assert whole["coverage"]["shards_answered"] == 4
    eventually(lambda: system.search_picture(data, limit="1")["hits"][0]["id"] == "behind-a-shard", 30)


def test_vectors_of_two_models_never_meet(system: RunningSystem) -> None:
    """Decision 6: every shard refuses a query whose fingerprint is not its own."""
    code = (
        "import asyncio, numpy as np\n"
        "from actors.cluster import connect\n"
        "from actors.handles import ShardClient\n"
        "from actors.log.registry import CollectionRegistry\n"
        "from actors.messages import ShardQuery, ShardSearch\n"
        "from contract.errors import FingerprintMismatch\n"
        "from contract.settings import load_settings\n"
        "settings = load_settings(); connect(settings)\n"
        "spec = CollectionRegistry(settings).get('images')\n"
        "async def ask(fingerprint):\n"
        "    vectors = np.ones((1, spec.dimension), np.float32)\n"
        "    shard = ShardClient('images', spec.incarnation, 0, 0)\n"
        "    await shard.search(ShardSearch(fingerprint, vectors, (ShardQuery(1),)))\n"
        "asyncio.run(ask(spec.fingerprint))\n"
        "try:\n"
        "    asyncio.run(ask('another'))\n"
        "except FingerprintMismatch:\n"
        "    print('refused')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=system.environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.stdout.strip().endswith("refused"), result.stdout + result.stderr
