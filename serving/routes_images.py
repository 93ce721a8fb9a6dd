"""Images: upload, look up, change, delete, show."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from contract.errors import InvalidRequest
from contract.events import Receipt
from contract.payloads import check_payload
from serving.listing import PAGE_IMAGES, ImageList, encode_page, list_images
from serving.parts import InCollection, InImageId, InParts, Wait, problems
from serving.pictures import THUMBNAIL_SIZES
from serving.problems import request_id_of
from serving.requests import json_field, read_body, read_json, validate
from serving.schemas import ChangeAnswer, ImageAnswer, PayloadBody, UploadAnswer, UploadReference
from serving.upload_admission import most_bytes

router = APIRouter(prefix="/v1/collections/{collection}/images", tags=["images"])

_UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "The picture."},
                        "id": {"type": "string", "description": "Id of the image; made up when left out."},
                        "payload": {
                            "type": "string",
                            "description": "A JSON object.",
                            "examples": ['{"caption": "a red bird"}'],
                        },
                    },
                }
            },
            "application/json": {"schema": {"$ref": "#/components/schemas/UploadReference"}},
        },
    }
}
# Revalidate at every use: the picture under an id may be replaced, and a deleted one must be gone. Nobody on the
# way keeps it: for another caller it may not be there.
_CONTENT_HEADERS = {
    "Cache-Control": "private, no-cache",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}


@router.post(
    "",
    summary="Upload a picture",
    status_code=202,
    responses={
        **problems(404, 413, 415, 422, 504),
        201: {"description": "Searchable (`wait=searchable`).", "model": UploadAnswer},
    },
    openapi_extra=_UPLOAD_BODY,
)
async def upload(
    collection: InCollection, request: Request, response: Response, parts: InParts, wait: Wait = "logged"
) -> UploadAnswer:
    """Store the bytes, log the event, answer with its receipt. An id that exists is replaced."""
    settings = parts.dependencies.settings
    with parts.upload_admission.admit(await parts.state.lag(collection), most_bytes(request, settings)):
        form = await read_body(
            request,
            file_field="file",
            json_fields={"payload": json_field},
            max_file_bytes=settings.max_image_bytes,
        )
        reference = validate(UploadReference, form.fields, strict=form.is_json)
        check_payload(reference.payload)
        answer = await parts.uploader.upload(collection, reference, form.file, wait, request_id_of(request))
    lag = parts.state.logged(collection, Receipt(answer.receipt.partition, answer.receipt.offset))
    if answer.status != "logged":
        response.status_code = 201
        return answer
    return answer.model_copy(update={"lag": lag.body()})


@router.get(
    "",
    summary="List all images, by id",
    response_class=Response,
    responses={**problems(404), 200: {"description": "One page.", "model": ImageList}},
)
async def list_all(
    collection: InCollection,
    parts: InParts,
    limit: Annotated[int | None, Query(ge=1, description="Most images of the page; it may have fewer.")] = None,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.", max_length=2000)] = None,
    filter_json: Annotated[str | None, Query(alias="filter", description="JSON: {must, should, must_not}")] = None,
    with_payload: bool = True,
) -> Response:
    """Searchable images in the order of their ids; one that is there all the while stands on exactly one page."""
    settings = parts.dependencies.settings
    page = await list_images(
        settings,
        collection,
        limit=limit or min(PAGE_IMAGES, settings.list_limit_max),
        cursor=cursor,
        condition=json_field(filter_json) if filter_json else None,
        with_payload=with_payload,
    )
    return Response(encode_page(page), media_type="application/json")


@router.get("/{image_id}", summary="Payload and state of an image", responses=problems(404))
async def get_image(collection: InCollection, image_id: InImageId, parts: InParts) -> ImageAnswer:
    """What is known of an image; a rejected upload is shown with its reason."""
    return await parts.images.describe(collection, image_id)


@router.delete("/{image_id}", summary="Delete an image", status_code=202, responses=problems(404, 504))
async def delete_image(
    collection: InCollection, image_id: InImageId, request: Request, parts: InParts, wait: Wait = "logged"
) -> ChangeAnswer:
    """Delete an image; with `wait=searchable` the answer comes when no search returns it any more."""
    return await parts.images.delete(collection, image_id, wait, request_id_of(request))


@router.patch(
    "/{image_id}",
    summary="Replace the payload of an image",
    status_code=202,
    responses=problems(404, 504),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/PayloadBody"}}},
        }
    },
)
async def patch_image(
    collection: InCollection, image_id: InImageId, request: Request, parts: InParts, wait: Wait = "logged"
) -> ChangeAnswer:
    """Replace the payload as a whole; the picture is not embedded again."""
    body = await read_json(request, PayloadBody)
    check_payload(body.payload)
    return await parts.images.update_payload(collection, image_id, body.payload, wait, request_id_of(request))


@router.get(
    "/{image_id}/content",
    summary="The picture or a thumbnail",
    response_class=Response,
    responses={
        **problems(404, 504),
        200: {"description": "The bytes.", "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}},
        304: {"description": "Not modified since the ETag in `If-None-Match`."},
    },
)
async def get_content(
    collection: InCollection,
    image_id: InImageId,
    request: Request,
    parts: InParts,
    size: Annotated[
        int | None,
        Query(
            description="Longest side of a thumbnail in pixels; else the original.",
            json_schema_extra={"enum": list(THUMBNAIL_SIZES)},
        ),
    ] = None,
) -> Response:
    """The picture as uploaded but without its metadata (a TIFF as WebP), or a WebP thumbnail."""
    if size is not None and size not in THUMBNAIL_SIZES:
        raise InvalidRequest(f"size must be one of {', '.join(map(str, THUMBNAIL_SIZES))}")
    content = await parts.images.content(collection, image_id, size)
    headers = {**_CONTENT_HEADERS, "ETag": f'"{content.etag}"'}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if headers["ETag"] in known:
        return Response(status_code=304, headers=headers)
    return Response(content.data, 200, headers, content.content_type)
