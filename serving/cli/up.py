"""`riverlens up`: the processes of the Procfile in the foreground, started together, stopped in order."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from honcho.environ import parse_procfile
from honcho.manager import Manager

from contract.errors import SettingsInvalid, Unavailable
from contract.settings import Settings
from serving.cli.output import console
from serving.client import Client, Readiness

ROOT = Path(__file__).parent.parent.parent
_STOP_EACH_S = 30.0
_READY_WITHIN_S = 300.0


class OrderedManager(Manager):  # type: ignore[misc]  # honcho ships no types
    """Honcho's manager, but it stops the processes one after the other, the last started first.

    A process that still drains (the HTTP server, the stream) needs what stands below it (Ray, the
    broker) until it is done.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stop_requested = False
        self.failed: str | None = None
        self._terminating = False
        self._stopper: threading.Thread | None = None

    def _start(self) -> None:
        super()._start()
        # Manager.loop has just installed handlers of its own, which know no order and no second Ctrl-C.
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        if self.stop_requested:
            self._killall(force=True)
            return
        self.stop_requested = True
        self._system_print("stopping; Ctrl-C again ends everything at once\n")
        self.terminate()

    def terminate(self) -> None:
        """Begin to stop everything in order; also called by the loop when one process has ended."""
        if self._terminating:
            return
        self._terminating = True
        if not self.stop_requested:
            ended = [name for name, entry in self._processes.items() if entry.get("returncode") is not None]
            self.failed = ended[0] if ended else None
        self._stopper = threading.Thread(target=self._stop_in_order, daemon=True)
        self._stopper.start()

    def kill(self) -> None:
        """Called by the loop a few seconds after the first stop; each stop has a bound of its own instead."""

    def _stop_in_order(self) -> None:
        for name in reversed(list(self._processes)):
            entry = self._processes[name]
            deadline = time.monotonic() + _STOP_EACH_S
            # A process is stoppable once the loop has heard of its pid.
            while entry.get("pid") is None and time.monotonic() < deadline:
                time.sleep(0.05)
            if entry.get("pid") is None:
                continue
            self._procmgr.terminate(entry["pid"])
            while entry.get("returncode") is None and time.monotonic() < deadline:
                time.sleep(0.05)
            if entry.get("returncode") is None:
                self._system_print(f"{name} did not stop within {_STOP_EACH_S:.0f} s and is ended\n")
                self._procmgr.kill(entry["pid"])

    def pids(self) -> dict[str, int]:
        """Pids of the processes heard of so far."""
        return {name: entry["pid"] for name, entry in self._processes.items() if entry.get("pid") is not None}

    def unclean(self) -> dict[str, int]:
        """Processes that ended with another status than 0, with it."""
        return {name: entry["returncode"] for name, entry in self._processes.items() if entry.get("returncode")}


def run(settings: Settings) -> int:
    """Run until Ctrl-C; returns 0 after a clean stop, 1 when a process ended by itself.

    Raises SettingsInvalid when the home folder or the port is in use.
    """
    with _claim(settings) as run_file:
        _check_port(settings)
        manager = OrderedManager()
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONUNBUFFERED": "1",
            # Lines of actors arrive as they were written: whole, each of them, and as JSON where that is set.
            "RAY_DEDUP_LOGS": "0",
            "RAY_DISABLE_WORKER_LOG_PREFIX": "1",
        }
        for name, command in parse_procfile((ROOT / "Procfile").read_text()).processes.items():
            # exec: the shell must not stand between a signal and the process.
            manager.add_process(name, f"exec {command}", env=environment, cwd=str(ROOT))
        threading.Thread(target=_announce, args=(settings, manager, run_file), daemon=True).start()
        manager.loop()
    if manager.failed is not None:
        console.print(f"[bold red]{manager.failed} ended by itself[/]; its last lines above say why", highlight=False)
        return 1
    unclean = manager.unclean()
    if unclean:
        console.print(f"[yellow]stopped, but not cleanly: {unclean}[/]", highlight=False)
        return 1
    console.print("stopped")
    return 0


def _announce(settings: Settings, manager: OrderedManager, run_file: Path) -> None:
    """Say once that everything is ready, and keep the list of processes for a later start to clean up after."""
    pause = threading.Event()
    with Client(settings.base_url, deadline_s=10) as client:
        deadline = time.monotonic() + _READY_WITHIN_S
        readiness = Readiness(ready=False, missing=("starting",))
        while not readiness.ready and time.monotonic() < deadline and not manager.stop_requested:
            _write_run_file(run_file, manager.pids())
            pause.wait(0.5)
            readiness = client.readiness()
    if readiness.ready:
        console.print(f"[bold green]Riverlens is ready:[/] {settings.base_url}", highlight=False)
    elif not manager.stop_requested and manager.failed is None:
        console.print(
            f"[yellow]not ready after {_READY_WITHIN_S:.0f} s:[/] {'; '.join(readiness.missing)}", highlight=False
        )


@contextlib.contextmanager
def _claim(settings: Settings) -> Iterator[Path]:
    """Hold the home folder; ends what a killed `up` left behind; raises SettingsInvalid when it is in use."""
    run_file = settings.home_path / "run" / "up.json"
    run_file.parent.mkdir(parents=True, exist_ok=True)
    if run_file.exists():
        former: dict[str, Any] = json.loads(run_file.read_text())
        if _is_up(former["pid"]):
            raise SettingsInvalid(
                f"{settings.home_path} is in use by `riverlens up` (pid {former['pid']}): "
                "stop it, or set RIVERLENS_HOME to another folder"
            )
        _end_orphans(former["processes"])
    _write_run_file(run_file, {})
    try:
        yield run_file
    finally:
        run_file.unlink(missing_ok=True)


def _write_run_file(run_file: Path, processes: dict[str, int]) -> None:
    temporary = run_file.with_suffix(".tmp")
    temporary.write_text(json.dumps({"pid": os.getpid(), "processes": processes}))
    temporary.replace(run_file)


def _command_of(pid: int) -> str:
    listing = subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return listing.stdout.strip()


def _is_up(pid: int) -> bool:
    return pid != os.getpid() and "riverlens" in (command := _command_of(pid)) and command.split()[-1] == "up"


def _end_orphans(processes: dict[str, int]) -> None:
    """End the processes of an `up` that was killed: they still hold the stores and the broker's data."""
    for name, pid in reversed(processes.items()):
        command = _command_of(pid)
        if "-m streams." not in command and "-m actors." not in command and "-m serving." not in command:
            continue
        console.print(f"ending {name} (pid {pid}), left over by an earlier run that was killed", highlight=False)
        os.killpg(pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_EACH_S
        while _command_of(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        if _command_of(pid):
            os.killpg(pid, signal.SIGKILL)


def _check_port(settings: Settings) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.http_host, settings.http_port))
        except OSError as error:
            raise Unavailable(
                f"{settings.http_host}:{settings.http_port} is taken ({error.strerror}): "
                "set RIVERLENS_HTTP_PORT to a free port"
            ) from error
