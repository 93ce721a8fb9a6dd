"""The models that work without a model hub: `offline` and its small fallback `offline-conse`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np

from actors.embedding import encoder as encoding
from actors.embedding.head import CONSE_CLASSES, CONSE_TEMPERATURE, HEAD_PATH, VISUAL_DIMENSION, conse, load_head
from actors.embedding.image_tower import OFFLINE_PREPROCESS, ClipImageTower, ImageNetClassifier
from actors.embedding.text_tower import MiniLM, clean_query
from actors.embedding.weights import (
    CLIP_IMAGE_TOWER,
    EFFICIENTNET_LITE0,
    MINILM,
    MINILM_TOKENIZER,
    sha256_of,
    weight_path,
)
from actors.messages import EncoderDescription, FloatMatrix, Pixels
from contract.settings import Settings

OFFLINE: Final = "offline"
OFFLINE_CONSE: Final = "offline-conse"

_SQRT2: Final = np.float32(np.sqrt(2.0))


class OfflineEncoder:
    """CLIP ViT-B/16 image tower with a trained bridge to MiniLM.

    An image vector is [384 text-aligned | 128 visual] / √2, each part L2-normalised, so it has norm 1.
    A text vector is √2 · [MiniLM | 0]: its inner product with an image vector is the cosine of the
    text-aligned part. Two image vectors give the mean of the cosines of both parts.
    """

    def __init__(self, settings: Settings) -> None:
        threads = settings.embedder_threads
        self._clip = ClipImageTower(weight_path(settings, CLIP_IMAGE_TOWER), threads)
        self._classifier = ImageNetClassifier(weight_path(settings, EFFICIENTNET_LITE0))
        self._text = _text_tower(settings)
        self._head = load_head()
        dimension = self._head.class_embeddings.shape[1] + VISUAL_DIMENSION
        weights = [CLIP_IMAGE_TOWER.sha256, EFFICIENTNET_LITE0.sha256, MINILM.sha256, sha256_of(HEAD_PATH)]
        self._description = EncoderDescription(
            model=OFFLINE,
            fingerprint=encoding.fingerprint(weights, OFFLINE_PREPROCESS, dimension),
            dimension=dimension,
            preprocess=OFFLINE_PREPROCESS,
            device="cpu",
        )

    @property
    def description(self) -> EncoderDescription:
        """Model, fingerprint, dimension (512), preprocessing and device."""
        return self._description

    def encode_images(self, pixels: Pixels) -> FloatMatrix:
        """(n, 224, 224, 3) uint8 → (n, 512) float32, L2-normalised."""
        clip, logits = self._clip.encode(pixels), self._classifier.logits(pixels)
        parts = [self._head.text_aligned(clip, logits), self._head.visual(clip)]
        return encoding.l2_normalise(np.concatenate(parts, axis=1))

    def encode_texts(self, texts: Sequence[str]) -> FloatMatrix:
        """Texts → (n, 512) float32 of norm √2."""
        aligned = self._text.encode([clean_query(text) for text in texts])
        return np.concatenate([aligned * _SQRT2, np.zeros((len(aligned), VISUAL_DIMENSION), np.float32)], axis=1)

    def warm_up(self) -> None:
        """Run one picture and one text through."""
        encoding.warm_up(self)


class ConseEncoder:
    """EfficientNet-lite0 and ConSE alone: weaker and smaller, and all of it Apache-2.0."""

    def __init__(self, settings: Settings) -> None:
        self._classifier = ImageNetClassifier(weight_path(settings, EFFICIENTNET_LITE0))
        self._text = _text_tower(settings)
        self._class_embeddings = load_head().class_embeddings
        dimension = self._class_embeddings.shape[1]
        # The method's two constants shape the vectors as much as weights do.
        method = f"conse-{CONSE_CLASSES}-{CONSE_TEMPERATURE}"
        weights = [EFFICIENTNET_LITE0.sha256, MINILM.sha256, _sha256_of_array(self._class_embeddings), method]
        self._description = EncoderDescription(
            model=OFFLINE_CONSE,
            fingerprint=encoding.fingerprint(weights, OFFLINE_PREPROCESS, dimension),
            dimension=dimension,
            preprocess=OFFLINE_PREPROCESS,
            device="cpu",
        )

    @property
    def description(self) -> EncoderDescription:
        """Model, fingerprint, dimension (384), preprocessing and device."""
        return self._description

    def encode_images(self, pixels: Pixels) -> FloatMatrix:
        """(n, 224, 224, 3) uint8 → (n, 384) float32, L2-normalised."""
        return conse(self._classifier.logits(pixels), self._class_embeddings)

    def encode_texts(self, texts: Sequence[str]) -> FloatMatrix:
        """Texts → (n, 384) float32, L2-normalised."""
        return self._text.encode([clean_query(text) for text in texts])

    def warm_up(self) -> None:
        """Run one picture and one text through."""
        encoding.warm_up(self)


def _text_tower(settings: Settings) -> MiniLM:
    return MiniLM(weight_path(settings, MINILM), weight_path(settings, MINILM_TOKENIZER), settings.embedder_threads)


def _sha256_of_array(values: FloatMatrix) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
