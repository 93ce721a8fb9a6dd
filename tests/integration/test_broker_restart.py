"""The broker process over its life: restarts, a wiped log, sudden ends, no Java."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.log.admin import delete_topics, ensure_topic, topic_identity
from actors.log.connection import bootstrap_servers, broker_instance
from actors.log.producer import LogProducer
from actors.log.reader import KafkaLogReader
from contract.settings import Settings
from contract.topics import CLICKS_TOPIC, embedding_log_spec, embedding_log_topic, image_events_spec
from tests.integration.local_broker import BrokerProcess
from tests.integration.system import eventually, kafka_can_run

pytestmark = pytest.mark.integration
needs_kafka = pytest.mark.skipif(not kafka_can_run(), reason="Apache Kafka needs Java 17 and Maven")
Make = Callable[..., BrokerProcess]
TOPIC = embedding_log_topic("kept")


@pytest.fixture
def make_broker(short_tmp: Path) -> Iterator[Make]:
    """Makes broker processes of one test's own, and ends them."""
    made: list[BrokerProcess] = []

    def make(name: str, kind: str, **environment: str) -> BrokerProcess:
        made.append(BrokerProcess(short_tmp / name, kind, environment))
        return made[-1]

    yield make
    for one in made:
        one.end()


def path_without_java(folder: Path) -> str:
    """A PATH with Python on it and little else."""
    folder.mkdir(exist_ok=True)
    ps = shutil.which("ps")
    assert ps is not None
    (folder / "ps").symlink_to(ps)
    return str(folder)


async def write(settings: Settings, value: bytes) -> int:
    for spec in (embedding_log_spec("kept", 1), image_events_spec("kept", 1, -1)):
        ensure_topic(settings, spec)
    producer = LogProducer(settings, "test")
    try:
        return await producer.send(TOPIC, 0, b"k", value)
    finally:
        producer.close()


def values(settings: Settings) -> list[bytes | None]:
    reader = KafkaLogReader(settings, "kept", [0])
    try:
        reader.start({0: 0})
        end = reader.end_offsets()[0]
        found: list[bytes | None] = []
        while len(found) < end:
            found += [record.value for record in reader.poll(10, 5.0)]
        return found
    finally:
        reader.close()


def check_as_foreign_cluster(running: BrokerProcess, make_broker: Make) -> None:
    """With `kafka_bootstrap`, the process makes what topics are missing there, stays, and starts nothing."""
    delete_topics(running.settings, [CLICKS_TOPIC])
    guest = make_broker("guest", "auto", RIVERLENS_KAFKA_BOOTSTRAP=bootstrap_servers(running.settings))
    process = guest.spawn()
    eventually(lambda: process.poll() is not None or "using the Kafka cluster" in guest.output(), 30)
    assert process.poll() is None, guest.output()
    assert topic_identity(running.settings, CLICKS_TOPIC).topic_id
    assert not guest.settings.broker_file.exists()
    assert guest.stop() == 0
    assert not (guest.home / "kafka").exists()


@needs_kafka
async def test_what_kafka_holds_survives_its_restart_and_not_its_data_folder(make_broker: Make) -> None:
    broker = make_broker("restarted", "kafka")
    broker.start()
    await write(broker.settings, b"before")
    instance, identity = broker_instance(broker.settings), topic_identity(broker.settings, TOPIC)
    assert identity.cluster_id == instance
    check_as_foreign_cluster(broker, make_broker)
    assert broker.stop() == 0
    assert not broker.settings.broker_file.exists()

    broker.start()
    assert broker_instance(broker.settings) == instance
    assert topic_identity(broker.settings, TOPIC) == identity
    assert values(broker.settings) == [b"before"]
    assert await write(broker.settings, b"after") == 1
    assert broker.stop(signal.SIGINT) == 0

    shutil.rmtree(broker.home / "kafka")
    broker.start()
    assert broker_instance(broker.settings) != instance
    assert await write(broker.settings, b"other log") == 0
    other = topic_identity(broker.settings, TOPIC)
    assert other.cluster_id != identity.cluster_id
    assert other.topic_id != identity.topic_id


async def test_a_restarted_in_memory_broker_is_another_log(make_broker: Make) -> None:
    broker = make_broker("forgetful", "memory")
    broker.start()
    await write(broker.settings, b"before")
    identity = topic_identity(broker.settings, TOPIC)
    assert broker.stop() == 0
    assert not broker.settings.broker_file.exists()
    broker.start()
    assert await write(broker.settings, b"after") == 0
    assert topic_identity(broker.settings, TOPIC).cluster_id != identity.cluster_id
    assert broker.output().count("nothing in it survives a restart") == 2


@needs_kafka
async def test_sudden_ends_lose_nothing_and_leave_nothing_behind(make_broker: Make) -> None:
    broker = make_broker("killed", "kafka")
    broker.start()
    await write(broker.settings, b"durable")

    # Kafka is killed: the process says why it ends, and does not look like a clean stop.
    os.kill(int((broker.home / "kafka" / "kafka.pid").read_text()), signal.SIGKILL)
    assert broker.process is not None
    assert broker.process.wait(60) == 1
    assert "Apache Kafka ended with status -9" in broker.output()
    assert not broker.settings.broker_file.exists()
    broker.start()
    assert values(broker.settings) == [b"durable"]

    # The process is killed: the Kafka it leaves behind does not keep the next one from the data.
    assert broker.stop(signal.SIGKILL) == -signal.SIGKILL
    broker.settings.broker_file.unlink()
    broker.start()
    assert values(broker.settings) == [b"durable"]


def test_without_java_auto_takes_the_in_memory_broker_and_says_so(make_broker: Make, tmp_path: Path) -> None:
    broker = make_broker("no-java", "auto", PATH=path_without_java(tmp_path / "bin"), JAVA_HOME="")
    broker.start()
    lines = [line for line in broker.output().splitlines() if "nothing in it survives a restart" in line]
    assert len(lines) == 1
    assert "there is no java on the path" in lines[0]
    assert '"kind":"memory"' in broker.settings.broker_file.read_text()


def test_without_java_kafka_is_refused(make_broker: Make, tmp_path: Path) -> None:
    broker = make_broker("no-java-kafka", "kafka", PATH=path_without_java(tmp_path / "bin"), JAVA_HOME="")
    assert broker.spawn().wait(60) == 1
    assert "there is no java on the path" in broker.output()


def test_an_in_memory_broker_never_hides_an_existing_log(make_broker: Make, tmp_path: Path) -> None:
    broker = make_broker("had-java", "auto", PATH=path_without_java(tmp_path / "bin"), JAVA_HOME="")
    (broker.home / "kafka" / "data").mkdir(parents=True)
    (broker.home / "kafka" / "data" / "meta.properties").write_text("cluster.id=abc\n")
    assert broker.spawn().wait(60) == 1
    assert not broker.settings.broker_file.exists()


def test_a_stop_while_starting_is_clean(make_broker: Make, tmp_path: Path) -> None:
    """Maven may take minutes; here a stand-in for `java` takes for ever."""
    slow = tmp_path / "bin" / "java"
    slow.parent.mkdir()
    slow.write_text(f"#!{sys.executable}\nimport signal\nprint('started', flush=True)\nsignal.pause()\n")
    slow.chmod(0o755)
    broker = make_broker("hasty", "kafka", PATH=str(slow.parent), JAVA_HOME="")
    process = broker.spawn()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    eventually(lambda: children.read_text().strip(), 30)
    assert broker.stop() == 0
    assert "stopped while it was starting" in broker.output()
