"""A single-node Apache Kafka in KRaft mode, as a child process, on 127.0.0.1 and free ports, which it keeps.

Its data lies in `home/kafka/data` and survives restarts; so does the cluster id, by which shards
tell this log from another.
"""

from __future__ import annotations

import base64
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import structlog
from confluent_kafka.admin import AdminClient

from actors.log.connection import LocalBroker, translated
from contract.errors import BrokerUnavailable
from contract.settings import Settings
from contract.telemetry import LogField
from streams.kafka_jars import RESOURCES, java_command, kafka_jars

_log = structlog.get_logger()

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 30.0
_PROGRESS_EVERY_S = 5.0
_LOG_BYTES_MAX = 10 * 1024 * 1024
_TAIL_LINES = 25
_PR_SET_PDEATHSIG = 1
_JVM_OPTIONS = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-Djava.awt.headless=true")

_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "PLAINTEXT",
    "controller.listener.names": "CONTROLLER",
    # Nobody makes a topic by a typo; Riverlens makes each with its right shape.
    "auto.create.topics.enable": "false",
    # One node keeps one copy of everything.
    "default.replication.factor": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # The defaults of 50 partitions each are for clusters; here they only cost start-up time.
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "4",
    # A lone worker gets its partitions at once.
    "group.initial.rebalance.delay.ms": "0",
    "log.cleaner.enable": "true",
    # The cleaner's map and the segments fit the small heap and a laptop's disk.
    "log.cleaner.dedupe.buffer.size": str(32 * 1024 * 1024),
    "log.segment.bytes": str(64 * 1024 * 1024),
    "log.index.size.max.bytes": str(1024 * 1024),
    "log.retention.ms": "-1",
    # Kafka's own default, written down because the limits of wrapped records build on it.
    "message.max.bytes": "1048588",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "num.recovery.threads.per.data.dir": "2",
    "background.threads": "4",
}


