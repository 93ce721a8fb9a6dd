"""Fit the confidence of searches on one half of the concepts, and measure it on the other half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from actors.messages import EncoderDescription, FloatMatrix
from evaluation.confidence_trials import Corpus, Indexes, Trial, draw
from serving.confidence import Calibration, QueryKind, Weights, features

KINDS: Final[tuple[QueryKind, ...]] = ("text", "image", "mixed")
ROUNDS: Final = 8
BINS: Final = 10

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_RIDGE: Final = 1.0
"""L2 penalty on the standardised weights: one observation's worth against thousands."""
_STEPS_MAX: Final = 100
_CONVERGED: Final = 1e-9


@dataclass(frozen=True)
class Flagged:
    """What a flag does on held-out queries; shares between 0 and 1.

    `precision` and `recall` are those for queries without a right answer in the collection; `recall_clear` is the
    recall where not even the query's concept is there, `recall_relatives` where relatives of what is asked for are
    (NaN if there is no such query). `wrong_precision` is the share of flagged answers whose first hit is wrong, whether
    or not there was a right one; `right_flagged` the share of right first hits that are flagged nevertheless.
    """

    precision: float
    recall: float
    recall_clear: float
    recall_relatives: float
    wrong_precision: float
    right_flagged: float


@dataclass(frozen=True)
class Curve:
    """Predicted and observed share of right first hits in bins of equally many queries; (b,) each."""

    predicted: Floats
    observed: Floats


@dataclass(frozen=True)
class Measured:
    """One kind of query on the held-out half.

    `brier` is the mean squared error of the probability, `brier_constant` that of always saying the
    base rate, `brier_top_score` that of a logistic model of the best score alone. `ece` is the mean distance
    between predicted and observed over the bins of `curve`. `auc` is the probability that a right first hit
    gets a higher confidence than a wrong one, `auc_top_score` the same by the best score alone.

    Of the flat cut-offs, `one_cut_off` serves all kinds of query and `own_cut_off` this one; both are chosen
    on the fitted half. `equal_recall` is the cut-off that has the recall of `flag` on the held-out
    queries themselves, which favours it.
    """

    kind: QueryKind
    queries: int
    without_answer: int
    right_share: float
    brier: float
    brier_constant: float
    brier_top_score: float
    ece: float
    auc: float
    auc_top_score: float
    flag: Flagged
    one_cut_off: Flagged
    own_cut_off: Flagged
    equal_recall: Flagged
    curve: Curve


def fit(
    encoder: EncoderDescription, corpus: Corpus, half: Indexes, kind: QueryKind, trials: Sequence[Trial], data: str
) -> Calibration:
    """The logistic model of P(first hit right) for one kind of query; `data` is the hash of the pictures."""
    background = background_of(corpus, half, kind)
    columns = np.array([features(trial.scores, background) for trial in trials])
    intercept, weights = logistic(columns, rights(trials))
    top, gap, last = (round(float(weight), 4) for weight in weights)
    return Calibration(
        model=encoder.model,
        fingerprint=encoder.fingerprint,
        kind=kind,
        background=background,
        intercept=round(intercept, 4),
        weights=Weights(top, gap, last),
        queries=len(trials),
        data_sha256=data,
    )


def background_of(corpus: Corpus, half: Indexes, kind: QueryKind) -> float:
    """Mean score of a query of this kind with a picture of another concept."""
    images = corpus.images[half]
    by_kind: dict[QueryKind, FloatMatrix] = {"text": corpus.texts[half], "image": images}
    queries = by_kind.get(kind, (images + corpus.texts[half]) / 2)
    concepts = np.array([corpus.pictures[index].sub_category for index in half])
    unrelated = concepts[:, None] != concepts[None, :]
    return round(float((queries @ images.T)[unrelated].mean()), 4)


def logistic(columns: Floats, right: Flags) -> tuple[float, Floats]:
    """Intercept and weights (f,) of a ridge logistic regression of `right` (n,) on `columns` (n, f).

    Source: Newton's method (iteratively re-weighted least squares), as in Hastie, Tibshirani, Friedman 2009, 4.4.1.
    """
    centre, scale = columns.mean(axis=0), columns.std(axis=0) + 1e-12
    design = np.column_stack([np.ones(len(columns)), (columns - centre) / scale])
    penalty = _RIDGE * np.eye(design.shape[1])
    # The intercept is not shrunk, so that the mean probability is the share of right first hits.
    penalty[0, 0] = 0.0
    solution = np.zeros(design.shape[1])
    for _ in range(_STEPS_MAX):
        chance = _sigmoid(design @ solution)
        gradient = design.T @ (chance - right) + penalty @ solution
        hessian = (design.T * (chance * (1 - chance))) @ design + penalty
        step = np.linalg.solve(hessian, gradient)
        solution -= step
        if float(np.abs(step).max()) < _CONVERGED:
            break
    weights = solution[1:] / scale
    return float(solution[0] - weights @ centre), weights


