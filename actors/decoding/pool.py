"""Decodes pictures from strangers in processes that may die or hang without taking their owner along."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import numpy as np
import structlog
from msgspec import Struct

from actors.decoding.messages import (
    Clean,
    Inspect,
    Limits,
    Operation,
    Region,
    Result,
    Small,
    Square,
    Task,
    Thumbnail,
    receive,
    send,
)
from actors.messages import Pixels, PreprocessSpec
from contract.errors import DecoderUnavailable, ImageTooLarge, InvalidImage, InvalidRequest
from contract.settings import Settings
from contract.telemetry import LogField

_log = structlog.get_logger()

_START_S: Final = 30.0
# Bounds what a slow leak in a native decoder can take.
_TASKS_PER_PROCESS: Final = 2000
# Deaths that somebody else causes: an operator, the kernel short of memory. They say little of the picture.
_FROM_OUTSIDE: Final = frozenset({-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP})
_ERRORS: Final = {kind.code: kind for kind in (InvalidImage, ImageTooLarge, InvalidRequest)}


class Described(Struct, frozen=True):
    """What a header says: the content type by the bytes themselves, and the size in pixels as stored."""

    content_type: str
    width: int
    height: int


class Decoded(Struct, frozen=True):
    """Pixels, (h, w, 3) uint8, and the size of the whole upright picture that they are of."""

    pixels: Pixels
    width: int
    height: int


class DecodingLoad(Struct, frozen=True):
    """Decoding processes there are, pictures they work on or that wait, and processes lost so far."""

    processes: int
    in_flight: int
    lost: int


class _DeadError(Exception):
    """The process ended under a task; `by_picture`: in a way that only the task explains."""

    def __init__(self, reason: str, *, by_picture: bool) -> None:
        super().__init__(reason)
        self.by_picture = by_picture


class _Process:
    """One decoding process. For one thread at a time."""

    def __init__(self, module: str, memory_bytes: int) -> None:
        ours, theirs = socket.socketpair()
        environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
        # Threads and arenas of the allocator count towards the limit of the address space.
        environment |= {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        self._socket = ours
        self.tasks = 0
        try:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", module, str(memory_bytes)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=environment,
            )
        except OSError as error:
            ours.close()
            raise DecoderUnavailable(f"no decoding process can be started: {error}") from error
        finally:
            theirs.close()
        try:
            ready = receive(ours, Result, time.monotonic() + _START_S)
        except OSError as error:
            self.end()
            raise DecoderUnavailable(f"the decoding process does not get ready: {error}") from error
        if ready is None:
            self.end()
            raise DecoderUnavailable(f"the decoding process ended at its start: {self._status()}")

    @property
    def pid(self) -> int:
        return self._process.pid

    def carry_out(self, task: Task, data: bytes) -> tuple[Result, bytearray]:
        """The result of one task; raises _DeadError, after which this process is of no use."""
        self.tasks += 1
        deadline = time.monotonic() + task.timeout_s
        try:
            self._socket.settimeout(task.timeout_s)
            send(self._socket, task, data)
            answer = receive(self._socket, Result, deadline)
        except TimeoutError as error:
            self.end()
            raise _DeadError(f"decoding takes longer than {task.timeout_s:g} s", by_picture=True) from error
        except OSError as error:
            raise self._dead() from error
        if answer is None:
            raise self._dead()
        return answer

    def _dead(self) -> _DeadError:
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            # It closed its socket, or sent nonsense, and lives on.
            return _DeadError("the decoder went astray", by_picture=True)
        finally:
            self.end()
        return _DeadError(
            f"the decoder ended with {self._status()}", by_picture=self._process.returncode not in _FROM_OUTSIDE
        )

    def _status(self) -> str:
        code = self._process.returncode
        return signal.Signals(-code).name if code is not None and code < 0 else f"status {code}"

    def kill(self) -> None:
        """Kill the process from another thread than the one that waits for it, which then ends it."""
        self._process.kill()

    def end(self) -> None:
        """Kill the process if it lives, and release it; idempotent."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


