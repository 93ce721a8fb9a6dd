"""Snapshots in an object store: only what is new is sent, several replicas share it, and all is verified."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from actors.index import remote_snapshots
from actors.index.manifest import Manifest, SnapshotDamaged
from actors.index.snapshots import Snapshots
from contract.errors import ObjectStoreUnavailable
from tests.unit.snapshot_fakes import Bucket, FakeFolder, Store, keys_of

LATER_MS = remote_snapshots._SURPLUS_MS
DAY_MS = remote_snapshots._ORPHAN_MS


def anything(_: Manifest) -> str | None:
    return None


class Node:
    """A replica: its store, its local snapshots, and its way to the bucket."""

    def __init__(self, home: Path, bucket: Bucket) -> None:
        self.home = home
        home.mkdir()
        self.remote = FakeFolder(bucket)
        self.snapshots = Snapshots(home / "snapshots", 2, self.remote)
        self.store = Store(home / "store")
        self.bucket = bucket

    def take(self) -> Manifest:
        self.bucket.now_ms += LATER_MS
        return self.snapshots.take(self.store.checkpoint, self.bucket.now_ms)

    def snapshot(self) -> Manifest:
        self.store.fill(10)
        taken = self.take()
        self.snapshots.upload()
        return taken

    def restored(self) -> int:
        """Points of a store restored with nothing but the bucket."""
        fresh = Snapshots(self.home / "none", 2, FakeFolder(self.bucket))
        manifest = fresh.restore(self.home / "restored", anything)
        assert manifest is not None
        assert keys_of(self.home / "restored") == manifest.facts.points
        return manifest.facts.points


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def node(tmp_path: Path, bucket: Bucket) -> Iterator[Node]:
    one = Node(tmp_path / "one", bucket)
    yield one
    one.store.close()


@pytest.fixture
def other(tmp_path: Path, bucket: Bucket) -> Iterator[Node]:
    one = Node(tmp_path / "two", bucket)
    yield one
    one.store.close()


def whole(bucket: Bucket) -> None:
    """Every manifest in the bucket can be restored from: all its objects are there with their size."""
    remote = remote_snapshots.RemoteSnapshots(FakeFolder(bucket), 2)
    for snapshot_id in remote.ids():
        for file in remote.manifest(snapshot_id).files:
            assert len(bucket.objects[file.object_key or ""]) == file.bytes


def test_a_new_replica_starts_from_the_snapshot_of_another(node: Node, other: Node) -> None:
    node.snapshot()
    other.store.close()
    restored = other.snapshots.restore(other.home / "store", anything)
    assert restored is not None
    assert restored.facts.points == 10
    other.store = Store(other.home / "store")
    other.store.count = 10
    other.store.fill(5)
    taken = other.take()
    sent = other.snapshots.upload()
    assert sent is not None
    assert sent.files < len(taken.files), "the tables that came from there are not sent back"
    assert node.restored() == 15


def test_only_files_that_are_not_there_are_sent_and_the_manifest_last(node: Node) -> None:
    first = node.snapshot()
    old = {file.sha256 for file in first.files}
    node.remote.puts.clear()
    node.store.fill(10)
    second = node.take()
    sent = node.snapshots.upload()
    new = {file.sha256 for file in second.files} - old
    assert 0 < len(new) < len({file.sha256 for file in second.files})
    assert sent is not None
    assert (sent.files, len(node.remote.puts)) == (len(new), len(new) + 1)
    assert node.remote.puts[-1] == f"manifests/{second.snapshot_id}.json"
    assert node.snapshots.upload() is None, "it is there"


def test_old_snapshots_are_retired_with_what_only_they_need(node: Node, bucket: Bucket) -> None:
    taken = [node.snapshot() for _ in range(6)]
    named = {key for key in bucket.objects if key.startswith("manifests/")}
    # Those that were superseded a moment ago stay, for whoever counts on their objects.
    assert named == {f"manifests/{one.snapshot_id}.json" for one in taken[-3:]}
    needed = {file.sha256 for one in taken[-3:] for file in one.files}
    there = {key.removeprefix("objects/").split("-")[0] for key in bucket.objects if key.startswith("objects/")}
    assert there == needed
    whole(bucket)
    assert node.restored() == 60


def test_an_upload_that_was_interrupted_goes_on_and_loses_no_local_snapshot(node: Node) -> None:
    node.store.fill(10)
    taken = node.take()
    left = 3

    def fail(operation: str, key: str) -> None:
        nonlocal left
        left -= operation == "put"
        node.remote.away = left <= 0

    node.remote.before = fail
    with pytest.raises(ObjectStoreUnavailable):
        node.snapshots.upload()
    assert node.snapshots.newest() == taken
    assert not [key for key in node.bucket.objects if key.startswith("manifests/")]
    node.remote.before, node.remote.away = (lambda _operation, _key: None), False
    node.snapshots.upload()
    assert len(node.remote.puts) == len(set(node.remote.puts)), "nothing is sent twice"
    assert node.restored() == 10


def test_orphans_of_an_upload_that_never_went_on_are_removed_after_a_day(node: Node, bucket: Bucket) -> None:
    bucket.objects["objects/orphan"], bucket.written_ms["objects/orphan"] = b"x", bucket.now_ms
    node.snapshot()
    assert "objects/orphan" in bucket.objects
    bucket.now_ms += DAY_MS
    node.snapshot()
    assert "objects/orphan" not in bucket.objects


def test_a_local_file_that_changed_is_not_uploaded(node: Node, bucket: Bucket) -> None:
    node.store.fill(10)
    taken = node.take()
    graph = node.home / "snapshots" / taken.snapshot_id / "files" / "graph" / "hnsw"
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    with pytest.raises(SnapshotDamaged, match="not what was taken"):
        node.snapshots.upload()
    assert not [key for key in bucket.objects if key.startswith("manifests/")]


@pytest.mark.parametrize("spoil", ["flip", "truncate", "empty", "gone", "manifest", "manifest empty"])
def test_where_the_newest_is_damaged_the_one_before_is_fetched(node: Node, bucket: Bucket, spoil: str) -> None:
    first, second = node.snapshot(), node.snapshot()
    if spoil.startswith("manifest"):
        key = f"manifests/{second.snapshot_id}.json"
    else:
        old = {file.sha256 for file in first.files}
        new = next(file for file in second.files if file.sha256 not in old and file.name.endswith(".sst"))
        key = f"objects/{new.sha256}-{second.snapshot_id}"
    data = bucket.objects[key]
    if spoil == "gone":
        del bucket.objects[key]
    else:
        changed = bytes([data[0] ^ 1, *data[1:]])
        bucket.objects[key] = {"truncate": data[:-1]}.get(spoil, b"" if "empty" in spoil else changed)
    with capture_logs() as logs:
        assert node.restored() == 10
    assert {line["snapshot"] for line in logs if line["log_level"] == "error"} == {second.snapshot_id}


def test_what_is_whole_here_is_not_fetched_and_what_is_torn_here_is(node: Node) -> None:
    node.snapshot()
    taken = node.snapshot()
    target = node.home / "restored"
    assert node.snapshots.restore(target, anything) == taken
    assert node.remote.gets == []
    graph = node.home / "snapshots" / taken.snapshot_id / "files" / "graph" / "hnsw"
    graph.write_bytes(b"torn")
    with capture_logs():
        restored = node.snapshots.restore(target, anything)
    assert restored is not None
    assert restored.facts == taken.facts, "of the same moment, from the other place"
    assert len(node.remote.gets) <= 2, "only what is torn here is fetched"
    assert keys_of(target) == 20


def test_an_object_store_that_is_away_matters_only_without_a_local_snapshot(node: Node, other: Node) -> None:
    node.snapshot()
    node.remote.away = other.remote.away = True
    assert node.snapshots.restore(node.home / "restored", anything) is not None
    with pytest.raises(ObjectStoreUnavailable):
        other.snapshots.restore(other.home / "restored", anything)
    assert not (other.home / "restored").exists()


def test_a_snapshot_that_is_retired_while_it_is_fetched_gives_way_to_a_newer_one(node: Node, other: Node) -> None:
    node.snapshot()
    node.snapshot()
    done = False

    def retire(operation: str, key: str) -> None:
        nonlocal done
        if operation == "read" and key.startswith("objects/") and not done:
            done = True
            for _ in range(5):
                node.snapshot()

    other.remote.before = retire
    with capture_logs():
        restored = other.snapshots.restore(other.home / "restored", anything)
    assert restored is not None
    assert restored.facts.points == 70
    assert keys_of(other.home / "restored") == 70


@pytest.mark.parametrize("moment", range(12))
def test_two_replicas_that_snapshot_at_once_leave_nothing_broken(
    node: Node, other: Node, bucket: Bucket, moment: int
) -> None:
    """The second takes, uploads and retires between any two steps of the first one's upload."""
    node.snapshot()
    other.store.close()
    other.snapshots.restore(other.home / "store", anything)
    other.store = Store(other.home / "store")
    other.store.count = 10
    other.snapshot()
    node.take()
    steps = 0

    def between(_operation: str, _key: str) -> None:
        nonlocal steps
        steps += 1
        if steps == moment + 1:
            for _ in range(3):
                other.snapshot()

    node.remote.before = between
    node.snapshots.upload()
    whole(bucket)
    for _ in range(2):
        other.snapshot()
        whole(bucket)
        node.snapshot()
        whole(bucket)
    assert node.restored() in (node.store.count, other.store.count)
