"""A whole Riverlens of the benchmark's own: fresh home folder, free port, default settings."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from serving.client import Client

ROOT = Path(__file__).parent.parent
_READY_WITHIN_S = 300.0


class Running(NamedTuple):
    """A running system: a client of it, and its home folder, by which other programs find its broker."""

    client: Client
    home: Path


@contextlib.contextmanager
def running_system(*, samples: bool = True) -> Iterator[Running]:
    """Start everything, index `samples/` if wanted, yield the system, stop everything."""
    home = Path(tempfile.mkdtemp(prefix="rl-bench-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "RIVERLENS_HOME": str(home), "RIVERLENS_HTTP_PORT": str(port)}
    command = [sys.executable, "-m", "serving.cli"]
    with (home / "up.log").open("wb") as log:
        system = subprocess.Popen(
            [*command, "up"], env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            deadline, pause = time.monotonic() + _READY_WITHIN_S, threading.Event()
            while not (readiness := client.readiness()).ready:
                if system.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"not ready: {readiness.missing}\n{(home / 'up.log').read_text()[-4000:]}")
                pause.wait(0.5)
            if samples:
                subprocess.run([*command, "index", str(ROOT / "samples" / "captions.csv")], env=environment, check=True)
            yield Running(client, home)
    finally:
        system.send_signal(signal.SIGINT)
        system.wait(180)
        shutil.rmtree(home)
