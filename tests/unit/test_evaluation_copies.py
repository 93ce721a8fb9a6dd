"""Altered copies, and the figures of the re-ranking benchmark."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from benchmarks.rerank import results, table
from evaluation.copies import compressed, cut, far_copies, near_copies, pasted, scaled, turned
from evaluation.reranking import Alterations, Reranking


@pytest.fixture
def image() -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    return Image.fromarray(pixels)


def test_copies_have_the_sizes_they_say(image: Image.Image) -> None:
    assert scaled(image, 0.5).size == (30, 20)
    assert cut(image, 0.5, 0, 1).size == (30, 20)
    assert cut(image, 0.5, 0, 1).getpixel((0, 0)) == image.getpixel((0, 20))
    assert turned(image, 90).size == (40, 60)
    assert compressed(image, 40).size == image.size
    assert pasted(image, image, 25).size == (384, 384)
    assert cut(Image.new("RGB", (1, 1)), 0.1, 0.5, 0.5).size == (1, 1)


def test_copies_are_the_same_every_time(image: Image.Image) -> None:
    for copies in (near_copies(), far_copies(image)):
        for alteration in copies.values():
            assert alteration(image).tobytes() == alteration(image).tobytes()
            assert alteration(image).tobytes() != image.tobytes()


def test_the_result_file_has_every_figure_once() -> None:
    one = Alterations("turned 30°", 40, 0.5, (0.75, 0.875), 1)
    found = Reranking(701, (one, one), 9, 0, 1000, {"2 % cut off": 0.9}, 8, {"features_of_a_picture": 8.0}, "00")
    figures = {figure.name: figure.value for figure in results(found)}
    assert figures["recall_at_1_by_embedding"] == 0.5
    assert (figures["recall_at_1_verified_20"], figures["recall_at_1_verified_50"]) == (0.75, 0.875)
    assert (figures["queries"], figures["right_before_wrong_after"]) == (80, 2)
    assert figures["features_of_a_picture_ms"] == 8.0
    assert table(found).row_count == 2
