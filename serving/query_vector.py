"""A query vector that the caller computed: read from a request in one step, whatever its length.

Two forms: a list of numbers, and base64 of little-endian float32, which is a quarter of the bytes to send
and half the time to read.
"""

from __future__ import annotations

import binascii
import math
from typing import Annotated, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import PlainValidator, WithJsonSchema

from actors.messages import FloatMatrix

_BYTES_PER_NUMBER = 4
# Outside of these, squares may have left what float64 can hold.
_SQUARE_MIN = 1e-250
_SQUARE_MAX = 1e250
_FORMS = "takes a list of numbers, or base64 of little-endian float32"


def decode_vector(value: Any) -> FloatMatrix:
    """The vector, (d,) float32 of length 1, in the direction that `value` has.

    Raises ValueError for what is neither form, and for a vector without a direction: empty, zero, not finite.
    """
    return _unit(_numbers_of(value))


def _numbers_of(value: Any) -> npt.NDArray[Any]:
    if isinstance(value, str):
        try:
            data = binascii.a2b_base64(value, strict_mode=True)
        # Characters outside of ASCII are a plain ValueError.
        except ValueError as error:
            raise ValueError(f"{_FORMS}; this text is no base64: {error}") from error
        if len(data) % _BYTES_PER_NUMBER:
            raise ValueError(f"{_FORMS}; {len(data)} bytes are no whole number of float32")
        return np.frombuffer(data, "<f4")
    # numpy would take texts and booleans for numbers, and a list of lists for a matrix.
    if not isinstance(value, list) or not set(map(type, value)) <= {int, float}:
        raise ValueError(_FORMS)
    try:
        return np.array(value, np.float64)
    except OverflowError as error:
        raise ValueError("holds a number that is not finite") from error


def _unit(numbers: npt.NDArray[Any]) -> FloatMatrix:
    # What overflows or is not finite shows in the square.
    with np.errstate(over="ignore", invalid="ignore"):
        wide = numbers.astype(np.float64)
        square = float(np.dot(wide, wide))
    if not _SQUARE_MIN < square < _SQUARE_MAX:
        wide = _scaled(numbers)
        square = float(np.dot(wide, wide))
    wide *= 1 / math.sqrt(square)
    return wide.astype(np.float32)


def _scaled(numbers: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The same direction with 1 as the largest number; raises ValueError where there is none."""
    if not numbers.size:
        raise ValueError("holds no numbers")
    if not np.isfinite(numbers).all():
        raise ValueError("holds a number that is not finite")
    wide = numbers.astype(np.float64)
    largest = np.abs(wide).max()
    if largest == 0:
        raise ValueError("is zero, which has no direction")
    return np.asarray(wide / largest)


QueryVector: TypeAlias = Annotated[
    FloatMatrix,
    PlainValidator(decode_vector),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "number"}, "minItems": 1},
                {"type": "string", "contentEncoding": "base64", "description": "Little-endian float32."},
            ]
        }
    ),
]
"""A field of a request that holds a query vector; (d,) float32 of length 1 once it is read."""
