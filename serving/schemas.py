"""Bodies of requests and answers, as they stand in the OpenAPI description."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from contract.events import Duplicates, Quantization, VectorType
from serving.confidence import ConfidenceBody
from serving.coverage import CoverageBody, FreshnessBody
from serving.fusion import HybridSwitch
from serving.lag import LagBody
from serving.query_vector import QueryVector
from serving.rerank.request import RerankSwitch

ImageId = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@~+=-]{0,199}$",
        description="Id of an image: 1 to 200 of A-Z, a-z, 0-9 and . _ : @ ~ + = -, starting with a letter or digit.",
        examples=["red-bird"],
    ),
]
Weight = Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]


class Body(BaseModel):
    """A body that refuses fields it does not know, so that a typing error never passes unseen."""

    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """RFC 9457 problem document; every error has this shape."""

    type: str = Field(examples=["urn:riverlens:problem:not_found"])
    title: str = Field(examples=["Not found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["there is no collection 'pictures'"])
    code: str = Field(description="Stable; listed in docs/errors.md.", examples=["not_found"])
    retryable: bool = Field(description="Whether the same call may succeed later without a change.")
    request_id: str


class ReceiptBody(Body):
    """Where an event stands in `image-events`; it has taken effect once `applied_offset >= offset`."""

    partition: int = Field(ge=0, examples=[2])
    offset: int = Field(ge=0, examples=[1041])


class UploadReference(Body):
    """Upload by reference: the bytes are behind a URL, or already in the object store."""

    id: ImageId | None = None
    object_key: str | None = Field(None, description="Key in the object store.", examples=["incoming/bird.png"])
    url: str | None = Field(
        None, description="http or https, without credentials, in the public internet.", max_length=2048
    )
    payload: dict[str, Any] = Field({}, examples=[{"caption": "a red bird"}])


class UploadAnswer(BaseModel):
    """What became of an upload."""

    id: str = Field(examples=["red-bird"])
    sha256: str = Field(description="SHA-256 of the bytes, hexadecimal.")
    status: Literal["logged", "searchable", "duplicate"] = Field(
        description="How far the upload is known to be. `duplicate`: searchable, and another image has the same bytes."
    )
    receipt: ReceiptBody
    duplicate_of: str | None = Field(None, description="The image that had the same bytes first; with `duplicate`.")
    lag: LagBody | None = Field(None, description="Events before this one that are not searchable yet; with `logged`.")


class ChangeAnswer(BaseModel):
    """What became of a delete or of a change of the payload."""

    id: str
    status: Literal["logged", "applied"] = Field(description="`applied`: every search sees it.")
    receipt: ReceiptBody


class PayloadBody(Body):
    """The new payload; it replaces the old one as a whole."""

    payload: dict[str, Any] = Field(examples=[{"caption": "a red bird on a branch"}])


class Rejection(BaseModel):
    """Why an upload led to no point."""

    code: str = Field(examples=["invalid_image"])
    reason: str = Field(examples=["the picture cannot be decoded"])
    offset: int = Field(description="Offset of the rejected event in its partition of `image-events`.")


class ImageAnswer(BaseModel):
    """What is known of one image."""

    id: str
    state: Literal["logged", "searchable", "duplicate", "rejected"] = Field(
        description="`logged`: its shard has not caught up within the wait, so the image is not known yet. "
        "`duplicate`: searchable, and another image has the same bytes."
    )
    partition: int
    source_offset: int | None = Field(description="Offset in `image-events` of the last event that took effect.")
    payload: dict[str, Any] | None = None
    sha256: str | None = None
    content_type: str | None = None
    file_name: str | None = None
    width: int | None = None
    height: int | None = None
    duplicate_of: str | None = Field(None, description="The image that had the same bytes first; with `duplicate`.")
    rejection: Rejection | None = Field(None, description="The last rejected upload under this id, if there was one.")


class Crop(Body):
    """A rectangle of the query picture, in fractions of its width and height."""

    x: float = Field(ge=0, lt=1, examples=[0.25])
    y: float = Field(ge=0, lt=1, examples=[0.0])
    width: float = Field(gt=0, le=1, examples=[0.5])
    height: float = Field(gt=0, le=1, examples=[1.0])


class Example(Body):
    """Something that hits shall be like, or unlike: an indexed image or a region of it, or words."""

    image_id: str | None = Field(None, min_length=1, max_length=255, examples=["red-bird"])
    text: str | None = Field(None, min_length=1, max_length=2000, examples=["people"])
    crop: Crop | None = Field(None, description="A region of the picture of `image_id`.")
    weight: float = Field(1.0, gt=0, le=10, allow_inf_nan=False, description="Against the other examples of its list.")

    @model_validator(mode="after")
    def _is_one_thing(self) -> Example:
        if (self.image_id is None) == (self.text is None):
            raise ValueError("an example is either an `image_id` or a `text`")
        if self.crop is not None and self.image_id is None:
            raise ValueError("`crop` needs an `image_id`")
        return self


ExampleOrId = Annotated[str, Field(min_length=1, max_length=255)] | Example


class SearchRequest(Body):
    """A search: any of `text`, `image` (a multipart file), `image_id`, `vector`, `positive`, `negative`."""

    text: str | None = Field(None, min_length=1, max_length=2000, examples=["a red bird"])
    image_id: str | None = Field(None, min_length=1, max_length=255, description="An indexed image as the query.")
    vector: QueryVector | None = Field(
        None, description="A query vector of your own, of the collection's dimension; its length does not count."
    )
    fingerprint: str | None = Field(
        None, max_length=200, description="Of the encoder that is meant; refused if it is not the collection's."
    )
    positive: list[ExampleOrId] = Field(
        [], max_length=32, description="Examples, or ids of images, that hits shall be like."
    )
    negative: list[ExampleOrId] = Field(
        [], max_length=32, description="Examples, or ids of images, that hits shall be unlike."
    )
    text_weight: Weight = Field(1.0, description="A combined query scores the weighted mean of its parts' scores.")
    image_weight: Weight = 1.0
    image_id_weight: Weight = 1.0
    vector_weight: Weight = 1.0
    positive_weight: float = Field(1.0, gt=0, le=10, allow_inf_nan=False, description="Of the mean of `positive`.")
    negative_weight: float = Field(
        0.5, gt=0, le=10, allow_inf_nan=False, description="Of the mean of `negative`, which counts against a hit."
    )
    crop: Crop | None = Field(None, description="Applies to `image`, else to the picture of `image_id`.")
    limit: int = Field(10, ge=1, description="Most hits.")
    offset: int = Field(0, ge=0, description="Hits to skip.")
    score_threshold: float | None = Field(None, allow_inf_nan=False, description="Lowest score of a hit.")
    exact: bool = Field(False, description="Scan every point instead of walking the graph.")
    ef_search: int | None = Field(
        None, ge=1, description="Candidates of the graph's walk; more find more and take longer.", examples=[128]
    )
    min_receipt: ReceiptBody | Annotated[list[ReceiptBody], Field(max_length=1024)] | None = Field(
        None, description="Wait, bounded, until this event, or every event of a list, is searchable."
    )
    with_payload: bool = Field(True, description="Whether hits carry their payload.")
    filter: dict[str, Any] | None = Field(
        None,
        description="Only images whose payload satisfies it; docs/api.md has the grammar.",
        examples=[{"must": [{"key": "tags", "match": {"any": ["bird", "tree"]}}]}],
    )
    hybrid: HybridSwitch = Field(
        None, description="Search by vector and by words, and fuse the two rankings; `true` by reciprocal rank."
    )
    rerank: RerankSwitch = Field(
        None, description="Stages of re-ranking; `true` collapses near-duplicates. docs/reranking.md explains each."
    )

    def receipts(self) -> list[ReceiptBody]:
        """`min_receipt` as a list."""
        if isinstance(self.min_receipt, ReceiptBody):
            return [self.min_receipt]
        return self.min_receipt or []


class GroupBody(BaseModel):
    """The near-duplicates, or the images with equal bytes, that a hit stands for."""

    count: int = Field(description="How many images, with the one that stands for them.", examples=[3])
    ids: list[str] = Field(
        description="Of the others, at most 20: best first, and of equal bytes in the order they came.",
        examples=[["bird-2", "bird-small"]],
    )


class Hit(BaseModel):
    """One result."""

    id: str = Field(examples=["red-bird"])
    score: float = Field(
        description="Cosine in -1…1; of a combined query, the weighted mean; with `hybrid`, the fused score.",
        examples=[0.31],
    )
    payload: dict[str, Any] | None = Field(examples=[{"caption": "a red bird"}])
    rerank_score: float | None = Field(None, description="0…1; with `rerank`, hits stand by it unless diversified.")
    group: GroupBody | None = Field(
        None, description="With `rerank.dedupe`, or in a collection with `duplicates: alias`: what this hit stands for."
    )
    inliers: int | None = Field(
        None, description="With `rerank.verify`: matches with the query picture that one homography explains."
    )


class TookBody(BaseModel):
    """Where the time went, in milliseconds."""

    encode: float
    fan_out: float
    merge: float
    rerank: float
    total: float
    rerank_stages: dict[str, float] | None = Field(
        None,
        description="With `rerank`: `policy`, `fetch`, `dedupe`, `verify`, `fuse`, `diversify`, as far as they ran.",
        examples=[{"policy": 0.01, "fetch": 2.1, "dedupe": 0.6, "fuse": 0.05}],
    )


class RerankBody(BaseModel):
    """What re-ranking did."""

    candidates: int = Field(description="Hits that were re-ranked.", examples=[100])
    collapsed: int = Field(description="Near-duplicates that another hit stands for.", examples=[4])
    verified: int = Field(description="Hits that geometry confirmed.", examples=[0])
    without_vector: int = Field(description="Hits whose vector could not be had in time.", examples=[0])
    without_picture: int = Field(description="Hits whose picture was wanted and could not be had.", examples=[0])


class SearchAnswer(BaseModel):
    """Hits, best first, and what they cover."""

    hits: list[Hit]
    no_confident_match: bool = Field(
        description="No hits, or the first is probably wrong; `confidence` says which. docs/confidence.md explains it."
    )
    confidence: ConfidenceBody
    coverage: CoverageBody
    freshness: FreshnessBody
    took_ms: TookBody
    model: str = Field(examples=["offline"])
    request_id: str
    rerank: RerankBody | None = Field(None, description="With `rerank` only.")


class BatchAnswer(BaseModel):
    """One answer, or one problem, per search, in their order; what has `hits` is an answer."""

    answers: list[SearchAnswer | Problem]
    request_id: str = Field(description="Of the whole request; each answer has its own, for clicks.")


class Click(Body):
    """What a person chose among the hits of a search."""

    request_id: str = Field(min_length=1, max_length=64, description="`request_id` of the search answer.")
    image_id: str = Field(min_length=1, max_length=255)
    rank: int = Field(ge=0, description="Place among the hits, from 0.")


class ClickAnswer(BaseModel):
    """The click is durably written."""

    status: Literal["logged"]


class CollectionRequest(Body):
    """Parameters of a new collection; what is left out comes from the settings."""

    shards: int | None = Field(None, ge=1, le=256, examples=[4])
    replicas: int | None = Field(None, ge=1, le=16, examples=[1])
    partitions: int | None = Field(None, ge=1, le=1024, description="Fixed for the life of the collection.")
    model: str | None = Field(None, min_length=1, max_length=500, examples=["offline"])
    m: int | None = Field(None, ge=4, le=128, description="Links per point of the HNSW graph.", examples=[16])
    ef_construction: int | None = Field(None, ge=8, le=2000, examples=[100])
    ef_search: int | None = Field(None, ge=1, le=2000, examples=[64])
    quantization: Quantization | None = Field(
        None, description="How vectors stand in memory; hits are re-scored from the stored vectors."
    )
    vector_type: VectorType | None = Field(
        None, description="How vectors are stored. Fixed for the life of the collection."
    )
    filter_fields: tuple[str, ...] | None = Field(
        None, max_length=256, strict=False, description="Payload fields that filters may name; all if left out."
    )
    duplicates: Duplicates | None = Field(
        None, description="Images with equal bytes in searches: `keep`, each is a hit; `alias`, one is, with a `group`."
    )


class CollectionAnswer(BaseModel):
    """Parameters of a collection and whether it can be searched."""

    name: str = Field(examples=["images"])
    state: Literal["creating", "ready"] = Field(description="`creating`: its encoder is still starting.")
    model: str
    fingerprint: str
    dimension: int
    partitions: int
    shards_total: int
    replicas: int
    m: int
    ef_construction: int
    ef_search: int
    quantization: Quantization
    vector_type: VectorType
    filter_fields: tuple[str, ...] | None
    duplicates: Duplicates
    incarnation: str = Field(description="Differs between two collections that bore this name one after the other.")
    created_at_ms: int


class ShardBody(BaseModel):
    """State and position of one shard replica."""

    shard: int
    replica: int
    state: Literal["recovering", "ready", "failed", "unavailable"]
    error: str | None
    pid: int | None
    points: int
    deleted: int
    growing: int
    applied_offsets: dict[str, int]
    log_offsets: dict[str, int]
    high_watermarks: dict[str, int]
    consumer_lag: int | None = Field(description="Events in `image-events` that are not applied.")
    staleness_s: float | None
    store_bytes: int
    snapshot_at_ms: int | None = Field(description="When the newest local snapshot was taken, in Unix milliseconds.")
    snapshot_bytes: int | None
    dead: int = Field(description="Deleted or replaced points that wait in the graph for its rebuild.")
    quantization: str | None = Field(description="Of the graph in memory; null while there is none.")
    recall_at_10: float | None = Field(description="Mean over recent sampled searches; null before the first.")
    recall_samples: int
    lexical_points: int | None = Field(
        description="Points whose caption, tags or file name can be searched by words; null while their index is built."
    )


class EmbedderBody(BaseModel):
    """One embedder actor."""

    model: str
    role: Literal["ingest", "query"]
    index: int
    state: Literal["ready", "unavailable"]
    error: str | None
    device: str | None
    pid: int | None
    images_encoded: int | None
    texts_encoded: int | None


class CollectionStatistics(CollectionAnswer):
    """A collection with its counts, shards and embedders."""

    points: int = Field(description="Searchable images.")
    deleted: int = Field(description="Deleted images whose tombstones are kept.")
    lag: LagBody
    shards: list[ShardBody]
    embedders: list[EmbedderBody]


class CollectionList(BaseModel):
    """All collections, by name."""

    collections: list[CollectionAnswer]


class DroppedAnswer(BaseModel):
    """The collection is gone."""

    name: str
    state: Literal["dropped"]
