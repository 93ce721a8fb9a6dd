"""Local features and perceptual hashes, on drawn pictures and on samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.copies import cut, far_copies, near_copies
from serving.rerank.geometry import Features, features, inliers
from serving.rerank.picture_hash import perceptual_hash

SAMPLES = Path(__file__).parents[2] / "samples"


def sample(name: str) -> Image.Image:
    with Image.open(SAMPLES / f"{name}.png") as image:
        rgba = image.convert("RGBA")
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


@pytest.fixture(scope="module")
def guitar() -> Image.Image:
    return sample("acoustic-guitar")


@pytest.fixture(scope="module")
def others() -> list[Image.Image]:
    return [sample(name) for name in ("aeroplane", "ambulance", "ant", "apple-pie")]


@pytest.mark.parametrize("alteration", list(far_copies(Image.new("RGB", (8, 8)))))
def test_an_altered_copy_is_confirmed_and_others_are_not(
    alteration: str, guitar: Image.Image, others: list[Image.Image]
) -> None:
    copy = features(far_copies(others[0])[alteration](guitar))
    assert inliers(copy, features(guitar)) >= 10
    # The first of the others is the background that a copy is pasted into.
    assert all(inliers(copy, features(other)) < 10 for other in others[1:])


def test_the_same_pictures_always_have_the_same_inliers(guitar: Image.Image) -> None:
    copy, whole = features(cut(guitar, 0.6, 0.5, 0.5)), features(guitar)
    assert len({inliers(copy, whole) for _ in range(5)}) == 1


def test_a_picture_without_features_confirms_nothing(guitar: Image.Image) -> None:
    blank = features(Image.new("RGB", (64, 64), "white"))
    assert len(blank.points) == 0
    assert inliers(blank, features(guitar)) == inliers(features(guitar), blank) == inliers(blank, blank) == 0


def test_points_that_all_fall_together_confirm_nothing() -> None:
    generator = np.random.default_rng(1)
    descriptors = generator.integers(0, 256, (20, 128), np.uint8)
    spread = Features(generator.uniform(0, 200, (20, 2)).astype(np.float32), descriptors)
    together = Features(np.full((20, 2), 7, np.float32), descriptors)
    assert inliers(spread, together) == inliers(together, spread) == 0


@pytest.mark.parametrize("alteration", list(near_copies()))
def test_a_near_copy_has_nearly_the_same_hash(alteration: str, guitar: Image.Image, others: list[Image.Image]) -> None:
    of_copy = perceptual_hash(near_copies()[alteration](guitar))
    assert (of_copy ^ perceptual_hash(guitar)).bit_count() <= 10
    assert all((of_copy ^ perceptual_hash(other)).bit_count() > 10 for other in others)
    assert 0 <= of_copy < 2**64
