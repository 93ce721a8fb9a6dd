"""Altered copies of pictures, as people send them: turned, cut, scaled, compressed, pasted into another picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from PIL import Image, ImageEnhance

_WHITE: Final = (255, 255, 255)

Alteration = Callable[[Image.Image], Image.Image]


def turned(image: Image.Image, degrees: float) -> Image.Image:
    """Turned anticlockwise; the corners that come in are white."""
    return image.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=_WHITE)


def cut(image: Image.Image, share: float, x: float, y: float) -> Image.Image:
    """A rectangle with `share` of each side; `x`, `y` from 0 to 1 say where in the room that is left."""
    width, height = max(1, round(image.width * share)), max(1, round(image.height * share))
    left, top = round((image.width - width) * x), round((image.height - height) * y)
    return image.crop((left, top, left + width, top + height))


def scaled(image: Image.Image, factor: float) -> Image.Image:
    """Both sides times `factor`."""
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS)


def compressed(image: Image.Image, quality: int) -> Image.Image:
    """Through JPEG, at a quality of 1 to 95."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Image.open(io.BytesIO(out.getvalue())).convert("RGB")


def brightened(image: Image.Image, factor: float) -> Image.Image:
    """Brightness times `factor`."""
    return ImageEnhance.Brightness(image).enhance(factor)


def pasted(image: Image.Image, background: Image.Image, degrees: float) -> Image.Image:
    """Turned and scaled to half the sides of a 384-pixel scene; the rest of the scene is `background`."""
    scene = background.resize((384, 384), Image.Resampling.BICUBIC)
    # Turned as a whole, so that white corners of the picture's own are not taken for the scene.
    piece = image.convert("RGBA")
    piece = scaled(piece, 192 / max(piece.size)).rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    scene.paste(piece, (24, 150), piece)
    return scene


def near_copies() -> Mapping[str, Alteration]:
    """Alterations that leave a picture the same to a person: what collapsing duplicates shall find."""
    return {
        "JPEG quality 40": partial(compressed, quality=40),
        "half the size": partial(scaled, factor=0.5),
        "10 % brighter": partial(brightened, factor=1.1),
        "2 % cut off": partial(cut, share=0.98, x=0.5, y=0.5),
    }


def far_copies(background: Image.Image) -> Mapping[str, Alteration]:
    """Alterations that change how a picture looks as a whole: what geometric verification shall find."""
    return {
        "turned 30°": partial(turned, degrees=30),
        "turned 90°": partial(turned, degrees=90),
        "turned 180°": partial(turned, degrees=180),
        "half of each side cut out": partial(cut, share=0.5, x=0.3, y=0.6),
        "70 % of each side cut out": partial(cut, share=0.7, x=0.2, y=0.8),
        "half the size": partial(scaled, factor=0.5),
        "twice the size": partial(scaled, factor=2.0),
        "turned 20°, cut to 70 %": lambda image: cut(turned(image, 20), 0.7, 0.5, 0.5),
        "pasted into another picture": partial(pasted, background=background, degrees=25),
    }
