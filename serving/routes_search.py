"""Search and clicks."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from serving.admission import search_bytes
from serving.batch import BatchRequest, encode_batch, search_all
from serving.catalog import ServedCollection
from serving.events import log_click
from serving.parts import InCollection, InParts, Parts, problems
from serving.problems import request_id_of
from serving.requests import crop_field, json_field, list_or_text_field, read_body, read_json, validate
from serving.schemas import Click, ClickAnswer, SearchAnswer, SearchRequest
from serving.search import describe_search, encode_answer

router = APIRouter(prefix="/v1/collections/{collection}", tags=["search"])

_SEARCH_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/SearchRequest"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {"type": "string", "format": "binary", "description": "The query picture."},
                        "text": {"type": "string"},
                        "image_id": {"type": "string"},
                        "vector": {"type": "string", "description": "base64 of little-endian float32, or JSON"},
                        "fingerprint": {"type": "string"},
                        "positive": {"type": "array", "items": {"type": "string", "description": "id, or JSON"}},
                        "negative": {"type": "array", "items": {"type": "string", "description": "id, or JSON"}},
                        "text_weight": {"type": "number"},
                        "image_weight": {"type": "number"},
                        "image_id_weight": {"type": "number"},
                        "vector_weight": {"type": "number"},
                        "positive_weight": {"type": "number"},
                        "negative_weight": {"type": "number"},
                        "crop": {"type": "string", "description": "x,y,width,height as fractions, or JSON"},
                        "limit": {"type": "integer"},
                        "offset": {"type": "integer"},
                        "score_threshold": {"type": "number"},
                        "exact": {"type": "boolean"},
                        "ef_search": {"type": "integer"},
                        "min_receipt": {"type": "string", "description": "JSON: {partition, offset}, or a list"},
                        "with_payload": {"type": "boolean"},
                        "filter": {"type": "string", "description": "JSON: {must, should, must_not}"},
                        "hybrid": {"type": "string", "description": "JSON: true, or {fusion, lexical_weight}"},
                        "rerank": {"type": "string", "description": "JSON: true, or the stages"},
                    },
                }
            },
        },
    }
}
_JSON_FIELDS = {
    "crop": crop_field,
    "vector": list_or_text_field,
    "filter": json_field,
    "min_receipt": json_field,
    "hybrid": json_field,
    "rerank": json_field,
}
_ANSWER: dict[int | str, dict[str, Any]] = {200: {"description": "Hits, best first.", "model": SearchAnswer}}


@router.post(
    "/search",
    summary="Search by words, picture, image id, vector, or examples",
    response_class=Response,
    responses={**problems(404, 409, 413, 415, 422, 504), **_ANSWER},
    openapi_extra=_SEARCH_BODY,
)
async def post_search(collection: InCollection, request: Request, parts: InParts) -> Response:
    """Search; parts of the query are combined by their weights."""
    settings = parts.dependencies.settings
    with parts.search_bodies.admit(search_bytes(request, settings)):
        form = await read_body(
            request,
            file_field="image",
            json_fields=_JSON_FIELDS,
            list_fields=("positive", "negative"),
            max_file_bytes=settings.max_image_bytes,
        )
        image = form.file.data if form.file is not None else None
        search = validate(SearchRequest, form.fields, strict=form.is_json)
        return await _answer(collection, search, image, request, parts)


@router.get(
    "/search",
    summary="Search by words or image id, from a browser or curl",
    response_class=Response,
    responses={**problems(404, 409, 504), **_ANSWER},
)
async def get_search(
    collection: InCollection,
    request: Request,
    parts: InParts,
    text: Annotated[str | None, Query(examples=["a red bird"])] = None,
    image_id: Annotated[str | None, Query(description="An indexed image as the query.")] = None,
    limit: Annotated[int, Query(ge=1)] = 10,
    offset: Annotated[int, Query(ge=0)] = 0,
    score_threshold: float | None = None,
    exact: bool = False,
    ef_search: Annotated[int | None, Query(ge=1)] = None,
    positive: Annotated[list[str] | None, Query(description="Ids of images that hits shall be like.")] = None,
    negative: Annotated[list[str] | None, Query(description="Ids of images that hits shall be unlike.")] = None,
    with_payload: bool = True,
    filter_json: Annotated[str | None, Query(alias="filter", description="JSON: {must, should, must_not}")] = None,
    hybrid_json: Annotated[
        str | None, Query(alias="hybrid", description="JSON: true, or {fusion, lexical_weight}")
    ] = None,
    rerank_json: Annotated[str | None, Query(alias="rerank", description="JSON: true, or the stages")] = None,
) -> Response:
    """The same search as with POST."""
    fields = {
        "text": text or None,
        "image_id": image_id,
        "limit": limit,
        "offset": offset,
        "score_threshold": score_threshold,
        "exact": exact,
        "ef_search": ef_search,
        "positive": positive or [],
        "negative": negative or [],
        "with_payload": with_payload,
        "filter": json_field(filter_json) if filter_json else None,
        "hybrid": json_field(hybrid_json) if hybrid_json else None,
        "rerank": json_field(rerank_json) if rerank_json else None,
    }
    return await _answer(collection, validate(SearchRequest, fields), None, request, parts)


@router.post(
    "/search/batch",
    summary="Many searches in one request",
    response_class=Response,
    responses={
        **problems(404, 409),
        200: {
            "description": "One answer, or one problem, per search, in their order.",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/BatchAnswer"}}},
        },
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["searches"],
                        "properties": {
                            "searches": {
                                "type": "array",
                                "minItems": 1,
                                # What is no search is answered with a problem of its own.
                                "items": {
                                    "anyOf": [{"$ref": "#/components/schemas/SearchRequest"}, {"type": "object"}]
                                },
                            }
                        },
                    }
                }
            },
        }
    },
)
async def post_batch(collection: InCollection, request: Request, parts: InParts) -> Response:
    """Search for each; what is wrong with one search leaves the others alone."""
    settings = parts.dependencies.settings
    with parts.search_bodies.admit(search_bytes(request, settings)):
        batch = await read_json(request, BatchRequest)
        answer = await search_all(settings, parts.searcher, collection, batch, request_id_of(request))
    return Response(encode_batch(answer), media_type="application/json")


@router.post(
    "/clicks",
    summary="Say which hit a person chose",
    status_code=202,
    responses=problems(404),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Click"}}},
        }
    },
)
async def post_click(collection: InCollection, request: Request, parts: InParts) -> ClickAnswer:
    """Log the choice; it feeds the click-through rate and training."""
    await log_click(parts.dependencies.events, collection, await read_json(request, Click))
    return ClickAnswer(status="logged")


async def _answer(
    collection: ServedCollection, search: SearchRequest, image: bytes | None, request: Request, parts: Parts
) -> Response:
    answer = await parts.searcher.search(collection, search, image, request_id_of(request))
    describe_search(search, image, answer)
    return Response(encode_answer(answer), media_type="application/json")
