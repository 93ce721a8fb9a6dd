"""Metadata items of AVIF and HEIF files, blanked in place: every offset in the file stays right.

Source: ISO/IEC 14496-12 (boxes, `iinf`, `iloc`) and ISO/IEC 23008-12, annex A (EXIF and XMP items).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

# An offset to the TIFF structure, then one without entries: readers find EXIF that says nothing.
_EMPTY_EXIF: Final = struct.pack(">I2sHIHI", 0, b"MM", 42, 8, 0, 0)
_EXTENTS_MAX: Final = 100_000
# Anything else on the top level may hide what is not the picture.
_KNOWN: Final = frozenset((b"ftyp", b"meta", b"mdat", b"free", b"skip"))


def without_metadata_items(data: bytes) -> bytes | None:
    """The file with its EXIF and XMP items blanked; None if it is built in a way that this does not know."""
    try:
        out = bytearray(data)
        metas = []
        for name, body, end in _boxes(data, 0, len(data)):
            if name not in _KNOWN:
                return None
            if name == b"meta":
                metas.append((body, end))
            if name in (b"free", b"skip"):
                out[body:end] = bytes(end - body)
        if len(metas) != 1:
            return None
        _blank(data, out, *metas[0])
    except (struct.error, IndexError, ValueError):
        return None
    return bytes(out)


def _blank(data: bytes, out: bytearray, start: int, end: int) -> None:
    children = {name: (body, stop) for name, body, stop in _boxes(data, start + 4, end)}
    kinds = dict(_item_kinds(data, *children[b"iinf"])) if b"iinf" in children else {}
    idat = children.get(b"idat", (0, 0))[0]
    for item, places in _item_places(data, *children[b"iloc"]) if b"iloc" in children else ():
        if kinds.get(item) not in (b"Exif", b"mime", b"uri "):
            continue
        filler = _EMPTY_EXIF if kinds[item] == b"Exif" else b""
        for method, offset, length in places:
            at = offset + (idat if method == 1 else 0)
            if method > 1 or at < 0 or at + length > len(data):
                raise ValueError("an item lies outside the file")
            out[at : at + length] = filler.ljust(length, b"\0")[:length] if filler else b" " * length
            filler = b"\0" if kinds[item] == b"Exif" else b""


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, where its body begins, where it ends) of the boxes between two places; raises ValueError."""
    while at < end:
        length, name = struct.unpack_from(">I4s", data, at)
        body = at + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, body)
            body += 8
        stop = end if length == 0 else at + length
        if stop < body or stop > end:
            raise ValueError("a box reaches outside the one around it")
        yield name, body, stop
        at = stop


def _item_kinds(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    wide = data[start] > 0
    for name, body, _ in _boxes(data, start + (8 if wide else 6), end):
        if name != b"infe" or data[body] < 2:
            raise ValueError("an item without a type")
        if data[body] == 2:
            item, _, kind = struct.unpack_from(">HH4s", data, body + 4)
        else:
            item, _, kind = struct.unpack_from(">IH4s", data, body + 4)
        yield item, kind


def _item_places(data: bytes, start: int, end: int) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
    """(item, [(construction method, offset, length)]); raises ValueError."""
    version = data[start]
    offset_size, length_size = data[start + 4] >> 4, data[start + 4] & 15
    base_size, index_size = data[start + 5] >> 4, data[start + 5] & 15 if version else 0
    at, seen = start + 6, 0

    def number(size: int) -> int:
        nonlocal at
        if at + size > end:
            raise ValueError("the table of places is cut off")
        at += size
        return int.from_bytes(data[at - size : at], "big")

    id_size = 4 if version > 1 else 2
    for _ in range(number(id_size)):
        item = number(id_size)
        method = number(2) & 15 if version else 0
        number(2)
        base = number(base_size)
        places = []
        for _ in range(number(2)):
            seen += 1
            if seen > _EXTENTS_MAX:
                raise ValueError("too many extents")
            number(index_size)
            offset = base + number(offset_size)
            length = number(length_size)
            if length == 0:
                raise ValueError("an extent without a length")
            places.append((method, offset, length))
        yield item, places
