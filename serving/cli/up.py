"""`riverlens up`: the processes of the Procfile in the foreground, started together, kept running, stopped in order."""

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
from typing import Any

from honcho.environ import parse_procfile

from actors.log.connection import LocalBroker, read_local_broker
from contract.errors import BrokerUnavailable, SettingsInvalid, Unavailable
from contract.settings import Settings
from serving.cli.connection import connect
from serving.cli.output import console
from serving.cli.processes import STOP_EACH_S, KeptProcesses
from serving.cli.restarts import Restarts
from serving.client import Readiness

ROOT = Path(__file__).parent.parent.parent
_READY_WITHIN_S = 300.0
# Names in the Procfile.
_BROKER, _RAY = "broker", "ray"


def run(settings: Settings) -> int:
    """Run until Ctrl-C; returns 0 after a clean stop, 1 when a process could not be kept running.

    Raises SettingsInvalid when the home folder or the port is in use.
    """
    with _claim(settings) as run_file:
        _check_port(settings)
        # What an earlier run announced is not there any more.
        settings.broker_file.unlink(missing_ok=True)
        broker = _BrokerWatch(settings)
        manager = KeptProcesses(
            Restarts(settings.restarts_max, settings.restarts_window_s),
            foundations=frozenset({_RAY}),
            foundation_moved=lambda: _BROKER if broker.moved() else None,
            on_started=lambda pids: _write_run_file(run_file, pids),
        )
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
        threading.Thread(target=_announce, args=(settings, manager), daemon=True).start()
        manager.loop()
    if manager.failed is not None:
        console.print(
            f"[bold red]{manager.failed} ended by itself[/] and is not started again; its last lines above say why",
            highlight=False,
        )
        return 1
    unclean = manager.unclean()
    if unclean:
        console.print(f"[yellow]stopped, but not cleanly: {unclean}[/]", highlight=False)
        return 1
    console.print("stopped")
    return 0


class _BrokerWatch:
    """Notices that the local broker was started anew elsewhere, or as another one.

    Clients find their broker again where it was; in another place, or with another log, they never do.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: LocalBroker | None = None

    def moved(self) -> bool:
        """Whether the broker that is announced differs from the last one that was; True once per change."""
        try:
            announced = read_local_broker(self._settings)
        except BrokerUnavailable:
            return False  # half of a file says nothing; the next look will
        if announced is None or announced == self._known:
            return False
        before, self._known = self._known, announced
        return before is not None


def _announce(settings: Settings, manager: KeptProcesses) -> None:
    """Say once that everything is ready."""
    pause = threading.Event()
    with connect(settings, deadline_s=10) as client:
        deadline = time.monotonic() + _READY_WITHIN_S
        readiness = Readiness(ready=False, missing=("starting",))
        while not readiness.ready and time.monotonic() < deadline and not manager.stop_requested:
            pause.wait(0.5)
            readiness = client.readiness()
    if readiness.ready:
        manager.ready()
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
        deadline = time.monotonic() + STOP_EACH_S
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
