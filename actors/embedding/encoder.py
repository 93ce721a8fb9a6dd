"""What every encoder offers, whichever model is behind it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np

from actors.messages import EncoderDescription, FloatMatrix, Pixels, PreprocessSpec

FINGERPRINT_LENGTH = 16


class Encoder(Protocol):
    """Turns pictures and texts into vectors of one space. Not safe to call from several threads."""

    @property
    def description(self) -> EncoderDescription:
        """Model, fingerprint, dimension, preprocessing and device."""

    def encode_images(self, pixels: Pixels) -> FloatMatrix:
        """Encode pictures that went through `preprocessing.to_pixels` with this encoder's spec.

        Args:
            pixels: (n, size, size, 3) uint8; n may be 0.

        Returns:
            (n, d) float32, L2-normalised, in the order of the pictures. A row does not depend on the
            other pictures of the batch.
        """

    def encode_texts(self, texts: Sequence[str]) -> FloatMatrix:
        """Encode search texts.

        Returns:
            (n, d) float32 in the order of the texts, scaled so that the inner product with an image
            vector is a cosine; the rows themselves need not have norm 1.
        """

    def warm_up(self) -> None:
        """Run one picture and one text through, so that the first query does not pay for it."""


def fingerprint(weights_sha256: Sequence[str], preprocess: PreprocessSpec, dimension: int) -> str:
    """Fingerprint of an encoder: 16 hex digits over weights, preprocessing and dimension.

    Vectors of two encoders may be compared only if their fingerprints are equal.
    """
    canonical = json.dumps(
        {
            "weights": list(weights_sha256),
            "preprocess": msgspec.to_builtins(preprocess),
            "dimension": dimension,
        },
        sort_keys=True,
        separators=(",", ":"),
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:FINGERPRINT_LENGTH]


def l2_normalise(rows: FloatMatrix) -> FloatMatrix:
    """Scale the rows of (n, d) to norm 1; a row of zeros stays zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, np.float32(1e-12)), dtype=np.float32)


def warm_up(encoder: Encoder) -> None:
    """Encode one blank picture and one word."""
    size = encoder.description.preprocess.size
    encoder.encode_images(np.full((1, size, size, 3), 255, dtype=np.uint8))
    encoder.encode_texts(["picture"])
