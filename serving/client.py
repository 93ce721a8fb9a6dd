"""A typed, synchronous client of the HTTP API; the command line stands on it alone."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx
from msgspec import Struct

from contract.events import Receipt

JsonObject = dict[str, Any]


class ApiError(Exception):
    """A problem the server answered with. `retryable` says whether the same call may succeed later."""

    def __init__(self, status: int, code: str, detail: str, *, retryable: bool) -> None:
        super().__init__(f"{code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.retryable = retryable


class ServerUnreachable(Exception):
    """Nobody answers at the address."""


class Uploaded(Struct, frozen=True):
    """Answer to an upload."""

    id: str
    sha256: str
    status: str
    receipt: Receipt


class RiverlensClient:
    """Calls one server. Retryable problems and lost connections are retried `attempts` times in all."""

    def __init__(self, base_url: str, timeout_s: float = 90.0, attempts: int = 5, first_pause_s: float = 0.2) -> None:
        self.base_url = base_url.rstrip("/")
        self._http = httpx.Client(base_url=self.base_url, timeout=timeout_s)
        self._attempts = attempts
        self._first_pause_s = first_pause_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def call(self, method: str, path: str, *, attempts: int | None = None, **arguments: Any) -> httpx.Response:
        """Send a request; raises ApiError, or ServerUnreachable. Only safe-to-repeat calls come here."""
        tries = attempts or self._attempts
        for attempt in range(1, tries + 1):
            try:
                response = self._http.request(method, path, **arguments)
            except httpx.TransportError as error:
                if attempt == tries:
                    raise ServerUnreachable(f"{self.base_url} does not answer ({type(error).__name__})") from error
            else:
                if response.is_success:
                    return response
                problem = _problem(response)
                if not problem.retryable or attempt == tries:
                    raise problem
            time.sleep(self._first_pause_s * 2 ** (attempt - 1))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def ready(self) -> str | None:
        """None when every part is ready, else what is missing."""
        try:
            self.call("GET", "/readyz", attempts=1)
        except ApiError as error:
            return error.detail
        except ServerUnreachable:
            return "the HTTP server does not answer yet"
        return None

    def collections(self) -> list[JsonObject]:
        """Every live collection."""
        return list(self.call("GET", "/v1/collections").json()["collections"])

    def collection(self, name: str) -> JsonObject:
        """Statistics of one collection."""
        return dict(self.call("GET", f"/v1/collections/{quote(name)}").json())

    def upload(
        self, collection: str, file: Path, image_id: str, payload: Mapping[str, Any], wait: str = "logged"
    ) -> Uploaded:
        """Upload a file under an id. Repeating it is harmless: the same id is replaced by the same bytes."""
        with file.open("rb") as stream:
            data = stream.read()
        response = self.call(
            "POST",
            f"/v1/collections/{quote(collection)}/images",
            params={"wait": wait},
            files={"file": (file.name, data)},
            data={"id": image_id, "payload": json.dumps(payload)},
        )
        body = response.json()
        return Uploaded(body["id"], body["sha256"], body["status"], Receipt(**body["receipt"]))

    def image(self, collection: str, image_id: str) -> JsonObject:
        """Payload and state of one image."""
        return dict(self.call("GET", _image_path(collection, image_id)).json())

    def delete(self, collection: str, image_id: str) -> JsonObject:
        """Delete an image and wait until no search returns it."""
        return dict(self.call("DELETE", _image_path(collection, image_id), params={"wait": "searchable"}).json())

    def search(
        self,
        collection: str,
        *,
        text: str | None = None,
        image: Path | None = None,
        image_id: str | None = None,
        crop: Sequence[float] | None = None,
        limit: int = 10,
        payload_filter: Mapping[str, Any] | None = None,
    ) -> JsonObject:
        """Search by words, a picture file, an image id, or a mix. `crop` is x, y, width, height in 0…1.

        `payload_filter` is as `filter` in docs/api.md.
        """
        fields: dict[str, Any] = {"limit": limit}
        if text is not None:
            fields["text"] = text
        if image_id is not None:
            fields["image_id"] = image_id
        if crop is not None:
            fields["crop"] = dict(zip(("x", "y", "width", "height"), crop, strict=True))
        if payload_filter is not None:
            fields["filter"] = payload_filter
        path = f"/v1/collections/{quote(collection)}/search"
        if image is None:
            return dict(self.call("POST", path, json=fields).json())
        in_json = ("crop", "filter")
        form = {key: json.dumps(value) if key in in_json else str(value) for key, value in fields.items()}
        return dict(self.call("POST", path, files={"image": (image.name, image.read_bytes())}, data=form).json())


def _image_path(collection: str, image_id: str) -> str:
    return f"/v1/collections/{quote(collection)}/images/{quote(image_id, safe='')}"


def _problem(response: httpx.Response) -> ApiError:
    try:
        body = response.json()
        return ApiError(response.status_code, body["code"], body["detail"], retryable=body["retryable"])
    except (ValueError, KeyError, TypeError):
        return ApiError(
            response.status_code,
            "unexpected_answer",
            f"{response.request.url} answered {response.status_code} without a problem document",
            retryable=response.status_code in (502, 503, 504),
        )
