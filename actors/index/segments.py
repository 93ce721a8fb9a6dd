"""Growing segment and sealed graph together: every living point is in exactly one of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import structlog
from msgspec import Struct
from pyroaring import BitMap

from actors.index.applying import Effect
from actors.index.codes import Codec
from actors.index.filters import FilterIndex
from actors.index.graph import Bitmap, GraphBuilder, SealedGraph, bitmap_of, mask_of
from actors.index.growing import GrowingSegment, GrowingView, Numbers, positions
from actors.index.vector_file import VectorFile
from actors.messages import FloatMatrix
from contract.filters import Filter
from contract.telemetry import LogField

_log = structlog.get_logger()

# Points are inserted by this many, and between two such steps a merge can be given up.
_STEP = 512
# From this many waiting points on, inserts cannot keep up, and every processor is worth more than
# the searches that it slows down.
_BULK_MIN = 8192
# Vectors wait in memory only up to here; a writer that is faster than the graph waits itself.
QUEUE_MAX = 32_768
_QUIET_S = 5.0
# The dead cost memory and widen every walk.
_REBUILD_DEAD_SHARE = 0.2
_TRAIN_FACTOR = 2


class SegmentParameters(Struct, frozen=True, kw_only=True):
    """How the segments are built; see EngineParameters."""

    m: int
    ef_construction: int
    growing_max: int
    build_threads: int
    rebuild_dead_min: int


class View(NamedTuple):
    """All points as of one moment. Nothing in it changes, so a search needs no lock.

    `alive` has one bit per label of the graph, None while all of them live; `dead` counts the rest.
    """

    graph: SealedGraph | None
    alive: Bitmap | None
    dead: int
    growing: GrowingView

    @property
    def next_number(self) -> int:
        """Above every number that is in the view."""
        if len(self.growing.numbers):
            return int(self.growing.numbers[-1]) + 1
        return 0 if self.graph is None or not len(self.graph) else int(self.graph.numbers[-1]) + 1


class Segments:
    """The search structure of a shard: one writer, one builder, and any number of readers of its `view`.

    A new point appears in the growing segment. The builder copies the graph, inserts the waiting
    points into the copy, and publishes it in one assignment: FAISS never inserts into a graph that
    is searched, and no search ever waits. An upsert publishes the new vector and the death of the
    old one together, so a search meets one of them, never both, never none.
    """

    def __init__(
        self,
        codec: Codec,
        parameters: SegmentParameters,
        new_file: Callable[[], VectorFile],
        filters: FilterIndex,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._target = codec
        self._parameters = parameters
        self._new_file = new_file
        self.filters = filters
        self._clock = clock
        self._changing = threading.Lock()
        self._building = threading.Lock()
        self._stopping = threading.Event()
        self._growing = GrowingSegment(codec.quantization, codec.dimension)
        self._dead = BitMap()
        self._successor: GraphBuilder | None = None
        self._copied = 0
        self._changed_at = clock()
        self.view = View(None, None, 0, self._growing.view())

    def __len__(self) -> int:
        """Living points."""
        view = self.view
        return view.growing.living + (0 if view.graph is None else len(view.graph) - view.dead)

    def open(self, graph: SealedGraph | None, alive: Numbers) -> Numbers:
        """Start from a graph that was saved; returns the living numbers that it lacks.

        Args:
            graph: The graph, or None.
            alive: Numbers of all living points, ascending. Others in the graph are dead.
        """
        with self._changing:
            if graph is None:
                return alive
            self._dead = BitMap(np.flatnonzero(positions(alive, graph.numbers) < 0).astype(np.uint32))
            self._publish(graph)
            return alive[graph.labels(alive) < 0]

    def change(self, effect: Effect, vectors: FloatMatrix) -> None:
        """Take points out, put points in and change payloads, all at once for every search.

        Args:
            effect: What is killed, what is new (numbers ascending and above all before), and payloads.
            vectors: (n, d) float32, of the new points.
        """
        with self._changing:
            effect.index_payloads(self.filters)
            if effect.killed:
                self._kill(np.array(sorted(effect.killed), dtype=np.uint32))
            self._append(effect.numbers, effect.image_ids, vectors)

    def load(self, numbers: Numbers, image_ids: Sequence[str], vectors: FloatMatrix) -> None:
        """Take points from the store, ascending; their payloads are in the filter index by other ways."""
        with self._changing:
            self._append(numbers.tolist(), image_ids, vectors)

    def _append(self, numbers: Sequence[int], image_ids: Sequence[str], vectors: FloatMatrix) -> None:
        if len(numbers):
            self._growing.append(numbers, image_ids, vectors)
        self._changed_at = self._clock()
        self._publish(self.view.graph)

    def view_for(self, filters: Iterable[Filter | None]) -> tuple[View, dict[Filter | None, BitMap | None]]:
        """A view, and the numbers that match each filter (None: all) as of the same moment.

        Raises InvalidRequest for a filter on a field that is not indexed.
        """
        wanted: dict[Filter | None, BitMap | None] = {None: None}
        conditions = [condition for condition in filters if condition is not None]
        if not conditions:
            return self.view, wanted
        with self._changing:
            for condition in conditions:
                wanted[condition] = self.filters.matching(condition)
            return self.view, wanted

    def dump_filters(self) -> bytes:
        """The filter index as of now, to be loaded by FilterIndex."""
        with self._changing:
            return self.filters.dump()

    def wait_for_room(self) -> None:
        """Seal, or wait for the builder that does, while more than QUEUE_MAX points wait."""
        while self._growing.queued > QUEUE_MAX and not self._stopping.is_set():
            self.seal()

    def _kill(self, numbers: Numbers) -> None:
        self._growing.kill(numbers)
        graph = self.view.graph
        if graph is not None:
            labels = graph.labels(numbers)
            self._dead.update(labels[labels >= 0].tolist())

    def _publish(self, graph: SealedGraph | None) -> None:
        """Make graph, tombstones and growing segment, as they are now, what searches see."""
        before = self.view
        if before.graph is graph and before.dead == len(self._dead):
            alive = before.alive
        elif graph is None or not self._dead:
            alive = None
        else:
            mask = np.ones(len(graph), dtype=np.bool_)
            mask[np.array(self._dead.to_array(), dtype=np.uint32)] = False
            alive = bitmap_of(mask)
        self.view = View(graph, alive, len(self._dead), self._growing.view())

    def drain(self) -> bool:
        """One step of the builder's work; False if there is nothing to do now.

        Seals the growing segment when it has reached its size, or a part of it when no change came
        for a while; else goes on rebuilding the graph where too many of its points are dead, or
        where enough points are there to train its quantization.
        """
        queued, most = self._growing.queued, self._parameters.growing_max
        graph = self.view.graph
        # A merge costs a copy of the graph, so that a large one waits for more points.
        enough = max(most, min(4 * most, (0 if graph is None else len(graph)) // 256))
        quiet = self._clock() > self._changed_at + _QUIET_S
        if queued >= enough or (quiet and queued >= max(1, most // 8)):
            return self.seal()
        return self._rebuild_step()

    def seal(self) -> bool:
        """Move all points of the growing segment to the graph; False if there is none, or on `stop`."""
        with self._building:
            view = self.view
            waiting = view.growing
            count = len(waiting.rows)
            if not count:
                return False
            graph = self._extended(view.graph, waiting)
            if self._stopping.is_set():
                return False
            with self._changing:
                now = self._growing.view()
                if graph is not None and now.dead is not None:
                    died = now.numbers[:count][now.dead[:count]]
                    labels = graph.labels(died)
                    self._dead.update(labels[labels >= 0].tolist())
                self._growing.drop_first(count)
                self._publish(graph)
            return True

    def _extended(self, graph: SealedGraph | None, waiting: GrowingView) -> SealedGraph | None:
        """A copy of the graph with the living of the growing segment inserted."""
        slots = np.arange(len(waiting.rows)) if waiting.dead is None else np.flatnonzero(~waiting.dead)
        if not len(slots):
            return graph
        builder = self._empty_builder(self._codec_now()) if graph is None else GraphBuilder.copy_of(graph)
        threads = self._parameters.build_threads if len(slots) >= _BULK_MIN else 1
        # More threads want more work at a time.
        for start in range(0, len(slots), step := _STEP * threads):
            if self._stopping.is_set():
                return graph
            some = slots[start : start + step]
            ids = [waiting.image_ids[slot] for slot in some]
            builder.add(waiting.numbers[some], ids, waiting.rows[some], threads)
        return builder.seal()

    def _codec_now(self) -> Codec:
        """The quantization a graph begins with: one that needs no training stands in until there is enough."""
        return self._target if not self._target.train_min else Codec("sq8", self._target.dimension)

    def _empty_builder(self, codec: Codec) -> GraphBuilder:
        file = None if codec.is_exact else self._new_file()
        return GraphBuilder.empty(codec, self._parameters.m, self._parameters.ef_construction, file)

    def _rebuild_codec(self, view: View) -> Codec | None:
        """The quantization of the graph that shall take this one's place; None if it is good as it is."""
        if view.graph is None or not len(view.graph):
            return None
        living = len(view.graph) - view.dead
        # After many deletions too few may be left to train on again.
        codec = self._target if living >= self._target.train_min else self._codec_now()
        outdated = codec is self._target and view.graph.codec.quantization != codec.quantization
        crowded = view.dead >= max(self._parameters.rebuild_dead_min, _REBUILD_DEAD_SHARE * len(view.graph))
        return codec if outdated or crowded else None

    def _rebuild_step(self) -> bool:
        """Copy some living points into the successor of the graph, and swap once it has them all.

        The vectors are those of the store, so a coarse code is never made from another code.
        """
        with self._building:
            view = self.view
            if self._successor is None:
                codec = self._rebuild_codec(view)
                if codec is None:
                    return False
                self._successor, self._copied = self._trained(codec, view), 0
            graph, successor = view.graph, self._successor
            assert graph is not None  # noqa: S101 - a graph is only ever replaced by another
            start = int(np.searchsorted(graph.numbers, self._copied))
            labels = np.arange(start, min(start + _STEP, len(graph)))
            if view.alive is not None:
                labels = labels[(view.alive[labels >> 3] >> (labels & 7)) & 1 == 1]
            ids = graph.image_ids.of(labels.tolist())
            successor.add(graph.numbers[labels], ids, graph.vectors(labels), 1)
            if start + _STEP < len(graph):
                self._copied = int(graph.numbers[start + _STEP])
                return True
            sealed = successor.seal()
            with self._changing:
                # Who died while the successor was made is dead in the graph, whose labels are others.
                dead_before = graph.numbers[np.array(self._dead.to_array(), dtype=np.uint32)]
                gone = sealed.labels(dead_before)
                self._dead = BitMap(gone[gone >= 0].tolist())
                self._publish(sealed)
            self._successor = None
            _log.info("the graph was rebuilt", **{LogField.COUNT: len(sealed)})
            return True

    def _trained(self, codec: Codec, view: View) -> GraphBuilder:
        """An empty builder, its codec trained on a sample of the graph's vectors."""
        builder = self._empty_builder(codec)
        if codec.train_min:
            assert view.graph is not None  # noqa: S101 - see _rebuild_codec
            labels = np.arange(len(view.graph))
            if view.alive is not None:
                labels = labels[mask_of(view.alive, len(labels))]
            wanted = min(len(labels), _TRAIN_FACTOR * codec.train_min)
            chosen = np.random.default_rng(0).choice(labels, wanted, replace=False)
            builder.train(view.graph.vectors(np.sort(chosen)), 1)
        return builder

    def stop(self) -> None:
        """Give up the building under way and wait for its end; what it would have sealed keeps growing."""
        self._stopping.set()
        with self._building:
            pass
