"""Searches as requests of the load generator, and what their answers say."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from benchmarks.index.truth import Neighbours, recall
from benchmarks.load import LoadPlan, LoadReport, LoadRequest
from benchmarks.running import ROOT

K: Final = 10
WHOLE: Final = '"degraded":false'
"""Text of an answer in which every shard took part."""

# Beyond its own time a run may take this long to start, to drain and to report.
_SPARE_S = 60.0

Floats = npt.NDArray[np.float32]


class _Hit(Struct):
    id: str


class _Answer(Struct):
    hits: tuple[_Hit, ...]


def encoded(vector: Floats) -> str:
    """Base64 of a (d,) vector's little-endian float32, as the API takes it."""
    return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode()


def vector_request(collection: str, vector: Floats, ef_search: int, limit: int = K) -> LoadRequest:
    """A search for the nearest points of a vector: ids and scores, without payloads."""
    body = {"vector": encoded(vector), "limit": limit, "ef_search": ef_search, "with_payload": False}
    return LoadRequest(f"/v1/collections/{collection}/search", msgspec.json.encode(body).decode())


def vector_requests(collection: str, queries: Floats, ef_search: int) -> tuple[LoadRequest, ...]:
    """One request per row of (q, d) float32."""
    return tuple(vector_request(collection, query, ef_search) for query in queries)


def text_requests(collection: str, texts: Sequence[str]) -> tuple[LoadRequest, ...]:
    """One search by words per text, with payloads, as a browser asks."""
    path = f"/v1/collections/{collection}/search"
    return tuple(LoadRequest(f"{path}?{urlencode({'text': text, 'limit': K})}") for text in texts)


def hit_ids(answer: str | None) -> list[str]:
    """Ids of the hits of an answer, best first; none for no answer."""
    return [] if answer is None else [hit.id for hit in msgspec.json.decode(answer, type=_Answer).hits]


def recall_of(answers: Sequence[str | None], neighbours: Neighbours) -> float:
    """Recall@10 of one answer per query; a query without an answer found nothing."""
    return recall([hit_ids(answer) for answer in answers], neighbours, K)


def send(base_url: str, requests: tuple[LoadRequest, ...], connections: int, seconds: float, **more: Any) -> LoadReport:
    """Run the load generator as a process of its own; `more` are further fields of its plan.

    Raises:
        subprocess.CalledProcessError: it failed; its reason stands on standard error.
        subprocess.TimeoutExpired: it did not end in time.
    """
    address = urlsplit(base_url)
    plan = LoadPlan(
        host=str(address.hostname),
        port=int(address.port or 80),
        requests=requests,
        connections=connections,
        seconds=seconds,
        **more,
    )
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        cwd=ROOT,
        input=msgspec.json.encode(plan),
        stdout=subprocess.PIPE,
        check=True,
        timeout=seconds + _SPARE_S,
    )
    return msgspec.json.decode(done.stdout, type=LoadReport)
