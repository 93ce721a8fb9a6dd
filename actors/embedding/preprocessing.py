"""From the bytes of a picture to the square of pixels an encoder takes.

Indexing and querying share this module: whatever it does to a picture, it does to both sides.
It imports only PIL and numpy, because stream workers and the API decode pictures themselves.
"""

from __future__ import annotations

import io
import math
import warnings
from typing import Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from actors.messages import Pixels, PreprocessSpec
from contract.errors import ImageTooLarge, InvalidImage, InvalidRequest

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are decoded, by Pillow's names; recognised by content, never by file name."""

_RESAMPLING: Final = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
_ALPHA_MODES: Final = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
# Beyond this ratio of the sides, resizing the short side first would blow the long side up without bound.
_LONGEST_RATIO_RESIZED_WHOLE: Final = 16

# Pillow warns between its limit (89 megapixels) and twice that, and raises beyond. A filter set once
# is safe with several decoding threads, where warnings.catch_warnings is not.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def decode(data: bytes, *, max_pixels: int, min_side: int, max_bytes: int) -> Image.Image:
    """Decode a picture to RGB, upright and opaque.

    The format is recognised by content (JPEG, PNG, WebP, GIF, BMP, TIFF); of an animation the first
    frame counts. Size limits are checked on the header, before pixels are decoded; Pillow's own limit
    of 89 megapixels holds whatever `max_pixels` says. The EXIF orientation is applied, transparency is
    laid on white, and palettes, CMYK, 16-bit and floating-point pictures become 8-bit RGB.

    Args:
        data: the bytes as they were uploaded.
        max_pixels: most pixels (width times height) that are accepted.
        min_side: shortest side that is accepted, in pixels.
        max_bytes: most bytes that are accepted.

    Raises:
        ImageTooLarge: more bytes or pixels than allowed (not retryable).
        InvalidImage: not a picture, truncated, or smaller than `min_side` (not retryable).
    """
    if not data:
        raise InvalidImage("the picture is empty: 0 bytes")
    if len(data) > max_bytes:
        raise ImageTooLarge(f"{len(data)} bytes; at most {max_bytes} are accepted")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.width, image.height, max_pixels=max_pixels, min_side=min_side)
            image.load()
            return _opaque_rgb(ImageOps.exif_transpose(image))
    except (InvalidImage, MemoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageTooLarge(f"more pixels than can be decoded safely: {error}") from error
    except UnidentifiedImageError as error:
        raise InvalidImage(f"not a picture in one of the formats {', '.join(FORMATS)}") from error
    # Pillow's plug-ins raise almost anything on malformed bytes (struct.error, SyntaxError, zlib.error, …).
    except Exception as error:
        raise InvalidImage(f"the picture cannot be decoded: {str(error) or type(error).__name__}") from error


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


def _check_size(width: int, height: int, *, max_pixels: int, min_side: int) -> None:
    if width * height > max_pixels:
        raise ImageTooLarge(f"{width}×{height} is {width * height} pixels; at most {max_pixels} are accepted")
    if min(width, height) < min_side:
        raise InvalidImage(f"{width}×{height} pixels; the shorter side must have at least {min_side}")


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
