"""From the bytes of a picture to the square of pixels an encoder takes.

Indexing and querying share this module: whatever it does to a picture, it does to both sides.
It imports only PIL and numpy, because stream workers and the API decode pictures themselves.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import pi_heif
from PIL import Image, UnidentifiedImageError

from actors.messages import Pixels, PreprocessSpec
from contract.errors import ImageTooLarge, InvalidImage, InvalidRequest, RiverlensError

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
"""Formats that are decoded, by Pillow's names; recognised by content, never by file name."""

_RESAMPLING: Final = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
# What brings each EXIF orientation upright.
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ALPHA_MODES: Final = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
# Beyond this ratio of the sides, resizing the short side first would blow the long side up without bound.
_LONGEST_RATIO_RESIZED_WHOLE: Final = 16

pi_heif.register_heif_opener(decode_threads=1, thumbnails=False)

# Pillow warns between its limit (89 megapixels) and twice that, and raises beyond. A filter set once
# is safe with several decoding threads, where warnings.catch_warnings is not.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def decode(data: bytes, *, max_pixels: int, min_side: int, max_bytes: int, max_aspect: float = math.inf) -> Image.Image:
    """Decode a picture to RGB, upright and opaque.

    The format is recognised by content (`FORMATS`); of an animation the first frame counts. Size
    limits are checked on the header, before pixels are decoded; Pillow's own limit of 89 megapixels
    holds whatever `max_pixels` says. The EXIF orientation is applied, transparency is laid on white,
    and palettes, CMYK, 16-bit and floating-point pictures become 8-bit RGB.

    Args:
        data: the bytes as they were uploaded.
        max_pixels: most pixels (width times height) that are accepted.
        min_side: shortest side that is accepted, in pixels.
        max_bytes: most bytes that are accepted.
        max_aspect: most that the longer side may be of the shorter one.

    Raises:
        ImageTooLarge: more bytes or pixels than allowed (not retryable).
        InvalidImage: not a picture, truncated, smaller than `min_side` or too long (not retryable).
    """
    if not data:
        raise InvalidImage("the picture is empty: 0 bytes")
    if len(data) > max_bytes:
        raise ImageTooLarge(f"{len(data)} bytes; at most {max_bytes} are accepted")
    with open_picture(data) as image:
        check_shape(image.width, image.height, max_pixels=max_pixels, min_side=min_side, max_aspect=max_aspect)
        image.load()
        return _opaque_rgb(_upright(image))


