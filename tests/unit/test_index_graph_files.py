"""What lies beside the store: a graph file is never believed further than the store, nor is a filter file."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from actors.index import codes
from actors.index.engine import EngineParameters, ShardEngine
from actors.messages import ShardQuery
from contract.events import Quantization
from contract.filters import Filter, Match
from tests.engine_log import FINGERPRINT, IDENTITY, EngineLog, clustered, drained, kill

DIMENSION = 16
PARAMETERS = EngineParameters(
    fingerprint=FINGERPRINT, dimension=DIMENSION, m=8, quantization="sq8", growing_max=1, rebuild_dead_min=50
)
VECTORS = clustered(200, DIMENSION)
QUERY = VECTORS[199]


def some(first: int, end: int, shift: int = 0) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {f"{i:03d}": VECTORS[(i + shift) % 200] for i in range(first, end)}


def begun(path: Path, parameters: EngineParameters = PARAMETERS) -> EngineLog:
    engine = ShardEngine(path, parameters)
    engine.begin(IDENTITY, {0: 0}, 1)
    return EngineLog(engine)


def closed(path: Path) -> EngineLog:
    """A store of 100 points with its graph file; the log's engine is closed."""
    log = begun(path)
    log.upsert(some(0, 100), {"colour": "red"})
    log.engine.seal()
    log.delete(["000", "001"])
    log.engine.close()
    return log


def assert_good(log: EngineLog, path: Path, parameters: EngineParameters = PARAMETERS) -> None:
    """The store opens with all its points, and goes on."""
    again = log.as_of_now(ShardEngine(path, parameters))
    again.assert_whole(QUERY)
    again.assert_filtered("colour", ["red", "blue", "green"])
    again.upsert(some(50, 120, 7), {"colour": "green"})
    again.delete(["060"])
    drained(again.engine)
    again.assert_whole(QUERY)
    again.assert_filtered("colour", ["red", "blue", "green"])
    again.engine.close()


@pytest.mark.parametrize("quantization", ["none", "fp16", "sq8", "pq", "rabitq"])
def test_a_start_takes_the_graph_from_its_file(
    tmp_path: Path, quantization: Quantization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes, "_PQ_BITS", 4)
    monkeypatch.setattr(codes, "_PQ_TRAIN_MIN", 100)
    monkeypatch.setattr(codes, "_RABITQ_TRAIN_MIN", 100)
    parameters = msgspec.structs.replace(PARAMETERS, quantization=quantization)
    log = begun(tmp_path / "store", parameters)
    log.upsert(some(0, 150))
    drained(log.engine)
    log.delete(["003"])
    log.engine.close()
    log.engine = ShardEngine(tmp_path / "store", parameters)
    assert (log.engine.growing, log.engine.dead, log.engine.quantization) == (0, 1, quantization)
    log.assert_whole(QUERY)
    log.engine.close()


def truncated(by: int) -> Callable[[bytes], bytes]:
    return lambda data: data[: len(data) - by]


def flipped(at: float) -> Callable[[bytes], bytes]:
    def flip(data: bytes) -> bytes:
        place = int(at * (len(data) - 1))
        return data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :]

    return flip


