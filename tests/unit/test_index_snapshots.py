"""Local snapshots: whole or not there, verified, and the one before where the newest is bad."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from actors.index import snapshots as snapshots_module
from actors.index.manifest import (
    FORMAT_VERSION,
    Manifest,
    SnapshotDamaged,
    SnapshotFacts,
    SnapshotFile,
    SnapshotForeign,
    decode_manifest,
    encode_manifest,
)
from actors.index.snapshots import Snapshots
from tests.unit.snapshot_fakes import Store, facts, keys_of

ROOT = Path(__file__).parents[2]


def anything(_: Manifest) -> str | None:
    return None


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store(tmp_path / "store")
    one.fill(100)
    yield one
    one.close()


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    return Snapshots(tmp_path / "snapshots", keep=2)


def folders(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "snapshots").iterdir())


def test_a_store_comes_back_as_it_was_with_its_facts(store: Store, snapshots: Snapshots, tmp_path: Path) -> None:
    taken = snapshots.take(store.checkpoint, 5)
    store.fill(50)
    restored = snapshots.restore(tmp_path / "restored", anything)
    assert restored == taken == snapshots.newest()
    assert restored.facts == facts(100)
    assert restored.created_at_ms == 5
    assert keys_of(tmp_path / "restored") == 100
    assert (tmp_path / "restored" / "graph" / "hnsw").read_bytes() == b"graph of 100"


def test_without_a_snapshot_nothing_is_touched(snapshots: Snapshots, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    assert snapshots.restore(tmp_path / "target", anything) is None
    assert snapshots.newest() is None
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_restored_store_that_goes_on_leaves_its_snapshot_whole(
    store: Store, snapshots: Snapshots, tmp_path: Path
) -> None:
    snapshots.take(store.checkpoint, 1)
    target = tmp_path / "restored"
    snapshots.restore(target, anything)
    again = Store(target)
    again.count = 100
    again.fill(100)
    again.close()
    with (target / "graph" / "hnsw").open("ab") as graph:
        graph.write(b" and more")
    snapshots.restore(target, anything)
    assert keys_of(target) == 100
    assert (target / "graph" / "hnsw").read_bytes() == b"graph of 100"


def test_tables_that_the_snapshot_before_holds_are_neither_copied_nor_read_again(
    store: Store, snapshots: Snapshots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = snapshots.take(store.checkpoint, 1)
    store.fill(100)
    read: list[str] = []
    checksum = snapshots_module._checksum

    def noted(path: Path) -> str:
        read.append(path.name)
        return checksum(path)

    monkeypatch.setattr(snapshots_module, "_checksum", noted)
    second = snapshots.take(store.checkpoint, 2)
    old = {file for file in first.files if file.name.endswith(".sst")}
    assert old < set(second.files)
    assert not {file.name for file in old} & set(read)
    for file in old:
        copies = [folder / "files" / file.name for folder in folders(tmp_path)]
        assert len({path.stat().st_ino for path in copies}) == 1


def test_only_the_newest_are_kept_and_ids_ascend_though_the_clock_goes_back(
    store: Store, snapshots: Snapshots, tmp_path: Path
) -> None:
    taken = []
    for now_ms in (50, 40, 30):
        store.fill(10)
        taken.append(snapshots.take(store.checkpoint, now_ms))
    assert [folder.name for folder in folders(tmp_path)] == [one.snapshot_id for one in taken[1:]]
    assert [one.created_at_ms for one in taken] == [50, 51, 52]


def _table(folder: Path) -> Path:
    # The last one: earlier snapshots do not share it.
    return sorted((folder / "files").glob("*.sst"))[-1]


def _truncate(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: _truncate(_table(folder)),
        lambda folder: _flip(_table(folder)),
        lambda folder: _table(folder).unlink(),
        lambda folder: _flip(folder / "files" / "graph" / "hnsw"),
        lambda folder: (folder / "files" / "CURRENT").write_bytes(b""),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: _truncate(folder / "manifest.json"),
        lambda folder: _flip(folder / "manifest.json"),
        lambda folder: (folder / "manifest.json").write_bytes(b""),
        lambda folder: shutil.rmtree(folder / "files"),
    ],
)
def test_where_the_newest_is_damaged_the_one_before_is_used_and_it_is_told(
    store: Store, snapshots: Snapshots, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    first = snapshots.take(store.checkpoint, 1)
    store.fill(100)
    second = snapshots.take(store.checkpoint, 2)
    spoil(tmp_path / "snapshots" / second.snapshot_id)
    with capture_logs() as logs:
        assert snapshots.restore(tmp_path / "restored", anything) == first
    errors = [line for line in logs if line["log_level"] == "error"]
    assert [line["snapshot"] for line in errors] == [second.snapshot_id]
    assert keys_of(tmp_path / "restored") == 100
    assert [folder.name for folder in folders(tmp_path)] == [first.snapshot_id], "what is damaged takes no place"


def test_where_all_are_damaged_the_store_is_left_as_it_is(store: Store, snapshots: Snapshots, tmp_path: Path) -> None:
    for now_ms in (1, 2):
        store.fill(10)
        taken = snapshots.take(store.checkpoint, now_ms)
        _flip(tmp_path / "snapshots" / taken.snapshot_id / "files" / "graph" / "hnsw")
    (tmp_path / "restored").mkdir()
    (tmp_path / "restored" / "old").write_bytes(b"old")
    assert snapshots.restore(tmp_path / "restored", anything) is None
    assert (tmp_path / "restored" / "old").read_bytes() == b"old"


def test_what_is_refused_is_not_restored_and_not_removed(store: Store, snapshots: Snapshots, tmp_path: Path) -> None:
    snapshots.take(store.checkpoint, 1)
    newest = snapshots.take(lambda folder: msgspec.structs.replace(store.checkpoint(folder), fingerprint="other"), 2)

    def accept(manifest: Manifest) -> str | None:
        return None if manifest.facts.fingerprint == "f" else "another encoder"

    with capture_logs() as logs:
        restored = snapshots.restore(tmp_path / "restored", accept)
    assert restored is not None
    assert restored.created_at_ms == 1
    assert [line["error"] for line in logs if line["log_level"] == "warning"] == ["another encoder"]
    assert snapshots.newest() == newest


def test_a_snapshot_of_another_format_is_passed_over_and_kept(
    store: Store, snapshots: Snapshots, tmp_path: Path
) -> None:
    first = snapshots.take(store.checkpoint, 1)
    second = snapshots.take(store.checkpoint, 2)
    later = msgspec.structs.replace(second, format_version=FORMAT_VERSION + 1)
    (tmp_path / "snapshots" / second.snapshot_id / "manifest.json").write_bytes(encode_manifest(later))
    assert snapshots.restore(tmp_path / "restored", anything) == first
    assert len(folders(tmp_path)) == 2


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "", ".", "a//b"])
def test_a_manifest_that_leads_out_of_its_folder_is_damaged(name: str) -> None:
    manifest = Manifest(snapshot_id="1", created_at_ms=1, facts=facts(1), files=(SnapshotFile(name, 1, "0" * 64),))
    with pytest.raises(SnapshotDamaged):
        decode_manifest(encode_manifest(manifest))


def test_a_manifest_comes_back_equal_and_no_changed_byte_goes_unnoticed() -> None:
    manifest = Manifest(snapshot_id="1", created_at_ms=1, facts=facts(7), files=(SnapshotFile("a/b", 1, "0" * 64),))
    data = encode_manifest(manifest)
    assert decode_manifest(data) == manifest
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(SnapshotDamaged):
            decode_manifest(bytes(changed))
    with pytest.raises(SnapshotForeign):
        decode_manifest(encode_manifest(msgspec.structs.replace(manifest, format_version=9)))


class Stop(BaseException):
    """Ends the process, as far as the code under test can tell."""


def _stop_at(monkeypatch: pytest.MonkeyPatch, count: int) -> list[str]:
    """Raise Stop at the `count`th of the calls that reach the disk, and let no clean-up after it happen."""
    calls: list[str] = []

    def counted(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            if len(calls) > count:
                return None
            calls.append(name)
            if len(calls) > count:
                raise Stop
            return real(*arguments, **named)

        return call

    monkeypatch.setattr(os, "fsync", counted("fsync", os.fsync))
    monkeypatch.setattr(Path, "rename", counted("rename", Path.rename))
    monkeypatch.setattr(Path, "write_bytes", counted("write", Path.write_bytes))
    monkeypatch.setattr(shutil, "rmtree", counted("rmtree", shutil.rmtree))
    return calls


def test_a_crash_at_any_step_leaves_the_snapshots_before_it_or_a_whole_new_one(store: Store, tmp_path: Path) -> None:
    steps = 0
    while True:
        folder = tmp_path / f"snapshots-{steps}"
        snapshots = Snapshots(folder, keep=2)
        before = [snapshots.take(store.checkpoint, now_ms) for now_ms in (1, 2)]
        store.fill(1)
        with pytest.MonkeyPatch.context() as patch:
            calls = _stop_at(patch, steps)
            try:
                snapshots.take(store.checkpoint, 3)
                finished = True
            except Stop:
                finished = False
        newest = snapshots.restore(tmp_path / "restored", anything)
        assert newest is not None
        assert newest.created_at_ms == 3 or newest == before[1], calls
        assert keys_of(tmp_path / "restored") == newest.facts.points
        assert not [path for path in folder.iterdir() if path.name.startswith(".")], "left-overs are removed"
        assert snapshots.take(store.checkpoint, 4).created_at_ms == 4
        if finished:
            break
        steps += 1
    assert steps > 10


def test_a_crash_at_any_step_of_a_restore_leaves_a_whole_store_or_none(store: Store, tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path / "snapshots", keep=2)
    snapshots.take(store.checkpoint, 1)
    steps, finished = 0, False
    while not finished:
        target = tmp_path / f"target-{steps}"
        Store(target).close()
        with pytest.MonkeyPatch.context() as patch:
            _stop_at(patch, steps)
            with contextlib.suppress(Stop):
                finished = snapshots.restore(target, anything) is not None
        if target.exists():
            assert keys_of(target) in (0, 100)
        assert snapshots.restore(target, anything) is not None
        assert keys_of(target) == 100
        steps += 1
    assert steps > 5


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("of the engine")])
def test_a_failing_writer_leaves_nothing(snapshots: Snapshots, tmp_path: Path, error: Exception) -> None:
    def write(folder: Path) -> SnapshotFacts:
        folder.mkdir()
        (folder / "half").write_bytes(b"half")
        raise error

    with pytest.raises(type(error)):
        snapshots.take(write, 1)
    assert folders(tmp_path) == []


_TAKES_UNTIL_KILLED = """
import sys
from pathlib import Path
from actors.index.snapshots import Snapshots
from tests.unit.snapshot_fakes import Store

store = Store(Path(sys.argv[1]) / "store")
snapshots = Snapshots(Path(sys.argv[1]) / "snapshots", keep=2)
taken = 0
while True:
    store.fill(20, size=20_000)
    print("taking", flush=True)
    snapshots.take(store.checkpoint, taken)
    taken += 1
"""


@pytest.mark.parametrize("rounds", [2, 3, 5])
def test_a_process_killed_while_it_takes_one_leaves_whole_snapshots(tmp_path: Path, rounds: int) -> None:
    command = [sys.executable, "-c", _TAKES_UNTIL_KILLED, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(rounds):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    snapshots = Snapshots(tmp_path / "snapshots", keep=2)
    with capture_logs() as logs:
        restored = snapshots.restore(tmp_path / "restored", anything)
    assert [line for line in logs if line["log_level"] == "error"] == []
    assert restored is not None
    assert restored.facts.points >= 20 * (rounds - 1)
    assert keys_of(tmp_path / "restored") == restored.facts.points
