"""`riverlens index`: many uploads with progress, resumable, and a wait until all of it is searchable."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Self

from msgspec import Struct
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Task as ProgressTask
from rich.text import Text

from contract.events import Receipt
from serving.cli.output import console
from serving.cli.sources import SourcePicture, list_pictures
from serving.client import ApiError, RiverlensClient, ServerUnreachable, Uploaded

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
        self._lock = threading.Lock()

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
        with self._lock:
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


def run(client: RiverlensClient, collection: str, source: str, home: Path, *, parallel: int, again: bool) -> Outcome:
    """Upload every picture of `source` and wait until each is searchable or rejected."""
    pictures = list_pictures(source)
    incarnation = str(client.collection(collection).get("incarnation", ""))
    with Journal(home / "index-journal", client.base_url, collection, incarnation) as journal, _progress() as progress:
        todo = [picture for picture in pictures if again or not journal.has(picture)]
        uploads = progress.add_task("uploading ", total=len(todo))
        applied = progress.add_task("searchable", total=len(todo))
        lines = _Lines(progress)
        failed: list[tuple[str, str]] = []
        receipts: dict[str, tuple[SourcePicture, Receipt]] = {}

        def upload(picture: SourcePicture) -> Uploaded:
            answer = client.upload(collection, picture.path, picture.image_id, picture.payload)
            journal.add(picture)
            return answer

        with ThreadPoolExecutor(parallel) as pool:
            queue = iter(todo)
            running: dict[Future[Uploaded], SourcePicture] = {}
            try:
                while True:
                    while len(running) < 2 * parallel and (picture := next(queue, None)) is not None:
                        running[pool.submit(upload, picture)] = picture
                    if not running:
                        break
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        picture = running.pop(future)
                        try:
                            receipts[picture.image_id] = (picture, future.result().receipt)
                        except (ApiError, OSError) as error:
                            reason = error.detail if isinstance(error, ApiError) else str(error.strerror)
                            failed.append((str(picture.path), reason))
                            progress.console.print(f"[yellow]{picture.path}[/]: {reason}", highlight=False)
                        progress.advance(uploads)
                    lines.tell()
            except (KeyboardInterrupt, ServerUnreachable):
                for future in running:
                    future.cancel()
                progress.console.print("Stopped. The same command goes on where this run ended.")
                raise
        progress.update(applied, total=len(receipts))
        _wait_applied(client, collection, [receipt for _, receipt in receipts.values()], progress, lines)
        failed += _rejections(client, collection, receipts, parallel, progress)
    uploaded = len(receipts) - sum(1 for path, _ in failed if path in {str(p.path) for p, _ in receipts.values()})
    console.print(
        f"{uploaded} searchable, {len(pictures) - len(todo)} uploaded by an earlier run, {len(failed)} failed",
        highlight=False,
    )
    return Outcome(uploaded, len(pictures) - len(todo), tuple(failed))


def _wait_applied(
    client: RiverlensClient, collection: str, receipts: list[Receipt], progress: Progress, lines: _Lines
) -> None:
    """Follow the applied offsets until every receipt is reached; raises ApiError when nothing moves any more."""
    task = progress.tasks[-1].id
    moved_at, before = time.monotonic(), -1
    pause = threading.Event()
    while True:
        offsets: dict[int, int] = {}
        for shard in client.collection(collection)["shards"]:
            for partition, offset in shard.get("applied_offsets", {}).items():
                offsets[int(partition)] = max(int(offset), offsets.get(int(partition), -1))
        reached = sum(1 for receipt in receipts if offsets.get(receipt.partition, -1) >= receipt.offset)
        progress.update(task, completed=reached)
        lines.tell()
        if reached == len(receipts):
            return
        if reached != before:
            moved_at, before = time.monotonic(), reached
        if time.monotonic() - moved_at > _STALLED_AFTER_S:
            raise ApiError(
                504,
                "not_searchable_in_time",
                f"{len(receipts) - reached} pictures are logged, but nothing became searchable for "
                f"{_STALLED_AFTER_S:.0f} s; look at: riverlens status",
                retryable=True,
            )
        pause.wait(0.25)


def _rejections(
    client: RiverlensClient,
    collection: str,
    receipts: dict[str, tuple[SourcePicture, Receipt]],
    parallel: int,
    progress: Progress,
) -> list[tuple[str, str]]:
    """Files whose event was rejected in the stream, with the reason."""

    def reason(image_id: str) -> str | None:
        image = client.image(collection, image_id)
        rejection = image.get("rejection")
        rejected = image["state"] == "rejected" or (rejection or {}).get("offset") == receipts[image_id][1].offset
        return str((rejection or {}).get("reason", "rejected")) if rejected else None

    found = []
    with ThreadPoolExecutor(parallel) as pool:
        for image_id, why in zip(receipts, pool.map(reason, receipts), strict=True):
            if why is not None:
                path = str(receipts[image_id][0].path)
                found.append((path, why))
                progress.console.print(f"[yellow]{path}[/]: rejected: {why}", highlight=False)
    return found
