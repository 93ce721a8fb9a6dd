"""Decoded pictures as bytes again."""

from __future__ import annotations

import io
from typing import Final

from PIL import Image

THUMBNAIL_QUALITY: Final = 82
# Source: WebP container specification; width and height are 14 bits.
WEBP_SIDE_MAX: Final = 16383


def thumbnail(image: Image.Image, side: int) -> bytes:
    """WebP bytes of an RGB picture, its longer side at most `side` pixels; a smaller picture keeps its size."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return encoded(small, THUMBNAIL_QUALITY)[0]


def encoded(image: Image.Image, quality: int) -> tuple[bytes, str]:
    """Bytes and content type of an RGB picture without any metadata: WebP, or JPEG where it is too long for WebP."""
    # A picture pasted onto a new one takes no metadata along: no place, no serial number, no comment.
    clean = Image.new("RGB", image.size)
    clean.paste(image)
    out = io.BytesIO()
    if max(image.size) <= WEBP_SIDE_MAX:
        clean.save(out, "WEBP", quality=quality)
        return out.getvalue(), "image/webp"
    clean.save(out, "JPEG", quality=quality)
    return out.getvalue(), "image/jpeg"
