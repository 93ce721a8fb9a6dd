"""What a shard store refuses, and what of it survives a kill."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from rocksdict import Options, Rdict

from actors.index import store as store_module
from actors.index import upgrade as upgrade_module
from actors.index.engine import EngineParameters, ShardEngine
from actors.index.store import ShardStore
from actors.messages import ShardQuery
from contract.errors import InvalidRequest, StoreIncompatible
from contract.filters import Filter, Match
from tests.engine_log import FINGERPRINT, EngineLog
from tests.golden.make_shard_store import fill, upsert

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
PARAMETERS = EngineParameters(fingerprint="golden", dimension=3)

_WRITES_UNTIL_KILLED = """
import sys
from pathlib import Path
from tests.golden.make_shard_store import upsert
from actors.index.engine import EngineParameters, ShardEngine
from actors.log.records import LogIdentity

engine = ShardEngine(Path(sys.argv[1]), EngineParameters(fingerprint="golden", dimension=3))
engine.begin(LogIdentity("cluster", "topic"), {0: 0}, 1)
offset = 0
while True:
    engine.apply([upsert(f"id-{n % 50}", n) for n in range(offset, offset + 7)])
    offset += 7
    print(offset, flush=True)
"""


def test_a_killed_process_leaves_whole_batches_with_their_positions(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITES_UNTIL_KILLED, str(tmp_path / "store")], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(40)][-1]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    engine = ShardEngine(tmp_path / "store", PARAMETERS)
    position = engine.positions()[0]
    assert position.log_offset >= told, "what was applied before the kill is there"
    assert position.log_offset % 7 == 0, "no half of a batch"
    assert position.source_offset == position.log_offset - 1
    assert engine.points == 50
    newest = {f"id-{n % 50}": n for n in range(position.log_offset)}
    assert {state.image_id: state.source_offset for state in engine.scan(None, 100)} == newest
    assert len(engine.search(np.ones((1, 3), dtype=np.float32), [ShardQuery(100)])[0]) == 50
    engine.close()


@pytest.mark.parametrize(
    "changed", [{"fingerprint": "other"}, {"dimension": 4}, {"fingerprint": "other", "dimension": 4}]
)
def test_a_store_of_another_encoder_is_refused(tmp_path: Path, changed: dict[str, object]) -> None:
    ShardEngine(tmp_path, PARAMETERS).close()
    with pytest.raises(StoreIncompatible, match="golden"):
        ShardEngine(tmp_path, msgspec.structs.replace(PARAMETERS, **changed))
    ShardEngine(tmp_path, PARAMETERS).close()


def test_a_store_of_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = store_module.FORMAT_VERSION + 1
    monkeypatch.setattr(store_module, "FORMAT_VERSION", later)
    ShardEngine(tmp_path, PARAMETERS).close()
    monkeypatch.undo()
    for _ in range(2):
        with pytest.raises(StoreIncompatible, match=f"format_version={later}"):
            ShardEngine(tmp_path, PARAMETERS)


@pytest.mark.parametrize("version", [1, 2])
def test_the_golden_store_of_every_format_opens_and_answers(tmp_path: Path, version: int) -> None:
    assert store_module.FORMAT_VERSION == 2, "a new format comes with a golden store"
    shutil.copytree(GOLDEN / f"shard-store-v{version}", tmp_path / "store")
    engine = ShardEngine(tmp_path / "store", PARAMETERS)
    if version == 2:
        assert (engine.growing, engine.dead) == (0, 1), "its graph file is read"
    assert_golden(engine)
    engine.close()
    # And once more as it was left.
    engine = ShardEngine(tmp_path / "store", PARAMETERS)
    assert_golden(engine)
    engine.apply([upsert("c", 9), upsert("e", 10)])
    engine.seal()
    hits = engine.search(np.array([[1, 0, 0]], dtype=np.float32), [ShardQuery(5)])[0]
    assert [hit.image_id for hit in hits] == ["a", "c", "b", "e"]
    assert (engine.points, engine.deleted) == (4, 0)
    engine.close()


def assert_golden(engine: ShardEngine) -> None:
    position = engine.positions()[0]
    assert (position.log_offset, position.clean_source_offset) == (9, 6)
    assert engine.log_identity is not None
    assert engine.log_identity.topic_id == "golden-topic"
    assert (engine.points, engine.deleted) == (2, 1)
    states = {state.image_id: state for state in engine.fetch(["a", "b", "c", "d"]) if state is not None}
    assert {image_id: state.state for image_id, state in states.items()} == {
        "a": "searchable",
        "b": "searchable",
        "c": "deleted",
        "d": "rejected",
    }
    assert json.loads(states["a"].payload or b"") == {"colour": "changed"}
    assert states["d"].rejection_code == "invalid_image"
    query = np.array([[1, 0, 0]], dtype=np.float32)
    hits = engine.search(query, [ShardQuery(5)])[0]
    assert [hit.image_id for hit in hits] == ["a", "b"]
    for colour, image_id in {"changed": "a", "first": "b"}.items():
        wanted = ShardQuery(5, filter=Filter(must=(Match("colour", (colour,)),)))
        assert [hit.image_id for hit in engine.search(query, [wanted])[0]] == [image_id]


class PowerGone(BaseException):
    """Nothing that the code may catch and go on from."""


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The `step`-th change that an upgrade makes to the disk does not happen; returns the changes up to then."""
    happened: list[str] = []

    def counted(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def hooked(*given: Any, **named: Any) -> Any:
            happened.append(name)
            if len(happened) > step:
                raise PowerGone
            return change(*given, **named)

        return hooked

    monkeypatch.setattr(Path, "rename", counted("rename", Path.rename))
    monkeypatch.setattr(shutil, "rmtree", counted("remove", shutil.rmtree))
    for name in ("write", "sync", "close"):
        monkeypatch.setattr(ShardStore, name, counted(name, getattr(ShardStore, name)))
    return happened


def test_an_upgrade_that_was_cut_off_at_any_step_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade_module, "_BATCH", 1)
    happened: list[str] = []
    step = 0
    while len(happened) >= step:
        path = tmp_path / str(step) / "store"
        shutil.copytree(GOLDEN / "shard-store-v1", path)
        with monkeypatch.context() as cut_off:
            happened = stop_at(step, cut_off)
            with contextlib.suppress(PowerGone):
                whole = ShardEngine(path, PARAMETERS)
        if len(happened) <= step:
            whole.close()
        engine = ShardEngine(path, PARAMETERS)
        assert_golden(engine)
        engine.close()
        assert [folder.name for folder in path.parent.iterdir()] == ["store"]
        step += 1
    assert happened.count("write") >= 4
    assert happened.count("rename") == 2


