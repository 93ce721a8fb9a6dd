"""The offline models with their real weights, on the sample pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from PIL import Image

from actors.embedding import offline
from actors.embedding.encoder import Encoder
from actors.embedding.offline import ConseEncoder, OfflineEncoder
from actors.embedding.preprocessing import decode, to_pixels
from actors.embedding.registry import load_encoder
from actors.embedding.weights import WeightFile
from actors.messages import FloatMatrix, Pixels
from contract.settings import Settings, load_settings
from training.make_samples import SAMPLES, Sample, samples

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The real cache of weights, so that they are fetched once per machine."""
    return Settings(home=tmp_path_factory.mktemp("home"), cache=load_settings().cache_path, model="offline")


@pytest.fixture(scope="module")
def some_samples() -> list[Sample]:
    return samples()[::5]


@pytest.fixture(scope="module")
def encoder(settings: Settings) -> Encoder:
    return load_encoder(settings, "offline")


@pytest.fixture(scope="module")
def pixels(encoder: Encoder, some_samples: list[Sample]) -> Pixels:
    return np.stack([_pixels(encoder, sample) for sample in some_samples])


@pytest.fixture(scope="module")
def images(encoder: Encoder, pixels: Pixels) -> FloatMatrix:
    return encoder.encode_images(pixels)


def _pixels(encoder: Encoder, sample: Sample) -> Pixels:
    image = decode((SAMPLES / sample.file).read_bytes(), max_pixels=10**6, min_side=8, max_bytes=10**6)
    return to_pixels(image, encoder.description.preprocess)


def _recall_at(k: int, scores: FloatMatrix) -> float:
    own = scores.diagonal()[:, None]
    return float(((scores >= own).sum(axis=1) <= k).mean())


def test_the_default_model_describes_itself(encoder: Encoder) -> None:
    description = encoder.description
    assert isinstance(encoder, OfflineEncoder)
    assert (description.model, description.dimension, description.device) == ("offline", 512, "cpu")
    assert len(description.fingerprint) == 16


def test_captions_find_their_pictures(encoder: Encoder, some_samples: list[Sample], images: FloatMatrix) -> None:
    """Also the guard against inexact integer arithmetic: where int8 products saturate, recall falls by half."""
    scores = encoder.encode_texts([sample.caption for sample in some_samples]) @ images.T
    assert _recall_at(1, scores) >= 0.65
    assert _recall_at(5, scores) >= 0.85


def test_image_vectors_are_normalised_and_do_not_depend_on_the_batch(
    encoder: Encoder, pixels: Pixels, images: FloatMatrix
) -> None:
    assert images.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(encoder.encode_images(pixels[3:5]), images[3:5], atol=1e-5)
    assert encoder.encode_images(pixels[:0]).shape == (0, 512)


def test_the_score_of_a_text_is_a_cosine_of_the_text_aligned_part(encoder: Encoder, images: FloatMatrix) -> None:
    texts = encoder.encode_texts(["a boat", "a very long query " * 100, ""])
    assert texts.shape == (3, 512)
    assert texts.dtype == np.float32
    aligned = images[:, :384] / np.linalg.norm(images[:, :384], axis=1, keepdims=True)
    unit = texts[:, :384] / np.linalg.norm(texts[:, :384], axis=1, keepdims=True)
    np.testing.assert_allclose(texts @ images.T, unit @ aligned.T, atol=1e-5)
    assert not texts[:, 384:].any()
    assert encoder.encode_texts([]).shape == (0, 512)


def test_texts_do_not_depend_on_their_neighbours(encoder: Encoder) -> None:
    together = encoder.encode_texts(["an owl", "a long sentence about a house on a hill near a lake"])
    np.testing.assert_array_equal(together[:1], encoder.encode_texts(["an owl"]))
    np.testing.assert_array_equal(together[:1], encoder.encode_texts(["Owl."]))