@contextmanager
def open_picture(data: bytes) -> Iterator[Image.Image]:
    """A picture whose header is read and whose pixels are not; whatever fails inside becomes an error of the tree.

    Raises InvalidImage, ImageTooLarge (not retryable).
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except (RiverlensError, MemoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageTooLarge(f"more pixels than can be decoded safely: {error}") from error
    except UnidentifiedImageError as error:
        raise InvalidImage(f"not a picture in one of the formats {', '.join(FORMATS)}") from error
    # Pillow's plug-ins raise almost anything on malformed bytes (struct.error, SyntaxError, zlib.error, …).
    except Exception as error:
        raise InvalidImage(f"the picture cannot be decoded: {str(error) or type(error).__name__}") from error


def check_shape(width: int, height: int, *, max_pixels: int, min_side: int, max_aspect: float) -> None:
    """Hold the size a header claims against the limits.

    Raises ImageTooLarge, InvalidImage (not retryable).
    """
    if width * height > max_pixels:
        raise ImageTooLarge(f"{width}×{height} is {width * height} pixels; at most {max_pixels} are accepted")
    if min(width, height) < max(min_side, 1):
        raise InvalidImage(f"{width}×{height} pixels; the shorter side must have at least {min_side}")
    if max(width, height) > max_aspect * min(width, height):
        raise InvalidImage(f"{width}×{height} pixels; the longer side may be at most {max_aspect:g} times the shorter")


def crop(image: Image.Image, x: float, y: float, width: float, height: float) -> Image.Image:
    """Cut a rectangle out of a picture; all four numbers are fractions of the picture's sides.

    The rectangle is widened to whole pixels, so it holds at least one.

    Raises:
        InvalidRequest: the rectangle is empty or reaches outside 0…1 (not retryable).
    """
    edge = 1.0 + 1e-6
    inside = x >= 0 and y >= 0 and width > 0 and height > 0 and x + width <= edge and y + height <= edge
    if not inside or x >= 1 or y >= 1:
        raise InvalidRequest(
            f"crop x={x}, y={y}, width={width}, height={height} must be a rectangle that is not empty inside 0…1"
        )
    left, top = math.floor(x * image.width), math.floor(y * image.height)
    right = min(image.width, max(left + 1, math.ceil((x + width) * image.width - 1e-9)))
    bottom = min(image.height, max(top + 1, math.ceil((y + height) * image.height - 1e-9)))
    return image.crop((left, top, right, bottom))


def to_pixels(image: Image.Image, spec: PreprocessSpec) -> Pixels:
    """Bring a decoded RGB picture into the square that an encoder takes.

    Returns:
        (size, size, 3) uint8, not normalised: encoders apply `spec.mean` and `spec.std` themselves.
    """
    size, resample = spec.size, _RESAMPLING[spec.interpolation]
    if spec.resize == "squash":
        square = image.resize((size, size), resample)
    elif spec.resize == "crop":
        square = _resize_and_cut(image, size, resample)
    else:
        square = _fit(image, spec, resample)
    return np.asarray(square, dtype=np.uint8)


def normalise(pixels: Pixels, spec: PreprocessSpec) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Scale pixels to 0…1, then by the mean and deviation per channel.

    Args:
        pixels: (n, size, size, 3) uint8.
        spec: whose `mean` and `std` apply.

    Returns:
        (n, 3, size, size) float32, contiguous: the layout that encoders take.
    """
    mean = np.asarray(spec.mean, dtype=np.float32)
    std = np.asarray(spec.std, dtype=np.float32)
    scaled = (pixels.astype(np.float32) / np.float32(255.0) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def orientation_of(image: Image.Image) -> int:
    """What EXIF or XMP say of a picture's orientation, 1 (upright) to 8; 1 where they cannot be read.

    Source: EXIF 2.32, tag 0x0112.
    """
    try:
        said = image.getexif().get(0x0112, 1)
    # EXIF that cannot be read says nothing of the pixels.
    except Exception:  # noqa: BLE001
        return 1
    return said if isinstance(said, int) and 1 <= said <= 8 else 1


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(orientation_of(image))
    return image if turn is None else image.transpose(turn)


def _opaque_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.float32) / 257.0)
    if image.mode in {"I", "F"}:
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        low, high = float(values.min()), float(values.max())
        return _grey((values - low) * (255.0 / (high - low)) if high > low else np.zeros_like(values))
    return image.convert("RGB")


def _grey(values: np.ndarray[tuple[int, ...], np.dtype[np.floating]]) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")


def _fit(image: Image.Image, spec: PreprocessSpec, resample: Image.Resampling) -> Image.Image:
    inner = max(1, int(spec.size * (1.0 - 2.0 * spec.padding)))
    ratio = max(image.size) / inner
    fitted = image.resize((max(1, round(image.width / ratio)), max(1, round(image.height / ratio))), resample)
    canvas = Image.new("RGB", (spec.size, spec.size), spec.background)
    canvas.paste(fitted, ((spec.size - fitted.width) // 2, (spec.size - fitted.height) // 2))
    return canvas


def _resize_and_cut(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """Resize the short side to `size` and cut the centre, to the pixel as torchvision does it."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if long > short * _LONGEST_RATIO_RESIZED_WHOLE:
        left, top = (width - short) / 2, (height - short) / 2
        return image.resize((size, size), resample, box=(left, top, left + short, top + short))
    scaled_long = int(size * long / short)
    resized = image.resize((size, scaled_long) if width <= height else (scaled_long, size), resample)
    left, top = round((resized.width - size) / 2.0), round((resized.height - size) / 2.0)
    return resized.crop((left, top, left + size, top + size))
