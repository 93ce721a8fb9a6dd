"""A short run of what `make fuzz` does for longer."""

from __future__ import annotations

from tests.fuzz.decoding import RSS_MAX_BYTES, fuzz


async def test_mutated_pictures_neither_kill_nor_hang_nor_grow_a_decoder() -> None:
    report = await fuzz(20_261, seconds=10.0, pictures_max=1500)
    assert report.culprits == []
    assert report.rss_bytes < RSS_MAX_BYTES
    assert report.outcomes["decoded"] > 0
    assert report.outcomes["invalid_image"] > 0
