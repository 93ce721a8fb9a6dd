"""Topics, records and collections on both kinds of broker."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from confluent_kafka.admin import AdminClient

from actors.log.admin import delete_topics, ensure_topic, topic_identity
from actors.log.collections import create_collection, drop_collection
from actors.log.connection import bootstrap_servers, broker_instance, confluent_config
from actors.log.producer import LogProducer, OutgoingRecord
from actors.log.reader import KafkaLogReader
from actors.log.records import LogRecord
from actors.log.registry import CollectionRegistry
from contract.errors import (
    BrokerUnavailable,
    CollectionExists,
    InvalidRequest,
    LogGap,
    NotFound,
    TopicShapeMismatch,
)
from contract.events import CollectionSpec
from contract.settings import Settings
from contract.topics import (
    TopicSpec,
    embedding_log_spec,
    embedding_log_topic,
    image_events_spec,
    image_events_topic,
    system_topic_specs,
)
from tests.integration.local_broker import BrokerProcess
from tests.integration.system import kafka_can_run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", params=["memory", "kafka"])
def broker(request: pytest.FixtureRequest, short_tmp: Path) -> Iterator[BrokerProcess]:
    """A broker of each kind; Kafka must start wherever Java and Maven are."""
    kind = str(request.param)
    if kind == "kafka" and not kafka_can_run():
        pytest.skip("Apache Kafka needs Java 17 and Maven")
    process = BrokerProcess(short_tmp / f"topics-{kind}", kind)
    try:
        process.start()
        yield process
    finally:
        process.end()


@pytest.fixture
def settings(broker: BrokerProcess) -> Settings:
    return broker.settings


@pytest.fixture
def registry(settings: Settings) -> Iterator[CollectionRegistry]:
    one = CollectionRegistry(settings)
    yield one
    one.close()


def partitions(settings: Settings) -> dict[str, int]:
    topics = AdminClient(confluent_config(settings)).list_topics(timeout=10).topics
    return {name: len(topic.partitions) for name, topic in topics.items()}


def read_all(reader: KafkaLogReader, count: int) -> list[LogRecord]:
    records: list[LogRecord] = []
    deadline = time.monotonic() + 30
    while len(records) < count:
        assert time.monotonic() < deadline, f"only {len(records)} of {count} records came"
        records += reader.poll(100, 0.2)
    return records


def make(settings: Settings, registry: CollectionRegistry, name: str, **changes: int) -> CollectionSpec:
    wanted = CollectionSpec(
        name=name,
        incarnation=uuid.uuid4().hex,
        partitions=3,
        shards=2,
        replicas=1,
        model="tiny",
        fingerprint="0123456789abcdef",
        dimension=8,
        created_at_ms=0,
    )
    return create_collection(settings, registry, msgspec.structs.replace(wanted, **changes))


def test_the_system_topics_are_there_before_the_broker_is_announced(settings: Settings) -> None:
    found = partitions(settings)
    for spec in system_topic_specs(settings.kafka_retention_ms):
        assert found[spec.name] == spec.partitions


def test_the_announced_broker_answers(settings: Settings) -> None:
    assert bootstrap_servers(settings, wait_s=5).startswith("127.0.0.1:")
    assert broker_instance(settings)


def test_a_topic_gets_its_partitions_and_is_left_as_it_is(settings: Settings) -> None:
    spec = embedding_log_spec("shaped", 7)
    ensure_topic(settings, spec)
    before = topic_identity(settings, spec.name)
    ensure_topic(settings, spec)
    assert partitions(settings)[spec.name] == 7
    assert topic_identity(settings, spec.name) == before


def test_a_topic_with_other_partitions_is_refused(settings: Settings) -> None:
    ensure_topic(settings, image_events_spec("narrow", 2, -1))
    with pytest.raises(TopicShapeMismatch, match="has 2 partitions, but 5 are wanted"):
        ensure_topic(settings, image_events_spec("narrow", 5, -1))
    assert partitions(settings)[image_events_topic("narrow")] == 2


@pytest.mark.parametrize(
    ("present", "complaint"),
    [
        ({"cleanup.policy": "delete"}, "cleanup.policy=delete, but compact is wanted"),
        ({"cleanup.policy": "compact,delete"}, "cleanup.policy=compact,delete, but compact is wanted"),
        ({"cleanup.policy": "compact", "delete.retention.ms": "1000"}, "delete.retention.ms=1000"),
    ],
)
def test_an_embedding_log_that_would_forget_is_refused(
    broker: BrokerProcess, present: dict[str, str], complaint: str
) -> None:
    if broker.kind == "memory":
        pytest.skip("the in-memory cluster has no topic settings")
    wanted = embedding_log_spec("forgetful", 1)
    ensure_topic(broker.settings, TopicSpec(wanted.name, 1, present))
    try:
        with pytest.raises(TopicShapeMismatch, match=complaint):
            ensure_topic(broker.settings, wanted)
    finally:
        delete_topics(broker.settings, [wanted.name])


def test_a_topic_made_anew_has_another_identity(settings: Settings) -> None:
    spec = embedding_log_spec("reborn", 2)
    ensure_topic(settings, spec)
    first = topic_identity(settings, spec.name)
    delete_topics(settings, [spec.name, "was-never-there"])
    with pytest.raises(NotFound):
        topic_identity(settings, spec.name)
    ensure_topic(settings, spec)
    second = topic_identity(settings, spec.name)
    assert second.topic_id != first.topic_id
    assert second.cluster_id == first.cluster_id


async def test_records_come_back_as_they_were_sent(settings: Settings) -> None:
    ensure_topic(settings, embedding_log_spec("round", 2))
    ensure_topic(settings, image_events_spec("round", 2, -1))
    topic = embedding_log_topic("round")
    producer = LogProducer(settings, "test")
    reader = KafkaLogReader(settings, "round", [0, 1])
    try:
        before_ms = int(time.time() * 1000)
        assert await producer.send(topic, 1, b"vector/a", b"one") == 0
        assert await producer.send(topic, 1, b"vector/a", None, {"why": b"deleted"}) == 1
        assert await producer.send(topic, 0, b"vector/b", b"two", {}) == 0
        assert reader.first_offsets() == {0: 0, 1: 0}
        assert reader.end_offsets() == {0: 1, 1: 2}
        assert reader.source_end_offsets() == {0: 0, 1: 0}
        assert reader.identity() == topic_identity(settings, topic)

        reader.start({0: 0, 1: 0})
        records = await asyncio.to_thread(read_all, reader, 3)
        assert [(r.offset, r.key, r.value, dict(r.headers)) for r in records if r.partition == 1] == [
            (0, b"vector/a", b"one", {}),
            (1, b"vector/a", None, {"why": b"deleted"}),
        ]
        assert [(r.offset, r.value) for r in records if r.partition == 0] == [(0, b"two")]
        assert all(before_ms - 1000 <= r.timestamp_ms <= time.time() * 1000 + 1000 for r in records)
        assert reader.poll(10, 0.05) == ()

        reader.start({0: 1, 1: 1})
        assert [r.offset for r in await asyncio.to_thread(read_all, reader, 1)] == [1]
    finally:
        reader.close()
        producer.close()


async def test_records_of_a_partition_stand_in_the_order_they_were_sent(settings: Settings) -> None:
    ensure_topic(settings, embedding_log_spec("ordered", 1))
    producer = LogProducer(settings, "test", gapless=True)
    reader = KafkaLogReader(settings, "ordered", [0])
    try:
        batches = [
            [OutgoingRecord(embedding_log_topic("ordered"), 0, b"k", b"%d" % n) for n in range(start, start + 40)]
            for start in range(0, 400, 40)
        ]
        answers = await asyncio.gather(*(producer.send_all(batch) for batch in batches))
        assert [offset for offsets in answers for offset in offsets] == list(range(400))
        reader.start({})
        records = await asyncio.to_thread(read_all, reader, 400)
        assert [int(r.value or b"") for r in records] == list(range(400))
    finally:
        reader.close()
        producer.close()


async def test_a_position_outside_the_log_is_told_and_not_skipped(settings: Settings) -> None:
    ensure_topic(settings, embedding_log_spec("short", 1))
    reader = KafkaLogReader(settings, "short", [0])
    try:
        reader.start({0: 1000})
        with pytest.raises(LogGap):
            await asyncio.to_thread(read_all, reader, 1)
    finally:
        reader.close()


async def test_nothing_overtakes_a_record_that_the_broker_refused(broker: BrokerProcess) -> None:
    """A hole in the log would let a shard claim to be further than it is."""
    if broker.kind == "memory":
        pytest.skip("the in-memory cluster refuses no record")
    topic = embedding_log_topic("gapless")
    ensure_topic(broker.settings, embedding_log_spec("gapless", 1))
    producer = LogProducer(broker.settings, "test", gapless=True)
    reader = KafkaLogReader(broker.settings, "gapless", [0])
    try:
        keys = [b"k", None, b"k"]  # a compacted topic takes no record without a key
        with pytest.raises(InvalidRequest):
            await producer.send_all([OutgoingRecord(topic, 0, key, b"refused") for key in keys])
        assert reader.end_offsets() == {0: 0}
        assert await producer.send_all([OutgoingRecord(topic, 0, b"k", b"taken")] * 2) == [0, 1]
    finally:
        reader.close()
        producer.close()


async def test_a_record_larger_than_the_topic_takes_is_refused(settings: Settings) -> None:
    ensure_topic(settings, image_events_spec("large", 1, -1))
    producer = LogProducer(settings, "test")
    try:
        with pytest.raises(InvalidRequest):
            await producer.send(image_events_topic("large"), 0, None, b"x" * (5 * 1024 * 1024))
        assert await producer.send(image_events_topic("large"), 0, None, b"small") == 0
    finally:
        producer.close()


def test_collections_are_made_once_and_seen_by_everybody(settings: Settings, registry: CollectionRegistry) -> None:
    made = make(settings, registry, "birds")
    assert make(settings, registry, "birds") == made
    with pytest.raises(CollectionExists, match=r"shards=2 \(wanted 3\)"):
        make(settings, registry, "birds", shards=3)
    other = CollectionRegistry(settings)
    try:
        assert other.get("birds") == made
        assert other.refresh()["birds"] == made
        later = make(settings, registry, "flowers")
        assert other.get("flowers") == later
        with pytest.raises(NotFound):
            other.get("fish")
    finally:
        other.close()
    found = partitions(settings)
    assert found[image_events_topic("birds")] == found[embedding_log_topic("birds")] == 3


async def test_a_dropped_collection_takes_its_log_with_it(settings: Settings, registry: CollectionRegistry) -> None:
    first = make(settings, registry, "fleeting")
    producer = LogProducer(settings, "test")
    await producer.send(embedding_log_topic("fleeting"), 0, b"k", b"v")
    producer.close()
    drop_collection(settings, registry, "fleeting")
    assert "fleeting" not in registry.refresh()
    assert embedding_log_topic("fleeting") not in partitions(settings)
    with pytest.raises(NotFound):
        drop_collection(settings, registry, "fleeting")

    second = make(settings, registry, "fleeting")
    assert second.incarnation != first.incarnation
    reader = KafkaLogReader(settings, "fleeting", [0])
    try:
        assert reader.end_offsets() == {0: 0}
    finally:
        reader.close()


def test_a_collection_needs_a_partition_per_shard(settings: Settings, registry: CollectionRegistry) -> None:
    with pytest.raises(InvalidRequest):
        make(settings, registry, "crowded", partitions=2, shards=3)
    with pytest.raises(InvalidRequest):
        make(settings, registry, "Not A Name")
    assert "crowded" not in registry.refresh()


def test_a_broker_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    nowhere = Settings(home=tmp_path)
    with pytest.raises(BrokerUnavailable, match=r"broker\.json"):
        bootstrap_servers(nowhere, wait_s=0)
    elsewhere = Settings(home=tmp_path, kafka_bootstrap="127.0.0.1:1")
    with pytest.raises(BrokerUnavailable):
        bootstrap_servers(elsewhere, wait_s=0)
    registry = CollectionRegistry(elsewhere)
    with pytest.raises(BrokerUnavailable):
        registry.refresh()
    registry.close()
