"""The contrastive training learns, repeats itself, and the corpus leaves out what it must."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actors.embedding.encoder import l2_normalise
from training.residual import Pairs, contrastive_loss, train_residual


def _pairs(count: int = 96) -> Pairs:
    """Captions that are a linear function of the features, and a base that knows nothing."""
    random = np.random.default_rng(2)
    clip = random.normal(size=(count, 32)).astype(np.float32)
    text = l2_normalise((clip @ random.normal(size=(32, 384))).astype(np.float32))
    base = l2_normalise(random.normal(size=(count, 384)).astype(np.float32))
    return Pairs(clip, base, text, [f"caption {i}" for i in range(count)])


def test_training_lowers_the_loss() -> None:
    pairs = _pairs()
    short, long = train_residual(pairs, seed=0, epochs=1), train_residual(pairs, seed=0, epochs=60)
    assert long.loss < short.loss / 2


def test_equal_seeds_give_equal_networks_and_others_do_not() -> None:
    pairs = _pairs()
    first, again, other = (train_residual(pairs, seed, epochs=2) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.w1, again.w1)
    assert first.alpha == again.alpha
    assert not np.array_equal(first.w1, other.w1)


def test_pictures_with_one_caption_are_no_negatives_of_each_other() -> None:
    one_caption, captions = torch.zeros(4, dtype=torch.long), torch.arange(4)
    indifferent, certain = torch.zeros(4, 4), 50.0 * torch.eye(4)
    assert contrastive_loss(indifferent, one_caption).item() == pytest.approx(np.log(4))
    assert contrastive_loss(certain, captions).item() == pytest.approx(0.0, abs=1e-6)
    assert contrastive_loss(certain, one_caption).item() == pytest.approx(50.0 * 3 / 4)
