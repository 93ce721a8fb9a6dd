"""The lexical index against a dictionary of captions, through any order of events, repeats, wipes and restarts."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actors.index.engine import EngineParameters, ShardEngine, entry_of
from actors.lexical.following import REFRESH_EVERY_S, LexicalFollower
from actors.log.records import LogRecord
from actors.messages import Freshness, LexicalQuery, LexicalSearch, ShardSearchResult
from contract.events import EventRejected, LogEntry, PayloadChanged, PointDeleted, SourceAdvanced
from contract.filters import Filter, Match, matches
from tests.engine_log import FINGERPRINT, IDENTITY, Expected, embedded, records_of

WORDS = ("red", "bird")
ids = st.sampled_from([f"id-{n}" for n in range(4)])
few_words = st.lists(st.sampled_from(WORDS), max_size=2)
payloads = st.fixed_dictionaries(
    {"caption": few_words.map(" ".join)}, optional={"tags": few_words, "owner": st.sampled_from(["ada", "bob"])}
)
filters = st.none() | st.sampled_from(["ada", "bob"]).map(lambda owner: Filter(must=(Match("owner", (owner,)),)))


def holds(payload: dict[str, Any], word: str, wanted: Filter | None = None) -> bool:
    words = {*payload.get("caption", "").split(), *payload.get("tags", ())}
    return word in words and (wanted is None or matches(wanted, payload))


class LexicalMachine(RuleBasedStateMachine):
    """Events become log records; some prefix of the log, with repeats, reaches the engine and its lexical index."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(prefix="rl-lexical-"))
        self.events: list[LogEntry] = []
        self.log: list[LogRecord] = []
        self.delivered = 0
        self.now = 0.0
        self.open()

    def open(self) -> None:
        self.engine = ShardEngine(self.path, EngineParameters(fingerprint=FINGERPRINT, dimension=2))
        self.engine.begin(IDENTITY, {0: 0}, 1)
        self.follower = LexicalFollower(self.engine, self.freshness, lambda: self.now)
        self.follower.step()

    def freshness(self) -> Freshness:
        return Freshness({0: self.engine.positions()[0].clean_source_offset}, 0.0)

    def teardown(self) -> None:
        self.engine.close()
        shutil.rmtree(self.path)

    def publish(self, entry: LogEntry) -> None:
        self.events.append(entry)
        self.log += records_of(entry, len(self.log))

    def payloads_at(self, source_offset: int) -> dict[str, Any]:
        return Expected(self.events[: source_offset + 1]).payloads

    @rule(image_ids=st.lists(ids, min_size=1, max_size=6), payload=payloads)
    def upsert(self, image_ids: list[str], payload: dict[str, Any]) -> None:
        for image_id in image_ids:
            self.publish(embedded(image_id, np.array([1, 0], np.float32), len(self.events), payload))

    @rule(image_id=ids)
    def delete(self, image_id: str) -> None:
        self.publish(PointDeleted(image_id, len(self.events), 0))

    @rule(image_id=ids, payload=payloads)
    def change_payload(self, image_id: str, payload: dict[str, Any]) -> None:
        self.publish(PayloadChanged(image_id, payload, len(self.events), 0))

    @rule(image_id=st.none() | ids)
    def mark(self, image_id: str | None) -> None:
        at = len(self.events)
        self.publish(
            SourceAdvanced(at, 0) if image_id is None else EventRejected(image_id, "decode", "code", "why", at, 0)
        )

    def apply(self, records: list[LogRecord], search_meanwhile: bool) -> None:
        entries = [entry_of(record) for record in records]
        with self.follower.changing(entry.image_id for entry in entries if not isinstance(entry, SourceAdvanced)):
            if search_meanwhile:
                self.search_fresh(None)
            self.engine.apply(records)
            if search_meanwhile:
                self.search_fresh(None)

    @precondition(lambda self: self.delivered < len(self.log))
    @rule(count=st.sampled_from([1, 3, 1000]), search_meanwhile=st.booleans())
    def deliver(self, count: int, search_meanwhile: bool) -> None:
        self.apply(self.log[self.delivered : self.delivered + count], search_meanwhile)
        self.delivered = min(self.delivered + count, len(self.log))

    @precondition(lambda self: self.delivered > 0)
    @rule(back=st.integers(1, 5), search_meanwhile=st.booleans())
    def deliver_again(self, back: int, search_meanwhile: bool) -> None:
        self.apply(self.log[max(0, self.delivered - back) : self.delivered], search_meanwhile)

    @rule()
    def wipe(self) -> None:
        self.engine.reset()
        self.follower.restart(self.engine)
        self.engine.begin(IDENTITY, {0: 0}, 1)
        self.delivered = 0
        self.follower.step()

    @rule()
    def restart(self) -> None:
        self.engine.close()
        self.open()

    @rule()
    def step(self) -> None:
        self.follower.step()

    @rule(forward_s=st.sampled_from([REFRESH_EVERY_S / 2, REFRESH_EVERY_S]))
    def wait(self, forward_s: float) -> None:
        self.now += forward_s

    @invariant()
    def what_is_found_is_there(self) -> None:
        self.check("red", None, fresh=False)

    @rule(wanted=filters)
    def search_fresh(self, wanted: Filter | None) -> None:
        now = self.current()
        for word in WORDS:
            result = self.check(word, wanted, fresh=True)
            expected = {image_id for image_id, payload in now.items() if holds(payload, word, wanted)}
            assert {hit.image_id for hit in result.candidates[0]} == expected
            assert result.freshness == self.freshness()
        assert self.follower.documents == sum(any(holds(one, word) for word in WORDS) for one in now.values())

    def current(self) -> dict[str, Any]:
        position = self.engine.positions()[0]
        return self.payloads_at(position.source_offset) if position.log_offset else {}

    def check(self, word: str, wanted: Filter | None, *, fresh: bool) -> ShardSearchResult:
        """What is found is a point that holds the word now; what is covered is found."""
        result = self.follower.search(LexicalSearch((LexicalQuery(word, 50, wanted),), fresh=fresh))
        found = [hit.image_id for hit in result.candidates[0]]
        assert len(set(found)) == len(found)
        now = self.current()
        assert all(holds(now[image_id], word, wanted) for image_id in found)
        covered = self.payloads_at(result.freshness.applied_offsets[0])
        same = {i for i, payload in covered.items() if now.get(i) == payload and holds(payload, word, wanted)}
        assert same <= set(found)
        scores = [hit.score for hit in result.candidates[0]]
        assert scores == sorted(scores, reverse=True)
        return result


TestLexicalIndex = LexicalMachine.TestCase
TestLexicalIndex.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
