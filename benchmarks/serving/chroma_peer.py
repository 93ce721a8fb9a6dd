"""Chroma's server over its HTTP API, with the same load generator as this system."""

# ruff: noqa: D102 - the protocol in peer.py documents the methods
from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec

from benchmarks.index.datasets import Dataset
from benchmarks.index.workers import PEERS_PYTHON
from benchmarks.load import LoadReport, LoadRequest
from benchmarks.serving.asking import Floats, K, encoded, send
from benchmarks.serving.peer import PeerFailed, ServerProcess, free_port, version_of
from contract.settings import Settings

_DATABASE: Final = "/api/v2/tenants/default_tenant/databases/default_database"
_BATCH: Final = 500
_TIMEOUT_S = 120.0
_ONCE_S = 120.0
_ONCE_CONNECTIONS = 8


class ChromaPeer:
    """float32 vectors under an HNSW graph, which is all it has. An effort is of the collection.

    A running server keeps the effort with which it has opened the graph, so another one needs a new start.
    """

    name = "chromadb"

    def __init__(self, folder: Path) -> None:
        self._port = free_port()
        self._base = f"http://127.0.0.1:{self._port}"
        self._http = httpx.Client(base_url=self._base, timeout=_TIMEOUT_S)
        command = [str(PEERS_PYTHON.parent / "chroma"), "run", "--path", str(folder / "data")]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        self._server = ServerProcess(command, folder / "server.log", self._answers)
        self._id = ""
        self._effort = 0
        self._queries: Floats | None = None

    def _answers(self) -> bool:
        try:
            return self._http.get("/api/v2/heartbeat").is_success
        except httpx.TransportError:
            return False

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()
        self._http.close()

    def versions(self) -> str:
        return f"chromadb {version_of(PEERS_PYTHON, 'chromadb')}, `chroma run`, HNSW over float32"

    def _call(self, method: str, path: str, **body: Any) -> Any:
        answer = self._http.request(method, f"{_DATABASE}{path}", json=body)
        if not answer.is_success:
            raise PeerFailed(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json() if answer.content else None

    def load(self, dataset: Dataset, until: float) -> None:
        settings = Settings()
        graph = {
            "space": "ip",
            "max_neighbors": settings.hnsw_m,
            "ef_construction": settings.hnsw_ef_construction,
            "ef_search": settings.hnsw_ef_search,
        }
        self._id = self._call("POST", "/collections", name="benchmark", configuration={"hnsw": graph})["id"]
        self._effort, self._queries = settings.hnsw_ef_search, dataset.queries
        points = dataset.points
        for start in range(0, len(points), _BATCH):
            rows = points[start : start + _BATCH]
            ids = [str(start + row) for row in range(len(rows))]
            self._call("POST", f"/collections/{self._id}/add", ids=ids, embeddings=[encoded(row) for row in rows])
            if time.monotonic() > until:
                raise PeerFailed(f"{start + len(rows)} of {len(points)} points are loaded when the time is up")
        # The first search brings what still waits in its log to the graph.
        self._call("POST", f"/collections/{self._id}/query", **self._query(dataset.queries[0]))
        if (found := self._http.get(f"{_DATABASE}/collections/{self._id}/count").json()) != len(points):
            raise PeerFailed(f"it has {found} of {len(points)} points")

    def _query(self, vector: Floats) -> dict[str, Any]:
        return {"query_embeddings": [vector.tolist()], "n_results": K, "include": []}

    def _requests(self, effort: int) -> tuple[LoadRequest, ...]:
        if self._queries is None:
            raise PeerFailed("nothing is loaded")
        if effort != self._effort:
            changed = {"hnsw": {"ef_search": effort}}
            self._call("PUT", f"/collections/{self._id}", new_configuration=changed)
            self._effort = effort
            self._server.stop()
            self._server.start()
        path = f"{_DATABASE}/collections/{self._id}/query"
        return tuple(LoadRequest(path, msgspec.json.encode(self._query(row)).decode()) for row in self._queries)

    def search(
        self, effort: int, connections: int, seconds: float, *, warm_s: float = 0.0, rate: float | None = None
    ) -> LoadReport:
        return send(self._base, self._requests(effort), connections, seconds, warm_s=warm_s, rate=rate)

    def answers(self, effort: int) -> Sequence[Sequence[str]]:
        requests = self._requests(effort)
        report = send(self._base, requests, _ONCE_CONNECTIONS, _ONCE_S, repeat=False, keep=True)
        if report.failed or report.requests != len(requests):
            raise PeerFailed(f"{report.requests} of {len(requests)} queries were answered: {report.failures}")
        return [msgspec.json.decode(answer or "")["ids"][0] for answer in report.answers]
