"""The ingest process on real brokers: Faust, Ray and the object store are real, the encoder is not."""

from __future__ import annotations

import asyncio
import hashlib
import io
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.log.collections import create_collection, drop_collection
from actors.log.producer import LogProducer
from actors.log.reader import KafkaLogReader
from actors.log.records import LogRecord
from actors.log.registry import CollectionRegistry
from actors.objects import ObjectStore, image_key
from contract.events import (
    DELETED_HEADER,
    CollectionSpec,
    EventRejected,
    ImageDeleted,
    ImageEvent,
    ImageUploaded,
    LogEntry,
    PayloadChanged,
    PayloadUpdated,
    PointDeleted,
    PointEmbedded,
    SourceAdvanced,
    decode_log_entry,
    encode_json,
)
from contract.topics import image_events_topic, partition_of
from tests.integration.fake_embedder import FINGERPRINT, description
from tests.integration.local_broker import ROOT, BrokerProcess
from tests.integration.system import eventually, kafka_can_run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

MODEL = "fake"
PARTITIONS = 2


class Instance:
    """Broker, Ray, a stand-in encoder, and an ingest process that tests start and end."""

    def __init__(self, home: Path, kind: str) -> None:
        self.broker = BrokerProcess(home, kind)
        self.settings = self.broker.settings
        self.environment = self.broker.environment
        self.log = home.parent / f"{home.name}-ingest.log"
        self.others: list[subprocess.Popen[bytes]] = []
        self.worker: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        ray_process = self._spawn("actors.cluster")
        self.broker.start()
        eventually(lambda: self.settings.ray_file.exists() or ray_process.poll() is not None, 120)
        embedder = self._spawn("tests.integration.fake_embedder", MODEL)
        assert embedder.stdout is not None
        lines = iter(embedder.stdout.readline, b"")
        assert any(line == b"ready\n" for line in lines), "the stand-in encoder did not start"
        self.registry = CollectionRegistry(self.settings)
        self.producer = LogProducer(self.settings, "test")
        self.objects = ObjectStore(self.settings)

    def _spawn(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        self.others.append(
            subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        )
        return self.others[-1]

    def end(self) -> None:
        self.stop_worker()
        self.registry.close()
        self.producer.close()
        for process in reversed(self.others):
            process.terminate()
            process.communicate(timeout=60)
        self.broker.end()

    def start_worker(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            self.worker = subprocess.Popen(
                [sys.executable, "-m", "streams.worker"],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.worker

    def stop_worker(self, number: int = signal.SIGTERM) -> int:
        if self.worker is None:
            return 0
        if self.worker.poll() is None:
            self.worker.send_signal(number)
        try:
            code = self.worker.wait(60)
        except subprocess.TimeoutExpired:
            self.worker.kill()
            code = self.worker.wait()
        self.worker = None
        return code

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def collection(self, name: str) -> CollectionSpec:
        encoder = description(MODEL)
        wanted = CollectionSpec(
            name=name,
            incarnation=uuid.uuid4().hex,
            created_at_ms=0,
            partitions=PARTITIONS,
            shards=1,
            replicas=1,
            model=encoder.model,
            fingerprint=encoder.fingerprint,
            dimension=encoder.dimension,
        )
        return create_collection(self.settings, self.registry, wanted)

    async def upload(self, collection: str, image_id: str, data: bytes, **payload: object) -> ImageUploaded:
        sha256 = hashlib.sha256(data).hexdigest()
        key = image_key(collection, sha256)
        await self.objects.put(key, data)
        return ImageUploaded(collection, image_id, key, sha256, len(data), 1, payload=dict(payload))

    async def send(self, event: ImageEvent | bytes, partition: int | None = None) -> tuple[int, int]:
        """Produce an event; its receipt."""
        if isinstance(event, bytes):
            assert partition is not None
            topic, value, key = image_events_topic("images"), event, None
        else:
            topic, value, key = image_events_topic(event.collection), encode_json(event), event.image_id.encode()
            partition = partition_of(event.image_id, PARTITIONS) if partition is None else partition
        return partition, await self.producer.send(topic, partition, key, value)

    def log_of(
        self, collection: str, until: Sequence[tuple[int, int]], *, to_its_end: bool = True
    ) -> list[tuple[LogRecord, LogEntry]]:
        """The embedding log from its start, once it has reached the given source offsets."""
        reader = KafkaLogReader(self.settings, collection, range(PARTITIONS))
        reader.start({})
        read: list[tuple[LogRecord, LogEntry]] = []

        def reached() -> bool:
            assert self.worker is None or self.worker.poll() is None, self.output()[-4000:]
            read.extend((record, entry_of(record)) for record in reader.poll(500, 0.2))
            seen = {(record.partition, entry.source_offset) for record, entry in read}
            return seen >= set(until)

        try:
            eventually(reached, 120, 0.01)
            while to_its_end and (records := reader.poll(500, 0.5)):
                read.extend((record, entry_of(record)) for record in records)
        finally:
            reader.close()
        return read


def entry_of(record: LogRecord) -> LogEntry:
    return decode_log_entry(record.headers[DELETED_HEADER] if record.value is None else record.value)


def png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 12), (seed * 37 % 256, seed * 91 % 256, seed % 256)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module", params=["memory", "kafka"])
def running(request: pytest.FixtureRequest, short_tmp: Path) -> Iterator[Instance]:
    kind = str(request.param)
    if kind == "kafka" and not kafka_can_run():
        pytest.skip("Apache Kafka needs Java 17 and Maven")
    instance = Instance(short_tmp / f"ingest-{kind}", kind)
    try:
        instance.start()
        instance.collection("images")
        yield instance
    finally:
        instance.end()


async def test_every_kind_of_event_reaches_the_log_in_order_and_is_acknowledged_once(running: Instance) -> None:
    uploads = [await running.upload("images", f"a{n}", png(n), n=n) for n in range(20)]
    torn = await running.upload("images", "torn", png(99)[:40])
    receipts = [await running.send(upload) for upload in uploads]
    receipts.append(await running.send(torn))
    receipts.append(await running.send(PayloadUpdated("images", "a1", {"n": "new"}, 2)))
    receipts.append(await running.send(ImageDeleted("images", "a2", 3)))
    receipts.append(await running.send(b"no event at all", 1))
    misplaced = 1 - partition_of("a3", PARTITIONS)
    receipts.append(await running.send(uploads[3], misplaced))
    running.start_worker()
    log = running.log_of("images", receipts)

    for partition in range(PARTITIONS):
        offsets = [entry.source_offset for record, entry in log if record.partition == partition]
        assert offsets == sorted(offsets), "a later event overtook an earlier one"
    points = {entry.image_id: entry for _, entry in log if isinstance(entry, PointEmbedded)}
    assert set(points) == {f"a{n}" for n in range(20)}
    for n, upload in enumerate(uploads):
        point = points[upload.image_id]
        assert (point.payload, point.sha256, point.fingerprint) == ({"n": n}, upload.sha256, FINGERPRINT)
        assert (point.width, point.height) == (16, 12)
        assert np.linalg.norm(np.frombuffer(point.vector, "<f4")) == pytest.approx(1.0, abs=1e-5)
    kinds = [type(entry) for _, entry in log]
    assert [kinds.count(kind) for kind in (EventRejected, PayloadChanged, PointDeleted, SourceAdvanced)] == [1, 1, 3, 2]

    # Everything is acknowledged at the stop, so the next start repeats nothing.
    assert running.stop_worker() == 0, running.output()[-4000:]
    before = len(log)
    running.start_worker()
    receipt = await running.send(await running.upload("images", "after", png(200)))
    log = running.log_of("images", [receipt])
    assert [entry.image_id for _, entry in log[before:] if isinstance(entry, PointEmbedded)] == ["after"]
    assert len(log) == before + 1
    assert running.stop_worker() == 0, running.output()[-4000:]


async def test_a_killed_worker_loses_nothing(running: Instance) -> None:
    uploads = [await running.upload("images", f"k{n}", png(n)) for n in range(400)]
    receipts = await asyncio.gather(*(running.send(upload) for upload in uploads))
    running.start_worker()
    done = running.log_of("images", receipts[:1], to_its_end=False)
    assert running.stop_worker(signal.SIGKILL) == -signal.SIGKILL
    reached = {(record.partition, entry.source_offset) for record, entry in done}
    assert not reached >= set(receipts), "the worker was faster than its end; the test shows nothing"
    running.start_worker()
    receipts.append(await running.send(await running.upload("images", "last", png(1))))
    log = running.log_of("images", receipts)
    # Some stand there twice; the last record of every image is that of its own event.
    last = {entry.image_id: entry.source_offset for _, entry in log if isinstance(entry, PointEmbedded)}
    for image_id, (_, offset) in zip([*(u.image_id for u in uploads), "last"], receipts, strict=True):
        assert last[image_id] == offset
    assert running.stop_worker() == 0, running.output()[-4000:]


async def test_collections_come_and_go_while_the_worker_runs(running: Instance) -> None:
    running.start_worker()
    running.collection("later")
    receipts = [await running.send(await running.upload("later", f"l{n}", png(n))) for n in range(5)]
    log = running.log_of("later", receipts)
    assert {entry.image_id for _, entry in log if isinstance(entry, PointEmbedded)} == {f"l{n}" for n in range(5)}

    drop_collection(running.settings, running.registry, "later")
    receipt = await running.send(await running.upload("images", "still-served", png(7)))
    log = running.log_of("images", [receipt])
    assert "still-served" in {entry.image_id for _, entry in log if isinstance(entry, PointEmbedded)}

    running.collection("later")
    receipt = await running.send(await running.upload("later", "second-life", png(8)))
    log = running.log_of("later", [receipt])
    assert {entry.image_id for _, entry in log if isinstance(entry, PointEmbedded)} == {"second-life"}
    assert running.stop_worker() == 0, running.output()[-4000:]


async def test_a_collection_dropped_before_its_offsets_are_committed_stops_no_other(running: Instance) -> None:
    running.start_worker()
    for life in range(2):
        running.collection("brief")
        uploads = [await running.upload("brief", f"b{life}-{n}", png(n)) for n in range(300)]
        receipts = await asyncio.gather(*(running.send(upload) for upload in uploads))
        running.log_of("brief", receipts[:1], to_its_end=False)
        # Offsets are committed twice a second; here more are being acknowledged all the time.
        drop_collection(running.settings, running.registry, "brief")
        receipt = await running.send(await running.upload("images", f"beside-{life}", png(life)))
        running.log_of("images", [receipt])
    assert running.stop_worker() == 0, running.output()[-4000:]
