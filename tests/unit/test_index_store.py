"""What a shard store refuses, and what of it survives a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from actors.index import store as store_module
from actors.index.engine import EngineParameters, ShardEngine
from actors.messages import ShardQuery
from contract.errors import InvalidRequest, StoreIncompatible

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "shard-store-v1"
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
    monkeypatch.setattr(store_module, "FORMAT_VERSION", 2)
    ShardEngine(tmp_path, PARAMETERS).close()
    monkeypatch.setattr(store_module, "FORMAT_VERSION", 1)
    with pytest.raises(StoreIncompatible, match="format_version=2"):
        ShardEngine(tmp_path, PARAMETERS)


def test_the_golden_store_of_format_1_opens_and_answers(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "store")
    engine = ShardEngine(tmp_path / "store", PARAMETERS)
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
    hits = engine.search(np.array([[1, 0, 0]], dtype=np.float32), [ShardQuery(5)])[0]
    assert [hit.image_id for hit in hits] == ["a", "b"]
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
