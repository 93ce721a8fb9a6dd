"""One system in a process of its own: `python -m benchmarks.index.worker`. Needs numpy alone.

Reads one JSON object a line from standard input and answers each with one: `{"result": …}` or
`{"error": reason}`. What libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.index.measuring import Measuring
from benchmarks.index.resources import disk_bytes, memory, settle
from benchmarks.index.systems import Options, make, prepare, spec

# A thread that holds the interpreter is asked for it after this long; the default of 5 ms is an
# age beside searches of a tenth of one. The same for every system.
SWITCH_INTERVAL_S = 0.0001


class Worker:
    """Carries out one command after the other."""

    def __init__(self) -> None:
        self._measuring: Measuring | None = None
        self._folder = ""

    def carry_out(self, do: str, arguments: dict[str, Any]) -> Any:
        """The result of one command, ready for JSON."""
        match do:
            case "open":
                return self._open(**arguments)
            case "memory":
                settle()
                return asdict(memory(os.getpid()))
            case "close":
                self.close()
                return {"disk_bytes": disk_bytes(Path(self._folder))}
            case "finish":
                self._opened.system.finish()
                return {}
            case "load" | "tune" | "recall" | "search" | "ingest":
                return getattr(self._opened, do)(**arguments)
        raise ValueError(f"no command {do}")

    def _open(self, system: str, options: dict[str, Any], data: str, effort: int | None, probe: int | None) -> Any:
        """Open a system; with `probe`, time it until that point is found by its own vector."""
        self._folder = options["folder"]
        chosen = spec(system)
        prepare(chosen)
        began = time.perf_counter()
        opened = make(chosen, Options(**options))
        if effort is not None:
            opened.set_effort(effort)
        self._measuring = Measuring(opened, Path(data))
        if probe is None:
            return {"versions": opened.versions()}
        while not self._measuring.answers_rightly(probe):
            if time.perf_counter() - began > 60:
                raise TimeoutError("after a restart a point is not found by its own vector")
        return {"restart_s": time.perf_counter() - began}

    def close(self) -> None:
        """Close the system if one is open: it may have started a server."""
        if self._measuring is not None:
            self._measuring.system.close()
            self._measuring = None

    @property
    def _opened(self) -> Measuring:
        if self._measuring is None:
            raise RuntimeError("no system is open")
        return self._measuring


def main() -> None:
    """Entry point."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = {"result": worker.carry_out(command.pop("do"), command)}
        except BaseException as error:  # noqa: BLE001 - the reason is part of the result
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    worker.close()


if __name__ == "__main__":
    main()
