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
        {"name": "text_to_image_recall_at_1", "value": round(found.recall_at_1, 4), "unit": "1"},
        {"name": "text_to_image_recall_at_5", "value": round(found.recall_at_5, 4), "unit": "1"},
        {"name": "text_to_image_recall_at_10", "value": round(found.recall_at_10, 4), "unit": "1"},
        {"name": "text_to_image_mrr", "value": round(found.mrr, 4), "unit": "1"},
        {"name": "image_to_image_precision_at_10", "value": round(quality.image_to_image, 4), "unit": "1"},
        {"name": "pictures", "value": found.pictures, "unit": "count"},
        {"name": "pictures_rendered_from_svg", "value": quality.drawn_pictures, "unit": "count"},
        {"name": "text_queries", "value": found.queries, "unit": "count"},
        {"name": "image_queries", "value": quality.image_queries, "unit": "count"},
        {"name": "images_encoded_per_s", "value": round(quality.images_per_s, 2), "unit": "images/s"},
        {"name": "texts_encoded_per_s", "value": round(quality.texts_per_s, 1), "unit": "texts/s"},
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
