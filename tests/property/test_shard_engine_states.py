"""The engine against a dictionary and brute force, through any order of events, repeats, copies and crashes."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.index import codes, searching
from actors.index.engine import EngineParameters, ShardEngine
from actors.log.records import LogRecord
from actors.messages import ShardQuery
from contract.events import (
    EventRejected,
    LogEntry,
    PayloadChanged,
    PointDeleted,
    Quantization,
    SourceAdvanced,
    VectorType,
)
from contract.filters import Condition, Filter, Match, Range, matches
from tests.engine_log import FINGERPRINT, IDENTITY, Expected, drained, embedded, kill, records_of

DIMENSION = 4
IDS = [f"id-{n}" for n in range(12)]
# Beside the store: derived, and synced at moments of their own.
DERIVED = ("graph*", "filters*", "rows-*")
ids = st.sampled_from(IDS)
keys = st.sampled_from("ab")
payloads = st.dictionaries(keys, st.integers(0, 4) | st.sampled_from(["red", "blue"]), max_size=2)
values = st.lists(st.integers(0, 4) | st.sampled_from(["red", "blue"]), min_size=1, max_size=2)
conditions: st.SearchStrategy[Condition] = st.builds(Match, keys, values.map(tuple)) | st.builds(
    lambda key, gte: Range(key, gte=gte), keys, st.integers(0, 4).map(float)
)
few_conditions = st.lists(conditions, max_size=2).map(tuple)
filters = st.builds(Filter, must=few_conditions, should=few_conditions, must_not=few_conditions)


class ShardMachine(RuleBasedStateMachine):
    """Events become log records; some prefix of the log, with repeats, reaches the engine."""

    quantization: ClassVar[Quantization] = "none"
    vector_type: ClassVar[VectorType] = "fp32"
    # Whether graphs of a dozen points are walked as those of millions are.
    walks: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.patches = [mock.patch.multiple(codes, _PQ_BITS=2, _PQ_TRAIN_MIN=6, _RABITQ_TRAIN_MIN=6)]
        if self.walks:
            self.patches.append(mock.patch.multiple(searching, _FEW=0, _WALK_COST=0))
        for patch in self.patches:
            patch.start()
        self.parameters = EngineParameters(
            fingerprint=FINGERPRINT,
            dimension=DIMENSION,
            m=8,
            growing_max=2,
            rebuild_dead_min=3,
            quantization=self.quantization,
            vector_type=self.vector_type,
        )
        self.tolerance = 1e-5 if self.vector_type == "fp32" else 2e-3
        self.root = Path(tempfile.mkdtemp(prefix="rl-engine-"))
        self.lives = 0
        self.copies: list[Path] = []
        self.events: list[LogEntry] = []
        self.log: list[LogRecord] = []
        self.delivered = 0
        self.found, self.wanted = 0, 0
        self.engine = self.open(self.path)

    def open(self, path: Path) -> ShardEngine:
        engine = ShardEngine(path, self.parameters)
        engine.begin(IDENTITY, {0: 0}, 1)
        return engine

    @property
    def path(self) -> Path:
        return self.root / str(self.lives)

    def teardown(self) -> None:
        self.engine.close()
        shutil.rmtree(self.root)
        for patch in self.patches:
            patch.stop()
        # Of the five best, of all searches of this run.
        assert self.found >= 0.9 * self.wanted - 2

    def publish(self, entry: LogEntry) -> None:
        self.events.append(entry)
        self.log += records_of(entry, len(self.log))

    def expected(self, engine: ShardEngine) -> Expected:
        """What must be there after the events whose records reached the engine."""
        position = engine.positions()[0]
        return Expected(self.events[: position.source_offset + 1 if position.log_offset else 0])

    @initialize(seed=st.integers(0, 2**32 - 1))
    def seed(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    @rule(image_ids=st.lists(ids, min_size=1, max_size=12), payload=payloads)
    def upsert(self, image_ids: list[str], payload: dict[str, Any]) -> None:
        for image_id in image_ids:
            vector = self.random.standard_normal(DIMENSION).astype(np.float32)
            vector /= np.linalg.norm(vector)
            self.publish(embedded(image_id, vector, len(self.events), payload))

    @rule(image_ids=st.lists(ids, min_size=1, max_size=6))
    def delete(self, image_ids: list[str]) -> None:
        for image_id in image_ids:
            self.publish(PointDeleted(image_id, len(self.events), 0))

    @rule(image_id=ids, payload=payloads)
    def change_payload(self, image_id: str, payload: dict[str, Any]) -> None:
        self.publish(PayloadChanged(image_id, payload, len(self.events), 0))

    @rule(image_id=ids)
    def reject(self, image_id: str) -> None:
        self.publish(EventRejected(image_id, "decode", f"code-{len(self.events)}", "why", len(self.events), 0))

    @rule()
    def advance(self) -> None:
        self.publish(SourceAdvanced(len(self.events), 0))

    @precondition(lambda self: self.delivered < len(self.log))
    @rule(count=st.sampled_from([1, 2, 3, 1000]))
    def deliver(self, count: int) -> None:
        self.engine.apply(self.log[self.delivered : self.delivered + count])
        self.delivered = min(self.delivered + count, len(self.log))

    @precondition(lambda self: self.delivered > 0)
    @rule(back=st.integers(1, 20), count=st.integers(1, 30))
    def deliver_again(self, back: int, count: int) -> None:
        """The reader goes back: offsets that were applied come again."""
        start = max(0, self.delivered - back)
        self.engine.apply(self.log[start : start + count])
        self.delivered = max(self.delivered, min(start + count, len(self.log)))

    @precondition(lambda self: self.events)
    @rule(back=st.integers(1, 10))
    def publish_again(self, back: int) -> None:
        """The ingest path crashed: the events from its last commit are published a second time."""
        for entry in self.events[-back:]:
            self.log += records_of(entry, len(self.log))

    @rule()
    def drain(self) -> None:
        drained(self.engine)

    @rule()
    def drain_one_step(self) -> None:
        self.engine.drain()

    @rule()
    def seal(self) -> None:
        self.engine.seal()
        assert self.engine.growing == 0

    @rule()
    def restart(self) -> None:
        self.engine.close()
        self.engine = self.open(self.path)

    @rule()
    def crash(self) -> None:
        """The files as they are while the store is open, as a killed process leaves them."""
        before, engine = self.path, self.engine
        self.lives += 1
        kill(engine, before, self.path)
        self.engine = self.open(self.path)

    @rule()
    def checkpoint(self) -> None:
        """A copy of the engine as it is now, which opens and answers like it."""
        self.copies.append(self.root / f"copy-{len(self.copies)}")
        facts = self.engine.checkpoint(self.copies[-1])
        assert facts.positions == self.engine.positions()
        assert facts.points == self.engine.points
        opened = self.root / "opened"
        shutil.copytree(self.copies[-1], opened)
        engine = ShardEngine(opened, self.parameters)
        try:
            assert engine.positions() == self.engine.positions()
            self.assert_holds(engine)
            self.assert_finds(engine)
        finally:
            engine.close()
            shutil.rmtree(opened)

    @precondition(lambda self: self.copies)
    @rule(data=st.data())
    def go_back_to_a_copy(self, data: st.DataObject) -> None:
        """The store is replaced by an earlier copy of it, and reads the log from there."""
        copy = data.draw(st.sampled_from(self.copies))
        self.engine.close()
        self.lives += 1
        shutil.copytree(copy, self.path)
        self.begin_where_it_is()

    @precondition(lambda self: self.copies)
    @rule(closed=st.booleans())
    def power_cut(self, closed: bool) -> None:
        """The store lost what came after the last copy; what lies beside it was synced later."""
        before = self.path
        if closed:
            self.engine.close()
        else:
            before = self.root / "killed"
            kill(self.engine, self.path, before)
        self.lives += 1
        shutil.copytree(self.copies[-1], self.path)
        for pattern in DERIVED:
            for file in before.glob(pattern):
                shutil.copy(file, self.path / file.name)
        shutil.rmtree(self.root / "killed", ignore_errors=True)
        self.begin_where_it_is()

    def begin_where_it_is(self) -> None:
        self.engine = self.open(self.path)
        self.delivered = self.engine.positions()[0].log_offset

    @rule(wanted=filters, k=st.sampled_from([1, 3, 50]), exact=st.booleans())
    def search_filtered(self, wanted: Filter, k: int, exact: bool) -> None:
        expected = self.expected(self.engine)
        query = np.linspace(1, -1, DIMENSION, dtype=np.float32)
        hits = self.engine.search(query[None], [ShardQuery(k, filter=wanted, exact=exact)])[0]
        scores = {i: v @ query for i, v in expected.vectors.items() if matches(wanted, expected.payloads[i])}
        assert {hit.image_id for hit in hits} <= set(scores)
        assert len({hit.image_id for hit in hits}) == len(hits) == min(k, len(scores))
        assert all(abs(hit.score - scores[hit.image_id]) < self.tolerance for hit in hits)
        assert all(json.loads(hit.payload or b"") == expected.payloads[hit.image_id] for hit in hits)
        if exact:
            best = sorted(scores.values(), reverse=True)[:k]
            np.testing.assert_allclose([hit.score for hit in hits], best, atol=self.tolerance)

    @invariant()
    def holds_what_was_delivered(self) -> None:
        assert self.engine.positions()[0].log_offset == self.delivered
        self.assert_holds(self.engine)

    def assert_holds(self, engine: ShardEngine) -> None:
        expected = self.expected(engine)
        assert engine.points == len(expected.vectors)
        assert engine.deleted == len(expected.deleted)
        for image_id, state in zip(IDS, engine.fetch(IDS, with_vector=True), strict=True):
            assert (None if state is None else state.state) == expected.state(image_id)
            if state is None:
                continue
            assert state.rejection_code == expected.rejected.get(image_id)
            if image_id in expected.vectors:
                assert json.loads(state.payload or b"") == expected.payloads[image_id]
                vector = expected.vectors[image_id]
                stored = vector if self.vector_type == "fp32" else vector.astype(np.float16).astype(np.float32)
                assert np.array_equal(np.asarray(state.vector), stored)
        assert [state.image_id for state in engine.scan(None, 100)] == sorted(expected.vectors)

    @invariant()
    def finds_what_brute_force_finds(self) -> None:
        self.assert_finds(self.engine)

    def assert_finds(self, engine: ShardEngine) -> None:
        expected = self.expected(engine)
        query = np.linspace(-1, 1, DIMENSION, dtype=np.float32)
        asked = [ShardQuery(5, exact=True), ShardQuery(50), ShardQuery(5)]
        exact, all_of_them, best = engine.search(np.tile(query, (3, 1)), asked)
        scores = sorted((float(vector @ query) for vector in expected.vectors.values()), reverse=True)
        assert np.allclose([hit.score for hit in exact], scores[:5], atol=self.tolerance)
        assert sorted(hit.image_id for hit in all_of_them) == sorted(expected.vectors)
        assert len(best) == len(exact) == min(5, len(scores))
        for hits in (exact, all_of_them, best):
            assert len({hit.image_id for hit in hits}) == len(hits)
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            for hit in hits:
                assert abs(hit.score - expected.vectors[hit.image_id] @ query) < self.tolerance
        self.wanted += len(exact)
        self.found += len({hit.image_id for hit in best} & {hit.image_id for hit in exact})


class QuantizedMachine(ShardMachine):
    """Bytes in the graph, half the bytes in the store."""

    quantization: ClassVar[Quantization] = "sq8"
    vector_type: ClassVar[VectorType] = "fp16"


class WalkingMachine(ShardMachine):
    """No graph is too small to be walked."""

    walks: ClassVar[bool] = True


class WalkingQuantizedMachine(WalkingMachine):
    """Bytes in a graph that is walked."""

    quantization: ClassVar[Quantization] = "sq8"


class ProductMachine(ShardMachine):
    """A quantization that is trained, and retrained, or not when too few are left."""

    quantization: ClassVar[Quantization] = "pq"


class BitMachine(WalkingMachine):
    """The other one."""

    quantization: ClassVar[Quantization] = "rabitq"


def _case(machine: type[ShardMachine], examples: int) -> Any:
    machine.TestCase.settings = settings(
        max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    return machine.TestCase


TestShardEngine = _case(ShardMachine, 25)
TestQuantizedEngine = _case(QuantizedMachine, 25)
TestWalkingEngine = _case(WalkingMachine, 15)
TestWalkingQuantizedEngine = _case(WalkingQuantizedMachine, 15)
TestProductEngine = _case(ProductMachine, 15)
TestBitEngine = _case(BitMachine, 15)
