"""A store whose process was killed at any moment holds a prefix of its log, whole, and so do its copies."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from actors.index.engine import ShardEngine
from actors.messages import ShardQuery
from contract.filters import Filter, Match
from tests.engine_log import Expected, drained
from tests.property.shard_writer import COLOURS, DIMENSION, PARAMETERS, Death, Life, script

ROOT = Path(__file__).parents[2]
# About as many changes as eighty batches cause.
POINTS = 500

Run = Callable[[Life], Death]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.property.shard_writer"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def run(life: Life) -> Death:
        print(msgspec.json.encode(life).decode(), file=stdin, flush=True)
        while True:
            line = stdout.readline()
            assert line, "the maker of writers is gone"
            # The log lines of writers come the same way.
            if line.startswith('{"status"'):
                return msgspec.json.decode(line, type=Death)

    yield run
    stdin.close()
    assert process.wait(30) == 0
    stdout.close()


def assert_whole(engine: ShardEngine, seed: int) -> int:
    """Everything in the engine is what the records below its position say; returns the position."""
    plan = script(seed)
    position = engine.positions()[0]
    expected = Expected(plan.events[: position.source_offset + 1])
    assert position.log_offset in (0, *plan.ends), "no half of a batch"
    assert (engine.points, engine.deleted) == (len(expected.vectors), len(expected.deleted))
    states = {state.image_id: state for state in engine.scan(None, 1000)}
    assert sorted(states) == sorted(expected.vectors)
    assert {i: json.loads(state.payload or b"") for i, state in states.items()} == expected.payloads
    fetched = engine.fetch(list(expected.vectors), with_vector=True)
    for state in fetched:
        assert state is not None
        assert np.array_equal(np.asarray(state.vector), expected.vectors[state.image_id])
    query = np.linspace(-1, 1, DIMENSION, dtype=np.float32)
    wanted = [None, *(Filter(must=(Match("colour", (colour,)),)) for colour in COLOURS)]
    for exact in (False, True):
        queries = [ShardQuery(500, filter=condition, exact=exact) for condition in wanted]
        answers = engine.search(np.tile(query, (len(queries), 1)), queries)
        for colour, hits in zip((None, *COLOURS), answers, strict=True):
            living = [i for i in expected.vectors if colour is None or expected.payloads[i]["colour"] == colour]
            assert sorted(hit.image_id for hit in hits) == sorted(living)
            np.testing.assert_allclose(
                [hit.score for hit in hits], [expected.vectors[hit.image_id] @ query for hit in hits], atol=1e-5
            )
    return position.log_offset


def assert_opens(path: Path, seed: int) -> int:
    """The store at `path` opens whole, and goes on to a place further in its log; it stays as it was."""
    copy = path.with_name("opened")
    shutil.copytree(path, copy, ignore=shutil.ignore_patterns("LOCK"))
    engine = ShardEngine(copy, PARAMETERS)
    try:
        at = assert_whole(engine, seed) if engine.positions() else engine.points
        plan = script(seed)
        end = plan.ends[min(len(plan.ends) - 1, int(np.searchsorted(plan.ends, at)) + 20)]
        engine.apply(plan.records[at:end])
        drained(engine)
        assert_whole(engine, seed)
    finally:
        engine.close()
        shutil.rmtree(copy)
    return at


def survive(run: Run, path: Path, seed: int, life: Life) -> Death:
    """One life of a writer, and what it leaves."""
    death = run(life)
    assert death.status == -signal.SIGKILL, f"the writer ended with {death.status} instead of by the kill"
    at = assert_opens(path, seed) if path.exists() else 0
    assert at >= death.applied, "what was applied before the kill is there"
    for checkpoint in death.checkpoints:
        assert assert_opens(Path(checkpoint), seed) == int(checkpoint.rpartition("-")[2])
        shutil.rmtree(checkpoint)
    for unfinished in path.parent.glob(f"{path.name}-copy-*"):
        shutil.rmtree(unfinished)
    return death


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_writer_killed_between_any_two_changes(tmp_path: Path, run: Run, seed: int) -> None:
    """One store, many lives; each goes on from what the one before it left."""
    choose = random.Random(seed)
    path = tmp_path / "store"
    for _ in range(14):
        survive(run, path, seed, Life(str(path), seed, point=choose.randint(1, POINTS)))


def test_a_writer_killed_at_its_first_changes(tmp_path: Path, run: Run) -> None:
    died_at = []
    for point in range(1, 13):
        path = tmp_path / str(point) / "store"
        path.parent.mkdir()
        died_at.append(survive(run, path, 4, Life(str(path), 4, point=point)).died_at)
    first_batch = ["before write", "after write", "before change", "after change"]
    assert any(died_at[i : i + 4] == first_batch for i in range(len(died_at)))


def test_a_writer_killed_at_any_moment(tmp_path: Path, run: Run) -> None:
    choose = random.Random(0)
    path = tmp_path / "store"
    for _ in range(10):
        survive(run, path, 5, Life(str(path), 5, after_s=choose.choice([0.002, 0.02, 0.2]) * (1 + choose.random())))
