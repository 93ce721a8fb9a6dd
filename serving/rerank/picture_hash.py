"""The perceptual hash of a picture. Pure."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image


def perceptual_hash(image: Image.Image) -> int:
    """64 bits of an RGB picture's coarse structure; pictures that look the same differ in few of them.

    Source: pHash of the discrete cosine transform; C. Zauner, Implementation and Benchmarking of
    Perceptual Image Hash Functions, 2010.
    """
    grey = np.asarray(image.convert("L"))
    return int.from_bytes(cv2.img_hash.pHash(grey).tobytes(), "big")
