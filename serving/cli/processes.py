"""The processes of the Procfile under one roof: started together, kept running, stopped in order."""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from honcho.manager import Manager
from honcho.printer import Message

from serving.cli.restarts import Restarts

STOP_EACH_S = 30.0
# What stood on a process that is gone has nothing left to finish.
_STOP_ABOVE_S = 8.0
_LOOK_EVERY_S = 0.1


class KeptProcesses(Manager):  # type: ignore[misc]  # honcho ships no types
    """Honcho's manager, but a process that ends by itself is started again, and a stop has an order.

    A stop ends the processes one after the other, the last started first: one that still drains (the
    HTTP server, the stream) needs what stands below it (Ray, the broker) until it is done.

    A process that fails before `ready` was called, with an exit status of its own, ends everything: a wrong
    setting does not become right by trying again. One that a signal killed is started again at any time.
    """

    def __init__(
        self,
        restarts: Restarts,
        *,
        foundations: frozenset[str] = frozenset(),
        foundation_moved: Callable[[], str | None] = lambda: None,
        on_started: Callable[[dict[str, int]], None] = lambda _: None,
    ) -> None:
        """Nothing is started yet.

        Args:
            restarts: Says when a process is started again.
            foundations: Names of processes without which those added after them cannot go on: they are
                started anew with it.
            foundation_moved: Asked now and then; the name of a process whose successor is found elsewhere or is
                another one, so that those added after it are started anew.
            on_started: Told the pids of all running processes at every start.
        """
        super().__init__()
        self.stop_requested = False
        self.failed: str | None = None
        self._restarts = restarts
        self._foundations = foundations
        self._foundation_moved = foundation_moved
        self._on_started = on_started
        self._was_ready = False
        self._terminating = False
        self._stopper: threading.Thread | None = None

    def ready(self) -> None:
        """Everything has been ready once: from here on, a process that ends is started again."""
        self._was_ready = True

    def loop(self) -> None:
        """Start everything and print what it prints, until it was stopped or one process could not be kept."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        self._start()
        looked_at = time.monotonic()
        while not (self._terminating and self._all_ended()):
            with contextlib.suppress(queue.Empty):
                self._take(self.events.get(timeout=_LOOK_EVERY_S))
            if not self._terminating and time.monotonic() >= looked_at + _LOOK_EVERY_S:
                looked_at = time.monotonic()
                self._look_after()
        # What they printed last may still be on its way.
        while True:
            try:
                self._take(self.events.get(timeout=0.1))
            except queue.Empty:
                return

    def terminate(self) -> None:
        """Begin to stop everything in order; returns at once."""
        if self._terminating:
            return
        self._terminating = True
        self._stopper = threading.Thread(target=self._stop_in_order, daemon=True)
        self._stopper.start()

    def pids(self) -> dict[str, int]:
        """Pids of the processes that run, as far as heard of."""
        return {name: entry["pid"] for name, entry in self._processes.items() if _runs(entry)}

    def unclean(self) -> dict[str, int]:
        """Processes that ended their last run with another status than 0, with it; not those about to start again."""
        stopped = {name: entry for name, entry in self._processes.items() if "start_at" not in entry}
        return {name: entry["returncode"] for name, entry in stopped.items() if entry.get("returncode")}

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        if self.stop_requested:
            for pid in self.pids().values():
                self._procmgr.kill(pid)
            return
        self.stop_requested = True
        self._system_print("stopping; Ctrl-C again ends everything at once\n")
        self.terminate()

    def _take(self, message: Message) -> None:
        entry = self._processes[message.name]
        match message.type:
            case "line":
                self._printer.write(message)
            case "start":
                entry["pid"] = message.data["pid"]
                self._system_print(f"{message.name} started (pid={entry['pid']})\n")
                self._on_started(self.pids())
            case "stop":
                entry["returncode"] = message.data["returncode"]
                self._system_print(f"{message.name} stopped (rc={entry['returncode']})\n")
                if not self._terminating:
                    self._ended(message.name)

    def _ended(self, name: str) -> None:
        """Decide what becomes of a process that nobody told to stop."""
        entry, now = self._processes[name], time.monotonic()
        if entry.pop("kill_at", None) is not None:
            # Told to end because what it stood on is gone.
            entry["start_at"] = now
            return
        killed_by_signal = entry["returncode"] < 0
        pause_s = self._restarts.ended(name, now) if self._was_ready or killed_by_signal else None
        if pause_s is None:
            self.failed = name
            self.terminate()
            return
        self._system_print(f"{name} ended by itself; starting it again in {pause_s:g} s\n")
        entry["start_at"] = now + pause_s
        if name in self._foundations:
            self._end_above(name)

    def _end_above(self, name: str) -> None:
        """End the processes added after `name`; they are started anew as they end."""
        names = list(self._processes)
        for above in reversed(names[names.index(name) + 1 :]):
            entry = self._processes[above]
            if _runs(entry) and "kill_at" not in entry:
                self._system_print(f"starting {above} anew: what it stands on, {name}, is another one\n")
                entry["kill_at"] = time.monotonic() + _STOP_ABOVE_S
                self._procmgr.terminate(entry["pid"])

    def _look_after(self) -> None:
        """Start what is due, and end what was told to end and did not."""
        if (moved := self._foundation_moved()) is not None:
            self._end_above(moved)
        now = time.monotonic()
        for name, entry in self._processes.items():
            if _runs(entry) and now >= entry.get("kill_at", float("inf")):
                self._procmgr.kill(entry["pid"])
            elif now >= entry.get("start_at", float("inf")):
                del entry["start_at"]
                entry["pid"] = entry["returncode"] = None
                entry["process"] = multiprocessing.Process(name=name, target=entry["obj"].run, args=(self.events, True))
                entry["process"].start()

    def _all_ended(self) -> bool:
        return all(entry.get("returncode") is not None for entry in self._processes.values())

    def _stop_in_order(self) -> None:
        for name, entry in reversed(self._processes.items()):
            deadline = time.monotonic() + STOP_EACH_S
            # A process is stoppable once the loop has heard of its pid.
            while entry.get("pid") is None and time.monotonic() < deadline:
                time.sleep(0.05)
            if not _runs(entry):
                continue
            self._procmgr.terminate(entry["pid"])
            while entry.get("returncode") is None and time.monotonic() < deadline:
                time.sleep(0.05)
            if entry.get("returncode") is None:
                self._system_print(f"{name} did not stop within {STOP_EACH_S:.0f} s and is ended\n")
                self._procmgr.kill(entry["pid"])


def _runs(entry: dict[str, Any]) -> bool:
    return entry.get("pid") is not None and entry.get("returncode") is None
