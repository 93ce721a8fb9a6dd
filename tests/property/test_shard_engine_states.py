"""The engine against a dictionary and brute force, through any order of events, repeats and crashes."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.index.engine import EngineParameters, ShardEngine
from actors.log.records import LogIdentity, LogRecord
from actors.messages import FloatMatrix, ShardQuery
from contract.events import (
    DELETED_HEADER,
    EventRejected,
    LogEntry,
    PayloadChanged,
    PointDeleted,
    PointEmbedded,
    SourceAdvanced,
    encode_log_entry,
)
from contract.topics import marker_key, payload_key, rejection_key, vector_key

DIMENSION = 4
PARAMETERS = EngineParameters(fingerprint="f", dimension=DIMENSION, m=8, growing_max=1)
IDENTITY = LogIdentity("cluster", "topic")
IDS = [f"id-{n}" for n in range(8)]
ids = st.sampled_from(IDS)
payloads = st.dictionaries(st.sampled_from("ab"), st.integers(0, 9), max_size=2)


def records_of(entry: LogEntry, first_offset: int) -> list[LogRecord]:
    """The log records of one event, as the ingest path publishes them."""
    value = encode_log_entry(entry)
    match entry:
        case PointDeleted():
            keys = [vector_key(entry.image_id), payload_key(entry.image_id), rejection_key(entry.image_id)]
            return [LogRecord(0, first_offset + i, key, None, {DELETED_HEADER: value}, 0) for i, key in enumerate(keys)]
        case PointEmbedded():
            key = vector_key(entry.image_id)
        case PayloadChanged():
            key = payload_key(entry.image_id)
        case EventRejected():
            key = rejection_key(entry.image_id)
        case SourceAdvanced():
            key = marker_key(0)
    return [LogRecord(0, first_offset, key, value, {}, 0)]


class Expected:
    """The same events, in source order, on plain dictionaries."""

    def __init__(self, events: list[LogEntry]) -> None:
        self.vectors: dict[str, FloatMatrix] = {}
        self.payloads: dict[str, Any] = {}
        self.deleted: set[str] = set()
        self.rejected: dict[str, str] = {}
        for event in events:
            match event:
                case PointEmbedded():
                    self.vectors[event.image_id] = np.frombuffer(event.vector, dtype=np.float32)
                    self.payloads[event.image_id] = event.payload
                    self.deleted.discard(event.image_id)
                    self.rejected.pop(event.image_id, None)
                case PayloadChanged() if event.image_id in self.vectors:
                    self.payloads[event.image_id] = event.payload
                case PointDeleted():
                    self.vectors.pop(event.image_id, None)
                    self.payloads.pop(event.image_id, None)
                    self.rejected.pop(event.image_id, None)
                    self.deleted.add(event.image_id)
                case EventRejected():
                    self.rejected[event.image_id] = event.code
                case _:
                    pass

    def state(self, image_id: str) -> str | None:
        if image_id in self.vectors:
            return "searchable"
        if image_id in self.rejected:
            return "rejected"
        return "deleted" if image_id in self.deleted else None


class ShardMachine(RuleBasedStateMachine):
    """Events become log records; some prefix of the log, with repeats, reaches the engine."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="rl-engine-"))
        self.lives = 0
        self.events: list[LogEntry] = []
        self.log: list[LogRecord] = []
        self.delivered = 0
        self.engine = ShardEngine(self.root / "0", PARAMETERS)
        self.engine.begin(IDENTITY, {0: 0}, 1)

    def teardown(self) -> None:
        self.engine.close()
        shutil.rmtree(self.root)

    def publish(self, entry: LogEntry) -> None:
        self.events.append(entry)
        self.log += records_of(entry, len(self.log))

    def reached(self) -> int:
        """How many events the delivered records are of."""
        entries = [self.engine.positions()[0].source_offset] if self.delivered else [-1]
        return entries[0] + 1

    @initialize(seed=st.integers(0, 2**32 - 1))
    def seed(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    @rule(image_ids=st.lists(ids, min_size=1, max_size=6), payload=payloads)
    def upsert(self, image_ids: list[str], payload: dict[str, int]) -> None:
        for image_id in image_ids:
            vector = self.random.standard_normal(DIMENSION).astype(np.float32)
            vector /= np.linalg.norm(vector)
            self.publish(
                PointEmbedded(
                    image_id=image_id,
                    vector=vector.tobytes(),
                    fingerprint="f",
                    payload=payload,
                    object_key="o",
                    sha256="s",
                    width=1,
                    height=1,
                    source_offset=len(self.events),
                    event_at_ms=0,
                )
            )

    @rule(image_id=ids)
    def delete(self, image_id: str) -> None:
        self.publish(PointDeleted(image_id, len(self.events), 0))

    @rule(image_id=ids, payload=payloads)
    def change_payload(self, image_id: str, payload: dict[str, int]) -> None:
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
        while self.engine.drain():
            pass

    @rule()
    def restart(self) -> None:
        self.engine.close()
        self.engine = ShardEngine(self.root / str(self.lives), PARAMETERS)

    @rule()
    def crash(self) -> None:
        """The files as they are while the store is open, as a killed process leaves them."""
        before = self.root / str(self.lives)
        self.lives += 1
        store = self.engine._store
        # Only compaction ends, which moves files while they are copied; nothing is flushed or closed.
        store._db.cancel_all_background(True)
        store._closed = True
        shutil.copytree(before, self.root / str(self.lives), ignore=shutil.ignore_patterns("LOCK"))
        self.engine = ShardEngine(self.root / str(self.lives), PARAMETERS)

    @invariant()
    def holds_what_was_delivered(self) -> None:
        position = self.engine.positions()[0]
        assert position.log_offset == self.delivered
        expected = Expected(self.events[: self.reached()])
        assert self.engine.points == len(expected.vectors)
        assert self.engine.deleted == len(expected.deleted)
        for image_id, state in zip(IDS, self.engine.fetch(IDS, with_vector=True), strict=True):
            assert (None if state is None else state.state) == expected.state(image_id)
            if state is None:
                continue
            assert state.rejection_code == expected.rejected.get(image_id)
            if image_id in expected.vectors:
                assert json.loads(state.payload or b"") == expected.payloads[image_id]
                assert np.array_equal(np.asarray(state.vector), expected.vectors[image_id])
        assert [state.image_id for state in self.engine.scan(None, 100)] == sorted(expected.vectors)

    @invariant()
    def finds_what_brute_force_finds(self) -> None:
        expected = Expected(self.events[: self.reached()])
        query = np.linspace(-1, 1, DIMENSION, dtype=np.float32)[None]
        exact, walked = (
            self.engine.search(query, [ShardQuery(5, exact=True)])[0],
            self.engine.search(query, [ShardQuery(50)])[0],
        )
        scores = sorted((float(vector @ query[0]) for vector in expected.vectors.values()), reverse=True)
        assert np.allclose([hit.score for hit in exact], scores[:5], atol=1e-5)
        assert len({hit.image_id for hit in exact}) == len(exact)
        assert all(np.isclose(hit.score, expected.vectors[hit.image_id] @ query[0], atol=1e-5) for hit in walked)
        # A graph of a dozen points, walked at this width, is walked whole: each once, none missing.
        assert sorted(hit.image_id for hit in walked) == sorted(expected.vectors)
        assert [hit.score for hit in walked] == sorted((hit.score for hit in walked), reverse=True)


ShardMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestShardEngine = ShardMachine.TestCase
