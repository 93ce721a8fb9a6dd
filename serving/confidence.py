"""How likely the first hit of a search is right, judged by the scores of the whole answer.

One flat cut-off on cosines serves no CLIP-like encoder: words and pictures score on different scales,
and a query that resembles everything scores high everywhere. So each encoder (by its fingerprint) and
each kind of query has a logistic model of its own, fitted on pictures with captions by
`make calibrate`. It looks at the best score, at its distance to the second, and at the DEPTH-th, which
tells how high this query scores anyway in what was searched. Pure but for reading the fitted files.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct
from pydantic import BaseModel, Field

from actors.duplicates import named
from actors.messages import Candidate
from contract.errors import SettingsInvalid

DEPTH: Final = 10
"""Scores that are looked at; a search asks its shards for at least as many, whatever its limit."""
SUPPORTED_VERSION: Final = 1
MIXED_RATIO_MAX: Final = 4.0
"""Words and a picture are `mixed` where neither weighs more than this many times the other."""
PACKAGED: Final = "confidence.json"

QueryKind = Literal["text", "image", "mixed"]
Reason = Literal["no_hits", "below_threshold", "not_calibrated"]


class Weights(Struct, frozen=True, forbid_unknown_fields=True):
    """Log-odds per unit of score. `top`: the best score; `gap`: best minus second; `last`: the DEPTH-th."""

    top: float
    gap: float
    last: float


class Calibration(Struct, frozen=True, forbid_unknown_fields=True):
    """The fitted model of one encoder and kind of query.

    `background` is the mean score of a query with an unrelated picture: it stands for the scores that
    an answer of fewer than DEPTH hits does not have. `queries` and `data_sha256` tell what it was
    fitted on.
    """

    model: str
    fingerprint: str
    kind: QueryKind
    background: float
    intercept: float
    weights: Weights
    queries: int
    data_sha256: str

    def probability(self, scores: Sequence[float]) -> float:
        """Probability, 0…1, that the first hit is right; `scores` are best first, at least one."""
        top, gap, last = features(scores, self.background)
        weights = self.weights
        log_odds = self.intercept + weights.top * top + weights.gap * gap + weights.last * last
        return 0.5 * (1.0 + math.tanh(0.5 * log_odds))


class CalibrationFile(Struct, frozen=True, forbid_unknown_fields=True):
    """What a file of calibrations holds."""

    calibrations: tuple[Calibration, ...]
    version: int = SUPPORTED_VERSION


class Confidence(Struct, frozen=True):
    """Probability that the first hit is right, None if nobody can tell; and why there is no confidence.

    `reason` is None for a confident answer.
    """

    probability: float | None
    reason: Reason | None

    @property
    def no_confident_match(self) -> bool:
        """Whether the answer says so. What cannot be judged counts as a match as long as there are hits."""
        return self.reason in {"no_hits", "below_threshold"}


class ConfidenceBody(BaseModel):
    """How likely the best hit is right, as it stands in the OpenAPI description."""

    probability: float | None = Field(
        description="0…1, that the best hit of all pages, before re-ranking, is right; null where nobody can tell.",
        examples=[0.82],
    )
    reason: Reason | None = Field(
        description="Why the answer is not confident, or that it was `not_calibrated`; null if it is confident."
    )


class Calibrations:
    """The calibrations of every encoder, by fingerprint and kind of query."""

    def __init__(self, calibrations: Iterable[Calibration] = ()) -> None:
        """Of two for the same fingerprint and kind, the later wins."""
        self._known = {(each.fingerprint, each.kind): each for each in calibrations}

    @classmethod
    def load(cls, own: Path | None) -> Calibrations:
        """Those of the package, then those of the operator's `own` file, which win.

        Raises:
            SettingsInvalid: the file is not there, or is no file of calibrations.
        """
        packaged = decode_file(files("serving").joinpath(PACKAGED).read_bytes(), PACKAGED)
        if own is None:
            return cls(packaged)
        try:
            content = own.expanduser().read_bytes()
        except OSError as error:
            raise SettingsInvalid(f"confidence_file: {own} cannot be read: {error.strerror}") from error
        return cls([*packaged, *decode_file(content, str(own))])

    def of(self, fingerprint: str, kind: QueryKind | None) -> Calibration | None:
        """The calibration of this encoder and kind of query, if there is one."""
        return None if kind is None else self._known.get((fingerprint, kind))


def decode_file(content: bytes, name: str) -> tuple[Calibration, ...]:
    """The calibrations in a file's bytes; raises SettingsInvalid naming the file."""
    try:
        decoded = msgspec.json.decode(content, type=CalibrationFile)
    except msgspec.DecodeError as error:
        raise SettingsInvalid(f"confidence_file: {name} holds no calibrations: {error}") from error
    if decoded.version != SUPPORTED_VERSION:
        raise SettingsInvalid(f"confidence_file: {name} has version {decoded.version}, not {SUPPORTED_VERSION}")
    return decoded.calibrations