@pytest.mark.parametrize(
    "damage",
    [lambda _: b"", lambda data: data[:7], lambda data: data + b"x", lambda data: b"\0" * len(data)]
    + [truncated(by) for by in (1, 8, 20, 400, 3000)]
    + [flipped(at) for at in (0.0, 0.01, 0.3, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)],
)
def test_a_damaged_graph_file_is_left_out_and_made_anew(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    log = closed(tmp_path)
    file = tmp_path / "graph"
    file.write_bytes(damage(file.read_bytes()))
    with capture_logs() as logs:
        engine = ShardEngine(tmp_path, PARAMETERS)
    assert [entry["event"] for entry in logs] == ["a graph file cannot be used and is made anew"]
    assert (engine.growing, engine.quantization) == (98, None)
    engine.close()
    assert_good(log, tmp_path)


@pytest.mark.parametrize("damage", [lambda _: b"", truncated(1), flipped(0.0), flipped(0.5), flipped(1.0)])
def test_a_damaged_filter_file_is_left_out(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    log = closed(tmp_path)
    file = tmp_path / "filters"
    file.write_bytes(damage(file.read_bytes()))
    assert_good(log, tmp_path)


@pytest.mark.parametrize("pattern", ["graph", "filters", "rows-*"])
def test_without_a_file_it_is_made_anew(tmp_path: Path, pattern: str) -> None:
    log = closed(tmp_path)
    (file,) = tmp_path.glob(pattern)
    file.unlink()
    assert_good(log, tmp_path)
    assert len(list(tmp_path.glob(pattern))) == 1


@pytest.mark.parametrize("left", [0, 1, 50 * DIMENSION * 4])
def test_a_file_of_vectors_that_is_too_short_is_made_anew(tmp_path: Path, left: int) -> None:
    log = closed(tmp_path)
    (file,) = tmp_path.glob("rows-*")
    os.truncate(file, left)
    log.engine = ShardEngine(tmp_path, PARAMETERS)
    assert log.engine.growing == 0
    log.assert_whole(QUERY)
    log.engine.close()
    assert_good(log, tmp_path)
    assert len(list(tmp_path.glob("rows-*"))) == 1


@pytest.mark.parametrize("changed", [{"m": 6}, {"ef_construction": 50}])
def test_a_graph_of_other_parameters_is_made_anew(tmp_path: Path, changed: dict[str, int]) -> None:
    log = closed(tmp_path)
    assert_good(log, tmp_path, msgspec.structs.replace(PARAMETERS, **changed))


def test_a_graph_of_another_quantization_serves_until_its_successor_is_there(tmp_path: Path) -> None:
    log = closed(tmp_path)
    log.engine = ShardEngine(tmp_path, msgspec.structs.replace(PARAMETERS, quantization="none"))
    assert (log.engine.growing, log.engine.quantization) == (0, "sq8")
    log.assert_whole(QUERY)
    drained(log.engine)
    assert (log.engine.quantization, log.engine.dead) == ("none", 0)
    log.assert_whole(QUERY)
    log.engine.close()


def test_an_index_of_other_fields_is_made_anew(tmp_path: Path) -> None:
    log = begun(tmp_path, msgspec.structs.replace(PARAMETERS, filter_fields=("size",)))
    log.upsert(some(0, 5), {"colour": "red", "size": 1})
    log.engine.close()
    log.engine = ShardEngine(tmp_path, msgspec.structs.replace(PARAMETERS, filter_fields=("colour",)))
    log.assert_filtered("colour", ["red", "blue"])
    log.engine.close()


def test_an_older_graph_file_lacks_what_came_and_holds_what_went(tmp_path: Path) -> None:
    log = closed(tmp_path / "store")
    shutil.copy(tmp_path / "store" / "graph", tmp_path / "older")
    log.engine = ShardEngine(tmp_path / "store", PARAMETERS)
    for shift in range(1, 4):
        log.upsert(some(20, 140, shift), {"colour": "blue"})
        log.delete([f"{i:03d}" for i in range(30, 40)])
        drained(log.engine)
    log.engine.close()
    shutil.copy(tmp_path / "older", tmp_path / "store" / "graph")
    assert_good(log, tmp_path / "store")


class PowerCut:
    """A store as of an earlier moment, which was not synced since, beside the graph and filter files of a later one."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path / "lost-its-tail"
        self.log = begun(tmp_path / "store")
        self.log.upsert(some(0, 80), {"colour": "red"})
        self.log.engine.seal()
        self.log.engine.checkpoint(self.path)
        self.then = self.log.as_of_now(self.log.engine)
        for shift in range(1, 5):
            # Ids twice in a batch, so that the numbers depend on where batches end.
            points = [*some(40, 60, shift).items(), *some(50, 60, shift + 4).items()]
            self.log.upsert_all((image_id, vector, {"colour": "blue"}) for image_id, vector in points)
            self.log.upsert(some(70, 90, shift), {"colour": "green"})
        self.log.delete([f"{i:03d}" for i in range(10, 20)])
        self.log.engine.seal()
        self.log.engine.close()
        for pattern in ("graph", "filters", "rows-*"):
            for file in (tmp_path / "store").glob(pattern):
                shutil.copy(file, self.path / file.name)


@pytest.mark.parametrize("batch", [1, 7, 60, 1000])
def test_a_graph_file_newer_than_its_store_never_gives_its_numbers_away(tmp_path: Path, batch: int) -> None:
    cut = PowerCut(tmp_path)
    newest = ShardEngine(tmp_path / "store", PARAMETERS)
    given = newest._store.progress.next_number
    newest.close()
    engine = ShardEngine(cut.path, PARAMETERS)
    cut.then.engine = engine
    cut.then.assert_whole(QUERY)
    cut.then.assert_filtered("colour", ["red", "blue", "green"])
    lost = set(engine._store.numbers()[0].tolist())
    cut.log.replay(engine, batch)
    fresh = set(engine._store.numbers()[0].tolist()) - lost
    assert min(fresh) >= given, "numbers of the lost tail name other vectors"
    cut.log.engine = engine
    cut.log.assert_whole(QUERY)
    cut.log.assert_filtered("colour", ["red", "blue", "green"])
    drained(engine)
    cut.log.assert_whole(QUERY)
    engine.close()
    assert_good(cut.log, cut.path)


@pytest.mark.parametrize("batch", [1, 7, 60, 1000])
@pytest.mark.parametrize("lost", [["graph"], []])
def test_after_a_power_cut_and_a_kill_no_file_of_before_is_believed(
    tmp_path: Path, batch: int, lost: list[str]
) -> None:
    """The log was read to where it was before the cut, in other batches, and nothing was saved since."""
    cut = PowerCut(tmp_path)
    for name in lost:
        (cut.path / name).unlink()
    engine = ShardEngine(cut.path, PARAMETERS)
    cut.log.replay(engine, batch)
    kill(engine, cut.path, tmp_path / "killed")
    cut.log.engine = ShardEngine(tmp_path / "killed", PARAMETERS)
    cut.log.assert_whole(QUERY)
    cut.log.assert_filtered("colour", ["red", "blue", "green"])
    cut.log.engine.close()


def test_a_graph_that_could_not_be_used_for_a_while_is_not_used_again(tmp_path: Path) -> None:
    """Its numbers may have been given to other vectors meanwhile, because nobody could read which they are."""
    cut = PowerCut(tmp_path)
    other = msgspec.structs.replace(PARAMETERS, m=6)
    engine = ShardEngine(cut.path, other)
    cut.log.replay(engine, 7)
    kill(engine, cut.path, tmp_path / "killed")
    cut.log.engine = ShardEngine(tmp_path / "killed", PARAMETERS)
    cut.log.assert_whole(QUERY)
    cut.log.engine.close()


def vector_files(path: Path) -> list[str]:
    return [file.name for file in path.glob("rows-*")]


def test_a_vector_file_left_over_from_another_graph_goes_at_the_start(tmp_path: Path) -> None:
    log = closed(tmp_path)
    (file,) = vector_files(tmp_path)
    for name in ("rows-0123456789abcdef", "rows-0123456789abcdef.tmp"):
        (tmp_path / name).write_bytes(bytes(100))
    log.engine = ShardEngine(tmp_path, PARAMETERS)
    assert vector_files(tmp_path) == [file]
    log.assert_whole(QUERY)
    log.engine.close()


def test_rebuilds_leave_no_vector_files_behind(tmp_path: Path) -> None:
    log = begun(tmp_path)
    used = set()
    for shift in range(6):
        log.upsert(some(0, 100, 10 * shift))
        log.engine.seal()
        drained(log.engine)
        assert log.engine.dead == 0
        # A rebuilt graph is saved at once where one was saved before.
        assert len(vector_files(tmp_path)) == 1
        used.update(vector_files(tmp_path))
        if shift == 3:
            log.engine.checkpoint(tmp_path.parent / "copy")
            assert vector_files(tmp_path.parent / "copy") == []
    assert len(used) == 6
    log.assert_whole(QUERY)
    log.engine.close()
    assert len(vector_files(tmp_path)) == 1


def test_a_checkpoint_is_the_engine_as_of_one_moment(tmp_path: Path) -> None:
    log = begun(tmp_path / "store")
    log.upsert(some(0, 100), {"colour": "red"})
    log.engine.seal()
    log.upsert(some(90, 110, 3), {"colour": "blue"})
    log.delete(["005"])
    facts = log.engine.checkpoint(tmp_path / "copy")
    then = log.as_of_now(log.engine)
    assert facts.points == 109
    assert facts.positions == log.engine.positions()
    log.upsert(some(0, 150, 5), {"colour": "green"})
    log.engine.seal()
    log.engine.checkpoint(tmp_path / "later")
    log.engine.close()
    then.engine = ShardEngine(tmp_path / "copy", PARAMETERS)
    assert (then.engine.growing, then.engine.dead) == (20, 11)
    assert len(vector_files(tmp_path / "copy")) == 1, "made anew from the store"
    then.engine.close()
    assert_good(then, tmp_path / "copy")
    assert_good(log, tmp_path / "later")
    assert_good(log, tmp_path / "store")


def test_a_checkpoint_on_another_file_system_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = closed(tmp_path / "store")
    log.engine = ShardEngine(tmp_path / "store", PARAMETERS)

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    log.engine.checkpoint(tmp_path / "copy")
    log.engine.close()
    graph = tmp_path / "copy" / "graph"
    assert graph.read_bytes() == (tmp_path / "store" / "graph").read_bytes()
    assert graph.stat().st_nlink == 1
    assert_good(log, tmp_path / "copy")


def test_a_graph_that_lost_all_its_points_is_saved_and_read(tmp_path: Path) -> None:
    log = begun(tmp_path)
    log.upsert(some(0, 60))
    log.engine.seal()
    log.delete(list(log.vectors))
    drained(log.engine)
    assert log.engine.dead == 0
    log.engine.close()
    log.engine = ShardEngine(tmp_path, PARAMETERS)
    log.assert_whole(QUERY)
    hits = log.engine.search(QUERY[None], [ShardQuery(5, filter=Filter(must=(Match("a", ("b",)),)))])
    assert hits == ((),)
    log.engine.close()
    assert_good(log, tmp_path)


def test_a_disk_that_is_full_leaves_the_graph_file_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = closed(tmp_path)
    before = (tmp_path / "graph").read_bytes()
    log.engine = ShardEngine(tmp_path, PARAMETERS)
    log.upsert(some(100, 120))
    log.engine.seal()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        log.engine.checkpoint(tmp_path / "copy")
    monkeypatch.undo()
    assert (tmp_path / "graph").read_bytes() == before
    log.assert_whole(QUERY)
    log.engine.close()
    assert_good(log, tmp_path)
