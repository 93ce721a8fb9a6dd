"""Processes that hold one system each, and wait while others are measured."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks.index.systems import SystemSpec

ROOT: Final = Path(__file__).parent.parent.parent
PEERS_PYTHON: Final = ROOT / ".venv-peers" / "bin" / "python"
_THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "RAYON_NUM_THREADS",
    # LANCE_IO_THREADS stays as it is: LanceDB hangs when both are 1.
    "LANCE_CPU_THREADS",
)


class SystemFailed(Exception):
    """A system could not do what it was asked to, with its reason."""


def thread_settings(threads: int) -> dict[str, str]:
    """Environment variables that bound the threads of every library alike."""
    return dict.fromkeys(_THREAD_VARIABLES, str(threads))


class WorkerProcess:
    """The parent's end of `benchmarks.index.worker`. Errors of the system come as SystemFailed."""

    def __init__(self, spec: SystemSpec, log: Path, threads: int) -> None:
        python = Path(sys.executable) if spec.environment == "own" else PEERS_PYTHON
        if not python.exists():
            raise SystemFailed(f"{python.relative_to(ROOT)} is not there: `make bench-index` makes it")
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [str(python), "-m", "benchmarks.index.worker"],
                cwd=ROOT,
                env={**os.environ, **thread_settings(threads), "RUST_LOG": "error"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )

    def do(self, command: str, timeout_s: float = 600.0, **arguments: Any) -> Any:
        """Carry out one command and return its result.

        Raises:
            SystemFailed: with the system's reason, or that it ended, or that it took too long. The
                process is ended in the last case.
        """
        assert self._process.stdin is not None  # noqa: S101 - both are pipes, see the constructor
        assert self._process.stdout is not None  # noqa: S101
        try:
            self._process.stdin.write(json.dumps({"do": command, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise SystemFailed(self._ended()) from error
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                self.kill()
                raise SystemFailed(f"{command} took more than {timeout_s:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise SystemFailed(self._ended())
        answer = json.loads(line)
        if "error" in answer:
            raise SystemFailed(answer["error"])
        return answer["result"]

    def _ended(self) -> str:
        code = self._process.wait(10)
        tail = self._log.read_text(errors="replace").strip().splitlines()[-1:]
        return f"its process ended with {code}: {' '.join(tail)}"

    def stop(self) -> None:
        """End the process; what it holds open is lost unless it was told to close."""
        assert self._process.stdin is not None  # noqa: S101 - see `do`
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the process and its children, whatever they are doing."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
