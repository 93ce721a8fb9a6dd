"""Image ids in a few bytes each: one blob and where each of them ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ends = npt.NDArray[np.uint64]


class PackedIds:
    """Image ids by place, immutable. A Python list of strings costs about four times as much."""

    def __init__(self, blob: bytes = b"", ends: Ends | None = None) -> None:
        self.blob = blob
        self.ends: Ends = np.empty(0, dtype=np.uint64) if ends is None else ends

    def __len__(self) -> int:
        return len(self.ends)

    def of(self, places: Sequence[int]) -> list[str]:
        """The ids at these places."""
        # A memory view gives Python's integers, several times faster than an array gives its own.
        blob, ends = self.blob, self.ends.data
        return [blob[ends[place - 1] if place else 0 : ends[place]].decode() for place in places]

    def extended(self, image_ids: Sequence[str]) -> PackedIds:
        """These and more after them."""
        encoded = [image_id.encode() for image_id in image_ids]
        lengths = np.fromiter((len(data) for data in encoded), dtype=np.uint64, count=len(encoded))
        ends = np.cumsum(lengths, dtype=np.uint64) + np.uint64(len(self.blob))
        return PackedIds(self.blob + b"".join(encoded), np.concatenate([self.ends, ends]))
