"""Local Ray clusters live side by side, and each ends alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.cluster import connect
from contract.errors import Unavailable
from contract.settings import Settings
from tests.integration.system import eventually

pytestmark = pytest.mark.integration

_NAME_AN_ACTOR = """
import sys
import ray
from actors.cluster import connect
from contract.settings import Settings

connect(Settings(home=sys.argv[1]))

@ray.remote(num_cpus=0.05)
class Named:
    def where(self):
        import os, actors.messages
        return os.getpid()

print(ray.get(Named.options(name="one", get_if_exists=True, lifetime="detached").remote().where.remote()))
"""

Starter = Callable[[Path], "subprocess.Popen[bytes]"]


@pytest.fixture
def start_cluster() -> Iterator[Starter]:
    started: list[subprocess.Popen[bytes]] = []

    def start(home: Path) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "RIVERLENS_HOME": str(home)}
        started.append(
            subprocess.Popen([sys.executable, "-m", "actors.cluster"], env=environment, start_new_session=True)
        )
        eventually(Settings(home=home).ray_file.exists, within_s=90)
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.wait(60)


def _name_an_actor(home: Path) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _NAME_AN_ACTOR, str(home)], capture_output=True, check=True, timeout=90
    )
    return int(done.stdout.splitlines()[-1])


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_clusters_live_side_by_side_and_end_alone(start_cluster: Starter, short_tmp: Path) -> None:
    homes = short_tmp / "ray-one", short_tmp / "ray-two"
    first, second = start_cluster(homes[0]), start_cluster(homes[1])
    addresses = {json.loads(Settings(home=home).ray_file.read_text())["address"] for home in homes}
    assert len(addresses) == 2
    assert all(address.startswith("127.0.0.1:") for address in addresses)
    worker_one, worker_two = _name_an_actor(homes[0]), _name_an_actor(homes[1])
    assert worker_one != worker_two
    assert _name_an_actor(homes[0]) == worker_one, "a detached actor outlives the process that made it"

    first.send_signal(signal.SIGTERM)

    assert first.wait(60) == 0
    assert not Settings(home=homes[0]).ray_file.exists()
    eventually(lambda: not _alive(worker_one), within_s=30)
    assert second.poll() is None
    assert _name_an_actor(homes[1]) == worker_two


def test_connecting_without_a_cluster_says_what_to_start(short_tmp: Path) -> None:
    with pytest.raises(Unavailable, match="`ray` process"):
        connect(Settings(home=short_tmp / "no-ray"), wait_s=0.2)


def test_a_stale_run_file_is_waited_out_and_named(short_tmp: Path) -> None:
    settings = Settings(home=short_tmp / "stale-ray")
    settings.ray_file.parent.mkdir(parents=True)
    settings.ray_file.write_text('{"address": "127.0.0.1:1"}')
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 "):
        connect(settings, wait_s=0.2)
