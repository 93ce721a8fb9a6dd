"""The filter index in a file, so that a start need not read all payloads."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from actors.index.filters import FilterIndex
from actors.index.rows import Position
from contract.telemetry import LogField

_log = structlog.get_logger()


class SavedFilters(Struct, frozen=True):
    """A dumped index, and the positions of the store that it is in step with."""

    positions: dict[int, Position]
    index: bytes


def save(path: Path, dump: bytes, positions: dict[int, Position]) -> None:
    """Write a dumped index to `path`: synced to the disk and put in place at once, or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(msgspec.msgpack.encode(SavedFilters(positions, dump)))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path, positions: dict[int, Position]) -> FilterIndex | None:
    """The index in a file; None if it is in step with other positions, torn, or not there."""
    try:
        saved = msgspec.msgpack.decode(path.read_bytes(), type=SavedFilters)
        return FilterIndex.load(saved.index) if saved.positions == positions else None
    except FileNotFoundError:
        return None
    except (ValueError, msgspec.MsgspecError) as error:
        _log.error("a filter index file cannot be used and is made anew", **{LogField.ERROR: f"{path}: {error}"})
        return None
