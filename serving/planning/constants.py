"""What was measured of this code: each constant with the result it comes from.

`constants.json` is written by `python -m benchmarks.capacity.constants` from benchmarks/results/; nobody edits it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

FILE: Final = Path(__file__).parent / "constants.json"


class Constant(Struct, frozen=True):
    """One measured number. `results` are names in `file`, `commit` the one it was measured at, `how` the derivation."""

    value: float
    unit: str
    file: str
    results: tuple[str, ...]
    commit: str
    hardware: str
    how: str = ""

    @property
    def source(self) -> str:
        """Where it comes from, in a few words."""
        names = self.results[0] if len(self.results) == 1 else f"{self.results[0]} … ({len(self.results)} results)"
        return f"{self.file}: {names} @ {self.commit[:8]}"


class Constants(Struct, frozen=True):
    """All of them by name, and the spread of service times: quantiles of time ÷ mean time, by share."""

    measured: Mapping[str, Constant]
    spread: tuple[tuple[float, float], ...]

    def __getitem__(self, name: str) -> float:
        return self.measured[name].value


@cache
def load_constants() -> Constants:
    """The constants of this release."""
    return msgspec.json.decode(FILE.read_bytes(), type=Constants)
