"""A whole running Riverlens for tests: the real `riverlens up` in a home folder of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx

Answer = TypeVar("Answer")
RIVERLENS = str(Path(sys.executable).parent / "riverlens")


def kafka_can_run() -> bool:
    """Whether to run the tests on Apache Kafka: its Java and Maven are here, or this is continuous integration.

    In continuous integration (`CI=true`) a Kafka that cannot start fails the tests instead of skipping them.
    """
    if os.environ.get("CI") == "true":
        return True
    if shutil.which("java") is None or shutil.which("mvn") is None:
        return False
    version = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    return any(f'"{major}' in version for major in range(17, 40))


def on_both_brokers() -> bool:
    """Whether every test is to be run on both kinds of broker, also where the kind does not matter."""
    return os.environ.get("RIVERLENS_TEST_BROKERS") == "both"


def free_port() -> int:
    """A TCP port nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def eventually(probe: Callable[[], Answer | None], within_s: float = 60.0, every_s: float = 0.1) -> Answer:
    """The first truthy answer of `probe`; fails with its last answer after `within_s`."""
    deadline = time.monotonic() + within_s
    pause = threading.Event()
    while not (answer := probe()):
        assert time.monotonic() < deadline, f"not within {within_s} s; last answer: {answer!r}"
        pause.wait(every_s)
    return answer


class RunningSystem:
    """`riverlens up` as a person would run it, plus an HTTP client."""

    def __init__(self, home: Path, kind: str, settings: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.kind = kind
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.ingest_metrics_port = free_port()
        self.environment = {
            **os.environ,
            "RIVERLENS_HOME": str(home),
            "RIVERLENS_KAFKA_LOCAL": kind,
            "RIVERLENS_HTTP_PORT": str(self.port),
            "RIVERLENS_INGEST_METRICS_PORT": str(self.ingest_metrics_port),
            # The tests ask what is found; the deadlines have tests of their own.
            "RIVERLENS_SEARCH_DEADLINE_MS": "5000",
            "RIVERLENS_ENCODE_DEADLINE_MS": "5000",
            "RIVERLENS_RERANK_DEADLINE_MS": "30000",
            **(settings or {}),
        }
        self.log = home.parent / f"{home.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(base_url=self.base_url, timeout=90)

    def start(self, within_s: float = 180) -> None:
        """Start everything and wait until every part is ready."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [RIVERLENS, "up"], env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        eventually(self._ready, within_s, 0.5)

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"riverlens up ended early:\n{self.tail()}"
        with contextlib.suppress(httpx.TransportError):
            return self.http.get("/readyz").status_code == 200
        return False

    def tail(self, lines: int = 60) -> str:
        """The end of everything the processes printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def warnings(self, lines: int = 40) -> str:
        """The end of what they printed beyond their usual lines, and the very last lines."""
        if not self.log.exists():
            return "(no log)"
        printed = self.log.read_text(errors="replace").splitlines()
        unusual = [line for line in printed[:-10] if "info " not in line and "debug " not in line]
        return "\n".join([*unusual[-lines:], "…", *printed[-10:]])

    def stop(self, within_s: float = 90) -> int:
        """Ctrl-C, as a person would; the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        code = self.process.wait(within_s)
        self.process = None
        return code

    def end(self) -> None:
        """Stop if it still runs, whatever state it is in."""
        if self.process is not None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                assert self.process is not None
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self.http.close()

    def upload(self, data: bytes, wait: str = "searchable", **form: str) -> httpx.Response:
        """Upload a picture's bytes."""
        return self.http.post(
            "/v1/collections/images/images", params={"wait": wait}, files={"file": ("picture.png", data)}, data=form
        )

    def search(self, **body: Any) -> dict[str, Any]:
        """A JSON search; asserts that it succeeded."""
        response = self.http.post("/v1/collections/images/search", json=body)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def search_picture(self, data: bytes, **form: str) -> dict[str, Any]:
        """A search by a picture's bytes; asserts that it succeeded."""
        response = self.http.post("/v1/collections/images/search", files={"image": ("query.png", data)}, data=form)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def collection(self) -> dict[str, Any]:
        """Statistics of the default collection."""
        return dict(self.http.get("/v1/collections/images").json())
