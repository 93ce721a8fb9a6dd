"""The one form of a benchmark's result file: `benchmarks/results/NAME.json`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

RESULTS: Final = Path(__file__).parent / "results"


class Result(NamedTuple):
    """One figure. `unit` is `1` for a ratio or a number of things, else such as `ms`, `bytes`, `1/s`."""

    name: str
    value: float
    unit: str


def write(
    name: str,
    results: Sequence[Result],
    seed: int,
    data_sha256: str,
    started_at: datetime,
    folder: Path = RESULTS,
) -> Path:
    """Write the result file of one benchmark and return its path.

    Args:
        name: name of the benchmark and of the file.
        results: the figures, in the order in which they shall be read.
        seed: seed of everything random in the run.
        data_sha256: hash of the data that was used.
        started_at: when the run began.
        folder: where the file goes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {
        "commit": commit(),
        "hardware": hardware(),
        "seed": seed,
        "data_sha256": data_sha256,
        "started_at": started_at.isoformat(timespec="seconds"),
        "results": [result._asdict() for result in results],
    }
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def commit() -> str:
    """Commit of the working tree; `-dirty` is appended if a tracked file differs from it."""
    root = Path(__file__).parent.parent
    command = ["git", "describe", "--always", "--abbrev=40", "--match=", "--dirty"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else "unknown"


def hardware() -> str:
    """Processor, cores and memory in one line."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    instructions = "".join(f" {flag}" for flag in ("avx2", "avx512_vnni", "avx_vnni") if flag in _cpu("flags").split())
    cpu = _cpu("model name") or platform.processor() or platform.machine()
    return f"{cpu},{instructions}, {os.cpu_count()} cores, {memory_bytes / 2**30:.0f} GiB, {platform.system()}"


def _cpu(field: str) -> str:
    """First value of a field of /proc/cpuinfo; "" where there is none."""
    source = Path("/proc/cpuinfo")
    if source.exists():
        for line in source.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == field:
                return value.strip()
    return ""
