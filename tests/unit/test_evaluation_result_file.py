"""The result file has the agreed form."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.quality import results
from benchmarks.result_file import Result, write
from evaluation.quality import Quality, table
from evaluation.retrieval import Retrieval


def test_a_result_file_says_what_when_where_and_with_which_data(tmp_path: Path) -> None:
    started = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    path = write("demo", [Result("recall", 0.5, "1")], 7, "abc", started, folder=tmp_path / "results")
    content = json.loads(path.read_text())
    assert path.name == "demo.json"
    assert set(content) == {"commit", "hardware", "seed", "data_sha256", "started_at", "results"}
    assert content["results"] == [{"name": "recall", "value": 0.5, "unit": "1"}]
    assert (content["seed"], content["data_sha256"]) == (7, "abc")
    assert content["started_at"] == "2030-01-02T03:04:05+00:00"
    assert "cores" in content["hardware"]


def test_quality_results_bear_the_names_of_the_targets() -> None:
    found = Retrieval(queries=3, pictures=4, recall_at_1=0.25, recall_at_5=0.5, recall_at_10=0.75, mrr=0.4)
    quality = Quality("offline", "f" * 16, found, 0.6, 4, 0, 2.0, 300.0, "abc")
    values = {result.name: result.value for result in results(quality)}
    assert values["text_to_image_recall_at_1"] == 0.25
    assert values["text_to_image_recall_at_5"] == 0.5
    assert values["text_to_image_recall_at_10"] == 0.75
    assert values["image_to_image_precision_at_10"] == 0.6
    assert "raster stamps only" in str(table(quality).caption)
