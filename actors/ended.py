"""What collections that ended leave behind, and its removal: stores and snapshots of their shards."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import structlog

from actors.snapshot_objects import SnapshotObjects, snapshots_prefix
from contract.errors import ObjectStoreUnavailable
from contract.settings import Settings
from contract.telemetry import LogField

_log = structlog.get_logger()

Incarnation = tuple[str, str]
_LOCAL = ("shards", "snapshots")


def remove_remote_snapshots(settings: Settings, collection: str, incarnation: str) -> None:
    """Remove a collection's snapshots from the object store. Raises ObjectStoreUnavailable (retryable)."""
    SnapshotObjects(settings, snapshots_prefix(collection, incarnation)).clear()


class EndedCollections:
    """Removes what is left of collections (name and incarnation) that were dropped or made anew.

    The object store is cleared in a thread, once per incarnation, and again while it is away.
    """

    def __init__(
        self,
        settings: Settings,
        remove_remote: Callable[[Settings, str, str], None] = remove_remote_snapshots,
    ) -> None:
        self._settings = settings
        self._remove_remote = remove_remote
        self._known: set[Incarnation] = set()
        self._cleared: set[Incarnation] = set()
        self._clearing: tuple[Incarnation, Future[None]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ended")

    def note(self, incarnations: Iterable[Incarnation]) -> None:
        """Remember incarnations that live or lived, so that their end is noticed."""
        self._known.update(incarnations)

    def step(self, is_over: Callable[[str, str], bool]) -> None:
        """Remove what can be removed now.

        Args:
            is_over: Whether the collection is known to have ended and its actors are gone.
        """
        for part in _LOCAL:
            for folder in (self._settings.home_path / part).glob("*/*"):
                collection, incarnation = folder.parent.name, folder.name
                if is_over(collection, incarnation):
                    shutil.rmtree(folder)
                    self._known.add((collection, incarnation))
                    _log.info(f"{part} of an ended collection removed", **{LogField.COLLECTION: collection})
        self._take_result()
        if self._clearing is None:
            due = next((one for one in self._known - self._cleared if is_over(*one)), None)
            if due is not None:
                self._clearing = (due, self._thread.submit(self._remove_remote, self._settings, *due))

    def _take_result(self) -> None:
        if self._clearing is None or not self._clearing[1].done():
            return
        incarnation, future = self._clearing
        self._clearing = None
        try:
            future.result()
        except ObjectStoreUnavailable as error:
            _log.warning("snapshots of an ended collection are still there", **{LogField.ERROR: error.detail})
            return
        self._cleared.add(incarnation)

    def close(self) -> None:
        """End the thread; what it has not removed is found again at the next start."""
        self._thread.shutdown(wait=False, cancel_futures=True)
