"""Pictures for tests: the shipped samples, and new ones nobody has indexed."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

from PIL import Image, ImageDraw

SAMPLES = Path(__file__).parent.parent.parent / "samples"


def sample_pictures() -> list[tuple[str, bytes]]:
    """(caption, bytes) of every picture shipped with the repository."""
    with (SAMPLES / "captions.csv").open(newline="") as file:
        return [(row["caption"], (SAMPLES / row["file"]).read_bytes()) for row in csv.DictReader(file)]


def new_picture(seed: int, side: int = 160) -> bytes:
    """PNG bytes of a picture drawn from `seed`: overlapping shapes on a coloured ground."""
    rng = random.Random(seed)

    def colour() -> tuple[int, int, int]:
        return (rng.randrange(256), rng.randrange(256), rng.randrange(256))

    image = Image.new("RGB", (side, side), colour())
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = rng.randrange(side), rng.randrange(side)
        box = (x, y, x + rng.randrange(10, side), y + rng.randrange(10, side))
        shape = rng.choice((draw.ellipse, draw.rectangle))
        shape(box, fill=colour())
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