def measure(
    calibration: Calibration,
    fitted: Sequence[Trial],
    held_out: Sequence[Trial],
    threshold: float,
    one_cut_off: float,
) -> Measured:
    """What the calibration and the flat cut-offs do on held-out queries; `fitted` are those it was fitted on."""
    right, top = rights(held_out), tops(held_out)
    answerable = np.array([trial.answerable for trial in held_out])
    probability = np.array([calibration.probability(trial.scores) for trial in held_out])
    intercept, (weight,) = logistic(tops(fitted)[:, None], rights(fitted))
    by_top = _sigmoid(intercept + weight * top)
    curve = curve_of(probability, right)
    flag = flagged(held_out, probability < threshold)
    # As many queries without an answer lie below this score as the flag finds.
    equal = float(np.quantile(top[~answerable], flag.recall))
    return Measured(
        kind=calibration.kind,
        queries=len(held_out),
        without_answer=int((~answerable).sum()),
        right_share=float(right.mean()),
        brier=_brier(probability, right),
        brier_constant=_brier(np.full(len(right), rights(fitted).mean()), right),
        brier_top_score=_brier(by_top, right),
        ece=float(np.abs(curve.predicted - curve.observed).mean()),
        auc=auc(probability, right),
        auc_top_score=auc(top, right),
        flag=flag,
        one_cut_off=flagged(held_out, top < one_cut_off),
        own_cut_off=flagged(held_out, top < best_cut_off(fitted)),
        equal_recall=flagged(held_out, top <= equal),
        curve=curve,
    )


def best_cut_off(trials: Sequence[Trial]) -> float:
    """The best score below which flagging parts wrong from right first hits best (Youden's J)."""
    right, top = rights(trials), tops(trials)
    order = np.argsort(top, kind="stable")
    below_wrong = np.cumsum(~right[order]) / (~right).sum()
    below_right = np.cumsum(right[order]) / right.sum()
    return float(top[order][int(np.argmax(below_wrong - below_right))])


def flagged(trials: Sequence[Trial], flags: Flags) -> Flagged:
    """Figures of a flag (n,) on trials."""
    right = rights(trials)
    answerable = np.array([trial.answerable for trial in trials])
    relatives = np.array([trial.relatives for trial in trials])
    return Flagged(
        precision=_share(~answerable, flags),
        recall=_share(flags, ~answerable),
        recall_clear=_share(flags, ~answerable & ~relatives),
        recall_relatives=_share(flags, ~answerable & relatives),
        wrong_precision=_share(~right, flags),
        right_flagged=_share(flags, right),
    )


def curve_of(probability: Floats, right: Flags) -> Curve:
    """Mean probability and share of right first hits in BINS bins of equally many queries."""
    bins = np.array_split(np.argsort(probability, kind="stable"), BINS)
    return Curve(
        np.array([probability[rows].mean() for rows in bins]), np.array([float(right[rows].mean()) for rows in bins])
    )


def auc(values: Floats, right: Flags) -> float:
    """Probability that a right one has the higher value of two; ties count half."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    positives = int(right.sum())
    return float((ranks[right].sum() - positives * (positives + 1) / 2) / (positives * (len(right) - positives)))


def rights(trials: Sequence[Trial]) -> Flags:
    """Whether the first hit of each trial is right, (n,)."""
    return np.array([trial.right for trial in trials])


def tops(trials: Sequence[Trial]) -> Floats:
    """Best score of each trial, (n,)."""
    return np.array([trial.scores[0] for trial in trials])


def trials_of(
    corpus: Corpus, fit_half: Indexes, held_out_half: Indexes, seed: int
) -> dict[QueryKind, tuple[list[Trial], list[Trial]]]:
    """Per kind of query, the trials to fit on and the held-out ones."""
    return {
        kind: (draw(corpus, fit_half, kind, ROUNDS, seed), draw(corpus, held_out_half, kind, ROUNDS, seed + 1))
        for kind in KINDS
    }


def _brier(probability: Floats, right: Flags) -> float:
    return float(((probability - right) ** 2).mean())


def _share(of: Flags, among: Flags) -> float:
    return float(of[among].mean()) if among.any() else float("nan")


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * values)), np.float64)
