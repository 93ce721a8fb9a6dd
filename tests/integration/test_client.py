"""Both clients against the running system: one's own upload is found, rejections and failures are named."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.client import (
    AsyncClient,
    BatchProgress,
    Client,
    ImageRejected,
    InvalidImage,
    NotFound,
    SearchAnswer,
    UploadItem,
    UploadReport,
)
from tests.integration.pictures import new_picture
from tests.integration.system import RunningSystem

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def _batch(prefix: str, seed: int, folder: Path) -> list[UploadItem | Path]:
    whole = new_picture(seed + 90)
    file = folder / f"{prefix}-file.png"
    file.write_bytes(new_picture(seed + 91))
    return [
        *(UploadItem(new_picture(seed + n), id=f"{prefix}-{n}", payload={"batch": prefix}) for n in range(6)),
        UploadItem(whole[: len(whole) // 2], id=f"{prefix}-torn"),
        UploadItem(b"no picture", id=f"{prefix}-text"),
        file,
        folder / "missing.png",
    ]


def _check_batch(report: UploadReport) -> None:
    states = [result.state for result in report.results]
    assert states == ["searchable"] * 6 + ["failed", "failed", "searchable", "failed"]
    assert [type(result.error) for result in report.failed] == [ImageRejected, InvalidImage, FileNotFoundError]
    assert report.searchable_histogram()[float("inf")] == 7
    assert len(report.receipts) == 8


def test_the_blocking_client(system: RunningSystem, tmp_path: Path) -> None:
    data = new_picture(9001)
    told: list[tuple[int, int]] = []
    with Client(system.base_url) as client:
        assert client.readiness().ready
        uploaded = client.upload("images", data, payload={"by": "client"}, progress=lambda *sent: told.append(sent))
        answer = client.search("images", image=data, min_receipt=uploaded, limit=1)
        assert [(hit.id, hit.payload) for hit in answer.hits] == [(uploaded.id, {"by": "client"})]
        assert told[-1][0] == told[-1][1] >= len(data)
        assert client.upload("images", data, id=uploaded.id, wait="searchable").status == "searchable"
        with pytest.raises(ImageRejected) as rejected:
            client.upload("images", data[: len(data) // 2], wait="searchable")
        assert rejected.value.receipt is not None

        last: list[BatchProgress] = []
        report = client.upload_many("images", _batch("blocking", 9100, tmp_path), progress=last.append)
        _check_batch(report)
        assert (last[-1].total, last[-1].sent, last[-1].searchable, last[-1].failed) == (10, 8, 7, 3)
        wanted = {"must": [{"key": "batch", "match": {"value": "blocking"}}]}
        listed = [image.id for image in client.images("images", page=2, filter=wanted)]
        assert listed == [f"blocking-{n}" for n in range(6)]
        found, missing = client.search_many("images", [{"image_id": "blocking-0"}, {"image_id": "blocking-none"}])
        assert isinstance(found, SearchAnswer)
        assert found.hits[0].id == "blocking-0"
        assert isinstance(missing, NotFound)

        deleted = client.delete("images", uploaded.id)
        assert deleted.receipt is not None
        client.wait_applied("images", [deleted.receipt])
        with pytest.raises(NotFound):
            client.image("images", uploaded.id)


async def test_the_client_for_asyncio(system: RunningSystem, tmp_path: Path) -> None:
    async with AsyncClient(system.base_url, connections=4) as client:
        pictures = {f"many-{n}": new_picture(9200 + n) for n in range(8)}
        uploads = await asyncio.gather(*(client.upload("images", p, id=name) for name, p in pictures.items()))
        answers = await asyncio.gather(
            *(client.search("images", image=picture, min_receipt=uploads, limit=1) for picture in pictures.values())
        )
        assert [answer.hits[0].id for answer in answers] == list(pictures)
        _check_batch(await client.upload_many("images", _batch("asyncio", 9300, tmp_path), parallel=3))
        changed = await client.update_payload("images", "many-0", {"now": True}, wait="searchable")
        assert changed.status == "applied"
        assert (await client.image("images", "many-0")).payload == {"now": True}
        assert (await client.content("images", "many-0", size=64)).content_type == "image/webp"
        await client.click("images", answers[0].request_id, "many-0", 0)


def test_threads_share_one_blocking_client(system: RunningSystem) -> None:
    with Client(system.base_url, connections=2) as client, ThreadPoolExecutor(6) as pool:

        def found(number: int) -> bool:
            picture = new_picture(9400 + number)
            uploaded = client.upload("images", picture)
            hits = client.search("images", image=picture, min_receipt=uploaded, limit=1).hits
            return hits[0].id == uploaded.id

        assert all(pool.map(found, range(12)))
