"""What a server of others must do to be measured, and its process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from benchmarks.index.datasets import Dataset
from benchmarks.index.workers import thread_settings
from benchmarks.load import LoadReport

_STARTS_WITHIN_S = 60.0
_ENDS_WITHIN_S = 20.0
_LOOK_EVERY_S = 0.2


class PeerFailed(Exception):
    """A server could not be had or did not do what it was asked, with its reason."""


class Peer(Protocol):
    """A vector server with an API of its own. Methods raise PeerFailed."""

    name: str

    def start(self) -> None:
        """Start the server in an empty folder."""
        ...

    def load(self, dataset: Dataset, until: float) -> None:
        """Insert all points and bring them to the index, by `until` on the monotonic clock."""
        ...

    def search(
        self, effort: int, connections: int, seconds: float, *, warm_s: float = 0.0, rate: float | None = None
    ) -> LoadReport:
        """One run of a load generator with the queries at an effort."""
        ...

    def answers(self, effort: int) -> Sequence[Sequence[str]]:
        """Ids of the hits of every query, asked once, at an effort."""
        ...

    def versions(self) -> str:
        """Name and version, and what else tells how it was run."""
        ...

    def stop(self) -> None:
        """End the server."""
        ...


def free_port() -> int:
    """A TCP port of the loopback address nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """A server's process, with all processors at its disposal and its output in a file."""

    def __init__(self, command: Sequence[str], log: Path, answers: Callable[[], bool]) -> None:
        self._command, self._log, self._answers = list(command), log, answers
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and return once it answers; raises PeerFailed."""
        if not Path(self._command[0]).exists():
            raise PeerFailed(f"{self._command[0]} is not there: `make bench-serving-peers` makes it")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._log.parent,
                env={**os.environ, **thread_settings(os.cpu_count() or 1)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until = time.monotonic() + _STARTS_WITHIN_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                tail = " ".join(self._log.read_text(errors="replace").split()[-60:])
                raise PeerFailed(f"{Path(self._command[0]).name} does not answer: {tail}")
            time.sleep(_LOOK_EVERY_S)

    def stop(self) -> None:
        """End it and its children."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def version_of(python: Path, package: str) -> str:
    """Version of a package in another environment; raises PeerFailed where it is not there."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerFailed(f"{package} is not installed: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout.strip()
