"""Many uploads: what is asked for, what became of each, and the bookkeeping that both clients share."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any, Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from contract.events import Receipt
from contract.telemetry import DELAY_BUCKETS_S
from serving.client.answers import Image, Uploaded
from serving.client.calls import Picture, Wait, new_id
from serving.client.errors import ClientError, DeadlineExceeded, ServerUnreachable

# Pause between two questions how far the shards are.
POLL_S = 0.25


class UploadItem(Struct, frozen=True):
    """One picture to upload. Without an id it gets a new one, without a file name that of its path."""

    picture: Picture
    id: str | None = None
    payload: Mapping[str, Any] = {}
    file_name: str | None = None


UploadState: TypeAlias = Literal["logged", "searchable", "failed", "not_sent"]


class UploadResult(Struct, frozen=True, kw_only=True):
    """What became of one picture.

    `uploaded` is the server's receipt for it, also where it was rejected later; `error` is set
    exactly when `state` is `failed` or `not_sent`. Seconds count from the start of its upload:
    `logged_s` to the answer, `searchable_s` to when the client saw it applied, which it looks
    for every quarter of a second.
    """

    item: UploadItem
    id: str
    state: UploadState
    uploaded: Uploaded | None = None
    error: ClientError | OSError | None = None
    logged_s: float | None = None
    searchable_s: float | None = None

    @property
    def reason(self) -> str | None:
        """Why it failed, in a sentence; None when it did not."""
        if isinstance(self.error, ClientError):
            return self.error.detail
        return None if self.error is None else self.error.strerror or str(self.error)


class BatchProgress(Struct, frozen=True, kw_only=True):
    """How far the batch is, and what has just become of one picture.

    `total` is None when the pictures come from an iterator. `sent` are those answered with a
    receipt, `searchable` those of them that every search finds, `failed` all that have an error.
    """

    total: int | None
    sent: int
    searchable: int
    failed: int
    result: UploadResult


Progress: TypeAlias = Callable[[BatchProgress], None]


class UploadReport(Struct, frozen=True, kw_only=True):
    """What became of every picture, in the order they were given.

    `stopped_by` is set when the server could not be reached any more: the rest is `not_sent`.
    """

    results: tuple[UploadResult, ...]
    stopped_by: ServerUnreachable | None = None

    @property
    def failed(self) -> tuple[UploadResult, ...]:
        """Those with an error, sent or not."""
        return tuple(result for result in self.results if result.error is not None)

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        """Receipts of all that were logged."""
        return tuple(result.uploaded.receipt for result in self.results if result.uploaded is not None)

    def raise_for_failures(self) -> None:
        """Raise the errors, all of them in an ExceptionGroup, if there is one."""
        errors = [result.error for result in self.results if result.error is not None]
        if errors:
            raise ExceptionGroup(f"{len(errors)} of {len(self.results)} uploads failed", errors)

    def searchable_histogram(self, bounds_s: Sequence[float] = DELAY_BUCKETS_S) -> dict[float, int]:
        """Uploads searchable within each bound in seconds, cumulative, up to infinity; the bounds are the server's."""
        bounds = (*sorted(bounds_s), float("inf"))
        times = sorted(result.searchable_s for result in self.results if result.searchable_s is not None)
        return {bound: bisect.bisect_right(times, bound) for bound in bounds}


class Job(Struct, frozen=True):
    """What to do next for one picture: upload it, or, with a receipt, see whether it was rejected."""

    index: int
    item: UploadItem
    id: str
    receipt: Receipt | None = None


JobOutcome: TypeAlias = Uploaded | Image | ClientError | OSError | None
"""Of an upload an Uploaded, of a look at a picture its Image or None for a deleted one; or the error."""


