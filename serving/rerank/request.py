"""What a search may ask of re-ranking, as it stands in the OpenAPI description."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from contract.filters import MAX_KEY_LENGTH

SignalWeight = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
PayloadField = Annotated[str, Field(min_length=1, max_length=MAX_KEY_LENGTH)]


class Stage(BaseModel):
    """Parameters of one stage; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid")


class Dedupe(Stage):
    """Collapse near-duplicates.

    Two hits are near-duplicates if the cosine of their embeddings reaches `same_cosine`, or if it
    reaches `similar_cosine` and the perceptual hashes of the pictures differ in at most `hash_bits`.
    """

    same_cosine: float = Field(0.99, ge=-1, le=1, description="From here on the embeddings alone decide.")
    similar_cosine: float = Field(0.8, ge=-1, le=1, description="From here on the pictures are compared, too.")
    hash_bits: int = Field(8, ge=0, le=64, description="Bits of 64 in which the pictures' hashes may differ.")


class Recency(Stage):
    """Newer is better: the signal is 1 now and halves every `half_life_s`; 0 without a time."""

    field: PayloadField = Field(description="Payload field with an RFC 3339 date-time or Unix seconds.")
    half_life_s: float = Field(gt=0, allow_inf_nan=False, examples=[604800])
    weight: SignalWeight = 0.2


class Popularity(Stage):
    """More chosen is better: the signal is log(1 + n) over the largest among the candidates; 0 without a number."""

    field: PayloadField = Field("clicks", description="Payload field with a number, such as clicks or sales.")
    weight: SignalWeight = 0.2


class Diversify(Stage):
    """Maximal marginal relevance: each hit is chosen for its relevance and against likeness to those before it."""

    # `lambda` is a word of Python's own.
    lambda_: float = Field(
        0.7, ge=0, le=1, alias="lambda", description="1: relevance alone. 0: difference alone.", examples=[0.7]
    )


class Verify(Stage):
    """Geometric verification: hits that show the same object as the query picture come first."""

    candidates: int = Field(20, ge=1, le=100, description="How many of the best are compared with the query picture.")
    min_inliers: int = Field(10, ge=4, le=1000, description="Matches one homography must explain.")


def _widened(value: object) -> object:
    """`true` asks for the defaults, `false` for nothing."""
    if value is True:
        return {}
    return None if value is False else value


# Each may also be `true` or `false`.
DedupeSwitch: TypeAlias = Annotated[Dedupe | None, BeforeValidator(_widened, json_schema_input_type=bool | Dedupe)]
DiversifySwitch: TypeAlias = Annotated[
    Diversify | None, BeforeValidator(_widened, json_schema_input_type=bool | Diversify | None)
]
VerifySwitch: TypeAlias = Annotated[
    Verify | None, BeforeValidator(_widened, json_schema_input_type=bool | Verify | None)
]


class RerankRequest(Stage):
    """Stages of re-ranking, in the order in which they run. `true` collapses near-duplicates and does no more."""

    candidates: int | None = Field(None, ge=1, description="Hits to re-rank; the settings say how many otherwise.")
    dedupe: DedupeSwitch = Field(default_factory=Dedupe)
    verify: VerifySwitch = Field(None, description="Needs a query picture: `image` or `image_id`.")
    recency: Recency | None = None
    popularity: Popularity | None = None
    diversify: DiversifySwitch = None


RerankSwitch: TypeAlias = Annotated[
    RerankRequest | None, BeforeValidator(_widened, json_schema_input_type=bool | RerankRequest | None)
]
