"""A decoding process whose decoder does what the first bytes of the picture say: it crashes, hangs, or eats memory."""

from __future__ import annotations

import ctypes
import os
import signal
import time

from actors.decoding.child import perform, serve
from actors.decoding.messages import Limits, Operation, Result


def obey(operation: Operation, limits: Limits, data: bytes) -> tuple[Result, bytes]:
    """Decode, or do harm."""
    match data.split(b" ")[0]:
        case b"CRASH":
            ctypes.string_at(0)
        case b"ABORT":
            os.abort()
        case b"SPIN":
            while True:
                pass
        case b"HANG":
            # Deaf to everything but the kernel, as a decoder inside C code is.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
            time.sleep(3600)
        case b"EAT":
            eaten = []
            while True:
                eaten.append(bytearray(64 * 1024 * 1024))
        case b"RAISE":
            raise RuntimeError("nobody expected this")
        case b"NONSENSE":
            os.write(0, b"\xff" * 64)
            time.sleep(3600)
        case b"LEAVE":
            os._exit(0)
        case b"WRITE":
            with open("/tmp/written-by-a-decoder", "wb") as file:  # noqa: PTH123
                file.write(b"x")
        case b"SECRETS":
            return Result(error="invalid_image", detail=" ".join(sorted(os.environ))), b""
    return perform(operation, limits, data)


if __name__ == "__main__":
    serve(obey)
