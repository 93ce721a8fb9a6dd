"""The parts of one running app, and how a route gets at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Depends, Path, Query, Request

from contract.topics import check_collection_name
from serving.access.keys import KeyRing
from serving.admission import Admission, SearchBodies
from serving.catalog import Catalog, ServedCollection
from serving.confidence import Calibrations
from serving.dead_letter_index import DeadLetterIndex
from serving.dead_letters import DeadLetters
from serving.dependencies import Dependencies
from serving.fallback import Retrieval
from serving.fetching import UrlFetcher
from serving.images import Images
from serving.metrics import Metrics
from serving.query import QueryEncoder
from serving.rerank.reranker import Reranker
from serving.search import Searcher
from serving.state import SystemState
from serving.upload import Uploader
from serving.upload_admission import UploadAdmission


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything the routes call."""

    dependencies: Dependencies
    catalog: Catalog
    metrics: Metrics
    keys: KeyRing
    uploader: Uploader
    images: Images
    searcher: Searcher
    state: SystemState
    letters: DeadLetters
    upload_admission: UploadAdmission
    search_bodies: SearchBodies


def assemble(dependencies: Dependencies) -> Parts:
    """Build the parts of one app from what it depends on."""
    settings, events, objects = dependencies.settings, dependencies.events, dependencies.objects
    decoder = dependencies.decoder
    metrics = Metrics()
    metrics.watch_decoding(decoder.load)
    catalog = Catalog(dependencies, metrics=metrics)
    return Parts(
        dependencies=dependencies,
        catalog=catalog,
        metrics=metrics,
        keys=KeyRing(dependencies.keys),
        uploader=Uploader(settings, events, objects, decoder, UrlFetcher(settings), metrics),
        images=Images(settings, events, objects, decoder, dependencies.admin),
        searcher=Searcher(
            settings,
            Retrieval(settings, QueryEncoder(settings, objects, decoder, metrics), metrics),
            Reranker(settings, objects, decoder),
            metrics,
            Calibrations.load(settings.confidence_file),
            Admission(settings.search_in_flight_max, metrics),
        ),
        state=SystemState(dependencies, catalog),
        letters=DeadLetters(settings, DeadLetterIndex(dependencies.letters), events, dependencies.admin),
        upload_admission=UploadAdmission(settings, metrics),
        search_bodies=SearchBodies(settings.search_bytes_in_flight_max, metrics),
    )


async def parts_of(request: Request) -> Parts:
    """The parts of the app that serves this request."""
    # A coroutine, though it awaits nothing: FastAPI sends plain functions through a thread pool.
    parts: Parts = request.app.state.parts
    return parts


InParts = Annotated[Parts, Depends(parts_of)]


async def collection_of(
    parts: InParts, collection: Annotated[str, Path(description="Name of the collection.", examples=["images"])]
) -> ServedCollection:
    """The collection named in the path; raises InvalidRequest, NotFound."""
    return await parts.catalog.get(check_collection_name(collection))


InCollection = Annotated[ServedCollection, Depends(collection_of)]
InImageId = Annotated[str, Path(description="Id of the image.", max_length=255, examples=["red-bird"])]
Wait = Annotated[
    Literal["logged", "searchable"],
    Query(description="Answer once the event is durably logged, or once every search sees its effect."),
]


# Any route may be asked wrongly, with a body that is too large, without a key, too often, or of a system that is ill.
_ALWAYS = (400, 401, 403, 413, 429, 500, 503)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI description of the problem answers of a route; those that every route may give are always among them."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    meanings = {
        400: "The request can never succeed as it stands.",
        401: "A key is needed, and none that is good was sent.",
        403: "The key lacks the scope, or the image belongs to another owner.",
        404: "The collection or the image is not there.",
        409: "It conflicts with what is there.",
        413: "Too many bytes or pixels.",
        429: "Too many requests; `Retry-After` says when there is room again.",
        415: "Another content type than JSON or multipart.",
        422: "The bytes are no acceptable picture.",
        500: "A fault of the server.",
        503: "A part of the system does not answer now; `Retry-After` says when to try again.",
        504: "Logged, but not searchable within the bounded wait.",
    }
    return {status: {"description": meanings[status], "content": content} for status in sorted({*_ALWAYS, *statuses})}
