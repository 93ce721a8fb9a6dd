"""A process that writes to a shard's store until it is killed; and another that only makes such processes.

    python -m tests.property.shard_writer

reads one `Life` per line, runs it in a fork of itself, and writes one `Death` per line. The fork
spares every life the seconds that the imports take; this process itself opens no store, because
neither RocksDB's threads nor FAISS's live on in a fork.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import msgspec
import numpy as np
from msgspec import Struct

from actors.index import engine as engine_module
from actors.index.engine import EngineParameters, ShardEngine
from actors.index.segments import Segments
from actors.index.store import ShardStore
from actors.log.records import LogRecord
from contract.events import EventRejected, LogEntry, PayloadChanged, PointDeleted
from tests.engine_log import FINGERPRINT, IDENTITY, embedded, records_of

DIMENSION = 8
PARAMETERS = EngineParameters(
    fingerprint=FINGERPRINT, dimension=DIMENSION, m=8, quantization="sq8", growing_max=8, rebuild_dead_min=12
)
COLOURS = ("red", "green", "blue")
_IDS = 60
_EVENTS = 6000


class Script(Struct):
    """What happens to a shard, the same for the same seed: events, their records, and where batches end."""

    events: list[LogEntry]
    records: list[LogRecord]
    ends: list[int]


class Life(Struct):
    """Apply the script to the store at `path`, until the `point`-th change of anything, or `after_s` seconds."""

    path: str
    seed: int
    point: int | None = None
    after_s: float | None = None


class Death(Struct):
    """What a writer got done: records applied, checkpoints taken, and the change it died at."""

    status: int
    applied: int
    checkpoints: list[str]
    died_at: str


class Told(Struct):
    """What a writer tells while it lives."""

    applied: int | None = None
    checkpoint: str | None = None
    dies_at: str | None = None


@functools.lru_cache
def script(seed: int) -> Script:
    """Uploads, deletions, new payloads and rejections of a few dozen images."""
    choose = random.Random(seed)
    vectors = np.random.default_rng(seed).standard_normal((_EVENTS, DIMENSION)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    made = Script([], [], [])
    for at, vector in enumerate(vectors):
        image_id, payload = f"id-{choose.randrange(_IDS)}", {"colour": choose.choice(COLOURS)}
        what = choose.random()
        entry: LogEntry
        if what < 0.65:
            entry = embedded(image_id, vector, at, payload)
        elif what < 0.8:
            entry = PointDeleted(image_id, at, 0)
        elif what < 0.95:
            entry = PayloadChanged(image_id, payload, at, 0)
        else:
            entry = EventRejected(image_id, "decode", f"code-{at}", "why", at, 0)
        made.events.append(entry)
        made.records += records_of(entry, len(made.records))
    while not made.ends or made.ends[-1] < len(made.records):
        made.ends.append(min(len(made.records), (made.ends[-1] if made.ends else 0) + choose.randint(1, 12)))
    return made


def _work(life: Life, tell: Callable[[Told], None]) -> None:
    """Bring the store as far as the script goes, with all that an engine does beside that."""
    path, plan = Path(life.path), script(life.seed)
    engine = _opened(path)
    at = engine.positions()[0].log_offset
    choose = random.Random(at)
    stopping = threading.Event()
    builder = threading.Thread(target=_drain_until, args=(lambda: engine, stopping), daemon=True)
    if life.after_s is not None:
        builder.start()
    for end in plan.ends[np.searchsorted(plan.ends, at, "right") :]:
        engine.apply(plan.records[at:end])
        at = end
        tell(Told(applied=at))
        what = choose.random()
        if what < 0.3 and life.after_s is None:
            engine.drain()
        elif what < 0.35:
            engine.seal()
        elif what < 0.4:
            folder = path.with_name(f"{path.name}-copy-{at}")
            engine.checkpoint(folder)
            tell(Told(checkpoint=str(folder)))
        elif what < 0.44 and life.after_s is None:
            engine.close()
            engine = _opened(path)
        elif what < 0.45 and life.after_s is None:
            tell(Told(applied=0))
            engine.reset()
            engine.begin(IDENTITY, {0: 0}, 1)
            engine.apply(plan.records[:at])
            tell(Told(applied=at))
    stopping.set()
    engine.close()


def _opened(path: Path) -> ShardEngine:
    engine = ShardEngine(path, PARAMETERS)
    engine.begin(IDENTITY, {0: 0}, 1)
    return engine


def _drain_until(engine: Callable[[], ShardEngine], stopping: threading.Event) -> None:
    while not stopping.is_set():
        if not engine().drain():
            stopping.wait(0.001)


def _die_at(point: int, tell: Callable[[Told], None]) -> None:
    """Kill this process before or after the n-th of all changes, or in the middle of one where it has one."""
    left = [point]

    def passed(name: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            tell(Told(dies_at=name))
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(owner: Any, name: str) -> None:
        change = getattr(owner, name)

        def hooked(*given: Any, **named: Any) -> Any:
            passed(f"before {name}")
            result = change(*given, **named)
            passed(f"after {name}")
            return result

        setattr(owner, name, hooked)

    for owner, names in {
        ShardStore: ("write", "checkpoint", "close", "sync"),
        Segments: ("change", "seal"),
        Path: ("replace", "rename", "hardlink_to"),
        os: ("fsync", "mkdir", "unlink", "rmdir"),
        faiss: ("write_index",),
    }.items():
        for name in names:
            hook(owner, name)
    pwrite = os.pwrite

    def torn_pwrite(descriptor: int, data: Any, offset: int) -> int:
        half = pwrite(descriptor, data[: len(data) // 2], offset)
        passed("in the middle of pwrite")
        return half + pwrite(descriptor, data[half:], offset + half)

    os.pwrite = torn_pwrite


def _live(life: Life) -> Death:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            # Graph files are written at every opportunity.
            for name in ("_SAVE_MIN", "_SAVE_MAX"):
                setattr(engine_module, name, 1)

            def tell(told: Told) -> None:
                os.write(writing, msgspec.json.encode(told) + b"\n")

            if life.point is not None:
                _die_at(life.point, tell)
            _work(life, tell)
        except BaseException:  # noqa: BLE001 - whatever it is, the parent must know, and no second parent may live
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writing)
    if life.after_s is not None:
        time.sleep(life.after_s)
        os.kill(pid, signal.SIGKILL)
    death = Death(0, 0, [], "")
    with os.fdopen(reading, "rb") as pipe:
        for line in pipe.readlines():
            told = msgspec.json.decode(line, type=Told)
            death.applied = death.applied if told.applied is None else told.applied
            death.died_at = told.dies_at or death.died_at
            if told.checkpoint is not None:
                death.checkpoints.append(told.checkpoint)
    death.status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return death


def main() -> None:
    """Live and die as the lines on the standard input say."""
    for line in sys.stdin:
        death = _live(msgspec.json.decode(line, type=Life))
        sys.stdout.buffer.write(msgspec.json.encode(death) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
