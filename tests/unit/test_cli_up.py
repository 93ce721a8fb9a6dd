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

import pytest

from contract.errors import SettingsInvalid, Unavailable
from contract.settings import Settings
from serving.cli import up
from tests.integration.system import eventually

TOY = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from serving.cli.up import OrderedManager

    folder = Path(sys.argv[1])
    child = (
        "import signal, sys, time, pathlib\\n"
        "def stop(*_):\\n"
        "    with open(sys.argv[1] + '/order', 'a') as f: f.write(sys.argv[2] + '\\\\n')\\n"
        "    sys.exit(0)\\n"
        "signal.signal(signal.SIGTERM, stop)\\n"
        "pathlib.Path(sys.argv[1], sys.argv[2] + '.started').touch()\\n"
        "time.sleep(float(sys.argv[3]))\\n"
        "sys.exit(3)\\n"
    )
    (folder / "child.py").write_text(child)
    manager = OrderedManager()
    for name, seconds in zip(("first", "second", "third"), sys.argv[2:]):
        manager.add_process(name, f"exec {sys.executable} {folder}/child.py {folder} {name} {seconds}")
    manager.loop()
    print("failed:", manager.failed, "unclean:", manager.unclean())
    """
)


def _toy(folder: Path, *seconds: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TOY, str(folder), *seconds], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def test_ctrl_c_stops_the_last_started_first(tmp_path: Path) -> None:
    system = _toy(tmp_path, "60", "60", "60")
    eventually(lambda: len(list(tmp_path.glob("*.started"))) == 3, 30)
    system.send_signal(signal.SIGINT)
    output, _ = system.communicate(timeout=60)
    assert (tmp_path / "order").read_text().split() == ["third", "second", "first"]
    assert "failed: None unclean: {}" in output


def test_one_that_ends_by_itself_stops_all_and_is_named(tmp_path: Path) -> None:
    output, _ = _toy(tmp_path, "60", "1", "60").communicate(timeout=60)
    assert "failed: second" in output
    assert sorted((tmp_path / "order").read_text().split()) == ["first", "third"]


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
