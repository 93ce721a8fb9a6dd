"""Queries per second at 16 connections, and the time from an upload to searchable, on the whole running system.

`python -m benchmarks.serving` (`make bench-serving`) starts a system of its own, with the load
generator in a third process on the same machine, and writes benchmarks/results/serving.json.
"""

from __future__ import annotations

import csv
import hashlib
import io
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import msgspec
import numpy as np
from PIL import Image

from benchmarks.load import LoadPlan, LoadReport
from benchmarks.result_file import Result, write
from benchmarks.running import ROOT, running_system
from serving.client import Client

SEED = 20
CONNECTIONS = 16
SECONDS = 20.0
UPLOADS = 200
_THINGS = ("cat", "house", "tree", "car", "guitar", "fish", "apple", "boat", "king", "flower")


def _load(client: Client, texts: list[str], *, repeat: bool) -> LoadReport:
    address = urlsplit(client.base_url)
    paths = tuple(f"/v1/collections/images/search?{urlencode({'text': text, 'limit': 10})}" for text in texts)
    plan = LoadPlan(str(address.hostname), int(address.port or 80), paths, CONNECTIONS, SECONDS, repeat)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"], input=msgspec.json.encode(plan), stdout=subprocess.PIPE, check=True
    )
    return msgspec.json.decode(done.stdout, type=LoadReport)


def _new_picture(rng: np.random.Generator) -> bytes:
    """A picture nobody has indexed: coarse coloured noise, (160, 160) RGB, as PNG."""
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((160, 160), Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


def _uploads(client: Client, folder: Path) -> list[float]:
    """Seconds from the start of an upload to its answer `searchable`, one upload after another."""
    rng = np.random.default_rng(SEED)
    took = []
    for number in range(UPLOADS):
        file = folder / f"new-{number}.png"
        file.write_bytes(_new_picture(rng))
        began = time.perf_counter()
        answer = client.upload("images", file, id=f"new-{number}", wait="searchable")
        took.append(time.perf_counter() - began)
        if answer.status != "searchable":
            raise RuntimeError(f"upload {number} ended as {answer.status}")
        first = client.search("images", image=file, limit=1).hits[0].id
        if first != f"new-{number}":
            raise RuntimeError(f"upload {number} is not the first hit of its own bytes, but {first}")
        file.unlink()
    return took


def _data_sha256() -> str:
    digest = hashlib.sha256()
    with (ROOT / "samples" / "captions.csv").open(newline="") as table:
        for row in csv.DictReader(table):
            digest.update((ROOT / "samples" / row["file"]).read_bytes())
    return digest.hexdigest()


def main() -> None:
    """Run and write the result file."""
    started_at = datetime.now(UTC)
    results: list[Result] = []
    with running_system() as client, tempfile.TemporaryDirectory() as folder:
        warm = [f"a {thing}" for thing in _THINGS]
        cold = [f"a {thing} and the number {number}" for number in range(20_000) for thing in _THINGS]
        _load(client, warm, repeat=False)
        for name, report in (
            ("cached_text", _load(client, warm, repeat=True)),
            ("cold_text", _load(client, cold, repeat=False)),
        ):
            print(f"{name}: {report}")
            if report.failed:
                raise RuntimeError(f"{report.failed} of {report.requests + report.failed} requests failed")
            results.append(Result(f"{name}_qps", report.qps, "1/s"))
            results += [
                Result(f"{name}_{key}", getattr(report, key), "ms") for key in ("p50_ms", "p95_ms", "p99_ms", "max_ms")
            ]
        milliseconds = np.array(_uploads(client, Path(folder))) * 1e3
        for quantile in (50, 99):
            value = float(np.percentile(milliseconds, quantile))
            results.append(Result(f"upload_to_searchable_p{quantile}_ms", value, "ms"))
            print(f"upload to searchable p{quantile}: {value:.0f} ms")
        results.append(Result("upload_to_searchable_max_ms", float(milliseconds.max()), "ms"))
        results.append(Result("points", float(client.collection("images").points), "1"))
    print(write("serving", results, SEED, _data_sha256(), started_at))


if __name__ == "__main__":
    main()
