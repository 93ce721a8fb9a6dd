"""The client that blocks until a call is answered."""

from __future__ import annotations

import random as random_numbers
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

import httpx

from contract.events import Receipt
from serving.client import calls, flows
from serving.client.answers import (
    Changed,
    Collection,
    CollectionStatistics,
    Content,
    Dropped,
    Image,
    ImagePage,
    ListedImage,
    Readiness,
    SearchAnswer,
    Uploaded,
)
from serving.client.attempts import Context, Flow, Outcome, Pause, Retry, Send, perform
from serving.client.batch import POLL_S, Batch, Job, JobOutcome, Progress, UploadItem, UploadReport
from serving.client.calls import ByteProgress, Picture, Reply, Wait
from serving.client.connection import (
    DEFAULT_CONNECTIONS,
    DEFAULT_DEADLINE_S,
    DEFAULT_URL,
    check_url,
    http_options,
    keep_deadline,
    request_of,
)
from serving.client.dead_letters import DeadLetterMethods
from serving.client.errors import ApiError, ClientError
from serving.client.options import CollectionParameters, SearchOptions, SearchQuery

Result = TypeVar("Result")


class _Cancelled(Exception):
    """The batch this call belongs to is over."""


class Client(DeadLetterMethods):
    """Calls one server. Safe to share between threads; use it in a `with` block, or `close` it.

    `deadline_s` bounds every call as a whole, with its retries and waits; each method takes another
    one for itself. `transport`, `clock`, `sleep` and `random` stand in for the network, the time
    and chance in tests.

    `api_key` is sent with every call; without it, that of `RIVERLENS_API_KEY`. `tls_ca` is a PEM file with the
    only authority that is trusted over https; without it, the usual ones are.

    Every method raises ClientError: ServerUnreachable, DeadlineExceeded, UnexpectedAnswer, or an
    ApiError of the server.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        tls_ca: Path | None = None,
        deadline_s: float = DEFAULT_DEADLINE_S,
        retry: Retry | None = None,
        connections: int = DEFAULT_CONNECTIONS,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        random: Callable[[], float] = random_numbers.random,
    ) -> None:
        self.base_url = check_url(base_url)
        self._deadline_s = deadline_s
        self._retry = retry or Retry()
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self._http = httpx.Client(**http_options(self.base_url, connections, api_key, tls_ca), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def upload(
        self,
        collection: str,
        picture: Picture,
        *,
        id: str | None = None,  # noqa: A002 — the word of the API
        payload: Mapping[str, Any] | None = None,
        wait: Wait = "logged",
        file_name: str | None = None,
        progress: ByteProgress | None = None,
        deadline_s: float | None = None,
    ) -> Uploaded:
        """Upload a picture: its bytes or the path of its file.

        Sent again after a retryable error it stays one image: without an `id` it gets a new one
        before it is sent. With `wait="searchable"` it returns once every search finds the picture.

        Raises OSError for a file that cannot be read, and ClientError: ImageRejected, or
        NotSearchableInTime with its `receipt` when the deadline comes first.
        """
        return self._upload(
            collection, picture, id or calls.new_id(), payload or {}, wait, file_name, progress, deadline_s
        )

    def upload_object(
        self,
        collection: str,
        object_key: str,
        *,
        id: str | None = None,  # noqa: A002
        payload: Mapping[str, Any] | None = None,
        wait: Wait = "logged",
        deadline_s: float | None = None,
    ) -> Uploaded:
        """Upload a picture whose bytes lie in the server's object store already; as `upload`."""
        image_id = id or calls.new_id()
        call = calls.upload_object(collection, object_key, image_id, payload or {}, wait)
        return self._run(flows.upload(call, collection, image_id, None, self._context(deadline_s)))

    def upload_url(
        self,
        collection: str,
        url: str,
        *,
        id: str | None = None,  # noqa: A002
        payload: Mapping[str, Any] | None = None,
        wait: Wait = "logged",
        deadline_s: float | None = None,
    ) -> Uploaded:
        """Upload a picture that the server fetches; as `upload`. Raises UrlRefused, UrlUnavailable besides."""
        image_id = id or calls.new_id()
        call = calls.upload_url(collection, url, image_id, payload or {}, wait)
        return self._run(flows.upload(call, collection, image_id, None, self._context(deadline_s)))

    def upload_many(
        self,
        collection: str,
        items: Iterable[UploadItem | Picture],
        *,
        parallel: int = 4,
        wait: Wait = "searchable",
        progress: Progress | None = None,
        deadline_s: float | None = None,
        stalled_after_s: float = 120.0,
    ) -> UploadReport:
        """Upload many pictures, `parallel` at a time, and report what became of each.

        A picture that fails stops no other one. A server that cannot be reached any more stops all:
        what was not sent is reported so. With `wait="searchable"` each picture is followed until
        it is searchable or rejected, and fails when none became searchable for `stalled_after_s`.

        `deadline_s` is for each picture's upload. `progress` is called in this thread; an exception
        it raises, or Ctrl-C, ends the batch: nothing more is sent, and what is under way is awaited.
        """
        batch = Batch(items, parallel, wait, self._clock, stalled_after_s, progress)
        over = threading.Event()
        running: dict[futures.Future[JobOutcome], Job] = {}
        with futures.ThreadPoolExecutor(parallel, "riverlens-upload") as pool:
            try:
                asked_at = self._clock()
                while True:
                    while len(running) < parallel and (job := batch.next_job()) is not None:
                        running[pool.submit(self._job, collection, job, deadline_s, over)] = job
                    if batch.waits and (not running or self._clock() - asked_at >= POLL_S):
                        self._ask_applied(collection, batch, deadline_s)
                        asked_at = self._clock()
                    if batch.finished:
                        return batch.report()
                    if not running:
                        if batch.waits:
                            self._sleep(POLL_S)
                        continue
                    timeout_s = POLL_S if batch.waits else None
                    done, _ = futures.wait(running, timeout_s, futures.FIRST_COMPLETED)
                    for future in done:
                        batch.done(running.pop(future), future.result())
            except BaseException:
                over.set()
                for future in running:
                    future.cancel()
                raise

    def wait_applied(
        self,
        collection: str,
        receipts: Iterable[Receipt],
        *,
        progress: flows.AppliedProgress | None = None,
        deadline_s: float | None = None,
    ) -> None:
        """Return once the events of all receipts have taken effect in every replica that answers."""
        self._run(flows.wait_applied(collection, receipts, self._context(deadline_s), progress))

    def image(self, collection: str, image_id: str, *, deadline_s: float | None = None) -> Image:
        """Payload and state of one image; raises NotFound."""
        return self._run(perform(calls.image(collection, image_id), self._context(deadline_s)))

    def image_page(
        self,
        collection: str,
        *,
        limit: int | None = None,
        cursor: str | None = None,
        filter: Mapping[str, Any] | None = None,  # noqa: A002
        with_payload: bool = True,
        deadline_s: float | None = None,
    ) -> ImagePage:
        """One page of all searchable images by id; `cursor` is the `next_cursor` of the page before."""
        call = calls.image_page(collection, limit, cursor, filter, with_payload=with_payload)
        return self._run(perform(call, self._context(deadline_s)))

    def images(
        self,
        collection: str,
        *,
        page: int | None = None,
        filter: Mapping[str, Any] | None = None,  # noqa: A002
        with_payload: bool = True,
        deadline_s: float | None = None,
    ) -> Iterator[ListedImage]:
        """All searchable images by id, asked for `page` at a time; `deadline_s` is for each page."""
        cursor: str | None = None
        while True:
            one = self.image_page(
                collection,
                limit=page,
                cursor=cursor,
                filter=filter,
                with_payload=with_payload,
                deadline_s=deadline_s,
            )
            yield from one.images
            cursor = one.next_cursor
            if cursor is None:
                return

    def content(
        self, collection: str, image_id: str, *, size: int | None = None, deadline_s: float | None = None
    ) -> Content:
        """The picture as it was uploaded, or a WebP thumbnail of `size` 64, 128, 256, 512 or 1024 pixels."""
        return self._run(perform(calls.content(collection, image_id, size), self._context(deadline_s)))

    def update_payload(
        self,
        collection: str,
        image_id: str,
        payload: Mapping[str, Any],
        *,
        wait: Wait = "logged",
        deadline_s: float | None = None,
    ) -> Changed:
        """Replace the payload as a whole; the picture is not embedded again. Raises NotFound."""
        call = calls.update_payload(collection, image_id, payload, wait)
        return self._run(flows.change(call, collection, image_id, self._context(deadline_s)))

    def delete(
        self, collection: str, image_id: str, *, wait: Wait = "logged", deadline_s: float | None = None
    ) -> Changed:
        """Delete an image; with `wait="searchable"`, return when no search returns it. Raises NotFound."""
        call = calls.delete(collection, image_id, wait)
        return self._run(flows.change(call, collection, image_id, self._context(deadline_s)))

    def search(
        self,
        collection: str,
        text: str | None = None,
        *,
        image: Picture | None = None,
        deadline_s: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> SearchAnswer:
        """Search by words, a picture, `image_id`, `vector`, `positive` and `negative` examples, or a mix of them.

        With `min_receipt` — a receipt, or the answer to an upload or a change — the search waits
        until that event has taken effect, so that it finds one's own upload.
        """
        picture = None if image is None else calls.read_picture(image)
        return self._run(perform(calls.search(collection, text, picture, options), self._context(deadline_s)))

    def search_many(
        self, collection: str, searches: Sequence[SearchQuery], *, deadline_s: float | None = None
    ) -> tuple[SearchAnswer | ApiError, ...]:
        """Many searches in one request: for each, in their order, its answer or its own error."""
        return self._run(perform(calls.search_many(collection, searches), self._context(deadline_s)))

    def click(
        self, collection: str, request_id: str, image_id: str, rank: int, *, deadline_s: float | None = None
    ) -> None:
        """Say which hit of the search `request_id` a person chose, with its rank from 0.

        Sent again only where the server surely has not counted it.
        """
        self._run(perform(calls.click(collection, request_id, image_id, rank), self._context(deadline_s)))

    def collections(self, *, deadline_s: float | None = None) -> tuple[Collection, ...]:
        """All collections, by name."""
        return self._run(perform(calls.collections(), self._context(deadline_s)))

    def collection(self, name: str, *, deadline_s: float | None = None) -> CollectionStatistics:
        """Parameters, counts and shards of one collection; raises NotFound."""
        return self._run(perform(calls.collection(name), self._context(deadline_s)))

    def create_collection(
        self, name: str, *, deadline_s: float | None = None, **parameters: Unpack[CollectionParameters]
    ) -> Collection:
        """Make a collection, or find it made with these parameters; raises CollectionExists if with others."""
        return self._run(perform(calls.create_collection(name, parameters), self._context(deadline_s)))

    def drop_collection(self, name: str, *, deadline_s: float | None = None) -> Dropped:
        """Drop a collection with everything in it; raises NotFound."""
        return self._run(perform(calls.drop_collection(name), self._context(deadline_s)))

    def readiness(self, *, deadline_s: float | None = None) -> Readiness:
        """Whether every part is ready now. Asks once, and does not raise: a server that is not there is not ready."""
        return self._run(flows.readiness(self._context(deadline_s, Retry(attempts=1))))

    def _context(self, deadline_s: float | None, retry: Retry | None = None) -> Context:
        seconds = self._deadline_s if deadline_s is None else deadline_s
        ends_at = self._clock() + seconds
        return Context(self.base_url, self._clock, self._random, retry or self._retry, seconds, ends_at)

    def _upload(
        self,
        collection: str,
        picture: Picture,
        image_id: str,
        payload: Mapping[str, Any],
        wait: Wait,
        file_name: str | None,
        progress: ByteProgress | None,
        deadline_s: float | None,
        over: threading.Event | None = None,
    ) -> Uploaded:
        context = self._context(deadline_s)
        file = calls.read_picture(picture)
        call = calls.upload(collection, file, image_id, payload, wait, file_name, progress)
        return self._run(flows.upload(call, collection, image_id, file.data, context), over)

    def _job(self, collection: str, job: Job, deadline_s: float | None, over: threading.Event) -> JobOutcome:
        try:
            if job.receipt is not None:
                context = self._context(deadline_s)
                return self._run(flows.check_rejection(collection, job.id, job.receipt, context), over)
            item = job.item
            return self._upload(
                collection, item.picture, job.id, item.payload, "logged", item.file_name, None, deadline_s, over
            )
        except (ClientError, OSError) as error:
            return error

    def _ask_applied(self, collection: str, batch: Batch, deadline_s: float | None) -> None:
        try:
            batch.applied(self._run(flows.applied_offsets(collection, self._context(deadline_s))))
        except ClientError as error:
            batch.poll_failed(error)

    def _run(self, flow: Flow[Result], over: threading.Event | None = None) -> Result:
        """Do what a flow asks for, until its result; ends early when `over` is set."""
        outcome: Outcome = None
        while True:
            try:
                step = flow.send(outcome)
            except StopIteration as ended:
                result: Result = ended.value
                return result
            if over is not None and over.is_set():
                flow.close()
                raise _Cancelled
            if isinstance(step, Pause):
                self._sleep(step.seconds)
                outcome = None
            else:
                outcome = self._send(step)

    def _send(self, step: Send) -> Outcome:
        request = request_of(self._http, step)
        keep_deadline(request, step)
        try:
            response = self._http.send(request, stream=True)
            try:
                pieces = []
                for piece in response.iter_bytes():
                    pieces.append(piece)
                    if step.context.left_s() <= 0:
                        return TimeoutError("the deadline is over")
            finally:
                response.close()
        except httpx.RequestError as error:
            return error
        return Reply(response.status_code, response.headers, b"".join(pieces))