class LocalKafka:
    """One Apache Kafka process. Not thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = settings.home_path / "kafka"
        self._data = self._folder / "data"
        self._properties = self._folder / "server.properties"
        self._pid_file = self._folder / "kafka.pid"
        self._log_file = self._folder / "log" / "kafka.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._java = ""
        self._jars = Path()

    def has_data(self) -> bool:
        """Whether there is a log of an earlier run, which another kind of broker would hide."""
        return (self._data / "meta.properties").exists()

    def prepare(self) -> None:
        """Find Java and get the jars; raises Unavailable (retryable where Maven was out of reach)."""
        self._java = java_command()
        self._jars = kafka_jars(self._settings)

    def start(self) -> LocalBroker:
        """Start Kafka, after `prepare`, and return once it answers.

        Raises:
            BrokerUnavailable: Kafka ended early or did not answer in time; has the end of its log.
        """
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        self._end_orphan()
        if self._log_file.exists() and self._log_file.stat().st_size > _LOG_BYTES_MAX:
            self._log_file.replace(self._log_file.with_suffix(".log.1"))
        broker_port, controller_port = self._ports()
        self._write_properties(broker_port, controller_port)
        self._format()
        log_config = f"-Dlog4j2.configurationFile={RESOURCES / 'log4j2.xml'}"
        command = [
            self._java,
            *_JVM_OPTIONS,
            log_config,
            "-cp",
            f"{self._jars}/*",
            "kafka.Kafka",
            str(self._properties),
        ]
        with self._log_file.open("ab") as log:
            # Its own session: Ctrl-C reaches only this process, which stops Kafka after its clients.
            self._process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
            )
        self._pid_file.write_text(str(self._process.pid))
        bootstrap = f"127.0.0.1:{broker_port}"
        try:
            self._await_answer(bootstrap, broker_port)
        except BaseException:
            self.stop()
            raise
        return LocalBroker(bootstrap, "kafka", self.cluster_id())

    def check(self) -> None:
        """Raise BrokerUnavailable with the end of Kafka's log if it has ended."""
        if self._process is not None and (code := self._process.poll()) is not None:
            raise BrokerUnavailable(
                f"Apache Kafka ended with status {code}; the end of {self._log_file}:\n{self.tail()}"
            )

    def stop(self) -> None:
        """Stop Kafka and wait for its end."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _log.error("Apache Kafka does not stop; killing it", **{LogField.DURATION_S: _STOP_TIMEOUT_S})
            self._process.kill()
            self._process.wait()
        self._process = None
        self._pid_file.unlink(missing_ok=True)

    def cluster_id(self) -> str:
        """The id this data folder was formatted with."""
        lines = (self._data / "meta.properties").read_text().splitlines()
        return next(line.split("=", 1)[1] for line in lines if line.startswith("cluster.id="))

    def tail(self) -> str:
        """The end of Kafka's log."""
        return "\n".join(self._log_file.read_text(errors="replace").splitlines()[-_TAIL_LINES:])

    def _ports(self) -> tuple[int, int]:
        """Ports of the broker and its controller: those of the last run if they are free.

        Clients know their broker by its address, so they find one that was started again only there.
        """
        known = re.search(r"PLAINTEXT://127\.0\.0\.1:(\d+),CONTROLLER://127\.0\.0\.1:(\d+)", self._former_properties())
        if known is not None and all(map(_is_free, ports := (int(known[1]), int(known[2])))):
            return ports
        first, second = _free_ports(2)
        return first, second

    def _former_properties(self) -> str:
        return self._properties.read_text() if self._properties.exists() else ""

    def _write_properties(self, broker_port: int, controller_port: int) -> None:
        own = {
            "listeners": f"PLAINTEXT://127.0.0.1:{broker_port},CONTROLLER://127.0.0.1:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{broker_port}",
            # Static voters: the controller's port may differ from start to start.
            "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
            "log.dirs": str(self._data),
        }
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in (_SETTINGS | own).items()))

    def _format(self) -> None:
        """Format the data folder at the first start; this is where the cluster gets its id."""
        if self.has_data():
            return
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        # A leading dash would read as an option.
        cluster_id = "A" + cluster_id[1:] if cluster_id.startswith("-") else cluster_id
        tool = ["kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(self._properties)]
        command = [
            self._java,
            f"-Dlog4j2.configurationFile={RESOURCES / 'log4j2.xml'}",
            "-cp",
            f"{self._jars}/*",
            *tool,
        ]
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, check=False, timeout=_START_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
        if done.returncode != 0:
            raise BrokerUnavailable(f"Kafka's data folder {self._data} cannot be formatted: {done.stdout}{done.stderr}")

    def _await_answer(self, bootstrap: str, port: int) -> None:
        started = time.monotonic()
        told = 0.0
        pause = threading.Event()
        while True:
            self.check()
            waited = time.monotonic() - started
            if _listens(port) and _answers(bootstrap):
                _log.info("Apache Kafka answers", **{LogField.DURATION_S: round(waited, 1)})
                return
            if waited > _START_TIMEOUT_S:
                raise BrokerUnavailable(f"Apache Kafka did not answer in {_START_TIMEOUT_S:.0f} s:\n{self.tail()}")
            if waited - told > _PROGRESS_EVERY_S:
                told = waited
                _log.info("waiting for Apache Kafka to start", **{LogField.DURATION_S: round(waited)})
            pause.wait(0.1)

    def _end_orphan(self) -> None:
        """End a Kafka of this very data folder whose parent was killed."""
        if not self._pid_file.exists():
            return
        pid = int(self._pid_file.read_text())
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        pause = threading.Event()
        told = False
        while str(self._properties) in _command_of(pid):
            if not told:
                told = True
                _log.warning("a Kafka of an earlier run holds the data folder; ending it", pid=pid)
                os.kill(pid, signal.SIGTERM)
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"the Kafka of an earlier run (pid {pid}) does not end")
            pause.wait(0.1)
        self._pid_file.unlink()


def _end_with_parent() -> None:
    """Runs in the child: the kernel sends it SIGTERM when this process dies, however it dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _command_of(pid: int) -> str:
    """Command line of a process; empty if it has ended."""
    listing = subprocess.run(  # noqa: S603
        ["ps", "-o", "stat=,args=", "-ww", "-p", str(pid)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return "" if listing.startswith("Z") else listing


def _free_ports(count: int) -> list[int]:
    """TCP ports of 127.0.0.1 that nobody listens on now; all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _is_free(port: int) -> bool:
    """Whether a server can listen on a port of 127.0.0.1."""
    with socket.socket() as probe:
        # As Kafka does: connections of the last run that still fade away are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(bootstrap: str) -> bool:
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})
    try:
        return bool(translated(lambda: admin.list_topics(timeout=2.0), "asking Kafka for its brokers").brokers)
    except BrokerUnavailable:
        return False
