"""Where a plan leaves what this release can do, or what it was measured at, and what would have to change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

from msgspec import Struct

from serving.planning.ledger import Ledger
from serving.planning.quantities import show
from serving.planning.shape import Shape
from serving.planning.workload import Workload

POINTS_MEASURED: Final = 100_000
SHARDS_MEASURED: Final = 64
"""Up to so many points were the service times measured, and up to so many shards the caller's."""
TAIL_MIN: Final = 5
"""Fewer searches beyond a percentile do not tell it."""

_KNOWN_BYTES_MAX = 8e9
_PARTITIONS_IN_AN_ANSWER_MAX = 1_000
_BYTES_A_PARTITION = 14


class Limit(Struct, frozen=True):
    """`kind`: `not built` (this release cannot do it), `not measured` (extrapolated), or `beware`."""

    kind: Literal["not built", "not measured", "beware"]
    what: str
    way_out: str


def limits_of(made: Shape, workload: Workload, ledger: Ledger, answered: int) -> tuple[Limit, ...]:
    """What a reader must know before trusting the plan; the gravest first. `answered` searches were simulated."""
    figures = {one.name: one.value for one in ledger.figures}
    return (
        *_not_built(made),
        *_grown_too_large(made, figures),
        *_not_measured(made, figures, answered),
        Limit(
            "beware",
            f"ef_search {workload.ef_search} is taken as given; what recall it gives depends on the pictures",
            "Take the one at which the column recall@10 of riverlens status is what you want, on a shard of this size.",
        ),
    )


def _not_built(made: Shape) -> Iterator[Limit]:
    if made.cells > 1:
        yield Limit(
            "not built",
            f"{made.cells:,} cells, since {made.cells * made.shards:,} shards are more than one fan-out carries",
            "Each cell is a deployment of its own: a log, shards, an API. A router that asks cells and merges is to be "
            "written; an image id decides its cell as it decides its partition today.",
        )
    if made.cells_asked < made.cells:
        yield Limit(
            "not built",
            f"a query asks {made.cells_asked:,} of {made.cells:,} cells",
            "Images must be placed by what they show (a coarse quantizer over vectors), and queries routed by it; what "
            "recall that costs is unknown until it is measured.",
        )


def _grown_too_large(made: Shape, figures: dict[str, float]) -> Iterator[Limit]:
    known = figures["known-bytes"] / made.cells
    if known > _KNOWN_BYTES_MAX:
        yield Limit(
            "beware",
            f"known-bytes has {show(known, 'bytes')} in one partition, and every ingest process holds all of it",
            "Partition the table by the hash of the bytes, and look up at its owner.",
        )
    partitions = figures["partitions per collection"]
    if partitions > _PARTITIONS_IN_AN_ANSWER_MAX:
        yield Limit(
            "beware",
            f"an answer names the offset of each of {partitions:,.0f} partitions: "
            f"{show(partitions * _BYTES_A_PARTITION, 'bytes')} of JSON",
            "Send them only where min_receipt is in use.",
        )


def _not_measured(made: Shape, figures: dict[str, float], answered: int) -> Iterator[Limit]:
    if made.points > POINTS_MEASURED:
        yield Limit(
            "not measured",
            f"a shard of {show(made.points, '1')} points; service times were measured up to {POINTS_MEASURED:,}",
            "The growth per doubling is extrapolated. Measure one shard of this size before buying.",
        )
    if made.shards > SHARDS_MEASURED:
        yield Limit(
            "not measured",
            f"a fan-out to {made.shards} shards; the caller's cost was measured up to {SHARDS_MEASURED}",
            "The cost per call is extrapolated.",
        )
    reads = figures["reads of stored vectors per node"]
    if reads > 0:
        yield Limit(
            "not measured",
            f"stored vectors are read from the disk, {show(reads, '1/s')} on a node",
            "Times were measured with all of them in the page cache. Add the disk's, or --assume rows_cached=1.",
        )
    if made.cells_asked > 1 and (1 - 0.99 ** (1 / made.cells_asked)) * answered < TAIL_MIN:
        yield Limit(
            "not measured",
            f"p99 over {made.cells_asked:,} cells is a lower bound: it lies beyond the tail of {answered:,} searches",
            "Ask fewer cells, or measure.",
        )
