"""API keys: made, listed, revoked. All of it needs the scope `admin`."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, Field

from contract.keys import ApiKey, Scope
from serving.access.keys import make_key, revoked
from serving.events import now_ms
from serving.parts import InParts, problems
from serving.requests import read_json
from serving.schemas import Body

router = APIRouter(prefix="/v1/keys", tags=["keys"])


class KeyRequest(Body):
    """A key to be made."""

    owner: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}$",
        description="Who uploads with it, and whose private images it sees.",
        examples=["ada"],
    )
    scopes: list[Scope] = Field(
        min_length=1, max_length=3, description="`admin` may do everything.", examples=[["read", "write"]]
    )


class KeyBody(BaseModel):
    """A key, without what would let anybody use it."""

    key_id: str = Field(examples=["5f0c9a31be72"])
    owner: str
    scopes: list[Scope]
    created_at_ms: int
    revoked_at_ms: int | None = Field(description="When it ended, in Unix milliseconds; null while it is good.")


class NewKey(KeyBody):
    """A key that was just made."""

    key: str = Field(description="The key itself; shown this once and kept nowhere.")


class KeyList(BaseModel):
    """All keys, the oldest first."""

    keys: list[KeyBody]


@router.post(
    "",
    summary="Make a key",
    status_code=201,
    responses=problems(),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/KeyRequest"}}},
        }
    },
)
async def post_key(request: Request, response: Response, parts: InParts) -> NewKey:
    """Make a key. The answer has it this once; only its digest is kept. Other replicas know it within a second."""
    wanted = await read_json(request, KeyRequest)
    record, key = make_key(wanted.owner, tuple(wanted.scopes), now_ms())
    await asyncio.to_thread(parts.dependencies.keys.put, record)
    await parts.keys.refresh()
    return NewKey(**_described(record).model_dump(), key=key)


@router.get("", summary="List all keys", responses=problems())
async def list_keys(parts: InParts) -> KeyList:
    """Every key, revoked ones too, with its owner and scopes."""
    known = await parts.keys.refresh()
    return KeyList(keys=[_described(key) for key in sorted(known.values(), key=lambda key: key.created_at_ms)])


@router.delete("/{key_id}", summary="Revoke a key", responses=problems(404))
async def delete_key(
    parts: InParts, key_id: Annotated[str, Path(description="Id of the key.", examples=["5f0c9a31be72"])]
) -> KeyBody:
    """Revoke a key: here at once, in other replicas within a second while the broker answers. Idempotent."""
    record = revoked(await parts.keys.refresh(), key_id, now_ms())
    await asyncio.to_thread(parts.dependencies.keys.put, record)
    await parts.keys.refresh()
    return _described(record)


def _described(key: ApiKey) -> KeyBody:
    return KeyBody(
        key_id=key.key_id,
        owner=key.owner,
        scopes=list(key.scopes),
        created_at_ms=key.created_at_ms,
        revoked_at_ms=key.revoked_at_ms,
    )
