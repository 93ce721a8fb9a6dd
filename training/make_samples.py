"""Make the sample pictures from Open Clip Art: `python -m training.make_samples`.

`samples/captions.csv` says which pictures, with captions written for this repository. Each is cut to
its content, brought to at most 256 pixels on the long side, and stored as a small PNG.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageChops

from actors.embedding.preprocessing import decode
from contract.settings import Settings, load_settings
from evaluation.datasets import OPENCLIPART
from evaluation.packages import debian_package

SAMPLES: Final = Path(__file__).parent.parent / "samples"
SOURCE_PREFIX: Final = "openclipart-png 0.18: "
LONGEST_SIDE: Final = 256

_MARGIN: Final = 0.05
_PALETTE_COLOURS: Final = 128


@dataclass(frozen=True)
class Sample:
    """A row of captions.csv. `origin` is the path of the picture inside Open Clip Art."""

    file: str
    caption: str
    tags: str
    origin: str


def samples(folder: Path = SAMPLES) -> list[Sample]:
    """Rows of captions.csv, in its order."""
    with (folder / "captions.csv").open(encoding="utf-8", newline="") as stream:
        return [
            Sample(row["file"], row["caption"], row["tags"], row["source"].removeprefix(SOURCE_PREFIX))
            for row in csv.DictReader(stream)
        ]


def cut_to_content(image: Image.Image) -> Image.Image:
    """Cut a white border off, leaving a margin of 5 % of the content's longer side."""
    box = ImageChops.difference(image, Image.new("RGB", image.size, (255, 255, 255))).getbbox()
    if box is None:
        return image
    left, top, right, bottom = box
    margin = round(_MARGIN * max(right - left, bottom - top))
    return image.crop(
        (
            max(0, left - margin),
            max(0, top - margin),
            min(image.width, right + margin),
            min(image.height, bottom + margin),
        )
    )


def write_samples(settings: Settings, folder: Path = SAMPLES) -> int:
    """Write every sample picture and return how many bytes they take together."""
    root = debian_package(settings, OPENCLIPART) / "usr/share/openclipart/png"
    total = 0
    for sample in samples(folder):
        image = decode(
            (root / sample.origin).read_bytes(),
            max_pixels=settings.max_image_pixels,
            min_side=settings.min_image_side,
            max_bytes=settings.max_image_bytes,
        )
        small = cut_to_content(image)
        small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        palette = small.quantize(_PALETTE_COLOURS, dither=Image.Dither.NONE)
        palette.save(folder / sample.file, optimize=True)
        total += (folder / sample.file).stat().st_size
    return total


def main() -> None:
    """Entry point of `python -m training.make_samples`."""
    total = write_samples(load_settings())
    print(f"{len(samples())} pictures, {total / 1e6:.2f} MB in {SAMPLES}")


if __name__ == "__main__":
    main()
