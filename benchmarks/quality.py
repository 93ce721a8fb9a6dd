"""Quality of the default model as a result file: `python -m benchmarks.quality`."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.console import Console

from benchmarks.result_file import Result, write
from contract.settings import load_settings
from evaluation.quality import Quality, measure, table


def results(quality: Quality) -> list[Result]:
    """Figures of the result file; recall and precision between 0 and 1."""
    found = quality.text_to_image
    return [
        Result("text_to_image_recall_at_1", round(found.recall_at_1, 4), "1"),
        Result("text_to_image_recall_at_5", round(found.recall_at_5, 4), "1"),
        Result("text_to_image_recall_at_10", round(found.recall_at_10, 4), "1"),
        Result("text_to_image_mrr", round(found.mrr, 4), "1"),
        Result("image_to_image_precision_at_10", round(quality.image_to_image, 4), "1"),
        Result("pictures", found.pictures, "1"),
        Result("pictures_rendered_from_svg", quality.drawn_pictures, "1"),
        Result("text_queries", found.queries, "1"),
        Result("image_queries", quality.image_queries, "1"),
    ]


def main() -> None:
    """Entry point of `python -m benchmarks.quality`."""
    started_at = datetime.now(UTC)
    settings = load_settings()
    quality = measure(settings, settings.model)
    Console().print(table(quality))
    # Nothing is random in this run; the seed is that of the head's first network.
    print(write("quality", results(quality), 0, quality.data_sha256, started_at))


if __name__ == "__main__":
    main()
