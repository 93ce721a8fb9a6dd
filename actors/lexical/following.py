"""Keeps a lexical index in step with the points of a shard, and answers searches from it.

The index holds nothing of its own: a document is made from what the store says of an image id. So
whatever order, repetition or compaction the log had, the store has decided what counts, and the index
only has to know which ids to look at again. Plain Python: clock, points and freshness come from outside.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import msgspec
import structlog
from msgspec import Struct

from actors.duplicates import alone, join
from actors.lexical.index import LexicalIndex, LexicalView, Match
from actors.lexical.words import words_of
from actors.messages import Candidate, Freshness, LexicalQuery, LexicalSearch, PointState, ShardSearchResult
from contract.errors import InvalidRequest, ShardUnavailable
from contract.filters import Filter, matches
from contract.telemetry import LogField

_log = structlog.get_logger()

# Beside inserts, searches share a commit for this long: it costs a few milliseconds.
REFRESH_EVERY_S = 0.05
# A search brings this many changed points into the index itself; more are left to `step`.
_REFRESH_BY_SEARCH_MAX = 1024
_CHUNK = 1024
_PROGRESS_EVERY_S = 5.0
# How far a search whose filter lets little through goes down its matches.
EXAMINED_MAX = 10_000


class Points(Protocol):
    """What the index is made from; `actors.index.engine.ShardEngine` is one."""

    @property
    def points(self) -> int:
        """Searchable points."""

    def fetch(self, image_ids: Sequence[str]) -> list[PointState | None]:
        """What is known of each id."""

    def scan(self, after: str | None, limit: int) -> list[PointState]:
        """Searchable points in id order."""


class _View(Struct, frozen=True):
    """An index as of one moment. It covers all changes counted by `noted`, and all of `freshness`."""

    index: LexicalView
    freshness: Freshness
    noted: int
    at_s: float


class LexicalFollower:
    """The lexical index of one shard replica.

    Threads: one calls `changing` and `restart`, one calls `step`, any number search.
    """

    def __init__(self, points: Points, freshness: Callable[[], Freshness], clock: Callable[[], float]) -> None:
        """Nothing is indexed yet; `step` builds the index.

        Args:
            points: What the store holds.
            freshness: Up to where `points` is applied now.
            clock: Monotonic seconds.
        """
        self._points = points
        self._freshness = freshness
        self._clock = clock
        self._updating = threading.Lock()
        self._noting = threading.Lock()
        self._index = LexicalIndex()
        self._view: _View | None = None
        self._changed: set[str] = set()
        self._in_flight: frozenset[str] = frozenset()
        self._noted = 0
        self._generation = 0
        self._built = 0

    @property
    def documents(self) -> int | None:
        """Points with words that searches find; None while the index is built."""
        view = self._view
        return None if view is None else len(view.index)

    @contextlib.contextmanager
    def changing(self, image_ids: Iterable[str]) -> Iterator[None]:
        """Around every change of the points: these ids are looked at again, during it and after it."""
        ids = frozenset(image_ids)
        with self._noting:
            self._in_flight = ids
            self._noted += 1
        try:
            yield
        finally:
            # Also after a change that failed: looking at a point that did not change costs little.
            with self._noting:
                self._changed |= ids
                self._in_flight = frozenset()
                self._noted += 1

    def restart(self, points: Points | None = None) -> None:
        """Forget everything; the next `step` builds the index again, from other points if they are given."""
        with self._updating, self._noting:
            if points is not None:
                self._points = points
            self._view = None
            self._changed = set()
            self._noted += 1
            self._generation += 1

    def step(self) -> bool:
        """Build the index, or bring what changed into it; False if there was nothing to do.

        Whatever the points raise passes through, and nothing is lost by it.
        """
        if self._view is None:
            self._build()
            return True
        return self._refresh(wait=True)

    def _build(self) -> None:
        with self._updating, self._noting:
            points, generation, noted = self._points, self._generation, self._noted
        # Before the first look at the points: whatever this covers is then in the index.
        freshness = self._freshness()
        index = LexicalIndex()
        started = told = self._clock()
        self._built = 0
        after: str | None = None
        while chunk := points.scan(after, _CHUNK):
            if self._generation != generation:
                return
            after = chunk[-1].image_id
            for state in chunk:
                if words := words_of(state.payload, state.file_name):
                    index.add(state.image_id, state.source_offset, words)
            self._built += len(chunk)
            if self._clock() >= told + _PROGRESS_EVERY_S:
                told = self._clock()
                _log.info("building the lexical index", **{LogField.COUNT: self._built}, of=points.points)
        view = _View(index.commit(), freshness, noted, self._clock())
        with self._updating:
            if self._generation == generation:
                self._index, self._view = index, view
        took_s = round(self._clock() - started, 3)
        _log.info("the lexical index is built", **{LogField.COUNT: self._built, LogField.DURATION_S: took_s})

    def _refresh(self, wait: bool) -> bool:
        """Bring changed points into the index; False if none changed, or another thread does it and `wait` is not."""
        if not self._updating.acquire(blocking=wait):
            return False
        try:
            view = self._view
            if view is None:
                return False
            # In this order: what the freshness covers was noted before it took effect.
            freshness = self._freshness()
            with self._noting:
                noted = self._noted
                changed, self._changed = self._changed, set()
                ids = list(changed | self._in_flight)
            if noted == view.noted and not ids:
                return False
            try:
                self._look_at(ids)
                committed = self._index.commit()
            except BaseException:
                with self._noting:
                    self._changed |= changed
                raise
            self._view = _View(committed, freshness, noted, self._clock())
        finally:
            self._updating.release()
        return True

    def _look_at(self, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), _CHUNK):
            some = ids[start : start + _CHUNK]
            for image_id, state in zip(some, self._points.fetch(some), strict=True):
                words = _words(state)
                if state is not None and words:
                    self._index.put(image_id, state.source_offset, words)
                else:
                    self._index.remove(image_id)

    def search(self, request: LexicalSearch) -> ShardSearchResult:
        """Candidates of each query, best first, equal scores by id; the scores are BM25.

        A point that was deleted, or whose words hold none of the query's any more, is never among
        them, even where the index has not been told yet.

        Raises:
            ShardUnavailable: the index is being built; retryable.
            InvalidRequest: a k below 1.
        """
        if any(query.k < 1 for query in request.queries):
            raise InvalidRequest("k must be at least 1")
        index, freshness = self._current(request.fresh)
        answers = tuple(self._answer(index, query, request.with_payload) for query in request.queries)
        return ShardSearchResult(answers, freshness)

    def _current(self, fresh: bool) -> tuple[LexicalView, Freshness]:
        """A view to search, and what it covers."""
        freshness = self._freshness()
        view = self._viewed()
        with self._noting:
            pending = view.noted != self._noted or bool(self._in_flight)
            few = len(self._changed) <= _REFRESH_BY_SEARCH_MAX
        if not pending:
            return view.index, freshness
        now = self._clock()
        if fresh or (few and now >= view.at_s + REFRESH_EVERY_S):
            self._refresh(wait=fresh)
            view = self._viewed()
        age_s = max(0.0, self._clock() - view.at_s)
        return view.index, msgspec.structs.replace(view.freshness, staleness_s=view.freshness.staleness_s + age_s)

    def _viewed(self) -> _View:
        view = self._view
        if view is None:
            raise ShardUnavailable(f"the lexical index is being built: {self._built} of {self._points.points} points")
        return view

    def _answer(self, index: LexicalView, query: LexicalQuery, with_payload: bool) -> tuple[Candidate, ...]:
        terms = self._index.terms.of(query.text)
        found: list[Candidate] = []
        # A few more than asked for: some may be gone, and those of equal score are ordered by id.
        start, reach = 0, 2 * query.k + 16
        while terms:
            some = index.top(terms, reach - start, start)
            found += self._living(some, terms, query, with_payload)
            # Copies of a picture take no place of another.
            ranked = found if query.distinct is None else join(found)
            settled = len(ranked) >= query.k and some and some[-1].score < ranked[query.k - 1].score
            if settled or len(some) < reach - start or reach >= EXAMINED_MAX:
                break
            start, reach = reach, min(4 * reach, max(EXAMINED_MAX, reach + 1))
        if query.distinct is not None:
            return tuple(join(found)[: query.k])
        return tuple(sorted(found, key=lambda candidate: (-candidate.score, candidate.image_id))[: query.k])

    def _living(
        self, some: Sequence[Match], terms: Sequence[str], query: LexicalQuery, with_payload: bool
    ) -> Iterator[Candidate]:
        """Those of some matches that are points now, hold the words asked for, and pass the filter."""
        states = self._points.fetch([match.image_id for match in some])
        for match, state in zip(some, states, strict=True):
            if state is None or state.state != "searchable":
                continue
            if state.source_offset != match.version and not set(terms) & set(self._index.terms.of(_words(state))):
                continue
            if not _lets_through(query.filter, state.payload):
                continue
            payload = state.payload if with_payload else None
            if query.distinct is None:
                yield Candidate(match.image_id, match.score, payload)
            elif _lets_through(query.distinct.allowed, state.payload):
                yield alone(
                    match.image_id,
                    match.score,
                    payload,
                    sha256=state.sha256 or "",
                    duplicate_of=state.duplicate_of,
                    uploaded_at_ms=state.uploaded_at_ms,
                )


def _lets_through(condition: Filter | None, payload: bytes | None) -> bool:
    return condition is None or matches(condition, msgspec.json.decode(payload or b"{}"))


def _words(state: PointState | None) -> str:
    return "" if state is None or state.state != "searchable" else words_of(state.payload, state.file_name)
