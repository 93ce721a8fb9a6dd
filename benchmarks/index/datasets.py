"""Vectors to measure indexes with: real ones, fetched or made once, and synthetic ones of any number.

Everything that is fetched is checked by sha256 and kept in the cache folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from actors.embedding.text_tower import MiniLM
from actors.embedding.weights import MINILM, MINILM_TOKENIZER, WeightFile, sha256_of, weight_path
from actors.messages import FloatMatrix
from benchmarks.index.truth import Neighbours, exact_neighbours
from contract.settings import Settings
from evaluation.packages import DatasetUnavailable, debian_package

K: Final = 10
QUERIES: Final = 1000
DIMENSION: Final = 512
LATENT: Final = 64
NOISE: Final = 0.1
CLUSTERS: Final = 1000

SHOBDO: Final = WeightFile(
    "shobdo",
    "0.2.2",
    "shobdo/data/embeddings.npy",
    "3d67f95167efceff02822ec6b8d4a617a0ca8cbc621c3e332b34e4916f3ac057",
    46_725_248,
    "Apache-2.0",
)
"""Embeddings of a Bengali dictionary: 45,630 × 512 float16."""

_WORDNET: Final = "wordnet-base"
_WORDNET_SHA256: Final = {
    "data.adj": "c89120dfc1f046ddff4a631bf9b7e9fa1a36b5e86565a23bf82dbe14f30b88a7",
    "data.adv": "444a63bf3955080ab7524f5079cfc07ff9bc682cb98bdb1db73b0fb9829f1139",
    "data.noun": "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2",
    "data.verb": "adcf43e35b581e8036d8b5a52d63d9cd3d3b4870b2720d3c03c799df44777bc2",
}
_CHUNK = 8192
# Points that arrive while searches are measured, per point that is there before.
_ARRIVING_SHARE = 0.2


@dataclass(frozen=True)
class Dataset:
    """Vectors of one run, all (n, d) float32 and L2-normalised; nothing is in two of the three parts.

    `points` are loaded before anything is measured, `arriving` come while searches run, `queries`
    are never inserted. `neighbours` are the exact ones of the queries among `points`. `sha256` is of
    the three parts.
    """

    name: str
    points: FloatMatrix
    arriving: FloatMatrix
    queries: FloatMatrix
    neighbours: Neighbours
    sha256: str


def names() -> list[str]:
    """Names that `load` knows."""
    return list(_SOURCES)


def load(settings: Settings, name: str, points: int | None, seed: int) -> Dataset:
    """A data set of at most `points` points (None: 50,000 synthetic ones, or all that are there).

    Real vectors are shuffled by the seed before they are divided.

    Raises:
        KeyError: no data set of that name.
        DatasetUnavailable, ModelUnavailable: the vectors cannot be had on this machine.
    """
    wanted = QUERIES + round((points or 50_000) * (1 + _ARRIVING_SHARE))
    rows = _SOURCES[name](settings, wanted, seed)
    if points is not None:
        rows = rows[:wanted]
    return divided(name, rows)


def divided(name: str, rows: FloatMatrix) -> Dataset:
    """Divide (n, d) float32 rows into queries, points and arriving points, and find the exact neighbours.

    There are QUERIES queries, or a quarter of a very small set.
    """
    queries = min(QUERIES, len(rows) // 4)
    points = queries + round((len(rows) - queries) / (1 + _ARRIVING_SHARE))
    digest = hashlib.sha256(np.ascontiguousarray(rows).data)
    return Dataset(
        name,
        rows[queries:points],
        rows[points:],
        rows[:queries],
        exact_neighbours(rows[queries:points], rows[:queries], K),
        digest.hexdigest(),
    )


def save(dataset: Dataset, folder: Path) -> None:
    """Write the parts of a data set as `.npy` files for other processes."""
    for name in ("points", "arriving", "queries", "neighbours"):
        np.save(folder / f"{name}.npy", getattr(dataset, name))


def synthetic(count: int, seed: int, *, clusters: int = 0, dimension: int = DIMENSION) -> FloatMatrix:
    """(count, dimension) float32, L2-normalised, of intrinsic dimension 64, the same for the same arguments.

    A normal vector of LATENT numbers, seen through one random linear map, plus normal noise that
    carries NOISE of the energy. With `clusters`, the latent vectors lie around that many centres.
    """
    random = np.random.default_rng(seed)
    view = random.standard_normal((LATENT, dimension), dtype=np.float32) / np.sqrt(dimension, dtype=np.float32)
    centres = random.standard_normal((max(clusters, 1), LATENT), dtype=np.float32)
    spread = np.float32(0.5 if clusters else 1.0)
    noise = np.sqrt(np.float32(NOISE * LATENT / dimension))
    rows = np.empty((count, dimension), dtype=np.float32)
    for start in range(0, count, _CHUNK):
        some = min(_CHUNK, count - start)
        latent = spread * random.standard_normal((some, LATENT), dtype=np.float32)
        if clusters:
            latent += centres[random.integers(0, clusters, some)]
        chunk = latent @ view + noise * random.standard_normal((some, dimension), dtype=np.float32)
        rows[start : start + some] = chunk / np.linalg.norm(chunk, axis=1, keepdims=True)
    return rows


def shobdo(settings: Settings) -> FloatMatrix:
    """(45630, 512) float32, L2-normalised: embeddings of dictionary entries, in the order of the file."""
    return _normalised(np.load(weight_path(settings, SHOBDO)))


def wordnet_minilm(settings: Settings) -> FloatMatrix:
    """(117659, 384) float32, L2-normalised: WordNet's glosses through the text tower of the offline model.

    Made once, in about ten minutes on one core, and then kept in the cache folder as float16.
    """
    texts = _glosses(settings)
    digest = hashlib.sha256("\n".join([MINILM.sha256, MINILM_TOKENIZER.sha256, *texts]).encode()).hexdigest()
    target = settings.cache_path / "vectors" / f"wordnet-minilm-{digest[:16]}.npy"
    if not target.exists():
        print(f"encoding {len(texts)} glosses into {target} (about ten minutes) …", flush=True)
        tower = MiniLM(weight_path(settings, MINILM), weight_path(settings, MINILM_TOKENIZER), threads=1)
        rows = np.empty((len(texts), 384), dtype=np.float16)
        for start in range(0, len(texts), _CHUNK):
            rows[start : start + _CHUNK] = tower.encode(texts[start : start + _CHUNK])
            print(f"  {min(start + _CHUNK, len(texts))} of {len(texts)}", flush=True)
        _save(target, rows)
    return _normalised(np.load(target))


def _glosses(settings: Settings) -> list[str]:
    """The definition part of every synset, adjectives, adverbs, nouns, verbs, in the order of the files."""
    folder = debian_package(settings, _WORDNET) / "usr/share/wordnet"
    texts = []
    for name, sha256 in _WORDNET_SHA256.items():
        if (found := sha256_of(folder / name)) != sha256:
            raise DatasetUnavailable(f"{name} of {_WORDNET} has sha256 {found}, expected {sha256}")
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        texts += [line.partition(" | ")[2].strip() for line in lines if re.match(r"\d{8} ", line)]
    return texts


def _save(target: Path, rows: np.ndarray[tuple[int, ...], np.dtype[np.float16]]) -> None:
    """Write a matrix so that the file is whole or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".npy")
    with os.fdopen(handle, "wb") as out:
        np.save(out, rows)
    Path(temporary).replace(target)


def _normalised(rows: FloatMatrix) -> FloatMatrix:
    wide: FloatMatrix = np.asarray(rows, dtype=np.float32)
    wide = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return wide


def _shuffled(read: Callable[[Settings], FloatMatrix]) -> Callable[[Settings, int, int], FloatMatrix]:
    def rows(settings: Settings, wanted: int, seed: int) -> FloatMatrix:
        shuffled: FloatMatrix = np.random.default_rng(seed).permutation(read(settings))
        return shuffled

    return rows


_SOURCES: Final[dict[str, Callable[[Settings, int, int], FloatMatrix]]] = {
    "shobdo": _shuffled(shobdo),
    "wordnet-minilm": _shuffled(wordnet_minilm),
    "synthetic": lambda settings, wanted, seed: synthetic(wanted, seed),
    "synthetic-clustered": lambda settings, wanted, seed: synthetic(wanted, seed, clusters=CLUSTERS),
}
