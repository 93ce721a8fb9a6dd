"""A decoding process: `python -m actors.decoding.child MEMORY_BYTES`, its socket as standard input.

It takes one task after the other until the socket ends, which it does when the parent dies in
whatever way. It holds no secret and needs no file, so it has neither the parent's environment nor the
right to write. A picture on which it hangs ends it: the alarm's default action is the kernel's, so
it needs nothing of the code that hangs.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Final

import numpy as np
from PIL import AvifImagePlugin, Image

from actors.decoding.containers import frames, kind_of, webp_canvas
from actors.decoding.encoding import encoded, thumbnail
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
from actors.decoding.stripping import strip
from actors.embedding.preprocessing import check_shape, crop, decode, open_picture, orientation_of, to_pixels
from contract.errors import ImageTooLarge, InvalidImage, RiverlensError

# What the parent gives up on, this process must not survive for long.
_LONGER_THAN_THE_PARENT_S: Final = 1.0
_CONTENT_TYPES: Final = {
    "JPEG": "image/jpeg",
    # Several JPEG pictures in one file, as telephones write them; any decoder takes the first.
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "AVIF": "image/avif",
    "HEIF": "image/heic",
}
_REENCODED_QUALITY: Final = 90

Perform = Callable[[Operation, Limits, bytes], tuple[Result, bytes]]


def perform(operation: Operation, limits: Limits, data: bytes) -> tuple[Result, bytes]:
    """Carry out one operation on the bytes of a picture.

    Raises InvalidImage, ImageTooLarge, InvalidRequest (a rectangle outside the picture).
    """
    check_container(data, limits)
    if isinstance(operation, Inspect):
        return _inspect(data, limits), b""
    if isinstance(operation, Clean):
        return _clean(data, limits)
    image = _decode(data, limits)
    width, height = image.size
    match operation:
        case Square(spec, region):
            pixels = np.ascontiguousarray(to_pixels(_cut(image, region), spec))
        case Small(side, region):
            small = _cut(image, region)
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
            pixels = np.ascontiguousarray(small)
        case Thumbnail(side):
            return Result(width=width, height=height, content_type="image/webp"), thumbnail(image, side)
    return Result(width=width, height=height, shape=pixels.shape), pixels.tobytes()


def check_container(data: bytes, limits: Limits) -> None:
    """Refuse, before any decoder sees it, what is too large, of no accepted format, or nested too deep.

    Raises InvalidImage, ImageTooLarge.
    """
    if not data:
        raise InvalidImage("the picture is empty: 0 bytes")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(f"{len(data)} bytes; at most {limits.max_bytes} are accepted")
    kind = kind_of(data)
    if kind is None:
        raise InvalidImage(f"not a picture in one of the formats {', '.join(_CONTENT_TYPES)}")
    if frames(data, kind, limits.max_frames) > limits.max_frames:
        raise ImageTooLarge(f"more than {limits.max_frames} frames or pages")
    canvas = webp_canvas(data) if kind == "WEBP" else None
    if canvas is not None and canvas[0] * canvas[1] > limits.max_pixels:
        raise ImageTooLarge(f"{canvas[0]}×{canvas[1]} pixels; at most {limits.max_pixels} are accepted")


def serve(perform: Perform = perform) -> None:
    """Take tasks from standard input until it ends."""
    # Ctrl-C goes to the whole group; the parent decides when this process is not needed any more.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    _confine(int(sys.argv[1]))
    connection = socket.socket(fileno=0)
    send(connection, Result())
    while (message := receive(connection, Task)) is not None:
        task, data = message
        signal.setitimer(signal.ITIMER_REAL, task.timeout_s + _LONGER_THAN_THE_PARENT_S)
        try:
            result, body = perform(task.operation, task.limits, bytes(data))
        except RiverlensError as error:
            result, body = Result(error=error.code, detail=error.detail), b""
        except MemoryError:
            detail = "the picture needs more memory than `decode_memory_bytes` allows"
            result, body = Result(error=ImageTooLarge.code, detail=detail), b""
        signal.setitimer(signal.ITIMER_REAL, 0)
        del message, data
        send(connection, result, body)
        del result, body


def _confine(memory_bytes: int) -> None:
    for kind, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def _inspect(data: bytes, limits: Limits) -> Result:
    with open_picture(data) as image:
        check_shape(
            image.width,
            image.height,
            max_pixels=limits.max_pixels,
            min_side=limits.min_side,
            max_aspect=limits.max_aspect,
        )
        return Result(width=image.width, height=image.height, content_type=_CONTENT_TYPES[image.format or ""])


def _clean(data: bytes, limits: Limits) -> tuple[Result, bytes]:
    kind = kind_of(data)
    with open_picture(data) as picture:
        described = Result(
            width=picture.width, height=picture.height, content_type=_CONTENT_TYPES[picture.format or ""]
        )
        orientation = orientation_of(picture)
    stripped = strip(data, kind, orientation) if kind is not None else None
    if stripped is not None:
        return described, stripped
    image = _decode(data, limits)
    anew, content_type = encoded(image, _REENCODED_QUALITY)
    return Result(width=image.width, height=image.height, content_type=content_type), anew


def _decode(data: bytes, limits: Limits) -> Image.Image:
    return decode(
        data,
        max_pixels=limits.max_pixels,
        min_side=limits.min_side,
        max_bytes=limits.max_bytes,
        max_aspect=limits.max_aspect,
    )


def _cut(image: Image.Image, region: Region | None) -> Image.Image:
    return image if region is None else crop(image, *region)


if __name__ == "__main__":
    # The parent may be killed at any time; then nobody waits for an answer.
    with contextlib.suppress(ConnectionError):
        serve()
