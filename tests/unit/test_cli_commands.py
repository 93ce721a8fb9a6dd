"""The command line against a small HTTP server that answers as the API does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from contract.errors import InvalidRequest
from serving.cli import index
from serving.cli.app import app, parse_crop
from serving.cli.output import report_failure
from serving.cli.sources import list_pictures, stable_id
from serving.client import ApiError, Client, Retry, ServerUnreachable

PROBLEM = {"type": "urn:x", "title": "x", "status": 503, "detail": "away", "code": "unavailable", "retryable": True}


class FakeServer(ThreadingHTTPServer):
    """Keeps uploads in memory; `failures` answers come first; uploads of `broken` names are refused."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.failures = 0
        self.calls: list[str] = []
        self.bodies: list[bytes] = []
        self.images: dict[str, str] = {}

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class FakeHandler(BaseHTTPRequestHandler):
    """Just enough of the API."""

    server: FakeServer

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server = self.server
        server.calls.append(f"{self.command} {self.path.partition('?')[0]}")
        server.bodies.append(body)
        if server.failures:
            server.failures -= 1
            self._answer(503, PROBLEM)
        elif self.command == "POST" and self.path.startswith("/v1/collections/images/images"):
            name = body.split(b'filename="')[1].split(b'"')[0].decode()
            if name.startswith("broken"):
                refused = {
                    **PROBLEM,
                    "status": 422,
                    "detail": "no picture",
                    "code": "invalid_image",
                    "retryable": False,
                }
                self._answer(422, refused)
                return
            image_id = body.split(b'name="id"')[1].split(b"\r\n")[2].decode()
            server.images[image_id] = name
            receipt = {"partition": 0, "offset": len(server.images) - 1}
            self._answer(200, {"id": image_id, "sha256": "0", "status": "logged", "receipt": receipt})
        elif self.command == "POST":
            hit = {"id": "a", "score": 0.5, "payload": {"caption": "a cat"}}
            took = dict.fromkeys(("encode", "fan_out", "merge", "rerank", "total"), 1.0)
            coverage: dict[str, Any] = {"shards_total": 4, "shards_answered": 3, "degraded": True}
            fresh = {"applied_offsets": {"0": 1}, "staleness_s": 0.0}
            if b'"hybrid"' in body:
                coverage["degraded"] = "metadata"
            answer = {"hits": [hit], "coverage": coverage, "freshness": fresh, "took_ms": took, "model": "tiny"}
            self._answer(200, answer)
        elif self.path.startswith("/v1/collections/images/images/"):
            image_id = self.path.rsplit("/", 1)[1]
            rejected = server.images.get(image_id, "").startswith("torn")
            rejection = {"code": "invalid_image", "reason": "truncated", "offset": 0} if rejected else None
            self._answer(
                200, {"id": image_id, "state": "rejected" if rejected else "searchable", "rejection": rejection}
            )
        else:
            offsets = {"0": len(server.images) - 1}
            self._answer(200, {"name": "images", "incarnation": "one", "shards": [{"applied_offsets": offsets}]})

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A running fake."""
    fake = FakeServer()
    thread = threading.Thread(target=fake.serve_forever, args=(0.02,))
    thread.start()
    yield fake
    fake.shutdown()
    thread.join()
    fake.server_close()


def _client(server: FakeServer) -> Client:
    return Client(server.url, retry=Retry(attempts=3, first_s=0.0))


def _folder(tmp_path: Path, *names: str) -> Path:
    for name in names:
        file = tmp_path / "pictures" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return tmp_path / "pictures"


def test_pictures_are_found_in_folders_globs_and_tables(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "a.png", "deep/b.JPG", "notes.txt")
    assert [p.path.name for p in list_pictures(str(folder))] == ["a.png", "b.JPG"]
    assert [p.path.name for p in list_pictures(str(folder / "*.png"))] == ["a.png"]
    assert [p.path.name for p in list_pictures(str(folder / "a.png"))] == ["a.png"]
    table = folder / "list.csv"
    table.write_text("file,caption,tags,id\na.png,one,red; round,first\ndeep/b.JPG,,,\n")
    first, second = list_pictures(str(table))
    assert (first.image_id, first.payload) == (
        "first",
        {"caption": "one", "tags": ["red", "round"], "file_name": "a.png"},
    )
    assert (second.image_id, second.payload) == (stable_id(folder / "deep/b.JPG"), {"file_name": "b.JPG"})
    parquet.write_table(pa.table({"path": ["a.png"], "caption": ["one"]}), folder / "list.parquet")
    assert list_pictures(str(folder / "list.parquet"))[0].payload == {"caption": "one", "file_name": "a.png"}


def test_nothing_to_index_and_a_table_without_a_file_column_say_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no pictures"):
        list_pictures(str(tmp_path))
    (tmp_path / "list.csv").write_text("caption\none\n")
    with pytest.raises(InvalidRequest, match="row 1"):
        list_pictures(str(tmp_path / "list.csv"))


def test_an_interrupted_index_goes_on_where_it_stopped(tmp_path: Path, server: FakeServer) -> None:
    folder = _folder(tmp_path, "a.png", "b.png")
    with _client(server) as client:
        outcome = index.run(client, "images", str(folder), tmp_path, parallel=2, again=False)
        assert (outcome.uploaded, outcome.skipped, outcome.failed) == (2, 0, ())
        _folder(tmp_path, "c.png")
        outcome = index.run(client, "images", str(folder), tmp_path, parallel=2, again=False)
        assert (outcome.uploaded, outcome.skipped) == (1, 2)
        (folder / "a.png").write_bytes(b"changed")
        assert index.run(client, "images", str(folder), tmp_path, parallel=2, again=False).uploaded == 1
        assert index.run(client, "images", str(folder), tmp_path, parallel=2, again=True).uploaded == 3


def test_a_bad_file_is_named_with_its_reason_and_stops_nothing(tmp_path: Path, server: FakeServer) -> None:
    folder = _folder(tmp_path, "a.png", "broken.png", "torn.png")
    with _client(server) as client:
        outcome = index.run(client, "images", str(folder), tmp_path, parallel=2, again=False)
    assert outcome.uploaded == 1
    assert {(Path(path).name, reason) for path, reason in outcome.failed} == {
        ("broken.png", "no picture"),
        ("torn.png", "truncated"),
    }


def test_only_retryable_failures_are_tried_again(tmp_path: Path, server: FakeServer) -> None:
    folder = _folder(tmp_path, "broken.png")
    with _client(server) as client:
        server.failures = 2
        assert client.collection("images").name == "images"
        assert len(server.calls) == 3
        server.calls.clear()
        with pytest.raises(ApiError) as caught:
            client.upload("images", folder / "broken.png", id="x")
        assert (caught.value.code, caught.value.retryable, len(server.calls)) == ("invalid_image", False, 1)
        server.failures = 99
        with pytest.raises(ApiError, match="away"):
            client.collection("images")


def test_search_prints_hits_and_that_the_answer_is_partial(server: FakeServer) -> None:
    result = CliRunner().invoke(app, ["search", "a cat", "--url", server.url], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "a cat" in result.output
    assert "3 of 4 shards" in result.output
    assert "partial answer" in result.output
    as_json = CliRunner().invoke(app, ["search", "a cat", "--url", server.url, "--json"])
    assert json.loads(as_json.output)["hits"][0]["id"] == "a"


def test_search_by_words_too_and_what_is_said_of_words_alone(server: FakeServer) -> None:
    result = CliRunner().invoke(app, ["search", "a cat", "--hybrid", "--url", server.url], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert json.loads(server.bodies[-1])["hybrid"] is True
    assert "found by words only" in result.output


def test_search_sends_its_filter(server: FakeServer, tmp_path: Path) -> None:
    wanted = '{"must": [{"key": "owner", "match": {"value": "ada"}}]}'
    (tmp_path / "q.png").write_bytes(b"picture")
    for query in (["a cat"], ["--image", str(tmp_path / "q.png")]):
        result = CliRunner().invoke(app, ["search", *query, "--url", server.url, "--filter", wanted])
        assert result.exit_code == 0, result.output
        assert b'"owner"' in server.bodies[-1]
    calls = len(server.calls)
    for wrong, word in (("owner=ada", "--filter is not JSON"), ('{"most": []}', "filter: has no 'most'")):
        failed = CliRunner().invoke(app, ["search", "a cat", "--url", server.url, "--filter", wrong])
        assert isinstance(failed.exception, InvalidRequest)
        assert word in failed.exception.detail
    assert len(server.calls) == calls


def test_search_sends_the_vector_of_a_file(server: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "mine.npy"
    for vector in (np.array([1, -2.5], np.float16), np.array([[1, -2.5]])):
        np.save(file, vector)
        result = CliRunner().invoke(app, ["search", "--vector", str(file), "--url", server.url], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        assert json.loads(server.bodies[-1])["vector"] == "AACAPwAAIMA="
        assert "mine.npy" in result.output
    calls = len(server.calls)
    for wrong, word in (
        (np.ones((2, 3)), "float64 of shape (2, 3); a search takes one row of numbers"),
        (np.array(["a"]), "a search takes one row of numbers"),
        (np.array([{}]), "is no file that numpy.save wrote"),
    ):
        np.save(file, wrong, allow_pickle=True)
        failed = CliRunner().invoke(app, ["search", "--vector", str(file), "--url", server.url])
        assert isinstance(failed.exception, InvalidRequest)
        assert word in failed.exception.detail
    for content in (b"", b"words"):
        file.write_bytes(content)
        failed = CliRunner().invoke(app, ["search", "--vector", str(file), "--url", server.url])
        assert isinstance(failed.exception, InvalidRequest)
    np.savez(file.with_suffix(".npz"), a=np.ones(2))
    failed = CliRunner().invoke(app, ["search", "--vector", str(file.with_suffix(".npz")), "--url", server.url])
    assert isinstance(failed.exception, InvalidRequest)
    assert "several arrays" in failed.exception.detail
    missing = CliRunner().invoke(app, ["search", "--vector", "none.npy", "--url", server.url])
    assert isinstance(missing.exception, FileNotFoundError)
    assert len(server.calls) == calls


def test_an_expected_failure_is_one_line_that_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert "riverlens up" in (report_failure(ServerUnreachable("http://x does not answer")) or "")
    assert "[busy]" in (report_failure(ApiError("later", status=503, code="busy", retryable=True)) or "")
    assert report_failure(KeyError("bug")) is None
    assert "Traceback" not in capsys.readouterr().err


def test_a_crop_is_four_fractions() -> None:
    assert parse_crop("0,0.5,1,0.5") == (0.0, 0.5, 1.0, 0.5)
    assert parse_crop(None) is None
    with pytest.raises(InvalidRequest, match="x,y,width,height"):
        parse_crop("half")
