"""`riverlens index`: many uploads with progress, resumable, and a wait until all of it is searchable."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Self

from msgspec import Struct
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Task as ProgressTask
from rich.text import Text

from serving.cli.output import console
from serving.cli.sources import SourcePicture, list_pictures
from serving.client import (
    BatchProgress,
    Client,
    DeadlineExceeded,
    ImageRejected,
    NotSearchableInTime,
    ServerUnreachable,
    UploadItem,
    UploadReport,
    UploadResult,
)

_STALLED_AFTER_S = 120.0
_LINE_EVERY_S = 10.0


class Outcome(Struct, frozen=True):
    """What an index run came to; `failed` holds (file, reason)."""

    uploaded: int
    skipped: int
    failed: tuple[tuple[str, str], ...]


class Journal:
    """Remembers what was uploaded, so that an interrupted run goes on where it stopped.

    One file per server and collection incarnation: a collection made anew starts from nothing.
    """

    def __init__(self, folder: Path, *identity: str) -> None:
        name = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.jsonl"
        self._done: set[tuple[str, str, int, int]] = set()
        if path.exists():
            for line in path.read_text().splitlines():
                # The last line of a run that was killed may be torn; its picture is uploaded again.
                if line.endswith("]"):
                    image_id, file, mtime_ns, size = json.loads(line)
                    self._done.add((image_id, file, mtime_ns, size))
        self._file = path.open("a", buffering=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @staticmethod
    def _entry(picture: SourcePicture) -> tuple[str, str, int, int]:
        info = picture.path.stat()
        return (picture.image_id, str(picture.path.absolute()), info.st_mtime_ns, info.st_size)

    def has(self, picture: SourcePicture) -> bool:
        """Whether this very file, unchanged, was uploaded under this id."""
        return picture.path.exists() and self._entry(picture) in self._done

    def add(self, picture: SourcePicture) -> None:
        """Remember an upload the server has acknowledged."""
        self._file.write(json.dumps(self._entry(picture)) + "\n")


class _RateColumn(TextColumn):
    """Pictures per second over the last moments."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: ProgressTask) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


class _Lines:
    """Progress as a line now and then, for output that is no terminal and shows no moving bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._next = time.monotonic() + _LINE_EVERY_S

    def tell(self) -> None:
        """Print the last task's state if enough time has passed."""
        if console.is_terminal or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LINE_EVERY_S
        for task in self._progress.tasks:
            if task.started and not task.finished and task.total:
                self._progress.console.print(
                    f"{task.description.strip()}: {task.completed:.0f} of {task.total:.0f}", highlight=False
                )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


class _Display:
    """Shows a batch as two bars and a line per failure, and keeps its journal."""

    def __init__(self, progress: Progress, journal: Journal, pictures: list[SourcePicture]) -> None:
        self._progress = progress
        self._journal = journal
        self._pictures: dict[tuple[str, object], SourcePicture] = {
            (picture.image_id, picture.path): picture for picture in pictures
        }
        self._lines = _Lines(progress)
        self._uploads = progress.add_task("uploading ", total=len(pictures))
        self._applied = progress.add_task("searchable", total=len(pictures))
        self._to_wait_for = len(pictures)

    def tell(self, batch: BatchProgress) -> None:
        """Show what has just become of one picture."""
        result = batch.result
        match result.state:
            case "logged":
                self._journal.add(self._pictures[result.id, result.item.picture])
                self._progress.advance(self._uploads)
            case "searchable":
                self._progress.advance(self._applied)
            case "failed":
                self._tell_failure(result)
            case "not_sent":
                return
        self._lines.tell()

    def _tell_failure(self, result: UploadResult) -> None:
        rejected = isinstance(result.error, ImageRejected)
        if result.uploaded is None:
            # It will never be waited for.
            self._to_wait_for -= 1
            self._progress.advance(self._uploads)
            self._progress.update(self._applied, total=self._to_wait_for)
        elif rejected:
            self._progress.advance(self._applied)
        else:
            return
        word = "rejected: " if rejected else ""
        self._progress.console.print(f"[yellow]{result.item.picture!s}[/]: {word}{_reason(result)}", highlight=False)


def run(client: Client, collection: str, source: str, home: Path, *, parallel: int, again: bool) -> Outcome:
    """Upload every picture of `source` and wait until each is searchable or rejected."""
    pictures = list_pictures(source)
    incarnation = client.collection(collection).incarnation
    with Journal(home / "index-journal", client.base_url, collection, incarnation) as journal, _progress() as progress:
        todo = [picture for picture in pictures if again or not journal.has(picture)]
        display = _Display(progress, journal, todo)
        items = [UploadItem(picture.path, picture.image_id, picture.payload) for picture in todo]
        try:
            report = client.upload_many(
                collection, items, parallel=parallel, progress=display.tell, stalled_after_s=_STALLED_AFTER_S
            )
            if report.stopped_by is not None:
                raise report.stopped_by
        except (KeyboardInterrupt, ServerUnreachable):
            progress.console.print("Stopped. The same command goes on where this run ended.")
            raise
        _check_stalled(report)
    searchable = sum(1 for result in report.results if result.state == "searchable")
    failed = tuple((str(result.item.picture), _reason(result)) for result in report.failed)
    console.print(
        f"{searchable} searchable, {len(pictures) - len(todo)} uploaded by an earlier run, {len(failed)} failed",
        highlight=False,
    )
    return Outcome(searchable, len(pictures) - len(todo), failed)


def _reason(result: UploadResult) -> str:
    if isinstance(result.error, ImageRejected):
        return str(result.error.members.get("reason", result.error.detail))
    return result.reason or ""


def _check_stalled(report: UploadReport) -> None:
    """Raise NotSearchableInTime if the shards stood still while pictures waited for them."""
    stalled = [r for r in report.failed if r.uploaded is not None and isinstance(r.error, DeadlineExceeded)]
    if stalled:
        raise NotSearchableInTime(f"{stalled[0].reason}; look at: riverlens status")
