"""What commands are given as files: pictures in a folder, a glob, a CSV or a Parquet file; a vector."""

from __future__ import annotations

import csv
import glob
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from pyarrow import parquet

from contract.errors import InvalidRequest

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
_FILE_COLUMNS = ("file", "path")


class SourcePicture(Struct, frozen=True):
    """One picture to upload."""

    path: Path
    image_id: str
    payload: dict[str, Any]


def list_pictures(source: str) -> list[SourcePicture]:
    """Pictures named by `source`, in a stable order; raises InvalidRequest when there are none."""
    path = Path(source).expanduser()
    if path.is_dir():
        found = list(_from_paths(p for p in sorted(path.rglob("*")) if p.suffix.lower() in PICTURE_SUFFIXES))
    elif path.suffix.lower() == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            found = list(_from_rows(path, csv.DictReader(file)))
    elif path.suffix.lower() == ".parquet":
        found = list(_from_rows(path, parquet.read_table(path).to_pylist()))
    elif path.is_file():
        found = list(_from_paths([path]))
    else:
        # A pattern may be absolute, which pathlib's own glob refuses.
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207
        found = list(_from_paths(Path(match) for match in sorted(matches) if Path(match).is_file()))
    if not found:
        raise InvalidRequest(f"no pictures at {source!r}: give a folder, a glob in quotes, a CSV or a Parquet file")
    return found


def read_vector(path: Path) -> npt.NDArray[Any]:
    """The one vector, (d,) of any kind of number, in a file that `numpy.save` wrote.

    Raises InvalidRequest for a file that holds anything else, OSError for one that cannot be read.
    """
    try:
        with path.expanduser().open("rb") as file:
            found = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InvalidRequest(f"--vector {path} is no file that numpy.save wrote: {error}") from error
    is_array = isinstance(found, np.ndarray)
    if not is_array or found.dtype.kind not in "fiu" or found.squeeze().ndim > 1 or not found.size:
        held = f"{found.dtype} of shape {found.shape}" if is_array else "several arrays"
        raise InvalidRequest(f"--vector {path} holds {held}; a search takes one row of numbers")
    return np.ravel(found)


def stable_id(path: Path) -> str:
    """Id of a file: readable, and the same at every run, so that indexing twice replaces instead of doubling."""
    slug = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:48] or "image"
    return f"{slug}-{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:8]}"


def _from_paths(paths: Iterable[Path]) -> Iterator[SourcePicture]:
    for path in paths:
        yield SourcePicture(path, stable_id(path), {"file_name": path.name})


def _from_rows(table: Path, rows: Iterable[Mapping[str, Any]]) -> Iterator[SourcePicture]:
    for number, row in enumerate(rows, 1):
        column = next((name for name in _FILE_COLUMNS if row.get(name)), None)
        if column is None:
            raise InvalidRequest(f"{table}, row {number}: needs a column 'file' or 'path' that names the picture")
        path = table.parent / Path(str(row[column])).expanduser()
        payload = {
            key: _tags(value) if key == "tags" else value
            for key, value in row.items()
            if key not in (column, "id") and value not in (None, "")
        }
        payload["file_name"] = path.name
        yield SourcePicture(path, str(row.get("id") or stable_id(path)), payload)


def _tags(value: Any) -> Any:
    return [tag.strip() for tag in re.split(r"[;,]", value) if tag.strip()] if isinstance(value, str) else value
