"""What an answer covers, as it stands in the OpenAPI description."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, Field

# What an answer lacks: nothing; shards, or the words of a hybrid search; or everything but words.
Degraded: TypeAlias = bool | Literal["metadata"]


class CoverageBody(BaseModel):
    """How much of the collection was searched."""

    shards_total: int = Field(examples=[4])
    shards_answered: int = Field(examples=[4])
    degraded: Degraded = Field(
        description="`true`: a part of it was not searched. `metadata`: searched were only the words in captions, tags "
        "and file names; the scores are BM25.",
        examples=[False],
    )


class FreshnessBody(BaseModel):
    """Up to which event everything is searchable."""

    applied_offsets: dict[str, int] = Field(
        description="Per partition, the offset in `image-events` up to which all is searchable; -1: nothing yet.",
        examples=[{"0": 1041, "1": 998, "2": 1003, "3": 1020}],
    )
    staleness_s: float = Field(description="Age of the oldest event that is not searchable yet.", examples=[0.0])
