"""What the API does with picture bytes itself: recognise them, and make thumbnails."""

from __future__ import annotations

import io

from PIL import Image

from actors.embedding.preprocessing import FORMATS, decode
from contract.errors import ImageTooLarge, InvalidImage
from contract.settings import Settings

THUMBNAIL_SIZES = (64, 128, 256, 512, 1024)
THUMBNAIL_TYPE = "image/webp"
_THUMBNAIL_QUALITY = 82
_CONTENT_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
}


def sniff(data: bytes) -> str | None:
    """Content type by the bytes themselves; None when they are no picture that is decoded here."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _CONTENT_TYPES.get(image.format or "")
    # Pillow's plug-ins raise almost anything on malformed headers; all of it means: not a picture.
    except Exception:  # noqa: BLE001
        return None


def check_header(data: bytes, settings: Settings) -> str:
    """Content type of bytes whose header is that of an acceptable picture. Decodes no pixels.

    Raises:
        InvalidImage: not a picture, or too small a one.
        ImageTooLarge: more pixels than the settings allow.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height, kind = image.width, image.height, _CONTENT_TYPES.get(image.format or "")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(str(error)) from error
    except Exception as error:
        raise InvalidImage(f"not a picture in one of the formats {', '.join(FORMATS)}") from error
    if kind is None:
        raise InvalidImage(f"not a picture in one of the formats {', '.join(FORMATS)}")
    if width * height > settings.max_image_pixels:
        raise ImageTooLarge(f"{width}×{height} pixels; at most {settings.max_image_pixels} are accepted")
    if min(width, height) < settings.min_image_side:
        raise InvalidImage(f"{width}×{height} pixels; the shorter side must have at least {settings.min_image_side}")
    return kind


def thumbnail(data: bytes, size: int, settings: Settings) -> bytes:
    """WebP bytes of the picture, its longer side at most `size` pixels, upright, without metadata.

    A smaller picture keeps its size. Raises InvalidImage, ImageTooLarge.
    """
    image = decode(
        data,
        max_pixels=settings.max_image_pixels,
        min_side=settings.min_image_side,
        max_bytes=settings.max_image_bytes,
    )
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    # A picture pasted onto a new one takes no metadata along: no place, no serial number, no comment.
    clean = Image.new("RGB", image.size)
    clean.paste(image)
    out = io.BytesIO()
    clean.save(out, "WEBP", quality=_THUMBNAIL_QUALITY)
    return out.getvalue()
