"""Snapshots in a folder and on a local S3 server, through the real client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.ended import remove_remote_snapshots
from actors.index import remote_snapshots
from actors.index.snapshots import Snapshots
from actors.snapshot_objects import SnapshotObjects, snapshots_prefix
from contract.errors import ObjectMissing, ObjectStoreUnavailable
from contract.settings import Settings
from tests.integration.test_objects_store import s3_settings
from tests.unit.snapshot_fakes import Store, keys_of

pytestmark = pytest.mark.integration


@pytest.fixture(params=["file", "s3"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "file":
        return Settings(home=tmp_path / "home with spaces")
    return s3_settings(tmp_path, request.getfixturevalue("s3_endpoint"))


@pytest.fixture
def remote(settings: Settings, request: pytest.FixtureRequest) -> SnapshotObjects:
    # The S3 server outlives a test, so each has a collection of its own.
    return SnapshotObjects(settings, f"{snapshots_prefix(request.node.name, 'one')}0/")


def test_a_snapshot_travels_through_the_object_store(remote: SnapshotObjects, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    snapshots = Snapshots(tmp_path / "snapshots", 2, remote)
    store.fill(100)
    first = snapshots.take(store.checkpoint, 1)
    sent = snapshots.upload()
    assert sent is not None
    assert sent.bytes == sum({file.sha256: file.bytes for file in first.files}.values())
    store.fill(10)
    second = snapshots.take(store.checkpoint, 2)
    sent = snapshots.upload()
    assert sent is not None
    assert 0 < sent.bytes < first.bytes
    assert snapshots.upload() is None
    store.close()
    restored = Snapshots(tmp_path / "none", 2, remote).restore(tmp_path / "restored", lambda _: None)
    assert restored is not None
    assert restored.facts == second.facts
    assert keys_of(tmp_path / "restored") == 110


def test_a_file_of_several_pieces_comes_back_and_one_that_changed_is_not_stored(
    remote: SnapshotObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = [bytes([n]) * remote_snapshots.CHUNK_BYTES for n in range(3)] + [b"the end"]
    remote.put("objects/large", iter(pieces))
    assert remote.size("objects/large") == sum(map(len, pieces))
    assert remote.get("objects/large", 2 * remote_snapshots.CHUNK_BYTES - 1, 2) == b"\x01\x02"
    assert remote.read("objects/large") == b"".join(pieces)

    def broken() -> Iterator[bytes]:
        yield from pieces
        raise LookupError("not what was taken")

    with pytest.raises(LookupError):
        remote.put("objects/broken", broken())
    assert [one.key for one in remote.list("objects/")] == ["objects/large"]
    with pytest.raises(ObjectMissing):
        remote.size("objects/broken")


def test_empty_files_and_keys_that_are_not_there(remote: SnapshotObjects) -> None:
    assert remote.list("objects/") == []
    remote.put("objects/empty", iter(()))
    assert (remote.size("objects/empty"), remote.read("objects/empty")) == (0, b"")
    for call in (remote.read, remote.size, lambda key: remote.get(key, 0, 1)):
        with pytest.raises(ObjectMissing):
            call("objects/nothing")
    remote.delete("objects/nothing")
    remote.delete("objects/empty")
    assert remote.list("") == []


def test_what_a_collection_left_is_removed_and_nothing_else(settings: Settings) -> None:
    gone = SnapshotObjects(settings, f"{snapshots_prefix('birds', 'one')}0/")
    kept = [SnapshotObjects(settings, f"{snapshots_prefix(*names)}0/") for names in (("birds", "two"), ("bird", "one"))]
    for remote in (gone, *kept):
        remote.put("manifests/1.json", iter([b"x"]))
    remove_remote_snapshots(settings, "birds", "one")
    assert gone.list("") == []
    assert [len(remote.list("")) for remote in kept] == [1, 1]
    remove_remote_snapshots(settings, "birds", "one")


def test_a_server_that_is_gone_is_unavailable(tmp_path: Path) -> None:
    remote = SnapshotObjects(s3_settings(tmp_path, "http://127.0.0.1:1"), "snapshots/a/b/0/")
    for call in (remote.read, remote.list, remote.size, remote.delete, lambda key: remote.put(key, iter([b"x"]))):
        with pytest.raises(ObjectStoreUnavailable) as caught:
            call("a")
        assert caught.value.retryable
