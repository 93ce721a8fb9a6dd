"""The sample pictures: complete, small, decodable, with their sources."""

from __future__ import annotations

import csv

import numpy as np
from PIL import Image

from actors.embedding.preprocessing import decode
from training.make_samples import LONGEST_SIDE, SAMPLES, SOURCE_PREFIX, cut_to_content, samples


def test_every_row_has_a_small_picture_and_no_picture_is_without_row() -> None:
    rows = samples()
    assert len(rows) >= 200
    assert {row.file for row in rows} == {path.name for path in SAMPLES.glob("*.png")}
    assert len({row.file for row in rows}) == len({row.caption for row in rows}) == len(rows)
    for row in rows:
        data = (SAMPLES / row.file).read_bytes()
        image = decode(data, max_pixels=LONGEST_SIDE**2, min_side=8, max_bytes=100_000)
        assert max(image.size) <= LONGEST_SIDE
        assert np.asarray(image).std() > 5, f"{row.file} is blank"
    assert sum(path.stat().st_size for path in SAMPLES.iterdir()) <= 4_000_000


def test_every_row_names_source_and_licence() -> None:
    with (SAMPLES / "captions.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            assert row["source"].startswith(SOURCE_PREFIX)
            assert row["licence"] == "public domain"
            assert row["tags"]


def test_cutting_keeps_the_content_with_a_margin() -> None:
    page = Image.new("RGB", (400, 300), (255, 255, 255))
    page.paste((10, 20, 30), (100, 50, 200, 90))
    cut = cut_to_content(page)
    assert cut.size == (110, 50)
    assert cut.getpixel((5, 5)) == (10, 20, 30)
    assert cut.getpixel((4, 4)) == (255, 255, 255)
    blank = Image.new("RGB", (30, 30), (255, 255, 255))
    assert cut_to_content(blank).size == (30, 30)
