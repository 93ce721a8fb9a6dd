"""How `riverlens up` starts, stops in order, and guards its home folder; on toy processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest

from actors.log.connection import LocalBroker
from contract.errors import SettingsInvalid, Unavailable
from contract.settings import Settings
from serving.cli import up
from serving.cli.restarts import Restarts
from tests.integration.system import eventually

NAMES = ("first", "second", "third")
TOY = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from serving.cli.processes import KeptProcesses
    from serving.cli.restarts import Restarts

    folder = Path(sys.argv[1])
    child = (
        "import os, signal, sys, time\\n"
        "def stop(*_):\\n"
        "    with open(sys.argv[1] + '/order', 'a') as f: f.write(sys.argv[2] + '\\\\n')\\n"
        "    sys.exit(0)\\n"
        "signal.signal(signal.SIGTERM, stop)\\n"
        "with open(sys.argv[1] + '/' + sys.argv[2] + '.started', 'a') as f: f.write(f'{os.getpid()}\\\\n')\\n"
        "time.sleep(float(sys.argv[3]))\\n"
        "sys.exit(3)\\n"
    )
    (folder / "child.py").write_text(child)
    manager = KeptProcesses(Restarts(int(sys.argv[2]), 60.0), foundations=frozenset({"first"}))
    if int(sys.argv[2]):
        manager.ready()
    for name, seconds in zip(("first", "second", "third"), sys.argv[3:]):
        manager.add_process(name, f"exec {sys.executable} {folder}/child.py {folder} {name} {seconds}")
    manager.loop()
    print("failed:", manager.failed, "unclean:", manager.unclean())
    """
)


def _toy(folder: Path, *seconds: str, restarts: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TOY, str(folder), str(restarts), *seconds],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_ctrl_c_stops_the_last_started_first(tmp_path: Path) -> None:
    system = _toy(tmp_path, "60", "60", "60")
    eventually(lambda: [_starts(tmp_path, name) for name in NAMES] == [1, 1, 1], 30)
    system.send_signal(signal.SIGINT)
    output, _ = system.communicate(timeout=60)
    assert (tmp_path / "order").read_text().split() == ["third", "second", "first"]
    assert "failed: None unclean: {}" in output


def test_one_that_ends_by_itself_stops_all_and_is_named(tmp_path: Path) -> None:
    output, _ = _toy(tmp_path, "60", "1", "60").communicate(timeout=60)
    assert "failed: second" in output
    assert sorted((tmp_path / "order").read_text().split()) == ["first", "third"]


def _starts(folder: Path, name: str) -> int:
    """How often a toy process has started so far."""
    started = folder / f"{name}.started"
    return len(started.read_text().splitlines()) if started.exists() else 0


def _kill(folder: Path, name: str) -> None:
    os.kill(int((folder / f"{name}.started").read_text().split()[-1]), signal.SIGKILL)


def test_one_that_is_killed_is_started_again_alone(tmp_path: Path) -> None:
    system = _toy(tmp_path, "60", "60", "60", restarts=5)
    eventually(lambda: [_starts(tmp_path, name) for name in NAMES] == [1, 1, 1], 30)
    _kill(tmp_path, "second")
    eventually(lambda: _starts(tmp_path, "second") == 2, 30)
    assert (_starts(tmp_path, "first"), _starts(tmp_path, "third")) == (1, 1)
    system.send_signal(signal.SIGINT)
    output, _ = system.communicate(timeout=60)
    assert (tmp_path / "order").read_text().split() == ["third", "second", "first"]
    assert "failed: None unclean: {}" in output


def test_what_stands_on_a_killed_foundation_is_started_anew_with_it(tmp_path: Path) -> None:
    system = _toy(tmp_path, "60", "60", "60", restarts=5)
    eventually(lambda: [_starts(tmp_path, name) for name in NAMES] == [1, 1, 1], 30)
    _kill(tmp_path, "first")
    eventually(lambda: [_starts(tmp_path, name) for name in NAMES] == [2, 2, 2], 30)
    system.send_signal(signal.SIGINT)
    output, _ = system.communicate(timeout=60)
    assert "failed: None unclean: {}" in output


def test_one_that_cannot_run_is_given_up_after_its_restarts(tmp_path: Path) -> None:
    output, _ = _toy(tmp_path, "60", "0.1", "60", restarts=2).communicate(timeout=60)
    assert "failed: second" in output
    assert _starts(tmp_path, "second") == 3
    assert sorted((tmp_path / "order").read_text().split()) == ["first", "third"]


def test_restarts_back_off_and_are_counted_over_a_window() -> None:
    restarts = Restarts(3, 10.0)
    assert [restarts.ended("a", at) for at in (0.0, 1.0, 2.0, 3.0)] == [0.5, 1.0, 2.0, None]
    assert restarts.ended("b", 3.0) == 0.5, "each process has a count of its own"
    assert restarts.ended("a", 10.5) == 2.0, "the end at 0 s is forgotten, those at 1 and 2 s are not"
    assert Restarts(0, 10.0).ended("a", 0.0) is None


def test_a_broker_elsewhere_is_noticed_once(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    settings.broker_file.parent.mkdir()
    watch = up._BrokerWatch(settings)

    def announce(port: int) -> None:
        settings.broker_file.write_bytes(msgspec.json.encode(LocalBroker(f"127.0.0.1:{port}", "kafka", "one")))

    assert not watch.moved()
    announce(1000)
    assert not watch.moved(), "the first one has not moved"
    settings.broker_file.unlink()
    assert not watch.moved()
    announce(1000)
    assert not watch.moved(), "it came back where it was"
    announce(1001)
    assert [watch.moved(), watch.moved()] == [True, False]


def test_a_home_folder_in_use_and_a_taken_port_are_refused(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    run_file = tmp_path / "run" / "up.json"
    run_file.parent.mkdir()
    other = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()", "riverlens", "up"], stdin=subprocess.PIPE
    )
    try:
        run_file.write_text(json.dumps({"pid": other.pid, "processes": {}}))
        with pytest.raises(SettingsInvalid, match=str(other.pid)), up._claim(settings):
            pass
    finally:
        other.communicate()
    with up._claim(settings) as claimed:
        assert json.loads(claimed.read_text())["pid"] == os.getpid()
    assert not run_file.exists()


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(Unavailable, match="RIVERLENS_HTTP_PORT"):
            up._check_port(Settings(home=tmp_path, http_port=listener.getsockname()[1]))
