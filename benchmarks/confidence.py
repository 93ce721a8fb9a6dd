"""Precision, recall and calibration of `no_confident_match` as a result file: `python -m benchmarks.confidence`."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Final

from rich.console import Console

from benchmarks.result_file import Result, write
from contract.settings import load_settings
from evaluation.calibrate import SEED, SHIPPED, Calibrated, calibrate, figure, spread, tables

_FLAGS: Final = {
    "flag": "flag",
    "one_cut_off": "one_flat_cut_off",
    "own_cut_off": "flat_cut_off_of_kind",
    "equal_recall": "flat_cut_off_of_equal_recall",
}
_OF_A_FLAG: Final = {
    "precision": "precision",
    "recall": "recall",
    "recall_clear": "recall_without_relatives",
    "recall_relatives": "recall_with_relatives",
    "wrong_precision": "precision_wrong_first_hit",
    "right_flagged": "right_first_hits_flagged",
}
_OF_A_KIND: Final = {
    "queries": "queries",
    "without_answer": "queries_without_answer",
    "right_share": "first_hit_right",
    "brier": "brier",
    "brier_top_score": "brier_best_score_alone",
    "brier_constant": "brier_base_rate",
    "ece": "ece",
    "auc": "auc",
    "auc_top_score": "auc_best_score_alone",
}


def results(calibrated: Calibrated, threshold: float) -> list[Result]:
    """Figures of the result file; `_sd` is the standard deviation over other divisions of the concepts.

    `precision` and `recall` are for queries that have no right answer in the collection. `text_captions`, `text_broad`
    (the name of a category) and `text_samples` (pictures of another source) look closer at `text`.
    """
    found = [Result("threshold", threshold, "1"), Result("other_divisions", len(calibrated.others), "1")]
    paths = _OF_A_KIND | {
        f"{flag}.{share}": f"{flag_name}_{share_name}"
        for flag, flag_name in _FLAGS.items()
        for share, share_name in _OF_A_FLAG.items()
    }
    for column, measured in enumerate(calibrated.measured):
        for path, name in paths.items():
            value, deviation = figure(measured, path), spread(calibrated, column, path)
            # Not every kind has queries of every sort, such as those whose relatives alone are there.
            if not math.isnan(value):
                found.append(Result(f"{measured.kind}_{name}", round(value, 4), "1"))
            if deviation > 0:
                found.append(Result(f"{measured.kind}_{name}_sd", round(deviation, 4), "1"))
    for part, measured in calibrated.parts.items():
        values = {name: figure(measured, path) for path, name in paths.items()}
        found += [Result(f"text_{part}_{n}", round(v, 4), "1") for n, v in values.items() if not math.isnan(v)]
    return found


def main() -> None:
    """Entry point of `python -m benchmarks.confidence`."""
    started_at = datetime.now(UTC)
    settings = load_settings()
    calibrated = calibrate(settings, SHIPPED[0])
    Console().print(tables(calibrated, settings.confidence_threshold))
    found = results(calibrated, settings.confidence_threshold)
    print(write("confidence", found, SEED, calibrated.data_sha256, started_at))


if __name__ == "__main__":
    main()
