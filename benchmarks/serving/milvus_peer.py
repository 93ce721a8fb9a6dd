"""Milvus Lite's server over its gRPC API."""

# ruff: noqa: D102 - the protocol in peer.py documents the methods
from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.index import datasets
from benchmarks.index.datasets import Dataset
from benchmarks.index.workers import ROOT
from benchmarks.load import LoadReport
from benchmarks.serving.asking import K
from benchmarks.serving.milvus_client import MilvusAnswer, MilvusJob
from benchmarks.serving.peer import PeerFailed, ServerProcess, free_port, version_of
from contract.settings import Settings

_PYTHON: Final = ROOT / ".venv-peers-milvus" / "bin" / "python"
_SPARE_S = 60.0
_ONCE_S = 300.0
_ONCE_CONNECTIONS = 8


class MilvusPeer:
    """HNSW over 8-bit codes. A search names its effort."""

    name = "milvus-lite"

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        command = [str(_PYTHON.parent / "milvus-lite"), "server", "--data-dir", str(folder / "data")]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        self._server = ServerProcess(command, folder / "server.log", self._listens)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def versions(self) -> str:
        return f"milvus-lite {version_of(_PYTHON, 'milvus-lite')}, `milvus-lite server`, HNSW_SQ; closed loop only"

    def load(self, dataset: Dataset, until: float) -> None:
        datasets.save(dataset, self._folder)
        settings = Settings()
        self._do(until - time.monotonic(), load=True, m=settings.hnsw_m, ef_construction=settings.hnsw_ef_construction)

    def search(
        self, effort: int, connections: int, seconds: float, *, warm_s: float = 0.0, rate: float | None = None
    ) -> LoadReport:
        if rate is not None:
            raise PeerFailed("its load generator has no open loop")
        answer = self._do(seconds + _SPARE_S, effort=effort, connections=connections, seconds=seconds, warm_s=warm_s)
        if answer.report is None:
            raise PeerFailed("its load generator reports nothing")
        return answer.report

    def answers(self, effort: int) -> Sequence[Sequence[str]]:
        return self._do(
            _ONCE_S + _SPARE_S, effort=effort, connections=_ONCE_CONNECTIONS, seconds=_ONCE_S, once=True
        ).hits

    def _do(self, timeout_s: float, **fields: Any) -> MilvusAnswer:
        job = MilvusJob(host="127.0.0.1", port=self._port, folder=str(self._folder), k=K, **fields)
        try:
            done = subprocess.run(
                [str(_PYTHON), "-m", "benchmarks.serving.milvus_client"],
                cwd=ROOT,
                input=msgspec.json.encode(job),
                capture_output=True,
                check=False,
                timeout=max(1.0, timeout_s),
            )
        except subprocess.TimeoutExpired as error:
            raise PeerFailed(f"it took more than {timeout_s:.0f} s") from error
        if done.returncode:
            raise PeerFailed(" ".join(done.stderr.decode(errors="replace").strip().splitlines()[-2:]))
        return msgspec.json.decode(done.stdout, type=MilvusAnswer)
