"""Queries with and without a right answer in the collection, drawn from real pictures with captions.

A concept is a sub-category of the pictures. Concepts are divided into two halves; queries and
collections of one half never hold a picture or a caption of the other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from actors.embedding.text_tower import clean_query
from actors.messages import FloatMatrix
from evaluation.datasets import Picture
from evaluation.packages import DatasetUnavailable
from serving.confidence import DEPTH, MIXED_RATIO_MAX, QueryKind

Indexes = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

CONCEPTS_MIN: Final = 4
"""With fewer concepts in a collection, hardly anything is left beside the one that is asked for."""
_BROAD_SHARE: Final = 0.5
_FEWEST: Final = 3
"""Pictures of the smallest drawn collection: what a narrow filter leaves over."""


@dataclass(frozen=True)
class Corpus:
    """Pictures with the vectors of them, of their captions and of their concepts' names; (n, d) float32 each."""

    pictures: Sequence[Picture]
    images: FloatMatrix
    texts: FloatMatrix
    names: FloatMatrix


@dataclass(frozen=True)
class Trial:
    """One query against one collection.

    `scores` are those of the answer, best first, at most DEPTH; `right` tells whether the first hit
    is right, `answerable` whether the collection holds a right answer, `relatives` whether it holds
    pictures of the query's concept, `broad` whether the query was a concept's name.
    """

    scores: tuple[float, ...]
    right: bool
    answerable: bool
    relatives: bool
    broad: bool = False


def halves(pictures: Sequence[Picture], seed: int) -> tuple[Indexes, Indexes]:
    """Indexes of the pictures to fit on and of those held out, about as many each; no concept is in both.

    Raises DatasetUnavailable where that leaves a half with fewer than CONCEPTS_MIN concepts.
    """
    generator = np.random.default_rng(seed)
    concepts = np.array([picture.sub_category for picture in pictures])
    names, sizes = np.unique(concepts, return_counts=True)
    order = generator.permutation(len(names))
    chosen: list[str] = []
    taken = 0
    for concept in order:
        if taken + sizes[concept] / 2 <= len(pictures) / 2:
            chosen.append(str(names[concept]))
            taken += int(sizes[concept])
    if not CONCEPTS_MIN <= len(chosen) <= len(names) - CONCEPTS_MIN:
        raise DatasetUnavailable(f"{len(names)} concepts make no two halves of {CONCEPTS_MIN} each and like size")
    fit = np.isin(concepts, chosen)
    return np.flatnonzero(fit), np.flatnonzero(~fit)


def draw(corpus: Corpus, half: Indexes, kind: QueryKind, rounds: int, seed: int) -> list[Trial]:
    """Trials of one kind of query within one half, half of them without a right answer where that is possible.

    * `text`: a caption. Right is a picture whose caption has all its words. Without an answer, either
      these pictures alone are left out (their relatives stay), or all pictures of the concept. After every
      second caption comes the name of its concept, a query that many pictures answer: all of the concept.
    * `image`: a picture that is not in the collection. Right is a picture of its concept.
    * `mixed`: such a picture and its caption; either weighs up to MIXED_RATIO_MAX times the other. Right is a
      picture of its concept.

    In every second trial the collection is the whole half; in the others it is a random part of any
    size, as a filter or a small collection leaves it.
    """
    generator = np.random.default_rng(seed)
    images, texts, names = corpus.images[half], corpus.texts[half], corpus.names[half]
    concepts = np.array([corpus.pictures[index].sub_category for index in half])
    same_concept = concepts[:, None] == concepts[None, :]
    words = [_words(corpus.pictures[index]) for index in half]
    all_words = np.array([[asked <= other for other in words] for asked in words])
    itself = np.eye(len(half), dtype=np.bool_)
    nothing = np.zeros(len(half), np.bool_)
    trials = []
    for _ in range(rounds):
        for query in range(len(half)):
            concept = same_concept[query]
            if kind == "text":
                scores, relevant = images @ texts[query], all_words[query]
                without = relevant if generator.random() < 0.5 else relevant | concept
                left_out = [nothing, without]
                if generator.random() < _BROAD_SHARE:
                    of_concept = images @ names[query]
                    trials += [
                        _trial(of_concept, concept, concept, e, generator, broad=True) for e in (nothing, concept)
                    ]
            else:
                vector = images[query]
                if kind == "mixed":
                    weight = float(np.exp(generator.uniform(-1, 1) * np.log(MIXED_RATIO_MAX)))
                    vector = (vector + weight * texts[query]) / (1 + weight)
                scores, relevant = images @ vector, concept & ~itself[query]
                left_out = [itself[query], concept] if relevant.any() else [concept]
            trials += [_trial(scores, relevant, concept, each, generator) for each in left_out]
    return trials


def _trial(
    scores: FloatMatrix,
    relevant: Flags,
    concept: Flags,
    left_out: Flags,
    generator: np.random.Generator,
    *,
    broad: bool = False,
) -> Trial:
    there = ~left_out
    if generator.random() < 0.5:
        share = np.exp(generator.uniform(np.log(_FEWEST), np.log(len(scores)))) / len(scores)
        kept = there & (generator.random(len(scores)) < share)
        kept[generator.choice(np.flatnonzero(there))] = True
        if (relevant & there).any() and not (kept & relevant).any():
            kept[generator.choice(np.flatnonzero(relevant & there))] = True
        there = kept
    inside = np.flatnonzero(there)
    best = inside[np.argsort(-scores[inside], kind="stable")[:DEPTH]]
    return Trial(
        scores=tuple(float(score) for score in scores[best]),
        right=bool(relevant[best[0]]),
        answerable=bool((relevant & there).any()),
        relatives=bool((concept & there).any()),
        broad=broad,
    )


def name_of(concept: str) -> str:
    """The words for a concept that stands as a path or a list: `animals/mammals/sea_lions` → `sea lions`."""
    return re.split("[/;]", concept)[-1].replace("_", " ")


def _words(picture: Picture) -> frozenset[str]:
    return frozenset(clean_query(picture.caption).replace(",", " ").replace(".", " ").split())
