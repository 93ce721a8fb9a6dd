"""open_clip encoders, with a small randomly initialised model saved to a file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from actors.embedding.openclip import OpenClipEncoder, cut_is_exact, encode_cut, import_open_clip, preprocess_spec
from actors.embedding.preprocessing import normalise, to_pixels
from actors.embedding.registry import load_encoder
from actors.messages import Pixels, PreprocessSpec
from contract.errors import ModelUnavailable, SettingsInvalid
from contract.settings import Settings

pytestmark = pytest.mark.integration

ARCHITECTURE = "riverlens-test-tiny"
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def open_clip(tmp_path_factory: pytest.TempPathFactory) -> Any:
    module = import_open_clip()
    file = tmp_path_factory.mktemp("configs") / f"{ARCHITECTURE}.json"
    file.write_text(json.dumps(CONFIG))
    module.add_model_config(file)
    return module


def _checkpoint(open_clip: Any, path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    torch.save(open_clip.create_model(ARCHITECTURE).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def checkpoint(open_clip: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _checkpoint(open_clip, tmp_path_factory.mktemp("weights") / "tiny.pt", seed=1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", cache=tmp_path / "cache", device="cpu")


@pytest.fixture
def encoder(settings: Settings, checkpoint: Path) -> OpenClipEncoder:
    loaded = load_encoder(settings, f"openclip:{ARCHITECTURE}:{checkpoint}")
    assert isinstance(loaded, OpenClipEncoder)
    return loaded


def _noise(count: int, size: int = 32) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_vectors_are_normalised_and_of_the_described_dimension(encoder: OpenClipEncoder) -> None:
    encoder.warm_up()
    images = encoder.encode_images(_noise(5))
    texts = encoder.encode_texts(["a red apple", "a boat on the sea"])
    assert encoder.description.dimension == 24
    assert images.shape == (5, 24)
    assert images.dtype == texts.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([images, texts]), axis=1), 1.0, rtol=1e-5)
    assert encoder.encode_images(_noise(0)).shape == encoder.encode_texts([]).shape == (0, 24)


def test_image_vectors_equal_those_of_open_clip_itself(
    open_clip: Any, encoder: OpenClipEncoder, checkpoint: Path
) -> None:
    model, _, transform = open_clip.create_model_and_transforms(ARCHITECTURE, pretrained=str(checkpoint))
    model.eval()
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 256, (61, 90, 3), dtype=np.uint8))
    with torch.inference_mode():
        expected = model.encode_image(transform(picture)[None], normalize=True).numpy()
    got = encoder.encode_images(to_pixels(picture, encoder.description.preprocess)[None])
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("width", "height"), [(61, 90), (90, 61), (40, 40), (32, 32), (7, 50), (301, 200)])
def test_our_pixels_equal_open_clips_transform(
    open_clip: Any, resize_mode: str, interpolation: str, width: int, height: int
) -> None:
    config = {
        "size": 32,
        "mean": (0.48, 0.46, 0.41),
        "std": (0.27, 0.26, 0.28),
        "interpolation": interpolation,
        "resize_mode": resize_mode,
        "fill_color": 0,
    }
    picture = Image.fromarray(np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8))
    transform = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**config), is_train=False)
    expected = transform(picture).numpy()
    spec = preprocess_spec(config)
    got = normalise(to_pixels(picture, spec)[None], spec)[0]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_models_of_oblong_pictures_are_refused() -> None:
    config = {"size": (32, 48), "mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "bicubic"}
    with pytest.raises(ModelUnavailable, match="square"):
        preprocess_spec({**config, "resize_mode": "squash", "fill_color": 0})


def test_texts_cut_to_their_length_have_the_same_vectors(open_clip: Any, encoder: OpenClipEncoder) -> None:
    torch.manual_seed(5)
    model = open_clip.create_model(ARCHITECTURE).eval()
    assert cut_is_exact(model)
    tokens = open_clip.get_tokenizer(ARCHITECTURE)(["a cat", "a very long text " * 30, "two words", ""])
    with torch.inference_mode():
        np.testing.assert_allclose(encode_cut(model, tokens), model.encode_text(tokens), atol=1e-5)


def test_the_cut_is_really_shorter(open_clip: Any) -> None:
    model = open_clip.create_model(ARCHITECTURE).eval()
    lengths = []
    model.transformer.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    with torch.inference_mode():
        encode_cut(model, open_clip.get_tokenizer(ARCHITECTURE)(["cat"]))
    assert lengths == [3]


def test_texts_are_not_cut_where_attention_looks_ahead(open_clip: Any) -> None:
    model = open_clip.create_model(ARCHITECTURE)
    model.attn_mask = None
    assert not cut_is_exact(model)


def test_fingerprint_follows_the_weights_not_the_file(
    open_clip: Any, settings: Settings, encoder: OpenClipEncoder, checkpoint: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "copy.pt"
    copied.write_bytes(checkpoint.read_bytes())
    other = _checkpoint(open_clip, tmp_path / "other.pt", seed=2)
    same = OpenClipEncoder(settings, ARCHITECTURE, str(copied)).description
    different = OpenClipEncoder(settings, ARCHITECTURE, str(other)).description
    assert same.fingerprint == encoder.description.fingerprint
    assert different.fingerprint != encoder.description.fingerprint
    assert len(same.fingerprint) == 16


def test_an_architecture_file_takes_the_preprocessing_its_published_weights_share(open_clip: Any) -> None:
    from actors.embedding.openclip import _preprocessing_of_architecture  # noqa: PLC0415

    shared = _preprocessing_of_architecture(open_clip, "ViT-B-16-SigLIP")
    assert shared is not None
    assert shared["resize_mode"] == "squash"
    assert shared["mean"] == (0.5, 0.5, 0.5)
    assert _preprocessing_of_architecture(open_clip, ARCHITECTURE) is None


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        ("openclip:no-such-model:tag", SettingsInvalid, "no-such-model"),
        ("openclip:ViT-B-32:no-such-tag", SettingsInvalid, "laion2b_s34b_b79k"),
        ("openclip:ViT-B-32:/no/such/file.pt", ModelUnavailable, "/no/such/file.pt"),
        ("openclip:ViT-B-32", SettingsInvalid, "ARCHITECTURE"),
        ("something", SettingsInvalid, "offline-conse"),
    ],
)
def test_a_model_that_cannot_be_is_a_clear_error(
    settings: Settings, model: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        load_encoder(settings, model)


def test_a_file_that_is_no_checkpoint_is_a_clear_error(open_clip: Any, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelUnavailable, match="cannot be loaded"):
        load_encoder(settings, f"openclip:{ARCHITECTURE}:{tmp_path / 'broken.pt'}")


def test_cuda_without_a_device_is_a_clear_error(settings: Settings, checkpoint: Path, open_clip: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    with pytest.raises(SettingsInvalid, match="CUDA"):
        OpenClipEncoder(settings.model_copy(update={"device": "cuda"}), ARCHITECTURE, str(checkpoint))


def test_open_clip_imports_where_torchvisions_operators_are_missing() -> None:
    code = """
import torch
def refuse(path):
    raise OSError("not for this build of torch")
torch.ops.load_library = refuse
from actors.embedding.openclip import import_open_clip
open_clip = import_open_clip()
from PIL import Image
transform = open_clip.transform.image_transform(32, is_train=False)
print(tuple(transform(Image.new("RGB", (50, 40))).shape))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "(3, 32, 32)"


def test_spec_of_the_tiny_model(encoder: OpenClipEncoder) -> None:
    spec = encoder.description.preprocess
    assert isinstance(spec, PreprocessSpec)
    assert (spec.size, spec.resize, spec.interpolation) == (32, "crop", "bicubic")
