"""What re-ranking gains: geometric verification on altered copies, and collapsing of near-duplicates.

Copies of Tux Paint stamps are searched among all stamps, as an upload and a query picture go through
the product: its decoding, its encoder, its thumbnails, its stages.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from actors.decoding.encoding import thumbnail
from actors.embedding.preprocessing import decode
from actors.embedding.registry import load_encoder
from actors.messages import FloatMatrix
from contract.settings import Settings
from evaluation.cached_vectors import picture_vectors
from evaluation.copies import Alteration, far_copies, near_copies
from evaluation.datasets import Picture, content_sha256, tuxpaint
from serving.rerank.dedupe import Rule, cosines, representatives, undecided
from serving.rerank.diversify import marginal_relevance
from serving.rerank.geometry import SIDE, Features, confirmed_relevance, features, inliers
from serving.rerank.picture_hash import perceptual_hash
from serving.rerank.request import Dedupe, Verify

SAMPLES: Final = Path(__file__).parent.parent / "samples"
DEPTHS: Final = (20, 50)
"""Hits that are compared with the query picture."""

# A picture with a shorter side is not asked for: a thumbnail of it is hardly a query.
_LEAST_SIDE: Final = 48
_HASH_SIDE: Final = 64
_TIMED_HITS: Final = 100

Value = TypeVar("Value")


@dataclass(frozen=True)
class Alterations:
    """Recall@1 of the original among all pictures, per alteration: by embedding, and verified to each of DEPTHS."""

    name: str
    queries: int
    embedding: float
    verified: tuple[float, ...]
    wrong: int
    """Queries whose first hit was right by embedding and is wrong after verification to the greatest depth."""


@dataclass(frozen=True)
class Reranking:
    """All figures of one run.

    `compared` and what stands beside it are comparisons of a copy with other pictures than its original; `collapsed`
    are pictures that another one of the collection stands for; `ms` are medians of one thread.
    """

    pictures: int
    alterations: tuple[Alterations, ...]
    largest_chance_inliers: int
    confirmed_by_chance: int
    compared: int
    duplicates_found: Mapping[str, float]
    collapsed: int
    ms: Mapping[str, float]
    data_sha256: str


def measure(settings: Settings, queries: int, seed: int) -> Reranking:
    """Measure with the encoder of the settings.

    Raises:
        ModelUnavailable: the encoder cannot be had.
        DatasetUnavailable: the stamps cannot be had.
    """
    cv2.setNumThreads(1)
    pictures = tuxpaint(settings)
    encoder = load_encoder(settings, settings.model)
    vectors = picture_vectors(settings, encoder, "tuxpaint", pictures)
    whole = [_decoded(picture.read()) for picture in pictures]
    random = np.random.default_rng(seed)
    large = [index for index, image in enumerate(whole) if min(image.size) >= _LEAST_SIDE]
    chosen = [int(index) for index in random.choice(large, queries, replace=False)]
    # Pictures that are not searched: a scene would rightly be found itself.
    samples = sorted(SAMPLES.glob("*.png"))
    scenes = [_decoded(samples[index].read_bytes()) for index in random.choice(len(samples), queries)]

    def encoded(copies: Sequence[Image.Image]) -> FloatMatrix:
        return picture_vectors(settings, encoder, "tuxpaint-copies", [_as_picture(image) for image in copies])

    @cache
    def of_picture(index: int) -> Features:
        return features(_thumbnail(whole[index], SIDE, settings))

    far = {
        name: [far_copies(scene)[name](whole[index]) for index, scene in zip(chosen, scenes, strict=True)]
        for name in far_copies(whole[0])
    }
    chance: list[int] = []
    alterations = [
        _verified(name, copies, encoded(copies), chosen, vectors, of_picture, chance) for name, copies in far.items()
    ]
    hashes = [perceptual_hash(_thumbnail(image, _HASH_SIDE, settings)) for image in whole]
    found = {
        name: _found(alteration, [(whole[index], vectors[index], hashes[index]) for index in chosen], encoded, settings)
        for name, alteration in near_copies().items()
    }
    collapsed = int(
        (representatives(cosines(list(vectors)), dict(enumerate(hashes)), _rule()) != range(len(whole))).sum()
    )
    return Reranking(
        pictures=len(pictures),
        alterations=tuple(alterations),
        largest_chance_inliers=max(chance),
        confirmed_by_chance=sum(count >= Verify().min_inliers for count in chance),
        compared=len(chance),
        duplicates_found=found,
        collapsed=collapsed,
        ms=_times([whole[index] for index in chosen], vectors, settings),
        data_sha256=content_sha256(pictures),
    )


def _verified(
    name: str,
    copies: Sequence[Image.Image],
    of_copies: FloatMatrix,
    chosen: Sequence[int],
    vectors: FloatMatrix,
    of_picture: Callable[[int], Features],
    chance: list[int],
) -> Alterations:
    """Recall@1 before and after; inliers with other pictures than the original are added to `chance`."""
    before, after, wrong = 0, [0] * len(DEPTHS), 0
    for copy, of_copy, original in zip(copies, of_copies, chosen, strict=True):
        scores = vectors @ of_copy
        order = np.argsort(-scores, kind="stable")[: max(DEPTHS)]
        of_query = features(copy)
        counts = [inliers(of_query, of_picture(int(index))) for index in order]
        chance += [count for index, count in zip(order, counts, strict=True) if index != original]
        first = bool(order[0] == original)
        before += first
        for place, depth in enumerate(DEPTHS):
            relevance = [
                confirmed_relevance(float(scores[index]), count, Verify().min_inliers)
                if rank < depth
                else scores[index]
                for rank, (index, count) in enumerate(zip(order, counts, strict=True))
            ]
            is_right = bool(order[int(np.argmax(relevance))] == original)
            after[place] += is_right
        wrong += first and not is_right
    total = len(chosen)
    return Alterations(name, total, before / total, tuple(count / total for count in after), wrong)


def _found(
    alteration: Alteration,
    originals: Sequence[tuple[Image.Image, FloatMatrix, int]],
    encoded: Callable[[Sequence[Image.Image]], FloatMatrix],
    settings: Settings,
) -> float:
    """Share of originals that are collapsed with their altered copy."""
    copies = [alteration(image) for image, _, _ in originals]
    found = 0
    for copy, of_copy, (_, vector, value) in zip(copies, encoded(copies), originals, strict=True):
        hashes = {0: value, 1: perceptual_hash(_thumbnail(copy, _HASH_SIDE, settings))}
        found += int(representatives(cosines([vector, of_copy]), hashes, _rule())[1] == 0)
    return found / len(originals)


def _times(images: Sequence[Image.Image], vectors: FloatMatrix, settings: Settings) -> dict[str, float]:
    """Median milliseconds of what the stages compute."""
    small = [_thumbnail(image, SIDE, settings) for image in images]
    tiny = [_thumbnail(image, _HASH_SIDE, settings) for image in images]
    found = [features(image) for image in small]
    hits = list(vectors[:_TIMED_HITS])
    similarity = cosines(hits)
    hashes = dict.fromkeys(undecided(similarity, _rule()), 0)
    relevance: npt.NDArray[np.float64] = np.linspace(1, 0, len(hits))
    return {
        "features_of_a_picture": _median_ms(features, small),
        "inliers_of_a_pair": _median_ms(lambda pair: inliers(*pair), list(pairwise(found))),
        "hash_of_a_picture": _median_ms(perceptual_hash, tiny),
        f"dedupe_{_TIMED_HITS}_hits": _median_ms(
            lambda _: representatives(cosines(hits), hashes, _rule()), [None] * len(images)
        ),
        f"diversify_{_TIMED_HITS}_hits": _median_ms(
            lambda _: marginal_relevance(relevance, similarity, 0.7, 10), [None] * len(images)
        ),
    }


def _median_ms(call: Callable[[Value], object], arguments: Sequence[Value]) -> float:
    times = []
    for argument in arguments:
        started = time.perf_counter()
        call(argument)
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1000


def _rule() -> Rule:
    wanted = Dedupe()
    return Rule(wanted.same_cosine, wanted.similar_cosine, wanted.hash_bits)


def _decoded(data: bytes) -> Image.Image:
    return decode(data, max_pixels=10**8, min_side=1, max_bytes=10**9)


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _thumbnail(image: Image.Image, size: int, settings: Settings) -> Image.Image:
    """The picture as the object store keeps it."""
    with Image.open(io.BytesIO(thumbnail(image, size))) as opened:
        return opened.convert("RGB")


def _as_picture(image: Image.Image) -> Picture:
    data = _png(image)
    return Picture(hashlib.sha256(data).hexdigest(), "", "", "", lambda: data)