class Batch:
    """Which picture is where, from its upload to its result. Not safe for threads; one loop drives it.

    1. `next_job` says what to run next, as many at a time as the loop wants.
    2. `done` takes the outcome of a job.
    3. `applied` takes the offsets the shards have applied; receipts they have reached become jobs.
    4. Once `finished`, `report` has a result for every picture.
    """

    def __init__(
        self,
        items: Iterable[UploadItem | Picture],
        parallel: int,
        wait: Wait,
        clock: Callable[[], float],
        stalled_after_s: float,
        progress: Progress | None,
    ) -> None:
        if parallel < 1:
            raise ValueError(f"{parallel} uploads at a time would never end")
        self._items = iter(items)
        self._total = len(items) if isinstance(items, Sized) else None
        self._searchable = wait == "searchable"
        self._clock = clock
        self._stalled_after_s = stalled_after_s
        self._progress = progress
        self._results: dict[int, UploadResult] = {}
        self._counts: Counter[str] = Counter()
        self._taken = 0
        self._uploading: dict[int, float] = {}
        self._waiting: dict[int, UploadResult] = {}
        self._checks: list[Job] = []
        self._checking: set[int] = set()
        self._began_at: dict[int, float] = {}
        self._exhausted = False
        self._moved_at = clock()
        self.stopped_by: ServerUnreachable | None = None

    @property
    def waits(self) -> bool:
        """Whether a logged picture is not known to be applied yet."""
        return bool(self._waiting)

    @property
    def finished(self) -> bool:
        """Whether every picture has its last result."""
        return self._exhausted and not (self._uploading or self._waiting or self._checks or self._checking)

    def next_job(self) -> Job | None:
        """The next thing to do; None when there is nothing now."""
        if self._checks:
            job = self._checks.pop()
            self._checking.add(job.index)
            return job
        if self._exhausted:
            return None
        for given in self._items:
            item = given if isinstance(given, UploadItem) else UploadItem(given)
            job = Job(self._taken, item, item.id or new_id())
            self._taken += 1
            if self.stopped_by is None:
                self._uploading[job.index] = self._began_at[job.index] = self._clock()
                return job
            reason = f"not sent: {self.stopped_by.detail}"
            self._set(job.index, UploadResult(item=item, id=job.id, state="not_sent", error=ServerUnreachable(reason)))
        self._exhausted = True
        return None

    def done(self, job: Job, outcome: JobOutcome) -> None:
        """Take note of the outcome of a job."""
        now = self._clock()
        if job.receipt is None:
            self._uploading.pop(job.index)
        else:
            self._checking.discard(job.index)
        if isinstance(outcome, ServerUnreachable) and self.stopped_by is None:
            self.stopped_by = outcome
        if isinstance(outcome, ClientError | OSError):
            self._fail(job, outcome)
            return
        if isinstance(outcome, Uploaded):
            result = UploadResult(
                item=job.item, id=job.id, state="logged", uploaded=outcome, logged_s=now - self._began_at[job.index]
            )
            if self._searchable:
                # An answer after a pause without any upload is no sign that the shards stand still.
                self._moved_at = now if not self._waiting else self._moved_at
                self._waiting[job.index] = result
            self._set(job.index, result)
        elif job.receipt is not None:
            self._set(job.index, replace(self._results[job.index], state="searchable"))

    def applied(self, offsets: Mapping[int, int]) -> None:
        """Take note of how far the shards are; fails what waits when they have not moved for too long."""
        now = self._clock()
        for index, result in list(self._waiting.items()):
            receipt = result.uploaded.receipt if result.uploaded is not None else None
            if receipt is None or offsets.get(receipt.partition, -1) < receipt.offset:
                continue
            del self._waiting[index]
            self._results[index] = replace(result, searchable_s=now - self._began_at[index])
            self._checks.append(Job(index, result.item, result.id, receipt))
            self._moved_at = now
        if self._waiting and now - self._moved_at > self._stalled_after_s:
            self.give_up(
                DeadlineExceeded(
                    f"{len(self._waiting)} pictures are logged, but nothing became searchable for "
                    f"{self._stalled_after_s:.0f} s"
                )
            )

    def poll_failed(self, error: ClientError) -> None:
        """The shards could not be asked. What may pass is waited out; the rest fails what waits."""
        if isinstance(error, ServerUnreachable):
            self.stopped_by = self.stopped_by or error
        if isinstance(error, ServerUnreachable) or not error.retryable:
            self.give_up(error)
        else:
            self.applied({})

    def give_up(self, error: ClientError) -> None:
        """Fail every picture that waits to become searchable."""
        for index, result in self._waiting.items():
            self._set(index, replace(result, state="failed", error=error))
        self._waiting.clear()

    def report(self) -> UploadReport:
        """All results, once finished."""
        return UploadReport(
            results=tuple(self._results[index] for index in range(self._taken)), stopped_by=self.stopped_by
        )

    def _fail(self, job: Job, error: ClientError | OSError) -> None:
        former = self._results.get(job.index)
        if former is None:
            result = UploadResult(item=job.item, id=job.id, state="failed", error=error)
        else:
            result = replace(former, state="failed", error=error, searchable_s=None)
        self._set(job.index, result)

    def _set(self, index: int, result: UploadResult) -> None:
        former = self._results.get(index)
        self._results[index] = result
        self._counts["sent"] += former is None and result.uploaded is not None
        self._counts["searchable"] += result.state == "searchable"
        self._counts["failed"] += result.error is not None
        if self._progress is not None:
            self._progress(
                BatchProgress(
                    total=self._total,
                    sent=self._counts["sent"],
                    searchable=self._counts["searchable"],
                    failed=self._counts["failed"],
                    result=result,
                )
            )
