"""Near-duplicates: hits that show the same picture stand as one, with a count. Pure functions.

Embeddings alone cannot tell a recompressed copy from another picture of the same thing, and a
perceptual hash alone takes two white drawings for the same. Either may decide where it is certain;
between, both must agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actors.messages import FloatMatrix


@dataclass(frozen=True, slots=True)
class Rule:
    """When two pictures are near-duplicates; see `serving.rerank.request.Dedupe`."""

    same_cosine: float
    similar_cosine: float
    hash_bits: int


def cosines(vectors: Sequence[FloatMatrix | None]) -> FloatMatrix:
    """Cosine of every pair, (n, n) float32; 0 with a vector that is missing, also with itself."""
    known = [vector for vector in vectors if vector is not None]
    if not known:
        return np.zeros((len(vectors), len(vectors)), np.float32)
    rows = np.stack([np.zeros_like(known[0]) if vector is None else vector for vector in vectors])
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.asarray(rows / np.where(norms > 0, norms, 1), np.float32)
    return np.asarray(np.clip(unit @ unit.T, -1, 1), np.float32)


def undecided(similarity: FloatMatrix, rule: Rule) -> list[int]:
    """Indexes of the hits whose pictures have to be compared, rising: some cosine of theirs is not decisive."""
    pairs = (similarity >= rule.similar_cosine) & (similarity < rule.same_cosine)
    np.fill_diagonal(pairs, val=False)
    return [int(index) for index in np.flatnonzero(pairs.any(axis=1))]


def representatives(similarity: FloatMatrix, hashes: Mapping[int, int], rule: Rule) -> npt.NDArray[np.int64]:
    """For each hit, the index of the hit that stands for it; its own index if it stands for itself.

    Hits come best first, and each is compared only with those that stand for a group already, so a
    chain of small differences never joins two pictures that differ much. A hit is stood for by the
    best one it is near to.

    Args:
        similarity: (n, n), cosines.
        hashes: 64-bit perceptual hashes by index; a hit without one is judged by its embedding alone.
        rule: when two are near-duplicates.
    """
    result = np.arange(len(similarity), dtype=np.int64)
    leaders: list[int] = []
    for index in range(len(similarity)):
        row = similarity[index, leaders]
        near = (leaders[place] for place in np.flatnonzero(row >= min(rule.similar_cosine, rule.same_cosine)))
        leader = next((one for one in near if _same(similarity[index, one], index, one, hashes, rule)), None)
        if leader is None:
            leaders.append(index)
        else:
            result[index] = leader
    return result


def _same(cosine: np.float32, one: int, other: int, hashes: Mapping[int, int], rule: Rule) -> bool:
    if cosine >= rule.same_cosine:
        return True
    if one not in hashes or other not in hashes:
        return False
    return (hashes[one] ^ hashes[other]).bit_count() <= rule.hash_bits
