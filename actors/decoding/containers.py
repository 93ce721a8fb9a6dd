"""How picture files are built: the walks over their parts that limits and stripping need.

Plain Python over bytes, without a decoder: nothing here allocates by what a file claims. Every walk
advances with each step or ends, so its time is bounded by the length of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Literal, NamedTuple

from contract.errors import InvalidImage

Kind = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"]

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_TIFF_BEGINNINGS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_AVIF_BRANDS: Final = frozenset({b"avif", b"avis"})
_HEIF_BRANDS: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})

_BRANDS_END: Final = 512
# Source: the lengths of the BITMAP*HEADER structures of Windows and OS/2.
_BMP_HEADERS: Final = frozenset((12, 16, 40, 52, 56, 64, 108, 124))

JPEG_SOS: Final = 0xDA
JPEG_EOI: Final = 0xD9
# Markers that stand alone: TEM, RST0 to RST7, SOI.
_JPEG_ALONE: Final = frozenset({0x01, 0xD8, *range(0xD0, 0xD8)})


class Part(NamedTuple):
    """A part of a file: its name, and where it begins and ends, header and padding included."""

    name: bytes
    start: int
    body: int
    end: int


def kind_of(data: bytes) -> Kind | None:
    """Format by the first bytes; None for what is none of the accepted ones."""
    for kind, recognised in _RECOGNISED.items():
        if recognised(data):
            return kind
    return None


def frames(data: bytes, kind: Kind, at_most: int) -> int:
    """How many frames or pages a file has; counting ends one beyond `at_most`.

    AVIF and HEIF count as one: their decoders bound sequences themselves, and only the primary picture is taken.

    Raises InvalidImage for a TIFF whose directories form a circle.
    """
    if kind == "TIFF":
        return _tiff_directories(data, at_most)
    count = 0
    match kind:
        case "GIF":
            names = (part.name for part in gif_parts(data))
            wanted = b"frame"
        case "WEBP":
            names = (part.name for part in riff_chunks(data))
            wanted = b"ANMF"
        case "PNG":
            names = (part.name for part in png_chunks(data))
            wanted = b"fcTL"
        case _:
            return 1
    for name in names:
        count += name == wanted
        if count > at_most:
            break
    return max(count, 1)


def webp_canvas(data: bytes) -> tuple[int, int] | None:
    """Width and height that an extended WebP file claims; its decoder allocates them before it looks further."""
    if data[12:16] != b"VP8X" or len(data) < 30:
        return None
    return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")


def jpeg_segments(data: bytes) -> Iterator[Part]:
    """Segments between the start of the file and the first scan, whose marker ends the walk.

    `name` is the marker's second byte. What is broken ends the walk, too.
    """
    at = 2
    while at + 2 <= len(data):
        if data[at] != 0xFF:
            return
        start = at
        while at + 1 < len(data) and data[at + 1] == 0xFF:
            at += 1
        if at + 2 > len(data):
            return
        marker = data[at + 1]
        at += 2
        if marker in _JPEG_ALONE:
            continue
        if marker in (JPEG_SOS, JPEG_EOI):
            yield Part(bytes([marker]), start, at, at)
            return
        if at + 2 > len(data):
            return
        end = at + int.from_bytes(data[at : at + 2], "big")
        if end < at + 2 or end > len(data):
            return
        yield Part(bytes([marker]), start, at + 2, end)
        at = end


def png_chunks(data: bytes) -> Iterator[Part]:
    """Chunks up to IEND, or to where the file is broken."""
    at = len(PNG_SIGNATURE)
    while at + 12 <= len(data):
        end = at + 12 + _be32(data, at)
        if end > len(data):
            return
        name = data[at + 4 : at + 8]
        yield Part(name, at, at + 8, end)
        if name == b"IEND":
            return
        at = end


def riff_chunks(data: bytes) -> Iterator[Part]:
    """Chunks of a RIFF file, or up to where it is broken."""
    at = 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + length + length % 2
        if at + 8 + length > len(data):
            return
        yield Part(data[at : at + 4], at, at + 8, min(end, len(data)))
        at = end


def gif_parts(data: bytes) -> Iterator[Part]:
    """`head`, then a `frame` per picture, an `ext:` and its label per extension, `end`; up to where it is broken."""
    if len(data) < 13:
        return
    at = 13 + _gif_colours(data[10])
    yield Part(b"head", 0, 13, min(at, len(data)))
    while at < len(data):
        start = at
        if data[at] == 0x3B:
            yield Part(b"end", start, start + 1, start + 1)
            return
        if data[at] == 0x21 and at + 2 <= len(data):
            name, at = b"ext:" + data[at + 1 : at + 2], at + 2
        elif data[at] == 0x2C and at + 10 <= len(data):
            name, at = b"frame", at + 11 + _gif_colours(data[at + 9])
        else:
            return
        body = at
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
        if at > len(data):
            # The last frame may be cut off and still show its first lines; it counts.
            if name == b"frame":
                yield Part(name, start, body, len(data))
            return
        yield Part(name, start, body, at)


def _gif_colours(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _tiff_directories(data: bytes, at_most: int) -> int:
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    big = data[2:4] in (b"+\0", b"\0+")
    count_bytes, entry_bytes, link_bytes, link_at = (8, 20, 8, 8) if big else (2, 12, 4, 4)

    def number(at: int, length: int) -> int:
        return int.from_bytes(data[at : at + length], order)

    seen: set[int] = set()
    at = number(link_at, link_bytes)
    while at and at + count_bytes <= len(data) and len(seen) <= at_most:
        if at in seen:
            raise InvalidImage("the directories of the TIFF file form a circle")
        seen.add(at)
        at = number(at + count_bytes + entry_bytes * number(at, count_bytes), link_bytes)
    return max(len(seen), 1)


def _be32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")


def _is_bmp(data: bytes) -> bool:
    # Two letters are little to go by, so the length of the header that follows must be one there is.
    return data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADERS


def _brands(data: bytes) -> set[bytes]:
    if data[4:8] != b"ftyp":
        return set()
    return {data[8:12], *(data[at : at + 4] for at in range(16, min(len(data), _be32(data, 0), _BRANDS_END), 4))}


_RECOGNISED: Final[dict[Kind, Callable[[bytes], bool]]] = {
    "JPEG": lambda data: data.startswith(b"\xff\xd8\xff"),
    "PNG": lambda data: data.startswith(PNG_SIGNATURE),
    "WEBP": lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP",
    "GIF": lambda data: data[:6] in (b"GIF87a", b"GIF89a"),
    "TIFF": lambda data: data[:4] in _TIFF_BEGINNINGS,
    "AVIF": lambda data: bool(_brands(data) & _AVIF_BRANDS),
    "HEIF": lambda data: bool(_brands(data) & _HEIF_BRANDS),
    "BMP": _is_bmp,
}
