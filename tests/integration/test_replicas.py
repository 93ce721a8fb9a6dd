"""Two replicas per shard: one is killed, one is stopped, and no search fails or covers less."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.integration.pictures import new_picture
from tests.integration.system import RunningSystem, eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

WHOLE = {"shards_total": 2, "shards_answered": 2, "degraded": False}
PICTURES = {f"kept-{n}": new_picture(700 + n) for n in range(6)}


def _replica(running: RunningSystem, shard: int, replica: int) -> dict[str, Any]:
    found = running.collection()["shards"]
    return next(dict(one) for one in found if (one["shard"], one["replica"]) == (shard, replica))


def _hedges_won(running: RunningSystem) -> float:
    page = running.http.get("/metrics").text
    return sum(map(float, re.findall(r"^riverlens_shard_hedges_won_total\{.*\} (.*)$", page, re.M)))


def test_a_replica_that_dies_or_stalls_costs_no_search(fresh_system: Callable[..., RunningSystem]) -> None:
    running = fresh_system("replicas", "memory", RIVERLENS_REPLICAS="2", RIVERLENS_SHARDS="2", RIVERLENS_PARTITIONS="2")
    running.start()
    for image_id, data in PICTURES.items():
        assert running.upload(data, id=image_id).json()["status"] == "searchable"
    ended = threading.Event()

    def search(image_id: str) -> list[tuple[int, Any]]:
        """Everything that was not a whole and right answer."""
        wrong = []
        asked = 0
        while not ended.is_set() or asked < 20:
            body = {"image_id": image_id, "limit": len(PICTURES)}
            response = running.http.post("/v1/collections/images/search", json=body)
            asked += 1
            answer = response.json()
            found = {hit["id"] for hit in answer.get("hits", ())}
            if response.status_code != 200 or answer["coverage"] != WHOLE or found != set(PICTURES):
                wrong.append((response.status_code, answer))
        return wrong

    killed = _replica(running, 0, 1)["pid"]
    with ThreadPoolExecutor(4) as pool:
        searches = [pool.submit(search, image_id) for image_id in list(PICTURES)[:4]]
        try:
            os.kill(killed, signal.SIGKILL)

            def is_back() -> bool:
                replica = _replica(running, 0, 1)
                return replica["state"] == "ready" and replica["pid"] not in (None, killed)

            eventually(is_back, 120, 0.5)
        finally:
            ended.set()
        assert [one for each in searches for one in each.result()] == []

    # One that is stopped neither answers nor fails: the other one of its shard is asked as well.
    before, stopped = _hedges_won(running), _replica(running, 1, 0)["pid"]
    os.kill(stopped, signal.SIGSTOP)
    try:

        def overtaken() -> bool:
            assert running.search(image_id="kept-0", limit=3)["coverage"] == WHOLE
            return _hedges_won(running) > before

        eventually(overtaken, 120)
    finally:
        os.kill(stopped, signal.SIGCONT)
