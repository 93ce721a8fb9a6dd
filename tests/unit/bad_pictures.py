"""Bytes that strangers send: broken, hostile, or not pictures at all; and some that look so and are fine."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image


def encoded(image: Image.Image, format_name: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture."""
    out = io.BytesIO()
    image.save(out, format_name, **options)
    return out.getvalue()


def noise(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    """A picture that hardly compresses."""
    values = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def chunk(kind: bytes, body: bytes, *, crc: int | None = None) -> bytes:
    """A PNG chunk."""
    return (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) if crc is None else crc)
    )


SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = chunk(b"IEND", b"")


def header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """The first chunk of a PNG."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def png(*chunks: bytes, width: int = 16, height: int = 16) -> bytes:
    """A PNG with these chunks before its pixels."""
    rows = zlib.compress(b"".join(b"\0" + b"\x55" * 3 * width for _ in range(height)))
    return SIGNATURE + header(width, height) + b"".join(chunks) + chunk(b"IDAT", rows) + END


def bmp(width: int, height: int, bits: int = 24, body: bytes = b"") -> bytes:
    """A BMP that claims a size."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, len(body), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + info + body


def gif(frames: int, width: int = 8, height: int = 8) -> bytes:
    """An animation of equal frames."""
    one = encoded(Image.new("P", (width, height)), "GIF")
    head = 13 + 3 * 2 ** ((one[10] & 7) + 1)
    return one[:head] + one[head:-1] * frames + b";"


