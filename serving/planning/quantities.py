"""Numbers as people write them (`100M`, `100ms`, `30d`), and back."""

from __future__ import annotations

import math
import re
from typing import Final

from contract.errors import InvalidRequest

_COUNTS: Final = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_NUMBER: Final = re.compile(r"\s*(\d[\d_,]*(?:\.\d+)?|\.\d+)\s*([a-zA-Z]*)\s*")


def _parse(text: str, units: dict[str, float], what: str, examples: str) -> float:
    found = _NUMBER.fullmatch(text)
    if found is None or found.group(2).lower() not in units:
        raise InvalidRequest(f"{what} {text!r} cannot be read; write it like {examples}")
    return float(found.group(1).replace("_", "").replace(",", "")) * units[found.group(2).lower()]


def parse_count(text: str) -> float:
    """`1000`, `100M`, `1B`, `1.5k`, `150B`: a number of things; raises InvalidRequest."""
    return _parse(text, dict(_COUNTS), "the number", "1000, 250k, 100M or 1.5B")


def parse_seconds(text: str) -> float:
    """`100ms`, `0.1s`, `30d`: seconds; raises InvalidRequest, as it does without a unit."""
    return _parse(text, dict(_SECONDS), "the duration", "100ms, 0.5s, 12h or 30d")


def parse_bytes(text: str) -> float:
    """`400kB`, `64GiB`, `1000`: bytes; raises InvalidRequest."""
    return _parse(text, dict(_BYTES), "the size", "1000, 400kB, 64GiB or 2TB")


def three_digits(value: float) -> str:
    """A number rounded to three significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{round(value, 2 - math.floor(math.log10(abs(value)))):,.{digits}f}"


def _scaled(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    for size, name in steps:
        if abs(value) >= size:
            return f"{three_digits(value / size)}{name}"
    return three_digits(value) + steps[-1][1]


def show(value: float, unit: str) -> str:
    """A figure for a person. Units: `1` (things), `bytes`, `bytes/s`, `s`, `1/s`, or any other, as it is."""
    if not math.isfinite(value):
        return "∞"
    if unit == "1" and value == round(value) and abs(value) < _WHOLE_MAX:
        return f"{value:,.0f}"
    if unit == "share":
        return f"{three_digits(100 * value)} %"
    if unit in _STEPS:
        steps, suffix = _STEPS[unit]
        return _scaled(value, steps) + suffix
    return f"{three_digits(value)} {unit}"


_THINGS: Final = ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1.0, ""))
_SIZES: Final = ((1e18, " EB"), (1e15, " PB"), (1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1.0, " B"))
_TIMES: Final = ((86400.0, " d"), (3600.0, " h"), (60.0, " min"), (1.0, " s"), (1e-3, " ms"), (1e-6, " µs"))
_STEPS: Final = {
    "1": (_THINGS, ""),
    "bytes": (_SIZES, ""),
    "bytes/s": (_SIZES, "/s"),
    "s": (_TIMES, ""),
    "1/s": (_THINGS, "/s"),
}
_WHOLE_MAX = 1e9
