"""The real decoding processes, shared by the tests of one run: they start once."""

from __future__ import annotations

from functools import cache

from actors.decoding.pool import DecodingPool
from contract.settings import Settings


class SharedDecoder(DecodingPool):
    """Outlives the app that is built with it; its processes end with the test run, whose end closes their sockets."""

    def close(self) -> None:
        """Nothing: others use it."""


@cache
def _with_limits(max_bytes: int, max_pixels: int, min_side: int) -> DecodingPool:
    limits = {"max_image_bytes": max_bytes, "max_image_pixels": max_pixels, "min_image_side": min_side}
    return SharedDecoder(Settings().model_copy(update=limits))


def shared_decoder(settings: Settings | None = None) -> DecodingPool:
    """Decoding processes with the limits of the settings."""
    wanted = settings or Settings()
    return _with_limits(wanted.max_image_bytes, wanted.max_image_pixels, wanted.min_image_side)
