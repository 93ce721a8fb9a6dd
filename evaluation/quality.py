"""How well an encoder finds real pictures: `python -m evaluation.quality [--model NAME]`.

Tux Paint stamps, which no head was trained on, go through the product's own decoding, preprocessing
and encoder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table

from actors.embedding.encoder import Encoder
from actors.embedding.preprocessing import decode, to_pixels
from actors.embedding.registry import load_encoder
from actors.messages import FloatMatrix
from contract.settings import Settings, load_settings
from evaluation.datasets import Picture, content_sha256, tuxpaint
from evaluation.retrieval import Retrieval, precision_at, queries_of, text_to_image

_BATCH: Final = 16
_PROGRESS_EVERY: Final = 160


@dataclass(frozen=True)
class Quality:
    """What one encoder reaches on one set of pictures.

    `image_to_image` is the same-sub-category precision@10 over `image_queries` pictures;
    `drawn_pictures` counts those that were rendered from SVG.
    """

    model: str
    fingerprint: str
    text_to_image: Retrieval
    image_to_image: float
    image_queries: int
    drawn_pictures: int
    images_per_s: float
    texts_per_s: float
    data_sha256: str


def encode_pictures(
    settings: Settings, encoder: Encoder, pictures: Sequence[Picture], *, progress: bool = True
) -> FloatMatrix:
    """Decode and encode pictures as an upload is: (n, d) float32, L2-normalised. Prints progress unless told not to."""
    spec = encoder.description.preprocess
    rows = []
    for begin in range(0, len(pictures), _BATCH):
        squares = [
            to_pixels(
                decode(
                    picture.read(),
                    max_pixels=settings.max_image_pixels,
                    # One stamp is 7 pixels high; an upload would be refused, but it stays in the measured set.
                    min_side=1,
                    max_bytes=settings.max_image_bytes,
                ),
                spec,
            )
            for picture in pictures[begin : begin + _BATCH]
        ]
        rows.append(encoder.encode_images(np.stack(squares)))
        if progress and begin % _PROGRESS_EVERY == 0:
            print(f"{begin}/{len(pictures)} pictures", flush=True)
    return np.concatenate(rows)


def measure(settings: Settings, model: str) -> Quality:
    """Measure an encoder on the Tux Paint stamps.

    Raises:
        ModelUnavailable: the encoder cannot be had.
        DatasetUnavailable: the stamps cannot be had.
    """
    pictures = tuxpaint(settings)
    encoder = load_encoder(settings, model)
    encoder.warm_up()
    started = time.perf_counter()
    images = encode_pictures(settings, encoder, pictures)
    image_seconds = time.perf_counter() - started
    queries, relevant = queries_of(pictures)
    started = time.perf_counter()
    texts = encoder.encode_texts(queries)
    text_seconds = time.perf_counter() - started
    precision, image_queries = precision_at(images, [picture.sub_category for picture in pictures])
    return Quality(
        model=encoder.description.model,
        fingerprint=encoder.description.fingerprint,
        text_to_image=text_to_image(texts, images, relevant),
        image_to_image=precision,
        image_queries=image_queries,
        drawn_pictures=sum(picture.identity.endswith(".svg") for picture in pictures),
        images_per_s=len(pictures) / image_seconds,
        texts_per_s=len(queries) / text_seconds,
        data_sha256=content_sha256(pictures),
    )


def table(quality: Quality) -> Table:
    """The figures as one table."""
    found = quality.text_to_image
    result = Table(title=f"{quality.model} ({quality.fingerprint}) on Tux Paint stamps", title_justify="left")
    result.add_column("measure")
    result.add_column("value", justify="right")
    rows = [
        ("text → image recall@1", f"{found.recall_at_1:.1%}"),
        ("text → image recall@5", f"{found.recall_at_5:.1%}"),
        ("text → image recall@10", f"{found.recall_at_10:.1%}"),
        ("text → image MRR", f"{found.mrr:.3f}"),
        ("image → image precision@10, same sub-category", f"{quality.image_to_image:.1%}"),
        ("pictures (of them rendered from SVG)", f"{found.pictures} ({quality.drawn_pictures})"),
        ("text queries, picture queries", f"{found.queries}, {quality.image_queries}"),
        ("pictures encoded per second, with decoding", f"{quality.images_per_s:.1f}"),
        ("texts encoded per second", f"{quality.texts_per_s:.0f}"),
    ]
    for name, value in rows:
        result.add_row(name, value)
    if not quality.drawn_pictures:
        result.caption = "rsvg-convert is not here: raster stamps only"
    return result


def main() -> None:
    """Entry point of `python -m evaluation.quality`."""
    settings = load_settings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=settings.model, help="encoder to measure (default: the setting)")
    Console().print(table(measure(settings, parser.parse_args().model)))


if __name__ == "__main__":
    main()
