"""Decoding, limits and geometry of pictures."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from actors.embedding.preprocessing import FORMATS, crop, decode, normalise, to_pixels
from actors.messages import PreprocessSpec
from contract.errors import ImageTooLarge, InvalidImage, InvalidRequest

SPEC = PreprocessSpec(
    size=64,
    resize="fit",
    interpolation="bicubic",
    padding=0.06,
    background=(255, 255, 255),
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.5),
)


def _encoded(image: Image.Image, format_name: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_name, **options)
    return stream.getvalue()


def _decode(data: bytes, *, max_pixels: int = 1_000_000, min_side: int = 8, max_bytes: int = 10_000_000) -> Image.Image:
    return decode(data, max_pixels=max_pixels, min_side=min_side, max_bytes=max_bytes)


def _gradient(width: int = 40, height: int = 30) -> Image.Image:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x * 6, y * 8, (x + y) * 3], axis=-1).astype(np.uint8))


# HEIF is read and not written here; the tests of what is served have a sample.
@pytest.mark.parametrize("format_name", [name for name in FORMATS if name != "HEIF"])
def test_every_format_is_decoded_to_rgb(format_name: str) -> None:
    picture = _decode(_encoded(_gradient(), format_name))
    assert picture.mode == "RGB"
    assert picture.size == (40, 30)
    difference = np.abs(np.asarray(picture).astype(int) - np.asarray(_gradient()).astype(int))
    assert difference.mean() < 12


def test_formats_outside_the_list_are_refused() -> None:
    with pytest.raises(InvalidImage, match="formats"):
        _decode(_encoded(_gradient(), "PPM"))


@pytest.mark.parametrize(
    "data", [b"", b"x", b"<html></html>" * 50, b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + b"\0" * 99]
)
def test_bytes_that_are_no_picture_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        _decode(data)


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_truncated_files_are_refused(format_name: str) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 90, 3), dtype=np.uint8))
    data = _encoded(noise, format_name)
    with pytest.raises(InvalidImage):
        _decode(data[: len(data) // 2])


def test_limits_of_bytes_pixels_and_side() -> None:
    data = _encoded(_gradient(40, 30))
    with pytest.raises(ImageTooLarge, match="bytes"):
        _decode(data, max_bytes=len(data) - 1)
    with pytest.raises(ImageTooLarge, match="1200 pixels"):
        _decode(data, max_pixels=1199)
    with pytest.raises(InvalidImage, match="at least 31"):
        _decode(data, min_side=31)
    assert _decode(data, max_bytes=len(data), max_pixels=1200, min_side=30).size == (40, 30)


def _png_header_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_600, 100_000])
def test_decompression_bombs_are_refused_from_their_header(side: int) -> None:
    with pytest.raises(ImageTooLarge, match="pixels"):
        _decode(_png_header_claiming(side, side), max_pixels=10**12)


def test_the_limit_holds_before_pixels_are_decoded() -> None:
    with pytest.raises(ImageTooLarge, match="25000000 pixels"):
        _decode(_png_header_claiming(5_000, 5_000))


def test_exif_orientation_is_applied() -> None:
    picture = Image.new("RGB", (40, 20), (255, 255, 255))
    picture.paste((255, 0, 0), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = _decode(_encoded(picture, "PNG", exif=exif))
    assert turned.size == (20, 40)
    assert turned.getpixel((10, 5)) == (255, 0, 0)
    assert turned.getpixel((10, 35)) == (255, 255, 255)


def test_transparency_is_laid_on_white() -> None:
    rgba = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    rgba.paste((255, 0, 0, 255), (0, 0, 8, 16))
    grey = rgba.convert("LA")
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.paste(1, (0, 0, 8, 16))
    keyed = Image.new("RGB", (16, 16), (9, 9, 9))
    for data in (
        _encoded(rgba),
        _encoded(rgba, "WEBP", lossless=True),
        _encoded(grey),
        _encoded(palette, transparency=0),
        _encoded(palette, "GIF", transparency=0),
        _encoded(keyed, transparency=(9, 9, 9)),
    ):
        picture = _decode(data)
        assert picture.mode == "RGB"
        assert picture.getpixel((12, 8)) == (255, 255, 255)


def test_half_transparent_pixels_mix_with_white() -> None:
    picture = _decode(_encoded(Image.new("RGBA", (16, 16), (0, 0, 0, 128))))
    assert picture.getpixel((0, 0)) == pytest.approx((127, 127, 127), abs=1)


def test_cmyk_and_bilevel_become_rgb() -> None:
    cmyk = _decode(_encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = np.asarray(cmyk)[8, 8]
    assert red > 200
    assert max(green, blue) < 60
    assert _decode(_encoded(Image.new("1", (16, 16), 1))).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_keep_their_tones() -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).repeat(8).reshape(-1, 64)
    picture = _decode(_encoded(Image.fromarray(values)))
    np.testing.assert_allclose(np.asarray(picture)[..., 0], values / 257.0, atol=1)


def test_floating_point_is_stretched_to_eight_bits() -> None:
    values = np.linspace(-3.0, 5.0, 256, dtype=np.float32).reshape(16, 16)
    tones = np.asarray(_decode(_encoded(Image.fromarray(values), "TIFF")))[..., 0]
    assert (tones[0, 0], tones[-1, -1]) == (0, 255)
    assert (np.diff(tones.ravel().astype(int)) >= 0).all()
    flat = np.full((16, 16), np.nan, dtype=np.float32)
    assert np.asarray(_decode(_encoded(Image.fromarray(flat), "TIFF"))).max() == 0


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for format_name in ("GIF", "WEBP"):
        data = _encoded(frames[0], format_name, save_all=True, append_images=frames[1:])
        red, green, _ = np.asarray(_decode(data))[8, 8]
        assert red > 200
        assert green < 60


def test_fit_keeps_the_whole_picture_on_the_background() -> None:
    wide = Image.new("RGB", (200, 50), (10, 20, 30))
    pixels = to_pixels(wide, SPEC)
    assert pixels.shape == (64, 64, 3)
    assert pixels.dtype == np.uint8
    inside = (pixels == (10, 20, 30)).all(axis=-1)
    rows, columns = np.where(inside)
    assert (columns.max() - columns.min() + 1, rows.max() - rows.min() + 1) == (56, 14)
    assert (pixels[~inside] == 255).all()


def test_crop_mode_keeps_the_centre_and_squash_everything() -> None:
    left_red = Image.new("RGB", (192, 64), (0, 0, 255))
    left_red.paste((255, 0, 0), (0, 0, 64, 64))
    centre = to_pixels(left_red, _spec("crop"))
    assert (centre == (0, 0, 255)).all()
    squashed = to_pixels(left_red, _spec("squash"))
    assert tuple(squashed[32, 2]) == (255, 0, 0)
    assert tuple(squashed[32, 60]) == (0, 0, 255)


def test_extremely_oblong_pictures_stay_cheap_in_every_mode() -> None:
    thread = Image.new("RGB", (200_000, 8), (1, 2, 3))
    for resize in ("fit", "crop", "squash"):
        assert to_pixels(thread, _spec(resize)).shape == (64, 64, 3)


def _spec(resize: Any) -> PreprocessSpec:
    return PreprocessSpec(64, resize, "bilinear", 0.0, (0, 0, 0), SPEC.mean, SPEC.std)


def test_normalise_gives_channels_first() -> None:
    pixels = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    pixels[..., 1] = 255
    values = normalise(pixels, SPEC)
    assert values.shape == (2, 3, 4, 4)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[1, :, 2, 2], [-2.5, 2.4, -0.6], rtol=1e-5)


def test_crop_cuts_fractions() -> None:
    picture = _gradient(100, 50)
    part = crop(picture, 0.25, 0.5, 0.5, 0.5)
    assert part.size == (50, 25)
    assert part.getpixel((0, 0)) == picture.getpixel((25, 25))
    assert crop(picture, 0, 0, 1, 1).size == (100, 50)
    assert crop(picture, 0.999, 0.999, 0.0001, 0.0001).size == (1, 1)
    assert crop(picture, 0.1, 0.2, 0.9, 0.8).size == (90, 40)


@pytest.mark.parametrize(
    "rectangle",
    [
        (-0.1, 0, 0.5, 0.5),
        (0, 0, 0, 0.5),
        (0, 0, 0.5, -0.5),
        (0.6, 0, 0.5, 0.5),
        (0, 0.6, 0.5, 0.5),
        (1.0, 0, 1e-9, 0.5),
        (float("nan"), 0, 0.5, 0.5),
        (0, 0, float("inf"), 0.5),
    ],
)
def test_crops_outside_the_picture_are_refused(rectangle: tuple[float, float, float, float]) -> None:
    with pytest.raises(InvalidRequest):
        crop(_gradient(), *rectangle)
