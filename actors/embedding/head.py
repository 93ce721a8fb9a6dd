"""The trained bridge of the offline model: from CLIP image features into MiniLM's text space.

Two stages. The base is *ConSE*: the class probabilities of an ImageNet classifier weigh the text
embeddings of the class names, so a picture lands near the words for what it shows without any
training (Source: Norouzi et al. 2013, "Zero-shot learning by convex combination of semantic
embeddings"). On top, small networks over the CLIP features correct it; each was trained from
another seed and their outputs are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from actors.embedding.encoder import l2_normalise
from actors.messages import FloatMatrix
from contract.errors import ModelUnavailable

HEAD_PATH: Final = Path(__file__).parent / "head.npz"
"""The head that is shipped; written by `python -m training.head`."""

HEAD_FORMAT: Final = 1

CLIP_DIMENSION: Final = 512
TEXT_DIMENSION: Final = 384
VISUAL_DIMENSION: Final = 128

CONSE_CLASSES: Final = 50
"""Most probable classes that take part in the ConSE average."""
CONSE_TEMPERATURE: Final = 2.0
"""Divides the logits, so that more than the first class counts."""
CONSE_INPUT_SCALE: Final = np.float32(10.0)
"""Brings the unit-length ConSE vector to about the scale of the standardised CLIP features."""
RESIDUAL_WEIGHT: Final = np.float32(0.7)
"""Length of the correction; the base has the trained length `alpha`."""


@dataclass(frozen=True)
class Head:
    """Arrays of the trained head, float32. `k` is the number of averaged networks.

    Attributes:
        mean, std: (512,) standardise the scaled CLIP features.
        alpha: (k,) length of the ConSE base in each network's sum.
        w1, b1: (k, 512, 896) and (k, 512), first layer over [CLIP features | ConSE].
        w2, b2: (k, 384, 512) and (k, 384), second layer.
        class_embeddings: (1000, 384) text embeddings of the ImageNet class names.
        pca_mean, pca_components: (512,) and (128, 512) of the unit-length CLIP features.
    """

    mean: FloatMatrix
    std: FloatMatrix
    alpha: FloatMatrix
    w1: FloatMatrix
    b1: FloatMatrix
    w2: FloatMatrix
    b2: FloatMatrix
    class_embeddings: FloatMatrix
    pca_mean: FloatMatrix
    pca_components: FloatMatrix

    def text_aligned(self, clip: FloatMatrix, logits: FloatMatrix) -> FloatMatrix:
        """Place pictures in the text space.

        Args:
            clip: (n, 512) CLIP image features of any length.
            logits: (n, 1000) ImageNet logits.

        Returns:
            (n, 384) float32, L2-normalised.
        """
        base = conse(logits, self.class_embeddings)
        standardised = (scaled_clip(clip) - self.mean) / self.std
        inputs = np.concatenate([standardised, base * CONSE_INPUT_SCALE], axis=1)
        total = np.zeros_like(base)
        for alpha, w1, b1, w2, b2 in zip(self.alpha, self.w1, self.b1, self.w2, self.b2, strict=True):
            correction = _gelu(inputs @ w1.T + b1) @ w2.T + b2
            total += l2_normalise(alpha * base + l2_normalise(correction) * RESIDUAL_WEIGHT)
        return l2_normalise(total)

    def visual(self, clip: FloatMatrix) -> FloatMatrix:
        """Principal components of CLIP features (n, 512): (n, 128) float32, L2-normalised."""
        centred: FloatMatrix = l2_normalise(clip) - self.pca_mean
        return l2_normalise(centred @ self.pca_components.T)


def conse(logits: FloatMatrix, class_embeddings: FloatMatrix) -> FloatMatrix:
    """ConSE: the text embeddings of the most probable classes, weighted by probability.

    Args:
        logits: (n, c).
        class_embeddings: (c, d), L2-normalised.

    Returns:
        (n, d) float32, L2-normalised.
    """
    scaled = logits / np.float32(CONSE_TEMPERATURE)
    exponents = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :CONSE_CLASSES]
    weights = np.take_along_axis(probabilities, best, axis=1)
    weights = weights / weights.sum(axis=1, keepdims=True)
    averaged = np.einsum("nt,ntd->nd", weights, class_embeddings[best])
    return l2_normalise(averaged.astype(np.float32))


def scaled_clip(clip: FloatMatrix) -> FloatMatrix:
    """CLIP features (n, 512) at length √512, so that each component has about unit variance."""
    return l2_normalise(clip) * np.float32(np.sqrt(clip.shape[1]))


def load_head(path: Path = HEAD_PATH) -> Head:
    """Read a head file; raises ModelUnavailable if it is missing or of another format."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if int(stored["format"]) != HEAD_FORMAT:
                raise ModelUnavailable(f"{path} has head format {int(stored['format'])}, expected {HEAD_FORMAT}")
            return Head(**{name: stored[name].astype(np.float32) for name in Head.__dataclass_fields__})
    except (OSError, KeyError, ValueError) as error:
        raise ModelUnavailable(f"the head {path} cannot be read: {error}; retrain it (docs/models.md)") from error


def save_head(head: Head, path: Path) -> None:
    """Write a head file, weights as float16. Equal heads give equal bytes."""
    halves = {name: getattr(head, name).astype(np.float16) for name in Head.__dataclass_fields__}
    np.savez_compressed(path, format=np.array(HEAD_FORMAT), **halves)


def _gelu(x: FloatMatrix) -> FloatMatrix:
    """Exact GELU, x·Φ(x), as the heads were trained with."""
    return np.asarray(0.5 * x * (1.0 + _erf(x * np.float32(np.sqrt(0.5)))), dtype=np.float32)


def _erf(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Error function, absolute error below 1.5e-7.

    Source: Abramowitz and Stegun 1964, formula 7.1.26.
    """
    t = 1.0 / (1.0 + 0.3275911 * np.abs(x))
    polynomial = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.asarray(np.sign(x) * (1.0 - polynomial * np.exp(-x * x)), dtype=np.float32)
