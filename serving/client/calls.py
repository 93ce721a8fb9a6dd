"""The calls of the HTTP API as data: what to send, whether it may be sent again, how to read the answer.

Nothing here does I/O; both clients send the same calls.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from serving.client.answers import (
    Answer,
    Changed,
    Collection,
    CollectionStatistics,
    Content,
    DeadLetter,
    DeadLetterPage,
    Dropped,
    Image,
    ImagePage,
    SearchAnswer,
    SettledLetters,
    Uploaded,
)
from serving.client.errors import ApiError, UnexpectedAnswer, problem_of
from serving.client.options import CollectionParameters, SearchOptions, SearchQuery, body_of

Result = TypeVar("Result")
Read = TypeVar("Read", bound=Answer)

Picture: TypeAlias = bytes | str | os.PathLike[str]
"""The bytes of a picture, or the path of a file."""
Wait: TypeAlias = Literal["logged", "searchable"]
ByteProgress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes sent so far and all bytes of the request; from 0 again when it is sent again."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[Result]):
    """One call.

    `repeatable`: sending it twice has the effect of sending it once. `when_gone` makes the answer
    of a call that is sent again after its answer was lost, and then finds nothing there any more.
    """

    method: str
    path: str
    read: Callable[[Reply], Result]
    params: Mapping[str, str] | None = None
    content: bytes = b""
    content_type: str | None = None
    progress: ByteProgress | None = None
    repeatable: bool = True
    when_gone: Callable[[], Result] | None = None


@dataclass(frozen=True, slots=True)
class PictureFile:
    """Bytes of a picture and the name of its file, if it has one."""

    data: bytes
    name: str | None


def read_picture(picture: Picture) -> PictureFile:
    """The bytes of a picture; blocks while it reads a file. Raises OSError."""
    if isinstance(picture, bytes):
        return PictureFile(picture, None)
    path = Path(picture)
    return PictureFile(path.read_bytes(), path.name)


def new_id() -> str:
    """A new image id. Made here and not by the server, so that an upload sent twice stays one image."""
    return uuid.uuid4().hex


def upload(
    collection: str,
    picture: PictureFile,
    image_id: str,
    payload: Mapping[str, Any],
    wait: Wait,
    file_name: str | None = None,
    progress: ByteProgress | None = None,
) -> Call[Uploaded]:
    """Upload bytes. Repeatable: the same bytes come under the same id."""
    # A part without a file name would be read as text.
    name = file_name or picture.name or image_id
    content, content_type = _form({"id": image_id, "payload": dict(payload)}, ("file", name, picture.data))
    return Call(
        method="POST",
        path=f"{_collection(collection)}/images",
        read=_answer(Uploaded),
        params={"wait": wait},
        content=content,
        content_type=content_type,
        progress=progress,
    )


def upload_object(
    collection: str, object_key: str, image_id: str, payload: Mapping[str, Any], wait: Wait
) -> Call[Uploaded]:
    """Upload what lies in the object store already."""
    body = {"id": image_id, "object_key": object_key, "payload": payload}
    return _json("POST", f"{_collection(collection)}/images", body, _answer(Uploaded), {"wait": wait})


def upload_url(collection: str, url: str, image_id: str, payload: Mapping[str, Any], wait: Wait) -> Call[Uploaded]:
    """Upload what the server fetches from a URL."""
    body = {"id": image_id, "url": url, "payload": payload}
    return _json("POST", f"{_collection(collection)}/images", body, _answer(Uploaded), {"wait": wait})


def image(collection: str, image_id: str) -> Call[Image]:
    """Look an image up."""
    return Call(method="GET", path=_image(collection, image_id), read=_answer(Image))


def image_page(
    collection: str,
    limit: int | None,
    cursor: str | None,
    condition: Mapping[str, Any] | None,
    *,
    with_payload: bool,
) -> Call[ImagePage]:
    """One page of the listing of all images; `condition` is the `filter`."""
    params = {"with_payload": str(with_payload).lower()}
    if limit is not None:
        params["limit"] = str(limit)
    if cursor is not None:
        params["cursor"] = cursor
    if condition is not None:
        params["filter"] = msgspec.json.encode(condition).decode()
    return Call(method="GET", path=f"{_collection(collection)}/images", read=_answer(ImagePage), params=params)


def update_payload(collection: str, image_id: str, payload: Mapping[str, Any], wait: Wait) -> Call[Changed]:
    """Replace the payload as a whole."""
    return _json("PATCH", _image(collection, image_id), {"payload": payload}, _answer(Changed), {"wait": wait})


def delete(collection: str, image_id: str, wait: Wait) -> Call[Changed]:
    """Delete an image."""
    return Call(
        method="DELETE",
        path=_image(collection, image_id),
        read=_answer(Changed),
        params={"wait": wait},
        when_gone=lambda: Changed(id=image_id, status="applied", receipt=None),
    )


def content(collection: str, image_id: str, size: int | None) -> Call[Content]:
    """The bytes of a picture or a thumbnail."""

    def read(reply: Reply) -> Content:
        kind = reply.headers.get("content-type", "application/octet-stream")
        return Content(data=reply.content, content_type=kind, etag=reply.headers.get("etag"))

    params = None if size is None else {"size": str(size)}
    return Call(method="GET", path=f"{_image(collection, image_id)}/content", read=read, params=params)


def search(
    collection: str, text: str | None, picture: PictureFile | None, options: SearchOptions
) -> Call[SearchAnswer]:
    """Search; a body of JSON, or a form when there is a picture."""
    given = body_of({"text": text, **options})
    path = f"{_collection(collection)}/search"
    if picture is None:
        return _json("POST", path, given, _answer(SearchAnswer))
    body, content_type = _form(given, ("image", picture.name or "image", picture.data))
    return Call(method="POST", path=path, read=_answer(SearchAnswer), content=body, content_type=content_type)


def search_many(collection: str, searches: Sequence[SearchQuery]) -> Call[tuple[SearchAnswer | ApiError, ...]]:
    """Many searches in one request; each is answered by hits or by a problem of its own."""

    def read(reply: Reply) -> tuple[SearchAnswer | ApiError, ...]:
        answers = _fields(reply).get("answers")
        if not isinstance(answers, list) or len(answers) != len(searches):
            raise UnexpectedAnswer(f"the answer is none to {len(searches)} searches", status=reply.status)
        return tuple(
            problem_of(one) if isinstance(one, dict) and "code" in one else _convert(one, SearchAnswer, reply)
            for one in answers
        )

    body = {"searches": [body_of(search) for search in searches]}
    return _json("POST", f"{_collection(collection)}/search/batch", body, read)


def click(collection: str, request_id: str, image_id: str, rank: int) -> Call[None]:
    """Log which hit a person chose. Not repeatable: the server would count it twice."""
    body = {"request_id": request_id, "image_id": image_id, "rank": rank}
    return _json("POST", f"{_collection(collection)}/clicks", body, lambda _: None, repeatable=False)


def collections() -> Call[tuple[Collection, ...]]:
    """All collections."""

    def read(reply: Reply) -> tuple[Collection, ...]:
        found = _fields(reply).get("collections")
        return tuple(_convert(one, Collection, reply) for one in (found if isinstance(found, list) else [None]))

    return Call(method="GET", path="/v1/collections", read=read)


def collection(name: str) -> Call[CollectionStatistics]:
    """Statistics of a collection."""
    return Call(method="GET", path=_collection(name), read=_answer(CollectionStatistics))


def create_collection(name: str, parameters: CollectionParameters) -> Call[Collection]:
    """Make a collection, or find it made with these parameters."""
    given = {key: value for key, value in parameters.items() if value is not None}
    return _json("PUT", _collection(name), given, _answer(Collection))


def drop_collection(name: str) -> Call[Dropped]:
    """Drop a collection."""
    return Call(method="DELETE", path=_collection(name), read=_answer(Dropped), when_gone=lambda: Dropped(name=name))


def dead_letter_page(
    collection: str,
    state: Literal["waiting", "redriven", "dropped", "any"],
    limit: int | None,
    cursor: str | None,
    match: Mapping[str, Any],
) -> Call[DeadLetterPage]:
    """One page of the list."""
    given = {"state": state, "limit": limit, "cursor": cursor, **match}
    params = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in given.items()
        if value is not None
    }
    return Call(method="GET", path=_letters(collection), read=_answer(DeadLetterPage), params=params)


def dead_letter(collection: str, letter_id: str) -> Call[DeadLetter]:
    """One letter with its event."""
    return Call(method="GET", path=f"{_letters(collection)}/{quote(letter_id, safe='')}", read=_answer(DeadLetter))


def settle_dead_letters(
    collection: str,
    how: Literal["redrive", "drop"],
    ids: Sequence[str] | None,
    cursor: str | None,
    match: Mapping[str, Any],
) -> Call[SettledLetters]:
    """Redrive or drop letters. Repeatable: a letter that is settled already is answered as it was."""
    body: dict[str, Any] = {"ids": list(ids)} if ids is not None else {"match": dict(match), "cursor": cursor}
    return _json("POST", f"{_letters(collection)}/{how}", body, _answer(SettledLetters))


def readiness() -> Call[None]:
    """Ask whether every part is ready; if not, the answer is a problem."""
    return Call(method="GET", path="/readyz", read=lambda _: None)


def _collection(name: str) -> str:
    return f"/v1/collections/{quote(name, safe='')}"


def _letters(collection: str) -> str:
    return f"{_collection(collection)}/dead-letters"


def _image(collection: str, image_id: str) -> str:
    return f"{_collection(collection)}/images/{quote(image_id, safe='')}"


def _json(
    method: str,
    path: str,
    body: Mapping[str, Any],
    read: Callable[[Reply], Result],
    params: Mapping[str, str] | None = None,
    *,
    repeatable: bool = True,
) -> Call[Result]:
    return Call(
        method=method,
        path=path,
        read=read,
        params=params,
        content=msgspec.json.encode(body),
        content_type="application/json",
        repeatable=repeatable,
    )


def _form(fields: Mapping[str, Any], file: tuple[str, str, bytes]) -> tuple[bytes, str]:
    """A multipart body and its content type. Text stands as it is, everything else as JSON."""
    data = {
        name: value if isinstance(value, str) else msgspec.json.encode(value).decode() for name, value in fields.items()
    }
    field, name, content = file
    form = httpx.Request("POST", "http://form", data=data, files={field: (name, content)})
    return form.read(), form.headers["content-type"]


def _fields(reply: Reply) -> dict[str, Any]:
    try:
        return msgspec.json.decode(reply.content, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnexpectedAnswer(f"the answer is no JSON object: {error}", status=reply.status) from error


def _convert(fields: Any, kind: type[Read], reply: Reply) -> Read:
    try:
        answer = msgspec.convert(fields, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise UnexpectedAnswer(f"the answer is no {kind.__name__}: {error}", status=reply.status) from error
    return msgspec.structs.replace(answer, raw=fields)


def _answer(kind: type[Read]) -> Callable[[Reply], Read]:
    return lambda reply: _convert(_fields(reply), kind, reply)
