"""Calibrate the confidence of searches: `python -m evaluation.calibrate [--model NAME] [--out FILE] [--pictures CSV]`.

Without arguments it calibrates the models that are shipped, on Tux Paint stamps that no model was trained on,
and writes what the package carries and the picture in the documentation.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from rich.console import Console, Group
from rich.table import Table

from actors.embedding.encoder import Encoder
from actors.embedding.registry import load_encoder
from actors.messages import EncoderDescription
from contract.settings import Settings, load_settings
from evaluation.cached_vectors import picture_vectors
from evaluation.calibration import ROUNDS, Measured, best_cut_off, fit, measure, trials_of
from evaluation.confidence_curve import draw_curves
from evaluation.confidence_trials import Corpus, draw, halves, name_of
from evaluation.datasets import Picture, content_sha256, listed, tuxpaint
from serving.confidence import PACKAGED, Calibration, CalibrationFile, decode_file

SHIPPED: Final = ("offline", "offline-conse")
SEED: Final = 0
SPLITS: Final = 10

_COUNTS: Final = frozenset({"queries", "without_answer"})
_FLAGS: Final = (
    ("flag", "flag"),
    ("one flat cut-off", "one_cut_off"),
    ("own flat cut-off", "own_cut_off"),
    ("same recall", "equal_recall"),
)
_ROWS: Final = (
    ("queries", "queries"),
    ("  without answer", "without_answer"),
    ("first hit right", "right_share"),
    ("Brier score", "brier"),
    ("  best score alone", "brier_top_score"),
    ("  base rate", "brier_constant"),
    ("ECE", "ece"),
    ("AUC", "auc"),
    ("  best score alone", "auc_top_score"),
    *(
        row
        for title, flag in _FLAGS
        for row in (
            (f"{title}: precision", f"{flag}.precision"),
            ("  recall", f"{flag}.recall"),
            ("  right hits flagged", f"{flag}.right_flagged"),
        )
    ),
)
_ROOT: Final = Path(__file__).parent.parent
_SHIPPED_FILE: Final = _ROOT / "serving" / PACKAGED
_SAMPLES: Final = _ROOT / "samples" / "captions.csv"
_SHIPPED_CURVE: Final = _ROOT / "docs" / "confidence.png"


@dataclass(frozen=True)
class Calibrated:
    """One encoder: its calibrations and what they do on the held-out half, per kind of query.

    `others` are the same measures for SPLITS further divisions of the concepts, each fitted anew. `parts` look
    closer at the calibration of words, by name: `captions` and `broad` queries apart, and `samples`, the
    pictures of the repository, which come from another source.
    """

    encoder: EncoderDescription
    calibrations: tuple[Calibration, ...]
    measured: tuple[Measured, ...]
    others: tuple[tuple[Measured, ...], ...]
    parts: dict[str, Measured]
    data_sha256: str


def calibrate(settings: Settings, model: str, pictures_csv: Path | None = None, splits: int = SPLITS) -> Calibrated:
    """Fit on one half of the concepts and measure on the other.

    Raises:
        ModelUnavailable: the encoder cannot be had.
        DatasetUnavailable: the pictures cannot be had, or are too few.
    """
    pictures = tuxpaint(settings) if pictures_csv is None else listed(pictures_csv)
    data = content_sha256(pictures)
    encoder = load_encoder(settings, model)
    description = encoder.description
    name = "tuxpaint" if pictures_csv is None else f"listed-{data[:16]}"
    corpus = _corpus(settings, encoder, name, pictures)
    calibrations, measured = split(settings, description, corpus, data, SEED)
    others = tuple(split(settings, description, corpus, data, SEED + 1 + number)[1] for number in range(splits))
    elsewhere = None if pictures_csv else _corpus(settings, encoder, "samples", listed(_SAMPLES, "tags"))
    parts = parts_of(settings, calibrations[0], corpus, elsewhere)
    return Calibrated(description, calibrations, measured, others, parts, data)


def parts_of(
    settings: Settings, of_words: Calibration, corpus: Corpus, elsewhere: Corpus | None
) -> dict[str, Measured]:
    """What the calibration of words does on sorts of held-out queries, and on the whole of another corpus."""
    fit_half, held_out_half = halves(corpus.pictures, SEED)
    trials = trials_of(corpus, fit_half, held_out_half, SEED)
    fitted, held_out = trials["text"]
    queries = {
        "captions": [trial for trial in held_out if not trial.broad],
        "broad": [trial for trial in held_out if trial.broad],
    }
    if elsewhere is not None:
        queries["samples"] = draw(elsewhere, np.arange(len(elsewhere.pictures)), "text", ROUNDS, SEED + 1)
    one_cut_off = best_cut_off([*fitted, *trials["image"][0]])
    return {
        name: measure(of_words, fitted, of_name, settings.confidence_threshold, one_cut_off)
        for name, of_name in queries.items()
    }


def _corpus(settings: Settings, encoder: Encoder, name: str, pictures: Sequence[Picture]) -> Corpus:
    images = picture_vectors(settings, encoder, name, pictures)
    captions = encoder.encode_texts([picture.caption for picture in pictures])
    names = encoder.encode_texts([name_of(picture.sub_category) for picture in pictures])
    return Corpus(pictures, images, captions, names)


def split(
    settings: Settings, encoder: EncoderDescription, corpus: Corpus, data: str, seed: int
) -> tuple[tuple[Calibration, ...], tuple[Measured, ...]]:
    """The calibrations of one division of the concepts, and what they do on the concepts they were not fitted on."""
    fit_half, held_out_half = halves(corpus.pictures, seed)
    trials = trials_of(corpus, fit_half, held_out_half, seed)
    # Queries of words and of one picture are what a single number for everything would have to serve.
    one_cut_off = best_cut_off([*trials["text"][0], *trials["image"][0]])
    calibrations, measured = [], []
    for kind, (fitted, held_out) in trials.items():
        calibration = fit(encoder, corpus, fit_half, kind, fitted, data)
        calibrations.append(calibration)
        measured.append(measure(calibration, fitted, held_out, settings.confidence_threshold, one_cut_off))
    return tuple(calibrations), tuple(measured)


def tables(calibrated: Calibrated, threshold: float) -> Group:
    """The held-out figures per kind of query and per sort of words; ± is the spread over other divisions."""
    encoder = calibrated.encoder
    kinds: dict[str, list[str]] = {
        measured.kind: [_cell(calibrated, column, path) for _, path in _ROWS]
        for column, measured in enumerate(calibrated.measured)
    }
    parts = {
        f"text: {name}": [_plain(figure(part, path), path) for _, path in _ROWS]
        for name, part in calibrated.parts.items()
    }
    return Group(
        _table(f"{encoder.model} ({encoder.fingerprint}), flagged below {threshold:g}", kinds),
        _table("words, looked at closer", parts),
        "Precision and recall are for queries without a right answer; ± is over other divisions of the concepts.",
    )


def _table(title: str, columns: dict[str, list[str]]) -> Table:
    result = Table(title=title, title_justify="left")
    result.add_column("held-out queries")
    for name in columns:
        result.add_column(name, justify="right")
    for row, (label, _) in enumerate(_ROWS):
        result.add_row(label, *(cells[row] for cells in columns.values()))
    return result


def figure(measured: Measured, path: str) -> float:
    """One figure by its dotted name, such as `flag.precision`."""
    value: object = measured
    for part in path.split("."):
        value = getattr(value, part)
    if not isinstance(value, int | float):
        raise TypeError(f"{path} is no figure")
    return float(value)


def spread(calibrated: Calibrated, column: int, path: str) -> float:
    """Standard deviation of a figure over the other divisions of the concepts; NaN without any."""
    values = [figure(measured[column], path) for measured in calibrated.others]
    return float(np.std(values)) if values else float("nan")


def _cell(calibrated: Calibrated, column: int, path: str) -> str:
    value = figure(calibrated.measured[column], path)
    deviation = spread(calibrated, column, path)
    counts = path in _COUNTS or np.isnan(deviation)
    return _plain(value, path) if counts else f"{_plain(value, path)} ± {deviation:.3f}"


def _plain(value: float, path: str) -> str:
    return f"{value:.0f}" if path in _COUNTS else f"{value:.3f}"


def write_calibrations(path: Path, calibrations: Sequence[Calibration]) -> None:
    """Write a file of calibrations; those it holds of other encoders stay."""
    fitted = {calibration.fingerprint for calibration in calibrations}
    known = decode_file(path.read_bytes(), str(path)) if path.exists() else ()
    content = CalibrationFile((*(each for each in known if each.fingerprint not in fitted), *calibrations))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


def main() -> None:
    """Entry point of `python -m evaluation.calibrate`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="encoder to calibrate (default: those that are shipped)")
    parser.add_argument("--out", type=Path, help="file of calibrations to write or to add to; needs --model")
    parser.add_argument("--pictures", type=Path, help="CSV with the columns file, caption and concept; needs --model")
    given = parser.parse_args()
    if given.model is None and (given.out or given.pictures):
        parser.error("--out and --pictures need --model")
    if given.model is not None and given.out is None:
        parser.error("--model needs --out FILE")
    settings = load_settings()
    console = Console()
    calibrated = [calibrate(settings, model, given.pictures) for model in ([given.model] if given.model else SHIPPED)]
    for each in calibrated:
        console.print(tables(each, settings.confidence_threshold))
    target: Path = given.out or _SHIPPED_FILE
    write_calibrations(target, [calibration for each in calibrated for calibration in each.calibrations])
    curve = target.with_suffix(".png") if given.out else _SHIPPED_CURVE
    draw_curves(curve, [(each.encoder.model, each.measured) for each in calibrated])
    print(f"{target}\n{curve}")


if __name__ == "__main__":
    main()
