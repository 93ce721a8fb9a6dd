"""The calibration curve of searches' confidence, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure

from evaluation.calibration import Measured

_COLOURS: Final = {"text": "#0b6e99", "image": "#c4511d", "mixed": "#5b7f2b"}


def draw_curves(path: Path, encoders: Sequence[tuple[str, Sequence[Measured]]]) -> None:
    """Draw predicted against observed share of right first hits, a panel per encoder, into a PNG file.

    Every dot stands for as many held-out queries as any other dot of its colour.
    """
    mpl.rcParams["font.family"] = "DejaVu Sans"
    figure = Figure(figsize=(4.6 * len(encoders), 4.6), dpi=110, layout="constrained")
    for number, (model, kinds) in enumerate(encoders):
        axes = figure.add_subplot(1, len(encoders), number + 1)
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--")
        for measured in kinds:
            axes.plot(
                measured.curve.predicted,
                measured.curve.observed,
                marker="o",
                markersize=4,
                color=_COLOURS[measured.kind],
                label=f"{measured.kind}: Brier {measured.brier:.3f}, ECE {measured.ece:.3f}",
            )
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=model)
        axes.set(xlabel="confidence", ylabel="first hits that are right")
        axes.legend(loc="upper left", fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a date and version in it, equal curves are equal files.
    figure.savefig(path, metadata={"Software": None})
