"""Stores of released formats become stores of this one when they are opened."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import structlog
from rocksdict import Options, Rdict

from actors.index.rows import IdRow
from actors.index.store import Progress, ShardStore, StoreBatch, decode_header
from contract.errors import StoreIncompatible
from contract.telemetry import LogField

_log = structlog.get_logger()
_BATCH = 256


def upgrade(path: Path, fingerprint: str, dimension: int, new_store: Callable[[Path], ShardStore]) -> None:
    """Make the store at `path` one of this format; a store of this format, or none, is left alone.

    Format 1 keeps its vectors under image ids; everything else is as now. The new store is written
    beside the old one and takes its place at the end, so that an upgrade that was cut off starts over.

    Args:
        path: The store.
        fingerprint: The encoder the store must be of.
        dimension: The dimension it must have.
        new_store: Opens an empty store of this format at a path.

    Raises:
        StoreIncompatible: of another fingerprint or dimension, or of a format nobody knows.
    """
    old, new = path.with_name(f"{path.name}.format-1"), path.with_name(f"{path.name}.upgrading")
    if old.exists() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(new, ignore_errors=True)
    if not (path / "CURRENT").exists():
        return
    names = Rdict.list_cf(str(path))
    # A process that died while it made a store leaves some of its families, or all and no header.
    if "numbers" in names or not {"ids", "vectors"} <= set(names):
        return
    families = {"ids": Options(raw_mode=True), "vectors": Options(raw_mode=True)}
    db = Rdict(str(path), Options(raw_mode=True), column_families=families)
    try:
        header = db.get(b"header")
        if header is None:
            return
        found = decode_header(path, cast("bytes", header))
        if (found.format_version, found.fingerprint, found.dimension) != (1, fingerprint, dimension):
            raise StoreIncompatible(f"{path} is {found}, and this shard needs {fingerprint}, dimension {dimension}")
        _copy(db, new, new_store)
    finally:
        db.close()
    path.rename(old)
    new.rename(path)
    shutil.rmtree(old)


def _copy(db: Rdict, target: Path, new_store: Callable[[Path], ShardStore]) -> None:
    ids, vectors = db.get_column_family("ids"), db.get_column_family("vectors")
    data = db.get(b"progress")
    progress = msgspec.msgpack.decode(cast("bytes", data), type=Progress) if data is not None else Progress()
    store = new_store(target)
    try:
        batch = StoreBatch()
        number = 0
        for key, value in ids.items():
            image_id = cast("bytes", key).decode()
            row = msgspec.msgpack.decode(cast("bytes", value), type=IdRow)
            if row.point is not None:
                row = msgspec.structs.replace(row, point=msgspec.structs.replace(row.point, number=number))
                vector = np.frombuffer(cast("bytes", vectors.get(key)), dtype="<f4")
                batch.vectors[number] = (image_id, store.encode(vector))
                number += 1
            batch.rows[image_id] = row
            if len(batch.rows) >= _BATCH:
                store.write(batch, Progress())
                batch = StoreBatch()
        # Only the last batch says how far the store is: before it, the store claims nothing.
        store.write(batch, msgspec.structs.replace(progress, next_number=number))
        # The old store goes after this.
        store.sync()
        _log.info("the store was brought to the present format", **{LogField.COUNT: number})
    finally:
        store.close()
        ids.close()
        vectors.close()
