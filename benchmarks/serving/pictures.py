"""Searches by words, cached and not, and pictures uploaded until they are found: with the encoder in the way."""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from benchmarks.load import LoadReport
from benchmarks.result_file import Result
from benchmarks.serving.asking import WHOLE, send, text_requests
from benchmarks.serving.outcome import load_results
from benchmarks.serving.stage import Plan, told_of
from serving.client import Client

COLLECTION: Final = "images"
_CONNECTIONS = 16
_THINGS = ("cat", "house", "tree", "car", "guitar", "fish", "apple", "boat", "king", "flower")
_COLD = 4_000


def measure_text(client: Client, plan: Plan) -> list[Result]:
    """Searches by words that are asked again and again, then by words nobody has asked before."""
    warm = [f"a {thing}" for thing in _THINGS]
    cold = [f"a {thing} and the number {number}" for number in range(_COLD) for thing in _THINGS]
    _texts(client, warm, plan, repeat=False)
    results: list[Result] = []
    for name, texts, repeat in (("cached_text", warm, True), ("cold_text", cold, False)):
        report = _texts(client, texts, plan, repeat=repeat)
        print(f"{name}: {told_of(report)}", flush=True)
        if report.failed:
            raise RuntimeError(f"{report.failed} of {report.requests + report.failed} requests failed")
        results += load_results(name, report)
    return results


def _texts(client: Client, texts: list[str], plan: Plan, *, repeat: bool) -> LoadReport:
    requests = text_requests(COLLECTION, texts)
    return send(client.base_url, requests, _CONNECTIONS, 2 * plan.round_s, repeat=repeat, whole=WHOLE)


def measure_uploads(client: Client, plan: Plan, seed: int) -> list[Result]:
    """From the start of a picture's upload to its answer `searchable`, one upload after another."""
    rng = np.random.default_rng(seed)
    took = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(plan.uploads):
            file = Path(folder) / f"new-{number}.png"
            file.write_bytes(_new_picture(rng))
            began = time.perf_counter()
            answer = client.upload(COLLECTION, file, id=f"new-{number}", wait="searchable")
            took.append(time.perf_counter() - began)
            if answer.status != "searchable":
                raise RuntimeError(f"upload {number} ended as {answer.status}")
            first = client.search(COLLECTION, image=file, limit=1).hits[0].id
            if first != f"new-{number}":
                raise RuntimeError(f"upload {number} is not the first hit of its own bytes, but {first}")
    milliseconds = 1e3 * np.array(took)
    results = [
        *(Result(f"picture_to_searchable_p{q}_ms", float(np.percentile(milliseconds, q)), "ms") for q in (50, 99)),
        Result("picture_to_searchable_max_ms", float(milliseconds.max()), "ms"),
        Result("picture_points", float(client.collection(COLLECTION).points), "1"),
    ]
    print(", ".join(f"{one.name} {one.value:.0f}" for one in results), flush=True)
    return results


def _new_picture(rng: np.random.Generator) -> bytes:
    """A picture nobody has indexed: coarse coloured noise, (160, 160) RGB, as PNG."""
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((160, 160), Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()
