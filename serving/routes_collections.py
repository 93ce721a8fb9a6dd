"""Collections: create, list, statistics, drop."""

from __future__ import annotations

import asyncio
import uuid

import msgspec
from fastapi import APIRouter, Request, Response

from contract.errors import CollectionExists, InvalidRequest
from contract.events import CollectionSpec
from contract.topics import check_collection_name
from serving.events import now_ms
from serving.parts import InCollection, InParts, Parts, problems
from serving.requests import read_json
from serving.schemas import (
    CollectionAnswer,
    CollectionList,
    CollectionRequest,
    CollectionStatistics,
    DroppedAnswer,
)
from serving.state import collection_answer

router = APIRouter(prefix="/v1/collections", tags=["collections"])


@router.get("", summary="List all collections", responses=problems())
async def list_collections(parts: InParts) -> CollectionList:
    """Names and parameters of all collections."""
    served = await parts.catalog.list()
    return CollectionList(collections=[collection_answer(collection) for collection in served])


@router.put(
    "/{collection}",
    summary="Create a collection",
    status_code=201,
    responses={**problems(409), 200: {"description": "It exists with these parameters.", "model": CollectionAnswer}},
    openapi_extra={
        "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/CollectionRequest"}}}}
    },
)
async def put_collection(collection: str, request: Request, response: Response, parts: InParts) -> CollectionAnswer:
    """Make a collection with its two topics. Idempotent; one of this name with other parameters is a conflict.

    With a model that no collection uses yet the state is `creating` until its encoder runs.
    """
    name = check_collection_name(collection)
    body = await read_json(request, CollectionRequest)
    wanted = _wanted(name, body, parts)
    await parts.catalog.refresh()
    existing = {served.spec.name: served for served in await parts.catalog.list()}
    if name in existing:
        given = sorted(field for field in body.model_fields_set if getattr(body, field) is not None)
        differing = [f for f in given if getattr(existing[name].spec, f) != getattr(wanted, f)]
        if differing:
            raise CollectionExists(f"collection {name!r} exists with other parameters: {', '.join(differing)}")
        response.status_code = 200
        return collection_answer(existing[name])
    if wanted.model in {served.spec.model for served in existing.values()}:
        description = await parts.catalog.embedder(wanted.model).describe()
        wanted = msgspec.structs.replace(wanted, fingerprint=description.fingerprint, dimension=description.dimension)
    await asyncio.to_thread(parts.dependencies.admin.create, wanted)
    await parts.catalog.refresh()
    return collection_answer(await parts.catalog.get(name))


@router.get("/{collection}", summary="Statistics of a collection", responses=problems(404))
async def get_collection(collection: InCollection, parts: InParts) -> CollectionStatistics:
    """Parameters, number of points, and position of every shard replica."""
    return await parts.state.statistics(collection)


@router.delete("/{collection}", summary="Drop a collection", responses=problems(404))
async def delete_collection(collection: InCollection, parts: InParts) -> DroppedAnswer:
    """Drop a collection with its topics. Its picture bytes stay in the object store."""
    name = collection.spec.name
    await asyncio.to_thread(parts.dependencies.admin.drop, name)
    await parts.catalog.refresh()
    return DroppedAnswer(name=name, state="dropped")


def _wanted(name: str, body: CollectionRequest, parts: Parts) -> CollectionSpec:
    settings = parts.dependencies.settings
    shards = body.shards or settings.shards
    partitions = body.partitions or max(settings.partitions, shards)
    if shards > partitions:
        raise InvalidRequest(f"{shards} shards need at least as many partitions, not {partitions}")
    return CollectionSpec(
        name=name,
        incarnation=uuid.uuid4().hex[:12],
        partitions=partitions,
        shards=shards,
        replicas=body.replicas or settings.replicas,
        model=body.model or settings.model,
        fingerprint="",
        dimension=0,
        m=body.m or settings.hnsw_m,
        ef_construction=body.ef_construction or settings.hnsw_ef_construction,
        ef_search=body.ef_search or settings.hnsw_ef_search,
        quantization=body.quantization or settings.quantization,
        vector_type=body.vector_type or settings.vector_type,
        filter_fields=body.filter_fields,
        duplicates=body.duplicates or settings.duplicates,
        created_at_ms=now_ms(),
    )
