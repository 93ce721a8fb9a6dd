"""What only the running server shows of its surface: ports, headers through the proxy, many callers at once."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.integration.pictures import new_picture
from tests.integration.system import RunningSystem, eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

_LISTEN = "0A"
# 127.0.0.1, ::1 and ::ffff:127.0.0.1 as the kernel prints them.
_LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def _processes_of(home: Path) -> list[int]:
    """Every process that was given this home folder, Ray's actors among them."""
    mark = f"RIVERLENS_HOME={home}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except (FileNotFoundError, PermissionError, ProcessLookupError):
                continue
    return found


def _open_addresses(pids: list[int]) -> set[str]:
    """Local addresses (hexadecimal) these processes listen on."""
    sockets = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                match = re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink()))
            except FileNotFoundError:
                continue
            if match:
                sockets.add(match.group(1))
    addresses = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and fields[9] in sockets:
                addresses.add(fields[1].split(":")[0])
    return addresses


def test_nothing_listens_beyond_this_machine(system: RunningSystem) -> None:
    pids = _processes_of(system.home)
    assert len(pids) > 5, "the processes of the system are not found"
    addresses = _open_addresses(pids)
    assert addresses
    assert addresses <= _LOOPBACK


def test_one_request_id_comes_back(system: RunningSystem) -> None:
    for given in (None, "my-own.id"):
        response = system.http.get("/v1/collections", headers={"X-Request-ID": given} if given else {})
        assert len(response.headers.get_list("x-request-id")) == 1
        assert given is None or response.headers["x-request-id"] == given
    problem = system.http.get("/v1/collections/none")
    assert problem.json()["request_id"] == problem.headers["x-request-id"]


def test_many_callers_at_once_get_their_own_answers(system: RunningSystem) -> None:
    pictures = {f"crowd-{number}": new_picture(900 + number) for number in range(6)}
    for image_id, data in pictures.items():
        assert system.upload(data, id=image_id).json()["status"] == "searchable"

    def ask(image_id: str) -> str:
        answer = httpx.post(
            f"{system.base_url}/v1/collections/images/search", json={"image_id": image_id, "limit": 1}, timeout=60
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["hits"][0]["id"])

    wanted = list(pictures) * 10
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, wanted)) == wanted


def test_a_collection_is_made_used_and_dropped(system: RunningSystem) -> None:
    path = "/v1/collections/of-its-own"
    made = system.http.put(path, json={"shards": 2, "partitions": 3})
    assert (made.status_code, made.json()["state"]) == (201, "ready"), made.text
    data = new_picture(950)
    uploaded = system.http.post(f"{path}/images", params={"wait": "searchable"}, files={"file": ("a.png", data)})
    assert uploaded.status_code == 201, uploaded.text
    found = system.http.post(f"{path}/search", files={"image": ("q.png", data)}).json()
    assert found["hits"][0]["id"] == uploaded.json()["id"]
    assert found["coverage"] == {"shards_total": 2, "shards_answered": 2, "degraded": False}
    assert system.http.delete(path).status_code == 200
    assert system.http.get(path).status_code == 404


def test_clicks_are_taken(system: RunningSystem) -> None:
    answer = system.search(text="anything", limit=1)
    body = {"request_id": answer["request_id"], "image_id": "any", "rank": 0}
    assert system.http.post("/v1/collections/images/clicks", json=body).status_code == 202


def test_what_the_api_could_not_do_stands_on_the_console_of_up(system: RunningSystem) -> None:
    early = {"text": "red", "min_receipt": {"partition": 0, "offset": 10**9}}
    answers = [
        system.http.post("/v1/collections/images/search", json=body, headers={"X-Request-ID": request_id})
        for request_id, body in (("answered-well", {"text": "red"}), ("asked-too-early", early))
    ]
    assert [answer.status_code for answer in answers] == [200, 504]
    eventually(lambda: b"asked-too-early" in system.log.read_bytes())
    assert b"answered-well" not in system.log.read_bytes()


def test_an_upload_above_the_limit_is_cut_off(system: RunningSystem) -> None:
    response = system.upload(bytes(34 * 1024 * 1024))
    assert (response.status_code, response.json()["code"]) == (413, "image_too_large")
