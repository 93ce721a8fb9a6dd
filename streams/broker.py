"""The broker process: `python -m streams.broker`.

With `kafka_bootstrap` set it checks that cluster and stays, so that the Procfile is the same
everywhere. Without it, it runs a local broker, announces it in `settings.broker_file` once the
system topics are there, and removes that file when it stops.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Protocol

import msgspec
import structlog
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from actors.log.admin import ensure_topic
from actors.log.connection import LocalBroker, bootstrap_servers, confluent_config
from actors.logs import configure
from contract.errors import RiverlensError, Unavailable
from contract.settings import Settings, load_settings
from contract.telemetry import LogField
from contract.topics import system_topic_specs
from streams.ingest_group import INGEST_GROUP
from streams.local_kafka import LocalKafka
from streams.memory_broker import MemoryBroker

_log = structlog.get_logger()
_CHECK_EVERY_S = 0.5
_CLIENTS_LEAVE_S = 10.0
_CLUSTER_WAIT_S = 60.0


class Broker(Protocol):
    """A local broker of either kind."""

    def start(self) -> LocalBroker:
        """Start it and return once it answers."""

    def check(self) -> None:
        """Raise BrokerUnavailable if it has ended."""

    def stop(self) -> None:
        """Stop it and wait for its end."""


def start_local(settings: Settings) -> tuple[Broker, LocalBroker]:
    """Start the local broker that `kafka_local` asks for; announces nothing yet.

    With `auto` that is Apache Kafka, or the in-memory cluster where Kafka cannot run and has never run.

    Raises:
        Unavailable: it cannot run (retryable where Maven was out of reach).
        BrokerUnavailable: Kafka does not start; has the end of its log.
    """
    reason = "kafka_local asks for it"
    if settings.kafka_local != "memory":
        kafka = LocalKafka(settings)
        try:
            kafka.prepare()
        except Unavailable as error:
            # An empty broker in place of a full one would make every shard throw its store away.
            if settings.kafka_local == "kafka" or kafka.has_data():
                raise
            reason = error.detail
        else:
            return kafka, kafka.start()
    memory = MemoryBroker()
    described = memory.start()
    _log.warning(f"in-memory broker: nothing in it survives a restart, and it keeps 5 MiB per partition ({reason})")
    return memory, described


def announce(settings: Settings, broker: LocalBroker) -> None:
    """Make the system topics, then tell every process of this instance where the broker is."""
    # Nobody may meet a broker without its topics, so they are made through a private copy of the file.
    staging = settings.model_copy(update={"home": settings.home_path / "run" / "starting"})
    _write(staging.broker_file, broker)
    ensure_system_topics(staging)
    settings.broker_file.parent.mkdir(parents=True, exist_ok=True)
    staging.broker_file.replace(settings.broker_file)
    shutil.rmtree(staging.home_path)


def ensure_system_topics(settings: Settings) -> None:
    """Create or check the topics that belong to no single collection."""
    for spec in system_topic_specs(settings.kafka_retention_ms):
        ensure_topic(settings, spec)


def run(settings: Settings, stopping: threading.Event, ready: threading.Event) -> None:
    """Run until `stopping` is set; sets `ready` when it begins to wait for that.

    Raises Unavailable or TopicShapeMismatch when the broker cannot start, BrokerUnavailable when it
    ends by itself.
    """
    if settings.kafka_bootstrap is not None:
        servers = bootstrap_servers(settings, _CLUSTER_WAIT_S)
        ensure_system_topics(settings)
        _log.info("using the Kafka cluster that settings name", bootstrap=servers)
        ready.set()
        stopping.wait()
        return
    settings.broker_file.unlink(missing_ok=True)
    broker, described = start_local(settings)
    try:
        announce(settings, described)
        _log.info("broker ready", bootstrap=described.bootstrap, kind=described.kind, instance=described.instance)
        ready.set()
        while not stopping.wait(_CHECK_EVERY_S):
            broker.check()
        if described.kind == "kafka":
            _await_group_end(settings)
    finally:
        settings.broker_file.unlink(missing_ok=True)
        broker.stop()
    _log.info("broker stopped")


def main() -> int:
    """Entry of the process; 0 after a clean stop."""
    settings = load_settings()
    configure(settings, "broker")
    stopping, ready = threading.Event(), threading.Event()

    def stop(*_: object) -> None:
        stopping.set()
        if not ready.is_set():
            # Starting can take minutes (Maven, the JVM); it is broken off where it stands.
            raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        run(settings, stopping, ready)
    except KeyboardInterrupt:
        _log.info("broker stopped while it was starting")
    except RiverlensError as error:
        _log.error("the broker cannot run", **{LogField.CODE: error.code, LogField.ERROR: error.detail})
        return 1
    return 0


def _write(path: Path, broker: LocalBroker) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(msgspec.json.encode(broker))
    unfinished.replace(path)


def _await_group_end(settings: Settings) -> None:
    """Give the ingest process, which stops at the same signal, the time to commit its offsets."""
    admin = AdminClient(confluent_config(settings))
    deadline = time.monotonic() + _CLIENTS_LEAVE_S
    pause = threading.Event()
    while time.monotonic() < deadline:
        try:
            group = admin.describe_consumer_groups([INGEST_GROUP], request_timeout=2.0)[INGEST_GROUP].result()
        except KafkaException as error:
            _log.debug("the ingest group cannot be described", **{LogField.ERROR: str(error)})
            return
        if not group.members:
            return
        pause.wait(0.1)


if __name__ == "__main__":
    sys.exit(main())
