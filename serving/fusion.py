"""One ranking out of two: what a search finds by its vector, and what it finds by its words. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from actors.duplicates import joined, picture_of
from actors.messages import Candidate
from serving.rerank.fuse import normalised

# Source: G. V. Cormack, C. L. A. Clarke, S. Büttcher, Reciprocal Rank Fusion outperforms Condorcet and
# individual Rank Learning Methods, SIGIR 2009.
RRF_K = 60
# Each half of a hybrid search is at least this long: what is far down in one may be high in the other.
DEPTH = 100


class Hybrid(BaseModel):
    """How the hits by vector and the hits by words become one ranking."""

    model_config = ConfigDict(extra="forbid")

    fusion: Literal["rrf", "weighted"] = Field(
        "rrf", description="`rrf`: by the ranks in both rankings; `weighted`: by the scores, each from 0 to 1."
    )
    lexical_weight: float = Field(
        0.5, ge=0, le=1, description="Share of the ranking by words; the rest is that of the ranking by vector."
    )


def _widened(value: Any) -> Any:
    """`true` asks for the defaults, `false` for nothing."""
    return {} if value is True else None if value is False else value


HybridSwitch: TypeAlias = Annotated[
    Hybrid | None, BeforeValidator(_widened, json_schema_input_type=bool | Hybrid | None)
]


def fuse(by_vector: Sequence[Candidate], by_words: Sequence[Candidate], how: Hybrid) -> list[Candidate]:
    """All candidates of two rankings by their fused score, best first; equal scores stand in order of the id.

    With weights v = 1 - `lexical_weight` and w = `lexical_weight`, the fused score is

    * `rrf`: v / (60 + rank by vector) + w / (60 + rank by words), ranks from 1;
    * `weighted`: v · cosine + w · BM25, each scaled to 0 (the worst of its ranking) … 1 (the best).

    A ranking that does not have a candidate adds 0; one with a weight of 0 adds no candidate. Images with equal bytes
    that stand as one in a ranking are one candidate, whichever of them stands in which.

    Args:
        by_vector: best first, a picture at most once.
        by_words: best first, a picture at most once.
        how: method and weight.
    """
    fused: dict[bytes | str, Candidate] = {}
    for ranking, weight in ((by_vector, 1 - how.lexical_weight), (by_words, how.lexical_weight)):
        if weight == 0:
            continue
        if how.fusion == "rrf":
            shares = [weight / (RRF_K + rank) for rank in range(1, len(ranking) + 1)]
        else:
            shares = [weight * float(scaled) for scaled in normalised([one.score for one in ranking])]
        for one, share in zip(ranking, shares, strict=True):
            known = fused.get(picture_of(one))
            if known is None:
                fused[picture_of(one)] = msgspec.structs.replace(one, score=share)
            else:
                both = one if one.group is None else joined((known, one))
                fused[picture_of(one)] = msgspec.structs.replace(both, score=known.score + share)
    return sorted(fused.values(), key=lambda candidate: (-candidate.score, candidate.image_id))
