"""What re-ranking gains and costs: `python -m benchmarks.rerank`."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from benchmarks.result_file import Result, write
from contract.settings import load_settings
from evaluation.reranking import DEPTHS, Reranking, measure


def results(found: Reranking) -> list[Result]:
    """Figures of the result file; recall between 0 and 1."""
    figures = [Result("pictures", found.pictures, "1")]
    for one in found.alterations:
        figures.append(Result(f"recall_at_1_by_embedding: {one.name}", round(one.embedding, 4), "1"))
        for depth, recall in zip(DEPTHS, one.verified, strict=True):
            figures.append(Result(f"recall_at_1_verified_{depth}: {one.name}", round(recall, 4), "1"))
    count = len(found.alterations)
    figures.append(
        Result("recall_at_1_by_embedding", round(sum(one.embedding for one in found.alterations) / count, 4), "1")
    )
    for place, depth in enumerate(DEPTHS):
        mean = sum(one.verified[place] for one in found.alterations) / count
        figures.append(Result(f"recall_at_1_verified_{depth}", round(mean, 4), "1"))
    figures += [
        Result("queries", sum(one.queries for one in found.alterations), "1"),
        Result("right_before_wrong_after", sum(one.wrong for one in found.alterations), "1"),
        Result("other_pictures_compared", found.compared, "1"),
        Result("other_pictures_confirmed", found.confirmed_by_chance, "1"),
        Result("most_inliers_with_another_picture", found.largest_chance_inliers, "1"),
    ]
    figures += [Result(f"duplicates_found: {name}", round(s, 4), "1") for name, s in found.duplicates_found.items()]
    figures.append(Result("other_pictures_collapsed", found.collapsed, "1"))
    figures += [Result(f"{name}_ms", round(value, 3), "ms") for name, value in found.ms.items()]
    return figures


def table(found: Reranking) -> Table:
    """Recall@1 per alteration."""
    result = Table(title=f"recall@1 of the original among {found.pictures} pictures", title_justify="left")
    result.add_column("copy")
    for heading in ("by embedding", *(f"best {depth} verified" for depth in DEPTHS)):
        result.add_column(heading, justify="right")
    for one in found.alterations:
        result.add_row(one.name, f"{one.embedding:.1%}", *(f"{recall:.1%}" for recall in one.verified))
    return result


def main() -> None:
    """Entry point of `python -m benchmarks.rerank`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=40, help="pictures that copies are made of")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started_at = datetime.now(UTC)
    found = measure(load_settings(), arguments.queries, arguments.seed)
    console = Console()
    console.print(table(found))
    for result in results(found):
        console.print(f"{result.name}: {result.value:g} {result.unit if result.unit != '1' else ''}")
    print(write("rerank", results(found), arguments.seed, found.data_sha256, started_at))


if __name__ == "__main__":
    main()
