"""The two image networks of the offline model: CLIP's image tower and an ImageNet classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet

from actors.embedding.preprocessing import normalise
from actors.embedding.text_tower import onnx_session
from actors.messages import FloatMatrix, Pixels, PreprocessSpec

OFFLINE_PREPROCESS: Final = PreprocessSpec(
    size=224,
    resize="fit",
    interpolation="bicubic",
    padding=0.06,
    background=(255, 255, 255),
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
"""Both networks see the whole picture on white. Mean and deviation are CLIP's.

Source: Radford et al. 2021, "Learning transferable visual models from natural language supervision".
"""

# Source: the TensorFlow reference of EfficientNet-lite, (pixel - 127) / 128.
_LITE0_MEAN: Final = np.float32(127.0)
_LITE0_STD: Final = np.float32(128.0)


class ClipImageTower:
    """CLIP ViT-B/16 image tower, int8 weights over ONNX."""

    def __init__(self, model: Path, threads: int) -> None:
        self._session = onnx_session(model, threads)

    def encode(self, pixels: Pixels) -> FloatMatrix:
        """Encode (n, 224, 224, 3) uint8 to (n, 512) float32, not normalised.

        One picture at a time: activation scales are computed per call, so in a batch a picture's
        vector would depend on its neighbours. On a CPU a batch gains no time.
        """
        rows = [
            self._session.run(["image_embeds"], {"pixel_values": normalise(pixels[i : i + 1], OFFLINE_PREPROCESS)})[0]
            for i in range(len(pixels))
        ]
        return np.concatenate(rows).astype(np.float32) if rows else np.zeros((0, 512), dtype=np.float32)


class ImageNetClassifier:
    """EfficientNet-lite0, ImageNet-1k."""

    def __init__(self, state: Path) -> None:
        self._network = EfficientNet.from_name("efficientnet-lite0")
        self._network.load_state_dict(torch.load(state, map_location="cpu", weights_only=True))
        self._network.eval()

    def logits(self, pixels: Pixels) -> FloatMatrix:
        """Classify (n, 224, 224, 3) uint8: (n, 1000) float32 logits."""
        if not len(pixels):
            return np.zeros((0, 1000), dtype=np.float32)
        scaled = (pixels.astype(np.float32) - _LITE0_MEAN) / _LITE0_STD
        batch = torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))
        with torch.inference_mode():
            return np.asarray(self._network(batch).numpy(), dtype=np.float32)
