"""Dead letters: list, show, redrive, drop."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request

from serving.catalog import ServedCollection
from serving.dead_letter_bodies import (
    LetterAnswer,
    LetterList,
    LetterMatch,
    SettleAnswer,
    SettledBody,
    SettleRequest,
    letter_answer,
    letter_body,
    parse_places,
    settle_answer,
    settled_body,
)
from serving.dead_letters import Batch, parse_letter_id, settle_matching
from serving.parts import InCollection, InParts, Parts, problems
from serving.problems import request_id_of
from serving.requests import read_json

router = APIRouter(prefix="/v1/collections/{collection}/dead-letters", tags=["dead letters"])

_PAGE_LETTERS = 50
InLetterId = Annotated[str, Path(description="PARTITION-OFFSET of the event.", max_length=40, examples=["2-1041"])]
_SETTLE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/SettleRequest"}}},
    }
}


@router.get("", summary="List dead letters, newest first", responses=problems(404))
async def list_letters(
    collection: InCollection,
    parts: InParts,
    limit: Annotated[int | None, Query(ge=1, description="Most letters of the page.")] = None,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.", max_length=100)] = None,
    state: Annotated[Literal["waiting", "redriven", "dropped", "any"], Query()] = "waiting",
    code: Annotated[str | None, Query(max_length=100)] = None,
    stage: Annotated[str | None, Query(max_length=100)] = None,
    retryable: Annotated[bool | None, Query()] = None,
    image_id: Annotated[str | None, Query(max_length=255)] = None,
    since_ms: Annotated[int | None, Query(ge=0, le=2**62, description="Unix milliseconds.")] = None,
    until_ms: Annotated[int | None, Query(ge=0, le=2**62, description="Unix milliseconds, not included.")] = None,
) -> LetterList:
    """Events that led to nothing, with their reason. A page costs a look-up, however many letters there are."""
    match = LetterMatch(
        code=code or None,
        stage=stage or None,
        retryable=retryable,
        image_id=image_id or None,
        since_ms=since_ms,
        until_ms=until_ms,
    )
    most = min(limit or _PAGE_LETTERS, parts.dependencies.settings.list_limit_max)
    before = parse_places(cursor, 1)[0] if cursor else None
    wanted = match.filter(None if state == "any" else state)
    rows, following, unread = await parts.letters.page(collection, wanted, before, most)
    return LetterList(
        dead_letters=[letter_body(row) for row in rows],
        next_cursor=None if following is None else str(following),
        unread=unread,
    )


@router.post(
    "/redrive",
    summary="Send the events of dead letters again",
    status_code=202,
    responses=problems(404),
    openapi_extra=_SETTLE_BODY,
)
async def redrive_letters(collection: InCollection, request: Request, parts: InParts) -> SettleAnswer:
    """Letters by their ids, or all that match and wait, a bounded number at a time.

    The very bytes of an event go to `image-events` again. One whose image has a newer event is refused.
    """
    return await _settle(collection, request, parts, "redriven")


@router.post("/drop", summary="Drop dead letters", responses=problems(404), openapi_extra=_SETTLE_BODY)
async def drop_letters(collection: InCollection, request: Request, parts: InParts) -> SettleAnswer:
    """Mark letters as done with, by their ids or all that match and wait; they are listed with `state=dropped`."""
    return await _settle(collection, request, parts, "dropped")


@router.get("/{letter_id}", summary="A dead letter and its event", responses=problems(404))
async def show_letter(collection: InCollection, letter_id: InLetterId, parts: InParts) -> LetterAnswer:
    """The reason, and the event as it was read."""
    return letter_answer(*await parts.letters.show(collection, parse_letter_id(letter_id)))


@router.post("/{letter_id}/redrive", summary="Send one event again", status_code=202, responses=problems(404, 409, 504))
async def redrive_letter(
    collection: InCollection, letter_id: InLetterId, request: Request, parts: InParts
) -> SettledBody:
    """Send the very bytes of the event again; its new receipt comes back. Sent before, it has that receipt."""
    (one,) = await parts.letters.redrive(collection, [parse_letter_id(letter_id)], request_id_of(request))
    if one.error is not None:
        raise one.error
    return settled_body(one, "redriven", request_id_of(request))


@router.delete("/{letter_id}", summary="Drop a dead letter", responses=problems(404))
async def drop_letter(collection: InCollection, letter_id: InLetterId, request: Request, parts: InParts) -> SettledBody:
    """Mark one letter as done with."""
    (one,) = await parts.letters.drop(collection, [parse_letter_id(letter_id)], request_id_of(request))
    if one.error is not None:
        raise one.error
    return settled_body(one, "dropped", request_id_of(request))


async def _settle(
    collection: ServedCollection, request: Request, parts: Parts, how: Literal["redriven", "dropped"]
) -> SettleAnswer:
    body = await read_json(request, SettleRequest)
    request_id = request_id_of(request)
    if body.match is not None:
        places = parse_places(body.cursor, 2) if body.cursor else None
        cursor = None if places is None else (places[0], places[1])
        batch = await settle_matching(parts.letters, collection, body.match.filter("waiting"), cursor, how, request_id)
        return settle_answer(batch, how, request_id)
    ids = [parse_letter_id(one) for one in dict.fromkeys(body.ids or [])]
    act = parts.letters.redrive if how == "redriven" else parts.letters.drop
    return settle_answer(Batch(tuple(await act(collection, ids, request_id))), how, request_id)
