"""Harm beyond a signal to one process: everything dies, files rot, disks fill, two workers share the partitions."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from actors.log.connection import confluent_config
from contract.topics import image_events_topic
from streams.ingest_group import INGEST_GROUP
from tests.chaos.faults import BROKER_AWAY, STOOD_STILL, Fault
from tests.chaos.target import Target
from tests.integration.local_broker import BrokerProcess
from tests.integration.system import eventually

ROOT = Path(__file__).parents[2]
_DAMAGED = (
    r"the store is damaged",
    r"no snapshot replaces the damaged store",
    r"a restored snapshot cannot be opened",
    r"shard failed",
    r"a snapshot is damaged",
)


class KillEverything(Fault):
    """SIGKILL of `up` alone, or of every process of the system at once; then `up` is started again."""

    def __init__(self, *, alone: bool) -> None:
        self.name = "kill-up" if alone else "kill-everything"
        self.needs_kafka = True
        self.expected = BROKER_AWAY
        self._alone = alone

    def apply(self, target: Target, rng: random.Random) -> None:
        running = target.running
        assert running.process is not None
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait()
        if not self._alone:
            for part in target.everything():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(part.pid, signal.SIGKILL)
        begins = running.log.stat().st_size
        running.start(within_s=240)
        # What a killed `up` left behind answers, too, until the new one ends it.
        eventually(lambda: b"Riverlens is ready" in running.log.read_bytes()[begins:], 240)


class _WithSecondWorker(Fault):
    """A second ingest worker joins the group of the first, so that partitions change hands under load."""

    needs_kafka = True
    _second: subprocess.Popen[bytes] | None = None

    def _join(self, target: Target) -> subprocess.Popen[bytes]:
        running = target.running
        begins = running.log.stat().st_size
        with running.log.open("ab") as log:
            self._second = subprocess.Popen(
                [sys.executable, "-m", "streams.worker"],
                cwd=ROOT,
                env=running.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        eventually(lambda: b"ingest is running" in running.log.read_bytes()[begins:], 60)
        return self._second

    def heal(self, target: Target) -> None:
        assert self._second is not None
        self._second.terminate()
        try:
            self._second.wait(60)
        except subprocess.TimeoutExpired:
            self._second.kill()
            self._second.wait()


class Rebalance(_WithSecondWorker):
    """The first of two workers is killed in mid-batch."""

    name = "rebalance"
    hold_s = 15.0

    def apply(self, target: Target, rng: random.Random) -> None:
        first = target.parts("ingest")[0].pid
        self._join(target)
        os.kill(first, signal.SIGKILL)


class Zombie(_WithSecondWorker):
    """One of two workers stands still until the other has its partitions, and then goes on with what it had in hand."""

    name = "zombie-worker"
    hold_s = 8.0
    expected = STOOD_STILL

    def apply(self, target: Target, rng: random.Random) -> None:
        second = self._join(target)
        # Under load both have partitions by then, and batches of them in flight.
        _wait(5.0)
        os.kill(second.pid, signal.SIGSTOP)
        _wait(25.0)
        os.kill(second.pid, signal.SIGCONT)


class Redelivery(Fault):
    """The group's committed offsets go back by half while everything stands still: half of all events come again."""

    name = "redelivery"
    needs_kafka = True

    def apply(self, target: Target, rng: random.Random) -> None:
        running = target.running
        assert running.stop(within_s=150) == 0
        broker = BrokerProcess(running.home, "kafka")
        broker.start()
        try:
            _rewind(broker)
        finally:
            broker.stop()
        running.start()


def _rewind(broker: BrokerProcess) -> None:
    admin = AdminClient(confluent_config(broker.settings))
    topic = image_events_topic("images")
    asked = [ConsumerGroupTopicPartitions(INGEST_GROUP)]
    committed = admin.list_consumer_group_offsets(asked)[INGEST_GROUP].result().topic_partitions
    back = [
        TopicPartition(one.topic, one.partition, one.offset // 2)
        for one in committed
        if one.topic == topic and one.offset > 0
    ]
    assert back, "no offsets were committed"
    admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(INGEST_GROUP, back)])[INGEST_GROUP].result()


class Rot(Fault):
    """Bytes of a shard's files are flipped while everything stands still: of its store, or of its snapshots as well."""

    needs_kafka = True
    expected = _DAMAGED

    def __init__(self, name: str, *folders: str) -> None:
        self.name = name
        self._folders = folders

    def apply(self, target: Target, rng: random.Random) -> None:
        running = target.running
        assert running.stop(within_s=150) == 0
        rotten = 0
        for folder in self._folders:
            for file in sorted((running.home / folder / "images").rglob("*")):
                if file.is_file() and file.suffix in {".sst", ".log"} and "0-0" in file.parts:
                    rotten += _flip(file, rng)
        assert rotten, f"nothing to damage in {self._folders}"
        running.start()


def _flip(file: Path, rng: random.Random) -> bool:
    """Turn some bytes of a file over; False for one that is too short."""
    size = file.stat().st_size
    if size < 200:
        return False
    # Files of a snapshot are hard links to those of the store: rot belongs to one of them.
    apart = file.with_name(f"{file.name}.apart")
    shutil.copyfile(file, apart)
    with apart.open("r+b") as opened:
        for _ in range(8):
            at = rng.randrange(size // 8, size)
            opened.seek(at)
            byte = opened.read(1)[0]
            opened.seek(at)
            opened.write(bytes([byte ^ 0xFF]))
    apart.replace(file)
    return True


class DiskFull(Fault):
    """The file system under the shards' stores has no byte left for a while. Needs `mounted`."""

    name = "disk-full"
    hold_s = 20.0
    expected = (r"No space left on device", r"shard failed", r"no snapshot was taken", r"lexical index failed")

    def apply(self, target: Target, rng: random.Random) -> None:
        filler = target.running.home / "shards" / "filler"
        with filler.open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
                file.flush()

    def heal(self, target: Target) -> None:
        (target.running.home / "shards" / "filler").unlink()


def mount_shards(home: Path, size_mib: int = 256) -> bool:
    """Put the stores on a small file system of their own; False where that is not allowed (it needs root)."""
    folder = home / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "riverlens-chaos", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def unmount_shards(home: Path) -> None:
    """Undo `mount_shards`."""
    subprocess.run(["umount", str(home / "shards")], check=True)


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)


def disasters() -> dict[str, Fault]:
    """All of them by name."""
    known: list[Fault] = [
        KillEverything(alone=True),
        KillEverything(alone=False),
        Rebalance(),
        Zombie(),
        Redelivery(),
        Rot("rotten-store", "shards"),
        Rot("rotten-store-and-snapshots", "shards", "snapshots"),
        DiskFull(),
    ]
    return {fault.name: fault for fault in known}