def tiff(entries: list[tuple[int, int, int, int]], following: int = 0, first: int = 8) -> bytes:
    """A little-endian TIFF of one directory."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", first) + struct.pack("<H", len(entries)) + body + struct.pack("<I", following)


def tiff_claiming(width: int, height: int, offset: int = 10_000, following: int = 0) -> bytes:
    """A grey TIFF whose one strip lies at `offset`."""
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, offset), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, width * height & 0xFFFFFFFF),
    ]  # fmt: skip
    return tiff(entries, following)


def webp_claiming(width: int, height: int) -> bytes:
    """An extended WebP with a canvas and nothing on it."""
    body = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + (width - 1).to_bytes(3, "little")
    body += (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def jpeg_with(marker: int, body: bytes) -> bytes:
    """A JPEG with one more segment at its beginning."""
    data = encoded(noise(), "JPEG")
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + data[2:]


def _jpeg_sized(width: int, height: int) -> bytes:
    data = bytearray(encoded(noise(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _broken_huffman() -> bytes:
    data = bytearray(encoded(noise(), "JPEG"))
    at = data.index(b"\xff\xc4")
    data[at + 5 : at + 21] = b"\xff" * 16
    return bytes(data)


def _without(data: bytes, start: bytes, length: int) -> bytes:
    at = data.index(start)
    return data[:at] + data[at + length :]


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


_PNG, _JPEG, _WEBP, _GIF, _TIFF, _BMP, _AVIF = (
    encoded(noise(), name) for name in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
)
_BOMB = zlib.compress(b"\0" * 200_000_000, 9)

BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "invalid_image"),
    "one byte": (lambda: b"\xff", "invalid_image"),
    "text": (lambda: b"just some words\n" * 100, "invalid_image"),
    "zeros": (lambda: bytes(10_000), "invalid_image"),
    "html": (lambda: b"<!DOCTYPE html><html><script>alert(1)</script></html>", "invalid_image"),
    "svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "invalid_image"),
    "svg with an entity bomb": (lambda: b'<!DOCTYPE svg [<!ENTITY a "&b;&b;">]><svg>&a;</svg>', "invalid_image"),
    "pdf": (lambda: b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", "invalid_image"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage", "invalid_image"),
    "zip": (lambda: b"PK\x03\x04" + bytes(100), "invalid_image"),
    "elf": (lambda: b"\x7fELF" + bytes(100), "invalid_image"),
    "mp4": (lambda: struct.pack(">I", 24) + b"ftypisom\0\0\2\0isomiso2" + bytes(50), "invalid_image"),
    "ico": (lambda: encoded(noise(), "ICO"), "invalid_image"),
    "ppm": (lambda: encoded(noise(), "PPM"), "invalid_image"),
    "tga": (lambda: encoded(noise(), "TGA"), "invalid_image"),
    "psd": (lambda: b"8BPS\0\1" + bytes(100), "invalid_image"),
    "a picture behind a web page": (lambda: b"<html>" + _PNG, "invalid_image"),
    "a jpeg's beginning on a png": (lambda: b"\xff\xd8\xff\xe0" + _PNG, "invalid_image"),
    "a png's beginning on a jpeg": (lambda: SIGNATURE + _JPEG, "invalid_image"),
    "BM and text": (lambda: b"BM what a nice day for a walk", "invalid_image"),
    **{
        f"{name} cut to {share:.0%}": (lambda data=data, share=share: data[: int(len(data) * share)], "invalid_image")  # type: ignore[misc]
        for name, data in {"png": _PNG, "jpeg": _JPEG, "webp": _WEBP, "tiff": _TIFF, "bmp": _BMP, "avif": _AVIF}.items()
        for share in (0.02, 0.5)
    },
    "gif cut to its header": (lambda: _GIF[:20], "invalid_image"),
    "png without pixels": (lambda: SIGNATURE + header(16, 16) + END, "invalid_image"),
    "png of width zero": (
        lambda: SIGNATURE + header(0, 16) + chunk(b"IDAT", zlib.compress(b"\0")) + END,
        "invalid_image",
    ),
    "png of height zero": (
        lambda: SIGNATURE + header(16, 0) + chunk(b"IDAT", zlib.compress(b"\0")) + END,
        "invalid_image",
    ),
    "png that claims a billion pixels": (lambda: png(width=16)[:8] + header(40_000, 40_000) + END, "image_too_large"),
    "png that claims the most a png can": (lambda: SIGNATURE + header(2**31 - 1, 2**31 - 1) + END, "image_too_large"),
    "png with a wrong checksum": (
        lambda: SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0), crc=1) + END,
        "invalid_image",
    ),
    "png with a colour type there is not": (lambda: SIGNATURE + header(16, 16, 8, 7) + END, "invalid_image"),
    "png with pixels that do not unpack": (
        lambda: SIGNATURE + header(16, 16) + chunk(b"IDAT", b"not deflated") + END,
        "invalid_image",
    ),
    "png with a chunk longer than the file": (
        lambda: SIGNATURE + header(16, 16) + struct.pack(">I", 2**31 - 1) + b"tEXt",
        "invalid_image",
    ),
    "png with a bomb as text": (lambda: png(chunk(b"zTXt", b"k\0\0" + _BOMB)), "invalid_image"),
    "png with a bomb as international text": (
        lambda: png(chunk(b"iTXt", b"k\0\1\0\0\0" + _BOMB)),
        "invalid_image",
    ),
    "png with a bomb as colour profile": (lambda: png(chunk(b"iCCP", b"k\0\0" + _BOMB)), "invalid_image"),
    "png with too many frames": (
        lambda: png(chunk(b"acTL", struct.pack(">II", 9000, 0)), *[chunk(b"fcTL", bytes(26))] * 9000),
        "image_too_large",
    ),
    "gif with too many frames": (lambda: gif(2001), "image_too_large"),
    "gif with a canvas of four billion pixels": (lambda: _GIF[:6] + b"\xff" * 4 + _GIF[10:], "image_too_large"),
    "gif without a frame": (lambda: _GIF[:13] + b";", "invalid_image"),
    "webp with a canvas of 268 million pixels": (lambda: webp_claiming(16_383, 16_383), "image_too_large"),
    "webp with an empty canvas": (lambda: webp_claiming(64, 64), "invalid_image"),
    "webp without a chunk": (lambda: b"RIFF\x04\0\0\0WEBP", "invalid_image"),
    "bmp that claims a billion pixels": (lambda: bmp(40_000, 40_000), "image_too_large"),
    "bmp of width zero": (lambda: bmp(0, 16), "invalid_image"),
    "bmp of negative width": (lambda: bmp(-16, 16, body=bytes(768)), "image_too_large"),
    "bmp with bits there are not": (lambda: bmp(16, 16, bits=77), "invalid_image"),
    "jpeg that claims four billion pixels": (lambda: _jpeg_sized(65_500, 65_500), "image_too_large"),
    "jpeg of size zero": (lambda: _jpeg_sized(0, 0), "invalid_image"),
    "jpeg with broken huffman tables": (_broken_huffman, "invalid_image"),
    "jpeg without a scan": (lambda: _JPEG[: _JPEG.index(b"\xff\xda")] + b"\xff\xd9", "invalid_image"),
    "jpeg without quantization": (lambda: _without(_JPEG, b"\xff\xdb", 69), "invalid_image"),
    "tiff whose directories form a circle": (lambda: tiff_claiming(16, 16, following=8), "invalid_image"),
    "tiff whose directory lies outside": (lambda: b"II*\0" + struct.pack("<I", 2**31), "invalid_image"),
    "tiff whose pixels lie outside": (lambda: tiff_claiming(64, 64), "invalid_image"),
    "tiff that claims four billion pixels": (lambda: tiff_claiming(65_535, 65_535), "image_too_large"),
    "tiff without a directory entry": (lambda: tiff([]), "invalid_image"),
    "tiff with too many pages": (
        lambda: b"II*\0" + struct.pack("<I", 8) + b"".join(struct.pack("<HI", 0, 14 + 6 * i) for i in range(9000)),
        "image_too_large",
    ),
    "avif that is only a beginning": (lambda: struct.pack(">I", 16) + b"ftypavif" + bytes(4), "invalid_image"),
    "heif that is only a beginning": (lambda: struct.pack(">I", 16) + b"ftypheic" + bytes(4), "invalid_image"),
    "narrower than allowed": (lambda: encoded(Image.new("RGB", (7, 100))), "invalid_image"),
    "longer than allowed": (lambda: encoded(Image.new("RGB", (1000, 9))), "invalid_image"),
    "more pixels than allowed, truly": (lambda: encoded(Image.new("1", (9000, 9000))), "image_too_large"),
}
"""Name → the bytes, and the code of the rejection."""

GOOD: dict[str, Callable[[], bytes]] = {
    "png with a gamma of nothing": lambda: png(chunk(b"gAMA", bytes(4))),
    "png with a gamma beyond all": lambda: png(chunk(b"gAMA", b"\xff" * 4)),
    "gif with a canvas of nothing": lambda: _GIF[:6] + bytes(4) + _GIF[10:],
    "png with a zip behind it": lambda: _PNG + b"PK\x03\x04" + bytes(100),
    "gif with a web page in its comment": lambda: _GIF[:-1] + b"\x21\xfe\x08<script>\0;",
    "gif of many frames": lambda: gif(1999),
    "jpeg with a script in its comment": lambda: jpeg_with(0xFE, b"<script>alert(1)</script>"),
    "jpeg with an orientation there is not": lambda: encoded(noise(), "JPEG", exif=_exif(99)),
    "jpeg with garbage as exif": lambda: jpeg_with(0xE1, b"Exif\0\0" + b"\xde\xad\xbe\xef" * 50),
    "jpeg with exif that points at itself": lambda: jpeg_with(
        0xE1, b"Exif\0\0MM\0*" + struct.pack(">IHHHIII", 8, 1, 0x8769, 4, 1, 8, 8)
    ),
    "jpeg with a broken colour profile": lambda: encoded(noise(), "JPEG", icc_profile=b"no profile at all"),
    "cmyk jpeg with a broken colour profile": lambda: encoded(noise(mode="CMYK"), "JPEG", icc_profile=b"\0" * 200),
    "several jpegs in one file": lambda: encoded(noise(), "MPO", save_all=True, append_images=[noise(32, 32)]),
}
"""Odd, and still pictures."""
