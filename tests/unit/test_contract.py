"""Records, topics, settings, errors: what every process agrees on."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from contract.errors import EventInvalid, InvalidRequest, RiverlensError, SettingsInvalid
from contract.events import (
    EventRejected,
    ImageDeleted,
    ImageUploaded,
    LogEntry,
    PayloadChanged,
    PayloadUpdated,
    PointDeleted,
    PointEmbedded,
    SourceAdvanced,
    decode_event,
    decode_log_entry,
    encode_json,
    encode_log_entry,
)
from contract.settings import Settings, load_settings
from contract.telemetry import METRICS
from contract.topics import (
    check_collection_name,
    embedding_log_spec,
    image_events_spec,
    murmur2,
    partition_of,
    partitions_of_shard,
    payload_key,
    rejection_key,
    shard_of_partition,
    vector_key,
)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_equals_kafkas_own(data: bytes, expected: int) -> None:
    """The values Apache Kafka's own unit test expects."""
    assert murmur2(data) == expected % 2**32


def test_both_topics_of_a_collection_are_co_partitioned() -> None:
    events, log = image_events_spec("images", 6, -1), embedding_log_spec("images", 6)
    assert events.partitions == log.partitions == 6
    assert events.config["cleanup.policy"] == "delete"
    assert log.config["cleanup.policy"] == "compact"


def test_every_partition_belongs_to_one_shard() -> None:
    owned = [p for shard in range(3) for p in partitions_of_shard(shard, 3, 8)]
    assert sorted(owned) == list(range(8))
    assert all(p in partitions_of_shard(shard_of_partition(p, 3), 3, 8) for p in range(8))
    assert {partition_of(f"image-{n}", 8) for n in range(200)} == set(range(8))


def test_what_changes_alone_has_a_key_of_its_own() -> None:
    assert len({vector_key("a"), payload_key("a"), rejection_key("a")}) == 3


@pytest.mark.parametrize("name", ["", "Images", "a b", "-x", "x" * 64, "a/b", "ä"])
def test_a_collection_name_is_checked(name: str) -> None:
    with pytest.raises(InvalidRequest):
        check_collection_name(name)


@pytest.mark.parametrize(
    "event",
    [
        ImageUploaded("images", "a", "key", "00", 3, 1, payload={"tags": ["x"]}),
        ImageDeleted("images", "a", 2),
        PayloadUpdated("images", "a", {"n": 1}, 3),
    ],
)
def test_events_survive_the_way(event: ImageUploaded | ImageDeleted | PayloadUpdated) -> None:
    assert decode_event(encode_json(event)) == event


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe", b"{}", b"[]", b'{"type": "image_uploaded.v9"}', b'{"type": "image_deleted.v1", "image_id": 3}'],
)
def test_an_unknown_event_is_an_error_and_no_guess(data: bytes) -> None:
    with pytest.raises(EventInvalid):
        decode_event(data)


@pytest.mark.parametrize(
    "entry",
    [
        PointEmbedded(
            image_id="a",
            vector=b"\0" * 8,
            fingerprint="f",
            payload={"caption": "é"},
            object_key="k",
            sha256="0",
            width=3,
            height=4,
            source_offset=5,
            event_at_ms=6,
        ),
        PayloadChanged("a", {}, 1, 2),
        EventRejected("a", "decode", "invalid_image", "torn", 1, 2),
        SourceAdvanced(1, 2),
        PointDeleted("a", 1, 2),
    ],
)
def test_log_entries_survive_the_way(entry: LogEntry) -> None:
    assert decode_log_entry(encode_log_entry(entry)) == entry
    with pytest.raises(EventInvalid):
        decode_log_entry(encode_log_entry(entry)[:-1])


def test_errors_cross_processes_whole() -> None:
    queue = [RiverlensError]
    while queue:
        error = queue.pop()
        queue.extend(error.__subclasses__())
        copy = pickle.loads(pickle.dumps(error("why")))
        assert type(copy) is error
        assert copy.detail == "why"


def test_settings_come_from_the_environment_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "riverlens.toml").write_text('shards = 2\nhttp_port = 9000\n[object_store_options]\nregion = "eu"\n')
    monkeypatch.setenv("RIVERLENS_HOME", str(tmp_path))
    monkeypatch.setenv("RIVERLENS_HTTP_PORT", "9001")
    settings = Settings()
    assert (settings.shards, settings.http_port) == (2, 9001)
    assert settings.object_store_options == {"region": "eu"}
    assert settings.objects_url == (tmp_path / "objects").as_uri()


def test_a_wrong_setting_names_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIVERLENS_HOME", str(tmp_path))
    monkeypatch.setenv("RIVERLENS_SHARDS", "none")
    load_settings.cache_clear()
    with pytest.raises(SettingsInvalid, match="shards"):
        load_settings()
    monkeypatch.delenv("RIVERLENS_SHARDS")
    (tmp_path / "riverlens.toml").write_text("shard = 2\n")
    with pytest.raises(SettingsInvalid, match="shard"):
        load_settings()
    load_settings.cache_clear()


def test_a_password_is_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIVERLENS_KAFKA_SASL_PASSWORD", "hunter2")
    assert "hunter2" not in repr(Settings())


def test_metric_names_carry_their_unit() -> None:
    for metric in METRICS:
        assert metric.name.startswith(("riverlens_", "process_")), "the second are the client library's own"
        assert metric.help
        if metric.kind == "counter":
            assert metric.name.endswith("_total")
        if metric.kind == "histogram":
            assert metric.name.endswith(("_seconds", "_bytes", "_ratio"))
    assert len({metric.name for metric in METRICS}) == len(METRICS)
