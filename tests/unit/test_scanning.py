"""A scan of one shard ends where it says."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from actors.messages import PointState, ShardScan
from actors.scanning import PASSED_MAX, scan
from contract.filters import decode_filter

EVEN = decode_filter({"must": [{"key": "even", "match": {"value": True}}]})


class Points:
    """Points with the ids 000000, 000001 and so on."""

    def __init__(self, count: int) -> None:
        self.all = [
            PointState(
                image_id=f"{n:06}",
                state="searchable",
                source_offset=n,
                payload=msgspec.json.encode({"even": n % 2 == 0}),
            )
            for n in range(count)
        ]
        self.read = 0

    def __call__(self, after: str | None, limit: int) -> list[PointState]:
        some = [point for point in self.all if after is None or point.image_id > after][:limit]
        self.read += len(some)
        return some


@given(count=st.integers(0, 30), limit=st.integers(1, 12), filtered=st.booleans())
def test_pages_put_together_are_all_points_once(count: int, limit: int, filtered: bool) -> None:
    points, after, seen = Points(count), None, []
    while True:
        result = scan(points, ShardScan(after, limit, EVEN if filtered else None))
        assert len(result.points) <= limit
        seen += [point.image_id for point in result.points]
        after = result.scanned_to
        if after is None:
            break
    assert seen == [p.image_id for n, p in enumerate(points.all) if n % 2 == 0 or not filtered]


def test_a_filter_that_lets_nothing_through_costs_a_bounded_piece_of_work() -> None:
    points = Points(PASSED_MAX + 10)
    nothing = decode_filter({"must": [{"key": "even", "match": {"value": "no"}}]})
    result = scan(points, ShardScan(None, 10, nothing))
    assert (result.points, result.scanned_to) == ((), f"{PASSED_MAX - 1:06}")
    assert points.read == PASSED_MAX
    assert scan(points, ShardScan(result.scanned_to, 10, nothing)).scanned_to is None


def test_payloads_can_be_left_out_though_the_filter_reads_them() -> None:
    result = scan(Points(4), ShardScan(None, 10, EVEN, with_payload=False))
    assert [(p.image_id, p.payload) for p in result.points] == [("000000", None), ("000002", None)]
