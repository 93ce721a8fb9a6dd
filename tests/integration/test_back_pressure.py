"""Uploads faster than they are embedded: refused in time, and nothing that was accepted is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.client import Client
from tests.integration.pictures import new_picture
from tests.integration.system import RunningSystem, eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

MOST = 12


def ingest_pid(home: Path) -> int:
    """The ingest process of this very system."""
    mark = f"RIVERLENS_HOME={home}".encode()
    for folder in Path("/proc").iterdir():
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            if b"streams.worker" in command and mark in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except (FileNotFoundError, PermissionError, ProcessLookupError, NotADirectoryError):
            continue
    raise AssertionError("there is no ingest process")


def test_while_nothing_is_embedded_uploads_are_refused_and_all_that_was_accepted_is_found(
    fresh_system: Callable[..., RunningSystem],
) -> None:
    running = fresh_system("pressed", "memory", RIVERLENS_UPLOAD_LAG_MAX=str(MOST))
    running.start()
    assert running.upload(new_picture(8000), id="before").json()["status"] == "searchable"
    # The worker tells how far it is a moment after the picture is searchable; stopped before, it would lag by one.
    eventually(lambda: running.collection()["lag"]["messages"] == 0, 30)
    pid = ingest_pid(running.home)
    os.kill(pid, signal.SIGSTOP)
    try:
        accepted: list[str] = []
        while True:
            answer = running.upload(new_picture(8001 + len(accepted)), wait="logged", id=f"pressed-{len(accepted)}")
            if answer.status_code == 429:
                break
            assert answer.status_code == 202, answer.text
            accepted.append(answer.json()["id"])
            assert len(accepted) <= 5 * MOST, "nothing is ever refused"
        # At the stop a batch may have been under way, whose events count as applied later.
        assert MOST <= len(accepted) <= 3 * MOST
        assert answer.json()["code"] == "too_many_uploads"
        assert int(answer.headers["retry-after"]) >= 1
        lag = running.collection()["lag"]["messages"]
        assert lag >= MOST
        assert f'riverlens_lag_messages{{collection="images"}} {lag}.0' in running.http.get("/metrics").text
        # Deleting, searching and looking go on meanwhile.
        assert running.search(text="a shape", limit=5)["hits"]
        assert running.http.delete("/v1/collections/images/images/before").status_code == 202
        with Client(running.base_url, deadline_s=120) as client, ThreadPoolExecutor(3) as pool:
            late = [pool.submit(client.upload, "images", new_picture(8100 + n), id=f"late-{n}") for n in range(3)]
            os.kill(pid, signal.SIGCONT)
            receipts = [one.result(150).receipt for one in late]
            client.wait_applied("images", receipts, deadline_s=120)
    finally:
        os.kill(pid, signal.SIGCONT)
    wanted = {*accepted, *(f"late-{n}" for n in range(3))}
    eventually(lambda: {h["id"] for h in running.search(text="a shape", limit=100)["hits"]} == wanted, 90)
    eventually(lambda: running.collection()["lag"]["messages"] == 0, 30)