@pytest.mark.parametrize("changed", [{"fingerprint": "other"}, {"dimension": 4}])
def test_a_store_of_format_1_and_another_encoder_is_refused(tmp_path: Path, changed: dict[str, object]) -> None:
    shutil.copytree(GOLDEN / "shard-store-v1", tmp_path / "store")
    with pytest.raises(StoreIncompatible, match="golden"):
        ShardEngine(tmp_path / "store", msgspec.structs.replace(PARAMETERS, **changed))
    engine = ShardEngine(tmp_path / "store", PARAMETERS)
    assert_golden(engine)
    engine.close()


@pytest.mark.parametrize("families", [[], ["ids"], ["ids", "numbers"], ["ids", "vectors"]])
def test_a_store_whose_making_was_cut_off_is_made(tmp_path: Path, families: list[str]) -> None:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    Rdict(str(tmp_path), options, column_families={name: Options(raw_mode=True) for name in families}).close()
    engine = ShardEngine(tmp_path, PARAMETERS)
    fill(engine)
    assert_golden(engine)
    engine.close()


def test_a_reset_that_was_cut_off_leaves_the_old_store_or_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(4):
        engine = ShardEngine(tmp_path / "store", PARAMETERS)
        fill(engine)
        with monkeypatch.context() as cut_off:
            happened = stop_at(step, cut_off)
            with contextlib.suppress(PowerGone):
                engine.reset()
        engine._store.close()
        engine = ShardEngine(tmp_path / "store", PARAMETERS)
        assert happened == ["close", "remove", "rename", "remove"][: step + 1]
        if step < 3:
            assert_golden(engine)
        else:
            assert (engine.points, engine.deleted, engine.positions()) == (0, 0, {})
            fill(engine)
            assert_golden(engine)
        engine.close()


def test_vectors_of_half_the_bytes_are_searched_as_they_are_stored(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((40, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    parameters = EngineParameters(fingerprint=FINGERPRINT, dimension=16, vector_type="fp16", growing_max=1)
    engine = ShardEngine(tmp_path, parameters)
    log = EngineLog(engine)
    log.upsert({f"{i:02d}": vector for i, vector in enumerate(vectors)})
    log.engine.seal()
    log.upsert({f"{i:02d}": vectors[i + 1] for i in range(5)})
    query = vectors[39]
    log.assert_whole(query, tolerance=2e-3)
    stored = vectors[10].astype(np.float16).astype(np.float32)
    state = engine.fetch(["10"], with_vector=True)[0]
    assert state is not None
    assert np.array_equal(np.asarray(state.vector), stored)
    everything = {hit.image_id: hit.score for hit in engine.search(query[None], [ShardQuery(99)])[0]}
    assert everything["10"] == pytest.approx(float(stored @ query), abs=1e-6)
    before = engine._store.progress.next_number
    log.upsert({"10": vectors[10]})
    assert engine._store.progress.next_number == before, "the same vector again needs no number"
    engine.close()
    with pytest.raises(StoreIncompatible, match="fp16"):
        ShardEngine(tmp_path, msgspec.structs.replace(parameters, vector_type="fp32"))
    log.engine = ShardEngine(tmp_path, parameters)
    log.assert_whole(query, tolerance=2e-3)
    log.engine.close()


def test_a_store_that_has_given_all_numbers_says_so_and_stays_whole(tmp_path: Path) -> None:
    engine = ShardEngine(tmp_path, PARAMETERS)
    fill(engine)
    engine._store.resume(msgspec.structs.replace(engine._store.progress, next_number=store_module.NUMBER_MAX))
    engine.apply([upsert("e", 9)])
    engine.seal()
    with pytest.raises(StoreIncompatible, match="2\\^32"):
        engine.apply([upsert("f", 10)])
    hits = engine.search(np.array([[1, 0, 0]], dtype=np.float32), [ShardQuery(5)])[0]
    assert sorted(hit.image_id for hit in hits) == ["a", "b", "e"]
    engine.close()
    engine = ShardEngine(tmp_path, PARAMETERS)
    assert (engine.points, engine.growing) == (3, 0)
    engine.close()


def test_wrong_shapes_are_refused(tmp_path: Path) -> None:
    engine = ShardEngine(tmp_path, PARAMETERS)
    with pytest.raises(InvalidRequest, match="dimension 3"):
        engine.search(np.ones((1, 4), dtype=np.float32), [ShardQuery(1)])
    with pytest.raises(InvalidRequest, match="queries"):
        engine.search(np.ones((2, 3), dtype=np.float32), [ShardQuery(1)])
    with pytest.raises(InvalidRequest, match="k must"):
        engine.search(np.ones((1, 3), dtype=np.float32), [ShardQuery(0)])
    engine.close()
