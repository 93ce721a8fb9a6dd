"""Train the head of the offline model: `python -m training.head`.

Pairs of picture and caption from Open Clip Art, Sweet Home 3D and Noto emoji; both image networks and
the text tower stay as they are. Nothing that the evaluation asks for is learned: pictures whose caption
occurs in Tux Paint, and the sample pictures of this repository, are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from timm.data.imagenet_info import ImageNetInfo

from actors.embedding.encoder import l2_normalise
from actors.embedding.head import (
    CLIP_DIMENSION,
    HEAD_PATH,
    TEXT_DIMENSION,
    VISUAL_DIMENSION,
    Head,
    conse,
    load_head,
    save_head,
    scaled_clip,
)
from actors.embedding.text_tower import MiniLM, clean_query
from actors.embedding.weights import MINILM, MINILM_TOKENIZER, weight_path
from actors.messages import FloatMatrix
from contract.settings import Settings, load_settings
from evaluation.datasets import Picture, emoji, openclipart, sweethome, tuxpaint
from evaluation.retrieval import Retrieval, queries_of, text_to_image
from training.features import Features, features
from training.make_samples import samples
from training.residual import Pairs, Residual, train_residual

DEFAULT_SEEDS: Final = (0, 1, 2)
IMAGENET_CLASSES: Final = 1000

# A held-out stamp whose CLIP features are this close to a training picture's shows nearly the same drawing.
_NEAR_DUPLICATE_COSINE: Final = 0.9


@dataclass(frozen=True)
class Corpus:
    """Pictures of one data set with their features, in the same order."""

    pictures: Sequence[Picture]
    features: Features


def training_pictures(settings: Settings) -> dict[str, list[Picture]]:
    """Pictures to learn from, by data set, without those that the evaluation or the demo shows."""
    held_out = {clean_query(picture.caption) for picture in tuxpaint(settings)}
    shipped = {sample.origin for sample in samples()}
    sources = {"openclipart": openclipart, "sweethome": sweethome, "emoji": emoji}
    return {
        name: [
            picture
            for picture in read(settings)
            if clean_query(picture.caption) not in held_out and picture.identity not in shipped
        ]
        for name, read in sources.items()
    }


def class_embeddings(text: MiniLM) -> FloatMatrix:
    """(1000, 384) text embeddings of the ImageNet classes.

    Of each class the mean of its first name, all its names, and its names with the WordNet definition.
    """
    info = ImageNetInfo()
    names = [info.index_to_description(i) for i in range(IMAGENET_CLASSES)]
    definitions = [info.index_to_description(i, detailed=True) for i in range(IMAGENET_CLASSES)]
    first = [name.split(",")[0] for name in names]
    return l2_normalise(text.encode(first) + text.encode(names) + text.encode(definitions))


def principal_components(clip: FloatMatrix) -> tuple[FloatMatrix, FloatMatrix]:
    """Mean (512,) and first components (128, 512) of the unit-length CLIP features (n, 512)."""
    unit = l2_normalise(clip)
    mean = unit.mean(axis=0)
    return mean, np.linalg.svd(unit - mean, full_matrices=False)[2][:VISUAL_DIMENSION]


def train_head(corpora: Sequence[Corpus], text: MiniLM, seeds: Sequence[int]) -> Head:
    """Train one network per seed and assemble the head. Equal input gives an equal head."""
    clip = np.concatenate([corpus.features.clip for corpus in corpora])
    logits = np.concatenate([corpus.features.logits for corpus in corpora])
    captions = [clean_query(picture.caption) for corpus in corpora for picture in corpus.pictures]
    classes = class_embeddings(text)
    scaled = scaled_clip(clip)
    mean, std = scaled.mean(axis=0), scaled.std(axis=0) + np.float32(1e-6)
    pairs = Pairs((scaled - mean) / std, conse(logits, classes), text.encode(captions), captions)
    networks: list[Residual] = []
    for seed in seeds:
        networks.append(train_residual(pairs, seed))
        print(f"seed {seed}: {len(captions)} pairs, final loss {networks[-1].loss:.3f}", flush=True)
    pca_mean, pca_components = principal_components(clip)
    return Head(
        mean=mean,
        std=std,
        alpha=np.array([network.alpha for network in networks], dtype=np.float32),
        w1=np.stack([network.w1 for network in networks]),
        b1=np.stack([network.b1 for network in networks]),
        w2=np.stack([network.w2 for network in networks]),
        b2=np.stack([network.b2 for network in networks]),
        class_embeddings=classes,
        pca_mean=pca_mean,
        pca_components=pca_components,
    )


def held_out_report(head: Head, stamps: Corpus, learned: FloatMatrix, text: MiniLM) -> dict[str, Retrieval]:
    """Text → image over Tux Paint: ConSE alone, the head, and the head without near-duplicates.

    `learned` is (n, 512), the CLIP features that were trained on.
    """
    clip, logits = stamps.features.clip, stamps.features.logits
    closest = (l2_normalise(clip) @ l2_normalise(learned).T).max(axis=1)
    keep = closest < _NEAR_DUPLICATE_COSINE
    aligned = head.text_aligned(clip, logits)

    def retrieval(vectors: FloatMatrix, kept: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Retrieval:
        pictures = [picture for picture, is_kept in zip(stamps.pictures, kept, strict=True) if is_kept]
        queries, relevant = queries_of(pictures)
        return text_to_image(text.encode([clean_query(query) for query in queries]), vectors[kept], relevant)

    everything = np.ones(len(clip), dtype=np.bool_)
    return {
        "ConSE alone": retrieval(conse(logits, head.class_embeddings), everything),
        "head": retrieval(aligned, everything),
        "head, without near-duplicates of training pictures": retrieval(aligned, keep),
    }


def main() -> None:
    """Entry point of `python -m training.head`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HEAD_PATH, help="file to write (default: the shipped head)")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(DEFAULT_SEEDS), help="one network per seed")
    arguments = parser.parse_args()
    settings = load_settings()
    torch.set_num_threads(settings.embedder_threads)
    text = MiniLM(weight_path(settings, MINILM), weight_path(settings, MINILM_TOKENIZER), settings.embedder_threads)
    corpora = [
        Corpus(pictures, features(settings, name, pictures)) for name, pictures in training_pictures(settings).items()
    ]
    stamps = tuxpaint(settings)
    save_head(train_head(corpora, text, arguments.seeds), arguments.output)
    # Measured as it was stored, with its weights rounded to 16 bits.
    head = load_head(arguments.output)
    learned = np.concatenate([corpus.features.clip for corpus in corpora])
    report = held_out_report(head, Corpus(stamps, features(settings, "tuxpaint", stamps)), learned, text)
    for name, result in report.items():
        print(f"{name}: {result}")
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.2f} MB, {CLIP_DIMENSION} → {TEXT_DIMENSION}")


if __name__ == "__main__":
    main()
