"""Read the bodies the API takes by hand: bounded while they are read, JSON or multipart."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.types import Message

from contract.errors import BodyTooLarge, ImageTooLarge, InvalidRequest

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# What a multipart body may hold beside the picture: boundaries, headers, other fields.
FORM_SLACK_BYTES = 1024 * 1024
JSON_BYTES_MAX = 1024 * 1024
_FORM_FIELDS_MAX = 100

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """A file of a multipart body."""

    data: bytes
    file_name: str | None


@dataclass(frozen=True, slots=True)
class Form:
    """A body as fields and at most one file."""

    fields: dict[str, Any]
    file: UploadedFile | None
    is_json: bool = False


def request_id_from(header: str | None) -> str:
    """The caller's `X-Request-ID` if it is harmless, else a new one."""
    return header if header is not None and _REQUEST_ID.fullmatch(header) else uuid.uuid4().hex


def validate(model: type[Model], fields: object, *, strict: bool = False) -> Model:
    """`fields` as a model; raises RequestValidationError, which is answered with a 400.

    `strict` takes values as JSON has them, where a form holds text: no "1" and no `true` for a number.
    """
    try:
        return model.model_validate(fields, strict=strict or None)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_input=False)) from error


async def read_body(
    request: Request,
    *,
    file_field: str,
    json_fields: Mapping[str, Callable[[str], Any]],
    list_fields: tuple[str, ...] = (),
    max_file_bytes: int,
) -> Form:
    """The body's fields and its file.

    In a multipart body, `json_fields` are parsed from text, `list_fields` may be repeated or be
    JSON, and an empty field counts as left out, because that is what browsers send.

    Raises:
        ImageTooLarge: more bytes than allowed; noticed while reading, not after.
        BodyTooLarge: a JSON body with more bytes than are read.
        InvalidRequest: not a JSON object, or not a form that can be parsed.
        HTTPException: 415 for another content type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("application/json", ""):
        return Form(await _read_json(request), None, is_json=True)
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise HTTPException(415, f"content type {kind!r} is neither application/json nor multipart/form-data")
    bounded = _bounded(request, max_file_bytes + FORM_SLACK_BYTES)
    try:
        form = await bounded.form(max_files=1, max_fields=_FORM_FIELDS_MAX)
    except (HTTPException, MultiPartException) as error:
        reason = error.detail if isinstance(error, HTTPException) else error.message
        raise InvalidRequest(f"the form cannot be parsed: {reason}") from error
    fields: dict[str, Any] = {}
    file: UploadedFile | None = None
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != file_field:
                    raise InvalidRequest(f"the file belongs into the field {file_field!r}, not {name!r}")
                file = await _read_file(value, max_file_bytes)
            elif name == file_field:
                if value:
                    raise InvalidRequest(f"the field {file_field!r} takes a file, not text")
            elif value:
                _add_field(fields, name, value, json_fields, list_fields)
    finally:
        await form.close()
    return Form(fields, file)


async def read_json(request: Request, model: type[Model]) -> Model:
    """A JSON body as a model. Raises as `validate`, InvalidRequest for no JSON object, BodyTooLarge."""
    return validate(model, await _read_json(request), strict=True)


def json_field(text: str) -> Any:
    """Parse a form field that holds JSON; raises InvalidRequest."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InvalidRequest(f"a form field that takes JSON holds something else: {error}") from error


def crop_field(text: str) -> Any:
    """Parse `x,y,width,height`, or the same as a JSON object; raises InvalidRequest."""
    if text.lstrip().startswith("{"):
        return json_field(text)
    values = text.split(",")
    if len(values) != 4:
        raise InvalidRequest("`crop` takes four numbers: x,y,width,height, as fractions of the picture")
    return dict(zip(("x", "y", "width", "height"), values, strict=True))


def list_or_text_field(text: str) -> Any:
    """Parse a form field that holds a JSON list, or is a plain string; raises InvalidRequest."""
    return json_field(text) if text.lstrip().startswith("[") else text


def _add_field(
    fields: dict[str, Any],
    name: str,
    value: str,
    json_fields: Mapping[str, Callable[[str], Any]],
    list_fields: tuple[str, ...],
) -> None:
    if name in list_fields:
        # What stands in neither bracket is a plain string, as an image id is.
        more = json_field(value) if value.lstrip()[:1] in ("[", "{") else value
        fields.setdefault(name, []).extend(more if isinstance(more, list) else [more])
    elif name in fields:
        raise InvalidRequest(f"the field {name!r} is given twice")
    else:
        fields[name] = json_fields[name](value) if name in json_fields else value


def _bounded(request: Request, limit_bytes: int) -> Request:
    """The same request, whose body ends in ImageTooLarge beyond the limit."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit_bytes:
        raise ImageTooLarge(f"the body has {announced} bytes; at most {limit_bytes} are read")
    seen = 0

    async def receive() -> Message:
        nonlocal seen
        message = await request.receive()
        seen += len(message.get("body", b""))
        if seen > limit_bytes:
            raise ImageTooLarge(f"the body has more than {limit_bytes} bytes")
        return message

    return Request(request.scope, receive)


async def _read_file(file: UploadFile, max_file_bytes: int) -> UploadedFile:
    data = await file.read(max_file_bytes + 1)
    if len(data) > max_file_bytes:
        raise ImageTooLarge(f"the picture has more than {max_file_bytes} bytes")
    return UploadedFile(data, file.filename)


async def _read_json(request: Request) -> dict[str, Any]:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > JSON_BYTES_MAX:
            raise BodyTooLarge(f"the JSON body has more than {JSON_BYTES_MAX} bytes")
    try:
        fields = msgspec.json.decode(bytes(body))
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidRequest("the body must be a JSON object")
    return fields