def test_a_changed_picture_is_closest_to_its_original(
    encoder: Encoder, some_samples: list[Sample], images: FloatMatrix
) -> None:
    for index in range(0, len(some_samples), 9):
        path = SAMPLES / some_samples[index].file
        image = decode(path.read_bytes(), max_pixels=10**6, min_side=8, max_bytes=10**6)
        smaller = image.resize((image.width // 2, image.height // 2)).rotate(4, fillcolor=(255, 255, 255))
        vector = encoder.encode_images(to_pixels(smaller, encoder.description.preprocess)[None])
        assert int((images @ vector[0]).argmax()) == index


def test_conse_works_alone(settings: Settings, encoder: Encoder, some_samples: list[Sample], pixels: Pixels) -> None:
    conse = load_encoder(settings, "offline-conse")
    conse.warm_up()
    assert (conse.description.model, conse.description.dimension) == ("offline-conse", 384)
    assert conse.description.fingerprint != encoder.description.fingerprint
    images = conse.encode_images(pixels)
    texts = conse.encode_texts([sample.caption for sample in some_samples])
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1.0, rtol=1e-5)
    assert _recall_at(10, texts @ images.T) >= 0.5


def test_without_clip_weights_conse_takes_over_and_says_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nowhere = WeightFile("riverlens-no-such-package", "1.0", "model.onnx", "0" * 64, 1, "none")
    monkeypatch.setattr(offline, "CLIP_IMAGE_TOWER", nowhere)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    others = settings.cache_path / "weights"
    (tmp_path / "weights").mkdir()
    for package in others.iterdir():
        (tmp_path / "weights" / package.name).symlink_to(package)
    with structlog.testing.capture_logs() as logs:
        encoder = load_encoder(settings.model_copy(update={"cache": tmp_path}), "offline")
    assert isinstance(encoder, ConseEncoder)
    assert encoder.description.model == "offline-conse"
    warnings = [line for line in logs if line["log_level"] == "warning"]
    assert len(warnings) == 1
    assert "riverlens-no-such-package" in warnings[0]["error"]


@pytest.mark.parametrize("mode", ["CMYK", "P", "RGBA", "LA", "I;16", "L", "TIFF 16 bit", "GIF", "WEBP"])
def test_the_same_picture_in_other_modes_has_nearly_the_same_vector(
    encoder: Encoder, some_samples: list[Sample], mode: str
) -> None:
    """Grey modes are compared with the grey picture; transparent ground counts as white on both sides."""

    def vector(data: bytes) -> FloatMatrix:
        image = decode(data, max_pixels=10**6, min_side=8, max_bytes=10**7)
        vectors = encoder.encode_images(to_pixels(image, encoder.description.preprocess)[None])
        return np.asarray(vectors[0], dtype=np.float32)

    def saved(image: Image.Image, format_name: str, **options: Any) -> bytes:
        out = io.BytesIO()
        image.save(out, format_name, **options)
        return out.getvalue()

    for sample in some_samples[:2]:
        data = (SAMPLES / sample.file).read_bytes()
        rgb = decode(data, max_pixels=10**6, min_side=8, max_bytes=10**7)
        grey = rgb.convert("L")
        sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
        transparent = rgb.convert("RGBA")
        reference, other = {
            "CMYK": (rgb, saved(rgb.convert("CMYK"), "JPEG", quality=95)),
            "P": (rgb, saved(rgb.quantize(256), "PNG")),
            "RGBA": (rgb, saved(transparent, "PNG")),
            "LA": (grey, saved(grey.convert("LA"), "PNG")),
            "I;16": (grey, saved(sixteen, "PNG")),
            "L": (grey, saved(grey, "JPEG", quality=95)),
            "TIFF 16 bit": (grey, saved(sixteen, "TIFF")),
            "GIF": (rgb, saved(rgb, "GIF")),
            "WEBP": (rgb, saved(transparent, "WEBP", quality=95)),
        }[mode]
        similarity = float(vector(saved(reference.convert("RGB"), "PNG")) @ vector(other))
        assert similarity > 0.9, f"{sample.file}: {similarity:.3f}"
