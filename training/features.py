"""Features of the two image networks for a data set, computed once and kept in the cache folder."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from actors.embedding.encoder import fingerprint
from actors.embedding.image_tower import OFFLINE_PREPROCESS, ClipImageTower, ImageNetClassifier
from actors.embedding.preprocessing import decode, to_pixels
from actors.embedding.weights import CLIP_IMAGE_TOWER, EFFICIENTNET_LITE0, weight_path
from actors.messages import FloatMatrix
from contract.settings import Settings
from evaluation.datasets import Picture

_CHUNK: Final = 64


@dataclass(frozen=True)
class Features:
    """`clip` is (n, 512) float32, `logits` (n, 1000) float32, in the order of the pictures."""

    clip: FloatMatrix
    logits: FloatMatrix


def features(settings: Settings, name: str, pictures: Sequence[Picture]) -> Features:
    """Features of every picture; continues where an interrupted run of the same data set stopped.

    The cache is keyed by the weights, the preprocessing and each picture's identity. Prints progress.
    """
    key = fingerprint([CLIP_IMAGE_TOWER.sha256, EFFICIENTNET_LITE0.sha256], OFFLINE_PREPROCESS, 512)
    folder = settings.cache_path / "features" / key
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.npz"
    known = _load(file)
    missing = [picture for picture in pictures if picture.identity not in known]
    if missing:
        threads = settings.embedder_threads
        tower = ClipImageTower(weight_path(settings, CLIP_IMAGE_TOWER), threads)
        classifier = ImageNetClassifier(weight_path(settings, EFFICIENTNET_LITE0))
        started = time.monotonic()
        for begin in range(0, len(missing), _CHUNK):
            chunk = missing[begin : begin + _CHUNK]
            pixels = np.stack([to_pixels(_decoded(settings, picture), OFFLINE_PREPROCESS) for picture in chunk])
            clip, logits = tower.encode(pixels), classifier.logits(pixels)
            known.update({picture.identity: (clip[i], logits[i]) for i, picture in enumerate(chunk)})
            _save(file, known)
            done = begin + len(chunk)
            rate = done / (time.monotonic() - started)
            left_s = (len(missing) - done) / rate
            print(f"{name}: {done}/{len(missing)} pictures, {rate:.1f}/s, {left_s:.0f} s left", flush=True)
    clip = np.stack([known[picture.identity][0] for picture in pictures])
    logits = np.stack([known[picture.identity][1] for picture in pictures])
    return Features(clip, logits)


def _decoded(settings: Settings, picture: Picture) -> Image.Image:
    return decode(picture.read(), max_pixels=settings.max_image_pixels, min_side=1, max_bytes=settings.max_image_bytes)


def _load(file: Path) -> dict[str, tuple[FloatMatrix, FloatMatrix]]:
    if not file.exists():
        return {}
    with np.load(file, allow_pickle=False) as stored:
        identities = json.loads(str(stored["identities"]))
        clip, logits = stored["clip"], stored["logits"]
    return {identity: (clip[i], logits[i]) for i, identity in enumerate(identities)}


def _save(file: Path, known: dict[str, tuple[FloatMatrix, FloatMatrix]]) -> None:
    temporary = file.with_suffix(".tmp.npz")
    np.savez(
        temporary,
        identities=np.array(json.dumps(list(known))),
        clip=np.stack([clip for clip, _ in known.values()]),
        logits=np.stack([logits for _, logits in known.values()]),
    )
    temporary.replace(file)