def query_kind(text_weight: float | None, picture_weight: float | None, *, others: bool) -> QueryKind | None:
    """The kind whose calibration fits a query; None where no kind was calibrated.

    Args:
        text_weight: weight of the words; None without words.
        picture_weight: weight of the one picture, uploaded or indexed; None without one.
        others: whether the query has further parts: a second picture, a vector, positive or negative examples.
    """
    if others or (text_weight is None and picture_weight is None):
        return None
    if picture_weight is None:
        return "text"
    if text_weight is None:
        return "image"
    if min(text_weight, picture_weight) <= 0:
        return None
    ratio = text_weight / picture_weight
    return "mixed" if 1 / MIXED_RATIO_MAX <= ratio <= MIXED_RATIO_MAX else None


def top_scores(per_shard: Iterable[Sequence[Candidate]], without: Collection[str] = ()) -> list[float]:
    """The best DEPTH scores over all shards, whose candidates are best first; so is the result.

    They do not depend on limit, offset or threshold of the request. An image that two shards return counts once;
    `without` names indexed images that are the query itself and would always find themselves, also where another one
    with equal bytes stands for them.
    """
    best: dict[str, float] = {}
    for candidates in per_shard:
        # Deeper in a shard's list, DEPTH of its own are better.
        for candidate in candidates[: DEPTH + len(without)]:
            image_id, score = candidate.image_id, candidate.score
            if without and not set(without).isdisjoint(named(candidate)):
                continue
            if score > best.get(image_id, -math.inf):
                best[image_id] = score
    return heapq.nlargest(DEPTH, best.values())


def features(scores: Sequence[float], background: float) -> tuple[float, float, float]:
    """(top, gap, last) of an answer's scores, best first, at least one; see `Weights`.

    Where fewer than DEPTH pictures were there to be found, the missing scores are taken to be the
    `background`, or the lowest score if that is lower.
    """
    filler = min(background, scores[-1])
    top = scores[0]
    second = scores[1] if len(scores) > 1 else filler
    last = scores[DEPTH - 1] if len(scores) >= DEPTH else filler
    return top, top - second, last


def assess(scores: Sequence[float], calibration: Calibration | None, threshold: float, *, has_hits: bool) -> Confidence:
    """What an answer says of its first hit.

    Args:
        scores: of the whole answer, as `top_scores` gives them.
        calibration: that of the encoder and kind of query; None if there is none.
        threshold: lowest probability of a confident answer.
        has_hits: whether the page that is returned has any hit.
    """
    if calibration is None:
        return Confidence(None, "not_calibrated" if has_hits else "no_hits")
    # An image that finds nothing but itself has hits, yet no score.
    probability = round(calibration.probability(scores), 4) if scores else None
    if probability is None or not has_hits:
        return Confidence(probability, "no_hits")
    return Confidence(probability, "below_threshold" if probability < threshold else None)
