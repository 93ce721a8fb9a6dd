"""The system under chaos: a running Riverlens whose processes can be found and signalled."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from msgspec import Struct

from tests.integration.system import RunningSystem

PARTS = {
    "broker": r"-m streams\.broker$",
    "kafka": r"kafka\.Kafka .*server\.properties$",
    "ray": r"-m actors\.cluster$",
    "raylet": r"/raylet/raylet ",
    "gcs": r"/gcs/gcs_server ",
    "supervisor": r"-m actors\.supervisor$",
    "ingest": r"-m streams\.worker$",
    "api": r"-m serving\.server$",
    "shard": r"^ray::Shard\b",
    "embedder": r"^ray::Embedder\b",
    "replica": r"^ray::ServeReplica:",
    "controller": r"^ray::ServeController\b",
}
"""What the command line of each part looks like."""


class Part(Struct, frozen=True):
    """One process of the system."""

    pid: int
    command: str


class Target:
    """A running system, seen from outside: its processes and its log."""

    def __init__(self, running: RunningSystem) -> None:
        self.running = running

    def parts(self, name: str) -> list[Part]:
        """Processes of this very system that are the part `name`."""
        pattern = re.compile(PARTS[name])
        return [part for part in self._processes() if pattern.search(part.command)]

    def everything(self) -> list[Part]:
        """Every process of the system."""
        return [part for part in self._processes() if part.pid != os.getpid()]

    def kill(self, name: str, which: int = 0, number: int = signal.SIGKILL) -> int:
        """Signal one process of a part; its pid."""
        found = sorted(self.parts(name), key=lambda part: part.pid)
        assert found, f"no process is the {name}"
        pid = found[which % len(found)].pid
        os.kill(pid, number)
        return pid

    def ready(self) -> bool:
        """Whether `/readyz` says that every part answers and has caught up."""
        try:
            return self.running.http.get("/readyz", timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def alive(self) -> bool:
        """Whether `riverlens up` runs."""
        return self.running.process is not None and self.running.process.poll() is None

    def errors(self, allowed: tuple[str, ...], since_bytes: int = 0) -> list[str]:
        """Log lines at ERROR, and tracebacks outside any log line, that no allowed pattern describes."""
        permitted = re.compile("|".join(allowed)) if allowed else None
        text = self.running.log.read_bytes()[since_bytes:].decode(errors="replace")
        return [line for line in _error_lines(text) if permitted is None or not permitted.search(line)]

    def _processes(self) -> Iterator[Part]:
        """Everything below this system's folder: its own processes, and the workers of its Ray."""
        home = f"RIVERLENS_HOME={self.running.home}".encode()
        own: dict[int, tuple[int, str, bool]] = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                is_own = home in (folder / "environ").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            own[int(folder.name)] = (parent, command, is_own)
        for pid, (parent, command, is_own) in own.items():
            # A worker of Ray writes its title over its environment; its raylet does not.
            if command and (is_own or own.get(parent, (0, "", False))[2]):
                yield Part(pid, command)


def _error_lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        printed = line.partition("| ")[2] or line
        if printed.startswith("{"):
            try:
                entry: dict[str, Any] = json.loads(printed)
            except json.JSONDecodeError:
                continue
            if entry.get("level") in {"error", "critical"}:
                yield printed
        elif "Traceback (most recent call last)" in printed:
            yield line
