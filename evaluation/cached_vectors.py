"""Vectors of a data set's pictures, encoded once per encoder and kept in the cache folder."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from actors.embedding.encoder import Encoder
from actors.messages import FloatMatrix
from contract.settings import Settings
from evaluation.datasets import Picture
from evaluation.quality import encode_pictures

_CHUNK: Final = 64


def picture_vectors(settings: Settings, encoder: Encoder, name: str, pictures: Sequence[Picture]) -> FloatMatrix:
    """Vectors of the pictures as an upload gets them, (n, d) float32; resumes an interrupted run.

    The file in the cache folder is keyed by the data set's `name` and the encoder's fingerprint, its
    rows by each picture's identity. Prints progress where something is to be encoded.
    """
    file = settings.cache_path / "vectors" / f"{name}-{encoder.description.fingerprint}.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    known = _load(file)
    missing = [picture for picture in pictures if picture.identity not in known]
    started = time.monotonic()
    for begin in range(0, len(missing), _CHUNK):
        chunk = missing[begin : begin + _CHUNK]
        vectors = encode_pictures(settings, encoder, chunk, progress=False)
        known.update(zip((picture.identity for picture in chunk), vectors, strict=True))
        _save(file, known)
        done = begin + len(chunk)
        left_s = (len(missing) - done) * (time.monotonic() - started) / done
        print(f"{name}: {done}/{len(missing)} pictures, {left_s:.0f} s left", flush=True)
    return np.stack([known[picture.identity] for picture in pictures])


def _load(file: Path) -> dict[str, FloatMatrix]:
    if not file.exists():
        return {}
    with np.load(file, allow_pickle=False) as stored:
        return dict(zip(json.loads(str(stored["identities"])), stored["vectors"], strict=True))


def _save(file: Path, known: dict[str, FloatMatrix]) -> None:
    temporary = file.with_suffix(".tmp.npz")
    np.savez(temporary, identities=np.array(json.dumps(list(known))), vectors=np.stack(list(known.values())))
    temporary.replace(file)
