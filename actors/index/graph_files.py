"""The sealed graph in a file, so that a start reads it instead of building it.

A graph file is derived from the store and may be older than it: numbers name vectors for ever, so
set operations on them tell which of its points died since, and which it lacks. A file that is torn,
or was made with other parameters, is not used.

Layout: the FAISS index, the numbers (uint32), the ends of the ids (uint64), the ids, a JSON footer
with the lengths of these and their SHA-256, the footer's length (8 bytes) and a magic word. The
vectors by label are in a file of their own, which the footer names.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import faiss
import msgspec
import numpy as np
import structlog
from msgspec import Struct

from actors.index.codes import Codec
from actors.index.graph import SealedGraph
from actors.index.growing import Numbers, positions
from actors.index.image_ids import PackedIds
from actors.index.store import ShardStore
from actors.index.vector_file import VectorFile
from contract.events import Quantization
from contract.telemetry import LogField

_log = structlog.get_logger()
# Its type stubs lack much of what SWIG generates.
_faiss: Any = faiss

_FORMAT_VERSION = 1
_MAGIC = b"RLGRAPH1"
_CHUNK_BYTES = 1024 * 1024
_CHUNK_ROWS = 1024


class Footer(Struct, frozen=True, kw_only=True):
    """What a graph file holds: parameters it was made with, and the bytes of its parts."""

    format_version: int
    quantization: Quantization
    dimension: int
    m: int
    ef_construction: int
    parts: tuple[int, int, int, int]
    vectors: str | None
    sha256: str


class Saved(NamedTuple):
    """What is known of the graph in the file, without holding that graph in memory."""

    graph: weakref.ref[SealedGraph]
    points: int
    last_number: int
    file: VectorFile | None

    @classmethod
    def of(cls, graph: SealedGraph) -> Self:
        """Of a graph that was just written or read."""
        return cls(weakref.ref(graph), len(graph), int(graph.numbers[-1]) if len(graph) else -1, graph.file)


class _Hashed:
    """A file that hashes what goes through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.count = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.count += len(data)
        return self._file.write(data)


def save(path: Path, graph: SealedGraph, m: int, ef_construction: int) -> None:
    """Write a graph to `path`: synced to the disk and put in place at once, or not at all."""
    if graph.file is not None:
        # The graph file is what says how many rows of the vector file count.
        graph.file.sync()
        graph.file.keep()
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        hashed = _Hashed(file)
        _faiss.write_index(graph.index, _faiss.PyCallbackIOWriter(hashed.write, _CHUNK_BYTES))
        parts = [hashed.count]
        for data in (graph.numbers.tobytes(), graph.image_ids.ends.tobytes(), graph.image_ids.blob):
            hashed.write(data)
            parts.append(len(data))
        footer = Footer(
            format_version=_FORMAT_VERSION,
            quantization=graph.codec.quantization,
            dimension=graph.codec.dimension,
            m=m,
            ef_construction=ef_construction,
            parts=(parts[0], parts[1], parts[2], parts[3]),
            vectors=None if graph.file is None else graph.file.path.name,
            sha256=hashed.sha256.hexdigest(),
        )
        encoded = msgspec.json.encode(footer)
        file.write(encoded + len(encoded).to_bytes(8, "little") + _MAGIC)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path, store: ShardStore, m: int, ef_construction: int) -> SealedGraph | None:
    """The graph in a file; None, with a log line that says why, if it cannot be used.

    The file of its vectors, beside it, is made anew from the store if it is missing.
    """
    try:
        with path.open("rb") as file:
            footer = _footer(file)
            _check(file, footer, (store.dimension, m, ef_construction))
            return _read(file, footer, path.parent, store)
    except FileNotFoundError:
        return None
    except (ValueError, msgspec.MsgspecError, RuntimeError) as error:
        _log.error("a graph file cannot be used and is made anew", **{LogField.ERROR: f"{path}: {error}"})
        return None


def _footer(file: BinaryIO) -> Footer:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 16))
    tail = file.read()
    if len(tail) < 16 or tail[8:] != _MAGIC:
        raise ValueError("it does not end as a graph file does")
    length = int.from_bytes(tail[:8], "little")
    if length > size - 16:
        raise ValueError("its footer is longer than the file")
    file.seek(size - 16 - length)
    footer = msgspec.json.decode(file.read(length), type=Footer)
    if footer.format_version != _FORMAT_VERSION or sum(footer.parts) != size - 16 - length:
        raise ValueError(f"its footer is {footer}")
    return footer


def _check(file: BinaryIO, footer: Footer, made_with: tuple[int, int, int]) -> None:
    if (footer.dimension, footer.m, footer.ef_construction) != made_with:
        raise ValueError(f"it was made with {footer}")
    file.seek(0)
    digest = hashlib.sha256()
    left = sum(footer.parts)
    while left:
        data = file.read(min(_CHUNK_BYTES, left))
        digest.update(data)
        left -= len(data)
    if digest.hexdigest() != footer.sha256:
        raise ValueError("its checksum is wrong")


def _read(file: BinaryIO, footer: Footer, folder: Path, store: ShardStore) -> SealedGraph:
    file.seek(0)
    index = _faiss.read_index(_faiss.PyCallbackIOReader(file.read, _CHUNK_BYTES))
    # The reader of the index reads ahead.
    file.seek(footer.parts[0])
    numbers = np.frombuffer(file.read(footer.parts[1]), dtype=np.uint32)
    ends = np.frombuffer(file.read(footer.parts[2]), dtype=np.uint64)
    codec = Codec(footer.quantization, footer.dimension)
    image_ids = PackedIds(file.read(footer.parts[3]), ends)
    vectors = None if footer.vectors is None else _vectors(folder / Path(footer.vectors).name, numbers, store)
    return SealedGraph(codec, index, numbers, image_ids, vectors)


def _vectors(path: Path, numbers: Numbers, store: ShardStore) -> VectorFile:
    """The vector file of a graph with these numbers; a snapshot, for one, comes without it."""
    if path.exists():
        found = VectorFile(path, store.vector_type, store.dimension)
        found.keep()
        if found.holds(len(numbers)):
            return found
    made = VectorFile(path.with_name(f"{path.name}.tmp"), store.vector_type, store.dimension)
    for stored, vectors in store.vector_chunks(_CHUNK_ROWS):
        labels = positions(numbers, stored)
        inside = labels >= 0
        if inside.any():
            labels = labels[inside]
            # Labels ascend with the numbers; what lies between them is dead.
            rows = np.zeros((int(labels[-1] - labels[0]) + 1, store.dimension), dtype=np.float32)
            rows[labels - labels[0]] = vectors[inside]
            made.write(int(labels[0]), rows)
    if not made.holds(len(numbers)):
        made.write(len(numbers) - 1, np.zeros((1, store.dimension), dtype=np.float32))
    made.sync()
    made.path.replace(path)
    found = VectorFile(path, store.vector_type, store.dimension)
    found.keep()
    return found
