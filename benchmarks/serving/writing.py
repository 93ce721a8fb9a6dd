"""Writes points into the embedding log as the ingest worker does, so that no encoder takes part."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from actors.log.connection import read_local_broker
from actors.log.producer import LogProducer, OutgoingRecord
from benchmarks.serving.asking import Floats
from contract.events import PointEmbedded, Receipt, encode_log_entry
from contract.settings import Settings
from contract.topics import embedding_log_topic, partition_of, vector_key
from serving.client import Collection

_BATCH = 500
_TICK_S = 0.02
# The in-memory broker keeps 5 MiB per partition, which is some 2,000 points of 512 dimensions.
_AHEAD_IN_MEMORY = 1200
_AHEAD_PAUSE_S = 0.05
_PROGRESS = 10

Applied = Callable[[], Mapping[int, int]]
"""Per partition, the source offset that is applied now."""


class LogWriter:
    """One producer of one collection, with the source offsets that image-events would have given.

    All writing happens on one asyncio loop in a thread of its own, so that the records of a partition
    stand in the log in the order of their offsets. The methods block and may be called from any thread.
    """

    def __init__(self, settings: Settings, collection: Collection) -> None:
        self._producer = LogProducer(settings, "riverlens-benchmark", gapless=True)
        self._collection = collection
        self._offsets: defaultdict[int, int] = defaultdict(int)
        local = read_local_broker(settings)
        self._ahead = _AHEAD_IN_MEMORY if local is not None and local.kind == "memory" else None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="log-writer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait for what was sent and release the connection."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._producer.close()

    def write(self, ids: Sequence[str], vectors: Floats) -> list[Receipt]:
        """Write points, (n, d) float32, and return once they are durable."""
        return asyncio.run_coroutine_threadsafe(self._write(list(zip(ids, vectors, strict=True))), self._loop).result()

    def load(self, ids: Sequence[str], vectors: Floats, applied: Applied) -> None:
        """Write many points as quickly as the log takes them, telling the progress.

        Where the broker keeps only the last ones, it waits for the shards.
        """
        began, told = time.perf_counter(), 0
        for start in range(0, len(ids), _BATCH):
            self.write(ids[start : start + _BATCH], vectors[start : start + _BATCH])
            done = min(start + _BATCH, len(ids))
            while self._ahead is not None and self._furthest_ahead(applied()) > self._ahead:
                time.sleep(_AHEAD_PAUSE_S)
            if done * _PROGRESS // len(ids) > told:
                told = done * _PROGRESS // len(ids)
                print(f"  {done} of {len(ids)} points in the log, {time.perf_counter() - began:.0f} s", flush=True)

    def _furthest_ahead(self, applied: Mapping[int, int]) -> int:
        return max(offset - 1 - applied.get(partition, -1) for partition, offset in self._offsets.items())

    def keep_rate(self, points: Iterator[tuple[str, Floats]], per_s: float, over: threading.Event) -> float:
        """Write points at a fixed rate until `over` is set; returns how many a second it came to.

        Whoever was held up catches up, so that the rate is kept on average.

        Raises:
            ValueError: there were too few points.
        """
        return asyncio.run_coroutine_threadsafe(self._keep_rate(points, per_s, over), self._loop).result()

    async def _keep_rate(self, points: Iterator[tuple[str, Floats]], per_s: float, over: threading.Event) -> float:
        began, sent = time.perf_counter(), 0
        while not over.is_set():
            due = int((time.perf_counter() - began) * per_s) - sent
            some = list(itertools.islice(points, due))
            if len(some) < due:
                raise ValueError("the run takes longer than there are points to insert")
            if some:
                await self._write(some)
                sent += due
            await asyncio.sleep(_TICK_S)
        return sent / (time.perf_counter() - began)

    async def _write(self, points: Sequence[tuple[str, Floats]]) -> list[Receipt]:
        made = [self._entry(image_id, vector) for image_id, vector in points]
        await self._producer.send_all([record for _, record in made])
        return [receipt for receipt, _ in made]

    def _entry(self, image_id: str, vector: Floats) -> tuple[Receipt, OutgoingRecord]:
        """The next record, of one (d,) float32 vector; it must be queued before another one is made."""
        partition = partition_of(image_id, self._collection.partitions)
        offset = self._offsets[partition]
        self._offsets[partition] += 1
        point = PointEmbedded(
            image_id=image_id,
            vector=vector.astype("<f4", copy=False).tobytes(),
            fingerprint=self._collection.fingerprint,
            payload={},
            object_key=f"images/{image_id}",
            sha256="0" * 64,
            content_type="image/jpeg",
            file_name=f"{image_id}.jpg",
            width=640,
            height=480,
            source_offset=offset,
            event_at_ms=time.time_ns() // 1_000_000,
        )
        topic = embedding_log_topic(self._collection.name)
        record = OutgoingRecord(topic, partition, vector_key(image_id), encode_log_entry(point))
        return Receipt(partition, offset), record
