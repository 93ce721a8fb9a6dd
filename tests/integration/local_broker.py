"""The real broker process, `python -m streams.broker`, in a home folder of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from contract.settings import Settings
from tests.integration.system import eventually

ROOT = Path(__file__).parents[2]


class BrokerProcess:
    """One broker process. `settings` are those of every other process of the same instance."""

    def __init__(self, home: Path, kind: str, environment: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.kind = kind
        self.settings = Settings(home=home)
        self.log = home.parent / f"{home.name}-broker.log"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RIVERLENS_KAFKA")},
            "RIVERLENS_HOME": str(home),
            "RIVERLENS_KAFKA_LOCAL": kind,
            **(environment or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process without waiting for anything."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streams.broker"],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.process

    def start(self, within_s: float = 240) -> None:
        """Start the process and wait until it has announced itself."""
        process = self.spawn()

        def announced() -> bool:
            assert process.poll() is None, f"the broker ended early:\n{self.output()}"
            return self.settings.broker_file.exists()

        eventually(announced, within_s)

    def output(self) -> str:
        """Everything the process has printed, over all its starts."""
        return self.log.read_text(errors="replace")

    def stop(self, number: int = signal.SIGTERM, within_s: float = 60) -> int:
        """Signal the process and return its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(within_s)
        self.process = None
        return code

    def end(self) -> None:
        """Stop it if it still runs."""
        if self.process is not None:
            self.stop()
