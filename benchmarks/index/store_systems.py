"""Vector stores that run inside the process: Qdrant Edge, LanceDB, Chroma."""

# ruff: noqa: D102 - the protocol in systems.py documents the methods
from __future__ import annotations

import importlib
import importlib.metadata
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index.systems import Floats, Options

# Points that may wait outside of the index before a store's own upkeep is called.
_UPKEEP_POINTS = 4096


class _Kept(ABC):
    """A store whose index is brought up to date by a call, which a thread makes every _UPKEEP_POINTS points."""

    def __init__(self) -> None:
        self._waiting = 0
        self._busy = threading.Lock()
        self._due = threading.Event()
        self._stopping = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._keep, name="upkeep", daemon=True)
        self._thread.start()

    @abstractmethod
    def _upkeep(self) -> None:
        """Bring what was inserted to the index."""

    def _keep(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            if self._stopping:
                return
            try:
                self._run()
            except BaseException as error:
                self._failure = error
                raise

    def _run(self) -> None:
        with self._busy:
            self._waiting = 0
            self._upkeep()

    def _inserted(self, count: int) -> None:
        self._waiting += count
        if self._waiting >= _UPKEEP_POINTS:
            self._due.set()

    def finish(self) -> None:
        self._run()
        if self._failure is not None:
            raise RuntimeError("the upkeep has ended") from self._failure

    def _stop(self) -> None:
        self._stopping = True
        self._due.set()
        self._thread.join()


class QdrantEdgeSystem(_Kept):
    """Qdrant's storage engine as a library, with its write-ahead log; one segment, float32, or int8 codes (`sq8`)."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._package: Any = importlib.import_module("qdrant_edge")
        package = self._package
        codes = package.ScalarQuantizationConfig(package.ScalarType.Int8, memory=package.Memory.Pinned)
        config = package.EdgeConfig(
            vectors=package.EdgeVectorParams(size=options.dimension, distance=package.Distance.Dot),
            hnsw_config=package.HnswIndexConfig(
                m=options.m,
                ef_construct=options.ef_construction,
                full_scan_threshold=10,
                max_indexing_threads=options.build_threads,
            ),
            quantization_config=codes if options.variant == "sq8" else None,
            optimizers=package.EdgeOptimizersConfig(indexing_threshold=100, default_segment_number=1),
            max_search_threads=1,
        )
        if options.existing:
            self._shard = package.EdgeShard.load(options.folder, config)
        else:
            self._shard = package.EdgeShard.create(options.folder, config)
        self._parameters: Any = None
        self.set_effort(64)

    def versions(self) -> str:
        return f"qdrant-edge-py {importlib.metadata.version('qdrant-edge-py')}"

    def encode(self, ids: Sequence[str], vectors: Floats) -> Any:
        point = self._package.Point
        return len(ids), self._package.UpdateOperation.upsert_points(
            [point(int(one), vector.tolist()) for one, vector in zip(ids, vectors, strict=True)]
        )

    def insert(self, batch: Any) -> None:
        self._shard.update(batch[1])
        self._inserted(batch[0])

    def _upkeep(self) -> None:
        self._shard.optimize()

    def set_effort(self, effort: int) -> None:
        self._parameters = self._package.SearchParams(hnsw_ef=effort)

    def search(self, queries: Floats, k: int) -> list[list[str]]:
        request, nearest = self._package.QueryRequest, self._package.Query.Nearest
        requests = [request(k, query=nearest(query), params=self._parameters) for query in queries]
        if len(requests) == 1:
            return [[str(hit.id) for hit in self._shard.query(requests[0])]]
        batch = self._package.QueryBatchRequest(requests)
        return [[str(hit.id) for hit in hits] for hits in self._shard.query_batch(batch)]

    def delete(self, ids: Sequence[str]) -> None:
        self._shard.update(self._package.UpdateOperation.delete_points([int(one) for one in ids]))

    def close(self) -> None:
        self._stop()
        self._shard.flush()
        self._shard.close()


class LanceDBSystem(_Kept):
    """LanceDB with its HNSW index over 8-bit codes in one partition. New rows are scanned until the upkeep."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._arrow: Any = importlib.import_module("pyarrow")
        arrow = self._arrow
        self._options = options
        vector = arrow.list_(arrow.float32(), options.dimension)
        self._schema = arrow.schema([("id", arrow.int64()), ("vector", vector)])
        store = importlib.import_module("lancedb").connect(options.folder)
        self._table = (
            store.open_table("points") if options.existing else store.create_table("points", schema=self._schema)
        )
        self._indexed = options.existing
        if options.existing:
            self._table.prewarm_index("vector_idx")
        self._ef = 64

    def versions(self) -> str:
        return f"lancedb {importlib.metadata.version('lancedb')}"

    def encode(self, ids: Sequence[str], vectors: Floats) -> Any:
        arrow = self._arrow
        column = arrow.FixedSizeListArray.from_arrays(arrow.array(vectors.ravel()), vectors.shape[1])
        return arrow.table([arrow.array([int(one) for one in ids]), column], schema=self._schema)

    def insert(self, batch: Any) -> None:
        self._table.add(batch)
        if self._indexed:
            self._inserted(len(batch))

    def _upkeep(self) -> None:
        if self._indexed:
            self._table.optimize()
            return
        # The index needs rows to be made from: it comes once, after the first load.
        config = importlib.import_module("lancedb.index").HnswSq(
            distance_type="dot", num_partitions=1, m=self._options.m, ef_construction=self._options.ef_construction
        )
        self._table.create_index("vector", config=config)
        self._indexed = True
        self._table.prewarm_index("vector_idx")

    def set_effort(self, effort: int) -> None:
        self._ef = effort

    def search(self, queries: Floats, k: int) -> list[list[str]]:
        return [self._search_one(query, k) for query in queries]

    def _search_one(self, query: Floats, k: int) -> list[str]:
        found = (
            self._table.search(query, vector_column_name="vector")
            .distance_type("dot")
            .nprobes(1)
            .ef(max(self._ef, k))
            .limit(k)
            .select(["id", "_distance"])
            .to_arrow()
        )
        return [str(one) for one in found["id"].to_pylist()]

    def delete(self, ids: Sequence[str]) -> None:
        self._table.delete(f"id IN ({','.join(str(int(one)) for one in ids)})")

    def close(self) -> None:
        self._stop()


class ChromaSystem:
    """Chroma's PersistentClient with its defaults, but one thread and the graph parameters of all."""

    def __init__(self, options: Options) -> None:
        self._chroma: Any = importlib.import_module("chromadb")
        self._folder = Path(options.folder)
        self._threads = options.build_threads
        self._open()
        if options.existing:
            self._points = self._client.get_collection("points", embedding_function=None)
            return
        graph = {
            "space": "ip",
            "max_neighbors": options.m,
            "ef_construction": options.ef_construction,
            "num_threads": options.build_threads,
        }
        self._points = self._client.create_collection("points", configuration={"hnsw": graph}, embedding_function=None)

    def _open(self) -> None:
        self._client = self._chroma.PersistentClient(
            str(self._folder), settings=self._chroma.Settings(anonymized_telemetry=False)
        )

    def versions(self) -> str:
        return f"chromadb {importlib.metadata.version('chromadb')}"

    def encode(self, ids: Sequence[str], vectors: Floats) -> tuple[list[str], Floats]:
        return list(ids), np.ascontiguousarray(vectors)

    def insert(self, batch: tuple[list[str], Floats]) -> None:
        self._points.add(ids=batch[0], embeddings=batch[1])

    def finish(self) -> None:
        """A batch is in the index when `add` returns."""

    def set_effort(self, effort: int) -> None:
        """Change the collection and open it anew: an open index keeps its effort."""
        self._points.modify(configuration={"hnsw": {"ef_search": effort}})
        self._reopen()

    def _reopen(self) -> None:
        self._client.close()
        self._open()
        self._points = self._client.get_collection("points", embedding_function=None)

    def search(self, queries: Floats, k: int) -> list[list[str]]:
        found: list[list[str]] = self._points.query(query_embeddings=queries, n_results=k, include=[])["ids"]
        return found

    def delete(self, ids: Sequence[str]) -> None:
        self._points.delete(ids=list(ids))

    def close(self) -> None:
        self._client.close()
