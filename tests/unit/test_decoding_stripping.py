"""What is served of a picture: its pixels and its orientation, and no metadata."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from actors.embedding.preprocessing import decode
from tests.decoding import shared_decoder
from tests.unit.bad_pictures import encoded, gif, jpeg_with, noise

SECRET = b"48.2082 N, 16.3738 E, Vienna"
HEIC = Path(__file__).parent / "pictures" / "turned.heic"


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = SECRET.decode()
    return exif


def _pixels(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(decode(data, max_pixels=10**7, min_side=1, max_bytes=10**8))


def _gradient() -> Image.Image:
    x, y = np.meshgrid(np.arange(64), np.arange(48))
    return Image.fromarray(np.stack([x * 4, y * 5, (x + y) * 2], axis=-1).astype(np.uint8))


def _with_text() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", SECRET.decode())
    info.add_itxt("XML:com.adobe.xmp", SECRET.decode())
    return info


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
async def test_metadata_goes_and_the_picture_looks_the_same(format_name: str, orientation: int) -> None:
    xmp = {} if format_name in ("PNG", "TIFF") else {"xmp": SECRET}
    text = {"pnginfo": _with_text()} if format_name == "PNG" else {}
    picture = _gradient() if format_name == "TIFF" else noise()
    data = encoded(picture, format_name, exif=_exif(orientation), **xmp, **text)
    assert SECRET in data
    clean, content_type = await shared_decoder().clean(data)
    assert SECRET not in clean
    seen, before = _pixels(clean), _pixels(data)
    assert seen.shape == before.shape
    if format_name == "TIFF":
        # Encoded anew, so that it is near and not the same.
        assert content_type == "image/webp"
        assert np.abs(seen.astype(int) - before).mean() < 4
    else:
        assert content_type == f"image/{format_name.lower()}"
        assert np.array_equal(seen, before)
    with Image.open(io.BytesIO(clean)) as opened:
        assert set(opened.getexif()) <= {0x0112}


async def test_a_heif_file_keeps_its_turn_and_loses_its_exif() -> None:
    data = HEIC.read_bytes()
    assert b"secret" in data
    clean, content_type = await shared_decoder().clean(data)
    assert content_type == "image/heic"
    assert b"secret" not in clean
    assert np.array_equal(_pixels(clean), _pixels(data))


@pytest.mark.parametrize("marker", [0xE1, 0xE2, 0xE3, 0xED, 0xEF, 0xFE])
async def test_segments_of_a_jpeg_that_are_not_the_picture_go(marker: int) -> None:
    data = jpeg_with(marker, SECRET)
    clean, _ = await shared_decoder().clean(data)
    assert SECRET not in clean
    assert np.array_equal(_pixels(clean), _pixels(data))


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 1}, {"optimize": True}])
async def test_scans_of_a_jpeg_stay_as_they_are(options: dict[str, int]) -> None:
    data = encoded(noise(), "JPEG", **options)
    clean, _ = await shared_decoder().clean(data + SECRET)
    assert SECRET not in clean
    assert np.array_equal(_pixels(clean), _pixels(data))


async def test_a_second_picture_behind_a_jpeg_goes_with_its_metadata() -> None:
    data = encoded(noise(), "MPO", save_all=True, append_images=[noise(32, 32)], exif=_exif(1))
    clean, _ = await shared_decoder().clean(data)
    assert clean.count(b"\xff\xd8\xff") == 1
    assert np.array_equal(_pixels(clean), _pixels(data))


async def test_colours_and_inks_are_kept() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for format_name in ("JPEG", "PNG", "WEBP"):
        clean, _ = await shared_decoder().clean(encoded(noise(), format_name, icc_profile=profile))
        with Image.open(io.BytesIO(clean)) as opened:
            assert opened.info["icc_profile"] == profile
    inks = encoded(noise(mode="CMYK"), "JPEG")
    assert np.array_equal(_pixels((await shared_decoder().clean(inks))[0]), _pixels(inks))


async def test_comments_of_a_gif_go_and_its_frames_stay() -> None:
    data = gif(3)
    extra = b"\x21\xfe" + bytes([len(SECRET)]) + SECRET + b"\0"
    application = b"\x21\xff\x0bXMP DataXMP" + bytes([len(SECRET)]) + SECRET + b"\0"
    at = data.index(b"\x2c")
    clean, content_type = await shared_decoder().clean(data[:at] + extra + application + data[at:-1] + extra + b";")
    assert content_type == "image/gif"
    assert SECRET not in clean
    with Image.open(io.BytesIO(clean)) as opened:
        assert opened.n_frames == 3  # type: ignore[attr-defined]


async def test_a_webp_says_no_more_that_it_has_what_is_gone() -> None:
    clean, _ = await shared_decoder().clean(encoded(noise(), "WEBP", exif=_exif(1), xmp=SECRET))
    assert struct.unpack("<I", clean[4:8])[0] == len(clean) - 8
    if clean[12:16] == b"VP8X":
        assert clean[20] & 0x0C == 0
