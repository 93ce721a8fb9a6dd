"""What a picture costs before it is a vector: decoding, the offline encoder, and the bytes of its thumbnail."""

from __future__ import annotations

import hashlib
import time
from typing import Final

import numpy as np

from actors.decoding.encoding import thumbnail
from actors.embedding.preprocessing import decode, to_pixels
from actors.embedding.registry import load_encoder
from benchmarks.result_file import Result
from benchmarks.running import ROOT
from contract.settings import load_settings

PICTURES: Final = 32
SIDE: Final = 256
"""The longer side of the thumbnails of the web page."""


def measure(seed: int) -> tuple[list[Result], str]:
    """Over the first sample pictures, in one thread, in batches as an embedder takes them."""
    del seed
    settings = load_settings()
    files = sorted(path for path in (ROOT / "samples").rglob("*") if path.suffix in {".png", ".jpg", ".webp"})[
        :PICTURES
    ]
    contents = [path.read_bytes() for path in files]
    encoder = load_encoder(settings, "offline")
    encoder.warm_up()
    began = time.process_time()
    images = [
        decode(
            one,
            max_pixels=settings.max_image_pixels,
            min_side=settings.min_image_side,
            max_bytes=settings.max_image_bytes,
        )
        for one in contents
    ]
    squares = [to_pixels(one, encoder.description.preprocess) for one in images]
    decoded = time.process_time()
    for start in range(0, len(squares), settings.embed_batch):
        encoder.encode_images(np.stack(squares[start : start + settings.embed_batch]))
    encoded = time.process_time()
    thumbnails = [len(thumbnail(one, SIDE)) for one in images]
    return [
        Result("picture_bytes", float(np.mean([len(one) for one in contents])), "bytes"),
        Result("decode_cpu_ms", 1e3 * (decoded - began) / len(contents), "ms"),
        Result("encode_cpu_ms", 1e3 * (encoded - decoded) / len(contents), "ms"),
        Result("thumbnail_bytes", float(np.mean(thumbnails)), "bytes"),
    ], hashlib.sha256(b"".join(contents)).hexdigest()
