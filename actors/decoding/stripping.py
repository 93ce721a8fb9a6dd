"""Take out of a picture file what is not the picture: place, camera, author, comments, hidden extras.

The compressed pixels stay as they are, to the byte. What is kept is listed, not what is dropped, so
that a kind of metadata nobody thought of goes, too. The orientation alone is written anew.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from typing import Final

from actors.decoding.containers import (
    JPEG_EOI,
    JPEG_SOS,
    PNG_SIGNATURE,
    Kind,
    gif_parts,
    jpeg_segments,
    png_chunks,
    riff_chunks,
)
from actors.decoding.meta_boxes import without_metadata_items

_UPRIGHT: Final = 1
_ORIENTATIONS: Final = range(2, 9)
# A marker inside the data of a scan: neither a stuffed zero nor a restart nor a fill byte follows 0xFF.
_JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_JPEG_KEPT: Final = {0xE0: b"JFIF\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}
_PNG_KEPT: Final = frozenset(
    b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP cICP mDCV cLLI sBIT bKGD pHYs hIST acTL fcTL fdAT".split()
)
_WEBP_KEPT: Final = frozenset((b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP"))
_WEBP_EXIF, _WEBP_XMP = 0x08, 0x04
_GIF_LOOPS: Final = (b"NETSCAPE2.0", b"ANIMEXTS1.0")


def strip(data: bytes, kind: Kind, orientation: int) -> bytes | None:
    """The same picture without metadata; None where it cannot be had without encoding anew.

    Args:
        data: a file that a decoder accepts.
        kind: its format.
        orientation: what its metadata says of it, 1 to 8 as in EXIF; kept, where it is not upright.
    """
    stripped = _STRIPPED.get(kind)
    return stripped(data, orientation) if stripped is not None else None


def _minimal_exif(orientation: int) -> bytes:
    """A TIFF structure with one directory of one entry. Source: EXIF 2.32, section 4.6.4, tag 0x0112."""
    return struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def _jpeg(data: bytes, orientation: int) -> bytes | None:
    out = [b"\xff\xd8"]
    if orientation in _ORIENTATIONS:
        body = b"Exif\0\0" + _minimal_exif(orientation)
        out.append(b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body)
    rest = data
    while True:
        scan = None
        for segment in jpeg_segments(rest):
            marker = segment.name[0]
            if marker in (JPEG_SOS, JPEG_EOI):
                scan = segment
                break
            if _jpeg_kept(marker, rest[segment.body : segment.end]):
                out.append(rest[segment.start : segment.end])
        if scan is None:
            return None
        if scan.name[0] == JPEG_EOI:
            return b"".join([*out, b"\xff\xd9"])
        # What follows a scan is another scan, with tables of its own, or the end.
        found = _JPEG_MARKER.search(rest, scan.end)
        if found is None:
            return b"".join([*out, rest[scan.start :], b"\xff\xd9"])
        out.append(rest[scan.start : found.start()])
        # The walk over segments begins two bytes in, where a file has its first marker.
        rest = b"\xff\xd8" + rest[found.start() :]


def _jpeg_kept(marker: int, body: bytes) -> bool:
    if 0xE0 <= marker <= 0xEF:
        return marker in _JPEG_KEPT and body.startswith(_JPEG_KEPT[marker])
    return marker != 0xFE


def _png(data: bytes, orientation: int) -> bytes | None:
    out = [PNG_SIGNATURE]
    for chunk in png_chunks(data):
        if chunk.name not in _PNG_KEPT:
            continue
        out.append(data[chunk.start : chunk.end])
        if chunk.name == b"IHDR" and orientation in _ORIENTATIONS:
            body = b"eXIf" + _minimal_exif(orientation)
            out.append(struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)))
        if chunk.name == b"IEND":
            return b"".join(out)
    return None


def _webp(data: bytes, orientation: int) -> bytes | None:
    out: list[bytes] = []
    turned = orientation in _ORIENTATIONS
    for chunk in riff_chunks(data):
        if chunk.name not in _WEBP_KEPT:
            continue
        body = bytearray(data[chunk.start : chunk.end])
        if chunk.name == b"VP8X":
            body[8] = body[8] & ~(_WEBP_EXIF | _WEBP_XMP) | (_WEBP_EXIF if turned else 0)
        out.append(bytes(body) + b"\0" * (len(body) % 2))
    if not out:
        return None
    if turned:
        exif = _minimal_exif(orientation)
        out.append(b"EXIF" + struct.pack("<I", len(exif)) + exif)
    inside = b"WEBP" + b"".join(out)
    return b"RIFF" + struct.pack("<I", len(inside)) + inside


def _gif(data: bytes) -> bytes | None:
    out = []
    frames = 0
    for part in gif_parts(data):
        if part.name == b"ext:\xfe":
            continue
        if part.name == b"ext:\xff" and data[part.body + 1 : part.body + 12] not in _GIF_LOOPS:
            continue
        frames += part.name == b"frame"
        if part.name != b"end":
            out.append(data[part.start : part.end])
    return b"".join([*out, b"\x3b"]) if frames else None


_STRIPPED: Final[dict[Kind, Callable[[bytes, int], bytes | None]]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "GIF": lambda data, _: _gif(data),
    # The format has no place for metadata.
    "BMP": lambda data, _: data,
    # Their orientation is a property of the picture and no metadata.
    "AVIF": lambda data, _: without_metadata_items(data),
    "HEIF": lambda data, _: without_metadata_items(data),
}
