"""What a search and a new collection may say, as typed keywords and as the fields of a request's body."""

from __future__ import annotations

import binascii
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

from msgspec import Struct

from contract.events import Duplicates, Quantization, Receipt, VectorType
from serving.client.answers import Changed, Uploaded


class Crop(Struct, frozen=True):
    """A rectangle of a picture, in fractions of its width and height."""

    x: float
    y: float
    width: float
    height: float


class Example(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Something that hits shall be like, or unlike: an indexed image or a region of it, or words."""

    image_id: str | None = None
    text: str | None = None
    crop: Crop | None = None
    weight: float = 1.0


Logged: TypeAlias = Receipt | Uploaded | Changed
"""A receipt, or an answer that has one."""


class SearchOptions(TypedDict, total=False):
    """What a search may say beside `text` and a picture; docs/api.md has the meaning of each field.

    None leaves a field out. `extra` is for fields of the API that this version has no name for.
    """

    image_id: str | None
    vector: Iterable[float] | None
    fingerprint: str | None
    positive: Sequence[str | Example]
    negative: Sequence[str | Example]
    text_weight: float
    image_weight: float
    image_id_weight: float
    vector_weight: float
    positive_weight: float
    negative_weight: float
    crop: Crop | Sequence[float] | None
    limit: int
    offset: int
    score_threshold: float | None
    exact: bool
    ef_search: int | None
    min_receipt: Logged | Sequence[Logged] | None
    with_payload: bool
    filter: Mapping[str, Any] | None
    hybrid: bool | Mapping[str, Any] | None
    rerank: bool | Mapping[str, Any] | None
    extra: Mapping[str, Any]


class SearchQuery(SearchOptions, total=False):
    """One search of many in one request."""

    text: str | None


class LetterMatch(TypedDict, total=False):
    """Which letters; what is left out is any. Times are Unix milliseconds, `until_ms` not included."""

    code: str | None
    stage: str | None
    retryable: bool | None
    image_id: str | None
    since_ms: int | None
    until_ms: int | None


class CollectionParameters(TypedDict, total=False):
    """Parameters of a new collection; what is left out comes from the server's settings."""

    shards: int
    replicas: int
    partitions: int
    model: str
    m: int
    ef_construction: int
    ef_search: int
    quantization: Quantization
    vector_type: VectorType
    filter_fields: Sequence[str]
    duplicates: Duplicates


def body_of(search: SearchQuery | SearchOptions | Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a search as they stand in the body of its request.

    Raises TypeError for a wrong crop, and for a vector that is not one row of numbers.
    """
    fields: dict[str, Any] = dict(search)
    fields.update(fields.pop("extra", {}))
    crop = fields.get("crop")
    if crop is not None and not isinstance(crop, Crop):
        fields["crop"] = Crop(*crop)
    if fields.get("vector") is not None:
        fields["vector"] = _packed(fields["vector"])
    logged = fields.get("min_receipt")
    if isinstance(logged, Receipt | Uploaded | Changed):
        fields["min_receipt"] = _receipt(logged)
    elif logged is not None:
        # Of one partition the last says all.
        last: dict[int, Receipt] = {}
        for receipt in filter(None, map(_receipt, logged)):
            if receipt.partition not in last or receipt.offset > last[receipt.partition].offset:
                last[receipt.partition] = receipt
        fields["min_receipt"] = list(last.values())
    return {name: value for name, value in fields.items() if value is not None}


def _receipt(logged: Logged) -> Receipt | None:
    return logged if isinstance(logged, Receipt) else logged.receipt


def _packed(vector: Iterable[float]) -> str:
    """Base64 of little-endian float32: a quarter of the bytes that a list of numbers takes."""
    if isinstance(vector, str | bytes):
        # The one is characters, and the other would be taken for numbers from 0 to 255.
        raise TypeError("a vector is numbers: a list, an array")
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return binascii.b2a_base64(numbers, newline=False).decode()