class DecodingPool:
    """Some decoding processes, started when they are first needed and replaced when they die.

    Safe to use from several threads and asyncio loops. Every method may raise, beside what it names:

        InvalidImage: no picture, outside the limits, or one that crashes or hangs its decoder (not retryable).
        ImageTooLarge: more bytes, pixels, frames or memory than the settings allow (not retryable).
        DecoderUnavailable: no process can be started (retryable).
    """

    def __init__(self, settings: Settings, *, module: str = "actors.decoding.child") -> None:
        self._module = module
        self._memory_bytes = settings.decode_memory_bytes
        self._timeout_s = settings.decode_timeout_s
        self._limits = Limits(
            max_bytes=settings.max_image_bytes,
            max_pixels=settings.max_image_pixels,
            min_side=settings.min_image_side,
            max_aspect=settings.max_image_aspect,
            max_frames=settings.max_image_frames,
        )
        # As many threads as processes: whoever runs finds an idle process or may start one.
        self._threads = ThreadPoolExecutor(settings.decode_processes, thread_name_prefix="decode")
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        self._closed = False
        self._in_flight = 0
        self.lost = 0
        """Processes that died or hung under a task."""

    async def inspect(self, data: bytes) -> Described:
        """Type and size by the header; no pixels are decoded."""
        result, _ = await self._run(Inspect(), data)
        return Described(result.content_type, result.width, result.height)

    async def square(self, data: bytes, spec: PreprocessSpec, region: Region | None = None) -> Decoded:
        """The square an encoder takes, (size, size, 3) uint8; raises InvalidRequest for a region outside."""
        return _decoded(await self._run(Square(spec, region), data))

    async def small(self, data: bytes, side: int, region: Region | None = None) -> Decoded:
        """RGB pixels whose longer side is at most `side`; raises InvalidRequest for a region outside."""
        return _decoded(await self._run(Small(side, region), data))

    async def thumbnail(self, data: bytes, side: int) -> bytes:
        """WebP bytes, upright, without metadata, the longer side at most `side` pixels; never enlarged."""
        _, body = await self._run(Thumbnail(side), data)
        return bytes(body)

    async def clean(self, data: bytes) -> tuple[bytes, str]:
        """The file without metadata, and its content type.

        Pixels stay as they are, to the byte. A TIFF file, or one built in a way that cannot be taken
        apart, is encoded anew as WebP, upright, in 8 bits, its first page alone.
        """
        result, body = await self._run(Clean(), data)
        return bytes(body), result.content_type

    def pids(self) -> list[int]:
        """Process ids of the decoding processes there are."""
        with self._lock:
            return [process.pid for process in (*self._idle, *self._busy)]

    def load(self) -> DecodingLoad:
        """How busy it is."""
        with self._lock:
            return DecodingLoad(len(self._idle) + len(self._busy), self._in_flight, self.lost)

    def close(self) -> None:
        """End every process, those at work as well; idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for process in self._busy:
                process.kill()
        for process in idle:
            process.end()
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def _run(self, operation: Operation, data: bytes) -> tuple[Result, bytearray]:
        task = Task(operation, self._limits, self._timeout_s)
        if len(data) > self._limits.max_bytes:
            raise ImageTooLarge(f"{len(data)} bytes; at most {self._limits.max_bytes} are accepted")
        try:
            waiting = self._threads.submit(self._carry_out, task, data)
        except RuntimeError as error:
            raise DecoderUnavailable("the decoding processes have been ended") from error
        with self._lock:
            self._in_flight += 1
        # Of a picture whose caller went away the decoding goes on, and counts until it is over.
        waiting.add_done_callback(self._left)
        result, body = await asyncio.wrap_future(waiting)
        if result.error is not None:
            raise _ERRORS.get(result.error, InvalidImage)(result.detail)
        return result, body

    def _left(self, _: Future[tuple[Result, bytearray]]) -> None:
        with self._lock:
            self._in_flight -= 1

    def _carry_out(self, task: Task, data: bytes) -> tuple[Result, bytearray]:
        try:
            return self._once(task, data)
        except _DeadError as error:
            if error.by_picture:
                raise InvalidImage(f"the picture cannot be decoded: {error}") from error
        # A death from outside says little of the picture, so that it gets a second process, and no third.
        try:
            return self._once(task, data)
        except _DeadError as error:
            raise InvalidImage(f"the picture cannot be decoded: {error}") from error

    def _once(self, task: Task, data: bytes) -> tuple[Result, bytearray]:
        process = self._take()
        try:
            answer = process.carry_out(task, data)
        except _DeadError as error:
            if self._closed:
                raise DecoderUnavailable("the decoding processes have been ended") from error
            with self._lock:
                self.lost += 1
            _log.warning("decoder replaced", **{LogField.PID: process.pid, LogField.ERROR: str(error)})
            raise
        else:
            self._put_back(process)
        finally:
            with self._lock:
                self._busy.discard(process)
        return answer

    def _take(self) -> _Process:
        with self._lock:
            process = self._idle.pop() if self._idle else None
        if process is None:
            process = _Process(self._module, self._memory_bytes)
        with self._lock:
            if not self._closed:
                self._busy.add(process)
                return process
        process.end()
        raise DecoderUnavailable("the decoding processes have been ended")

    def _put_back(self, process: _Process) -> None:
        with self._lock:
            keep = not self._closed and process.tasks < _TASKS_PER_PROCESS
            if keep:
                self._idle.append(process)
        if not keep:
            process.end()


def _decoded(answer: tuple[Result, bytearray]) -> Decoded:
    result, body = answer
    try:
        pixels = np.frombuffer(body, np.uint8).reshape(result.shape)
    except ValueError as error:
        raise InvalidImage(f"the decoder answered nonsense: {error}") from error
    return Decoded(pixels, result.width, result.height)
