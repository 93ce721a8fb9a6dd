"""What a decoding process is asked and what it answers, and how both travel over its socket.

A message is a frame: two big-endian 32-bit lengths, a msgpack header, and raw bytes (the picture on
the way in, pixels or an encoded picture on the way out).
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from actors.messages import PreprocessSpec

Region = tuple[float, float, float, float]
"""A rectangle x, y, width, height, in fractions of the picture's sides."""

_LENGTHS: Final = struct.Struct(">II")
_HEADER_MAX_BYTES: Final = 64 * 1024
_BODY_MAX_BYTES: Final = 1024 * 1024 * 1024
_PIECE_BYTES: Final = 1024 * 1024

Header = TypeVar("Header", bound=Struct)


class Limits(Struct, frozen=True):
    """What is accepted at all; each is a setting of the same name."""

    max_bytes: int
    max_pixels: int
    min_side: int
    max_aspect: float
    max_frames: int


class Inspect(Struct, frozen=True, tag=True):
    """Type and size by the header; no pixels are decoded."""


class Square(Struct, frozen=True, tag=True):
    """The square of pixels that an encoder takes, of the whole picture or of a rectangle of it."""

    spec: PreprocessSpec
    region: Region | None = None


class Small(Struct, frozen=True, tag=True):
    """RGB pixels of the picture, or of a rectangle of it, the longer side at most `side`; never enlarged."""

    side: int
    region: Region | None = None


class Thumbnail(Struct, frozen=True, tag=True):
    """WebP bytes, the longer side at most `side`; never enlarged, without metadata."""

    side: int


class Clean(Struct, frozen=True, tag=True):
    """The file without metadata; encoded anew only where it cannot be had otherwise."""


Operation = Inspect | Square | Small | Thumbnail | Clean


class Task(Struct, frozen=True):
    """One picture's work. `timeout_s` is how long the process lets itself live with it."""

    operation: Operation
    limits: Limits
    timeout_s: float


class Result(Struct, frozen=True):
    """What became of a task. With an `error` (a code of the error tree) everything but `detail` is empty.

    `width` and `height` are of the upright picture, before any rectangle is cut out, in pixels.
    `shape` is that of the pixels in the body, uint8.
    """

    error: str | None = None
    detail: str = ""
    width: int = 0
    height: int = 0
    shape: tuple[int, ...] = ()
    content_type: str = ""


def send(connection: socket.socket, header: Struct, body: bytes = b"") -> None:
    """Send a frame within the socket's time-out. Raises OSError (TimeoutError among them)."""
    encoded = msgspec.msgpack.encode(header)
    connection.sendall(_LENGTHS.pack(len(encoded), len(body)) + encoded)
    connection.sendall(body)


def receive(
    connection: socket.socket, kind: type[Header], deadline: float | None = None
) -> tuple[Header, bytearray] | None:
    """The next frame, or None at the end of the stream.

    Args:
        connection: a stream socket.
        kind: type of the header.
        deadline: by `time.monotonic()`; None waits for ever.

    Raises:
        TimeoutError: past the deadline.
        ConnectionError: the stream ends, or goes wrong, inside a frame.
    """
    lengths = _read(connection, _LENGTHS.size, deadline)
    if lengths is None:
        return None
    header_bytes, body_bytes = _LENGTHS.unpack(lengths)
    if header_bytes > _HEADER_MAX_BYTES or body_bytes > _BODY_MAX_BYTES:
        raise ConnectionError(f"a frame of {header_bytes} and {body_bytes} bytes is none of this protocol")
    header, body = _read(connection, header_bytes, deadline), _read(connection, body_bytes, deadline)
    if header is None or body is None:
        raise ConnectionError("the stream ends inside a frame")
    try:
        return msgspec.msgpack.decode(header, type=kind), body
    except msgspec.MsgspecError as error:
        raise ConnectionError(f"a frame's header cannot be read: {error}") from error


def _read(connection: socket.socket, count: int, deadline: float | None) -> bytearray | None:
    """Exactly `count` bytes; None when the stream ends before the first."""
    # Grows with what arrives, so that a length alone allocates nothing.
    data = bytearray()
    while len(data) < count:
        if deadline is not None:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise TimeoutError("no answer in time")
            connection.settimeout(remaining_s)
        piece = connection.recv(min(_PIECE_BYTES, count - len(data)))
        if not piece:
            if data:
                raise ConnectionError("the stream ends inside a frame")
            return None
        data += piece
    return data
