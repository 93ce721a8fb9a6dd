"""The head's arithmetic, its file, fingerprints and query cleaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.embedding.encoder import fingerprint, l2_normalise
from actors.embedding.head import HEAD_PATH, Head, conse, load_head, save_head
from actors.embedding.text_tower import clean_query
from actors.messages import FloatMatrix, PreprocessSpec
from contract.errors import ModelUnavailable

SPEC = PreprocessSpec(224, "fit", "bicubic", 0.06, (255, 255, 255), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def shipped() -> Head:
    return load_head()


def _features(count: int) -> tuple[FloatMatrix, FloatMatrix]:
    random = np.random.default_rng(4)
    clip = random.normal(size=(count, 512)).astype(np.float32)
    return clip, random.normal(scale=3.0, size=(count, 1000)).astype(np.float32)


def test_conse_of_a_certain_picture_is_its_class() -> None:
    classes = l2_normalise(np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32))
    logits = np.zeros((1, 60), dtype=np.float32)
    logits[0, 7] = 100.0
    np.testing.assert_allclose(conse(logits, classes)[0], classes[7], atol=1e-6)


def test_conse_weighs_by_probability_and_ignores_improbable_classes() -> None:
    classes = np.eye(60, dtype=np.float32)
    logits = np.full((1, 60), -50.0, dtype=np.float32)
    logits[0, :2] = [2.0 * np.log(3.0), 0.0]
    mixed = conse(logits, classes)[0]
    assert mixed[0] / mixed[1] == pytest.approx(3.0, rel=1e-5)
    tied = conse(np.zeros((1, 60), dtype=np.float32), classes)[0]
    assert (tied > 0).sum() == 50


def test_the_head_computes_what_torch_computes(shipped: Head) -> None:
    clip, logits = _features(5)
    base = torch.from_numpy(conse(logits, shipped.class_embeddings))
    x = torch.nn.functional.normalize(torch.from_numpy(clip), dim=-1) * 512**0.5
    x = torch.cat([(x - torch.from_numpy(shipped.mean)) / torch.from_numpy(shipped.std), base * 10], dim=1)
    total = torch.zeros_like(base)
    for k in range(len(shipped.alpha)):
        hidden = torch.nn.functional.gelu(x @ torch.from_numpy(shipped.w1[k]).T + torch.from_numpy(shipped.b1[k]))
        out = hidden @ torch.from_numpy(shipped.w2[k]).T + torch.from_numpy(shipped.b2[k])
        corrected = float(shipped.alpha[k]) * base + 0.7 * torch.nn.functional.normalize(out, dim=-1)
        total += torch.nn.functional.normalize(corrected, dim=-1)
    expected = torch.nn.functional.normalize(total, dim=-1).numpy()
    np.testing.assert_allclose(shipped.text_aligned(clip, logits), expected, atol=1e-5)


def test_parts_are_normalised_and_independent_of_the_batch(shipped: Head) -> None:
    clip, logits = _features(6)
    aligned, visual = shipped.text_aligned(clip, logits), shipped.visual(clip)
    assert (aligned.shape, visual.shape) == ((6, 384), (6, 128))
    assert aligned.dtype == visual.dtype == np.float32
    for part in (aligned, visual):
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(shipped.text_aligned(clip[2:3], logits[2:3])[0], aligned[2], atol=1e-5)
    np.testing.assert_allclose(shipped.text_aligned(clip * 7, logits), aligned, atol=1e-5)


def test_the_shipped_head_is_small_and_has_three_networks(shipped: Head) -> None:
    assert HEAD_PATH.stat().st_size <= 5_000_000
    assert shipped.alpha.shape == (3,)
    np.testing.assert_allclose(np.linalg.norm(shipped.class_embeddings, axis=1), 1.0, atol=2e-3)


def test_saving_is_deterministic_and_keeps_the_head(shipped: Head, tmp_path: Path) -> None:
    save_head(shipped, tmp_path / "a.npz")
    save_head(load_head(tmp_path / "a.npz"), tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    clip, logits = _features(2)
    np.testing.assert_array_equal(
        load_head(tmp_path / "a.npz").text_aligned(clip, logits), shipped.text_aligned(clip, logits)
    )


def test_files_that_are_no_head_are_clear_errors(shipped: Head, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="retrain"):
        load_head(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        load_head(tmp_path / "text.npz")
    np.savez(tmp_path / "future.npz", format=np.array(99))
    with pytest.raises(ModelUnavailable, match="format 99"):
        load_head(tmp_path / "future.npz")


def test_fingerprint_covers_weights_preprocessing_and_dimension() -> None:
    same = fingerprint(["aa", "bb"], SPEC, 512)
    assert same == fingerprint(["aa", "bb"], PreprocessSpec(**_fields(SPEC)), 512)
    assert len(same) == 16
    assert int(same, 16) >= 0
    others = {
        fingerprint(["aa", "bc"], SPEC, 512),
        fingerprint(["bb", "aa"], SPEC, 512),
        fingerprint(["aa", "bb"], SPEC, 384),
        *(fingerprint(["aa", "bb"], PreprocessSpec(**{**_fields(SPEC), **change}), 512) for change in _changes()),
    }
    assert len(others) == 3 + len(_changes())
    assert same not in others


def _fields(spec: PreprocessSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.__struct_fields__}


def _changes() -> list[dict[str, Any]]:
    return [
        {"size": 225},
        {"resize": "crop"},
        {"interpolation": "bilinear"},
        {"padding": 0.05},
        {"background": (0, 0, 0)},
        {"mean": (0.5, 0.5, 0.4)},
        {"std": (0.5, 0.5, 0.4)},
    ]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("A red  Apple.", "red apple"),
        ("this is an owl!", "owl"),
        ("the sea", "sea"),
        ("some bread", "bread"),
        ("anchor", "anchor"),
        ("theatre", "theatre"),
        ("cat and the dog", "cat and the dog"),
        ("a", "a"),
        ("...", "..."),
        ("", ""),
    ],
)
def test_queries_are_cleaned_like_captions(text: str, cleaned: str) -> None:
    assert clean_query(text) == cleaned
