"""librdkafka's in-memory cluster, run in this process for machines without Java.

It speaks Kafka's protocol over TCP to both clients, with consumer groups and offsets. It cannot
create topics by that protocol, so a control port does (`actors.log.memory_control`). Nothing in it
survives the process, and it keeps at most 5 MiB or 100,000 records per partition.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import socketserver
import threading
import uuid
from pathlib import Path

import confluent_kafka
import msgspec
import structlog

from actors.log.connection import LocalBroker
from actors.log.memory_control import TopicAnswer, TopicRequest
from contract.errors import Unavailable

_log = structlog.get_logger()

_PRODUCER = 0
_ERROR_BYTES = 512
_REPLICAS = 1
_QUIET = b"2"


class MemoryBroker:
    """One in-memory cluster of one broker, and its control port. Thread-safe."""

    def __init__(self) -> None:
        self._library = _librdkafka()
        self._lock = threading.Lock()
        configuration = self._library.rd_kafka_conf_new()
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        self._library.rd_kafka_conf_set(configuration, b"log_level", _QUIET, error, _ERROR_BYTES)
        self._client = self._library.rd_kafka_new(_PRODUCER, configuration, error, _ERROR_BYTES)
        if not self._client:
            raise Unavailable(f"librdkafka does not start: {error.value.decode()}")
        self._cluster = self._library.rd_kafka_mock_cluster_new(self._client, 1)
        if not self._cluster:
            raise Unavailable("librdkafka does not start its in-memory cluster")
        # Without a controller, clients can ask neither for the cluster's nor for a topic's identity.
        self._library.rd_kafka_mock_set_controller_id(self._cluster, 1)
        self._library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        self._control: _ControlServer | None = None

    def start(self) -> LocalBroker:
        """Open the control port and say how the cluster is reached."""
        self._control = _ControlServer(self)
        threading.Thread(target=self._control.serve_forever, name="memory-control", daemon=True).start()
        bootstrap = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        control = f"127.0.0.1:{self._control.server_address[1]}"
        return LocalBroker(bootstrap, "memory", uuid.uuid4().hex, control)

    def carry_out(self, request: TopicRequest) -> TopicAnswer:
        """Create or delete a topic."""
        name = request.topic.encode()
        with self._lock:
            if request.operation == "create":
                code = self._library.rd_kafka_mock_topic_create(self._cluster, name, request.partitions, _REPLICAS)
            else:
                code = self._library.rd_kafka_mock_topic_delete(self._cluster, name)
        accepted = {confluent_kafka.KafkaError.TOPIC_ALREADY_EXISTS, confluent_kafka.KafkaError.UNKNOWN_TOPIC_OR_PART}
        if code == 0 or code in accepted:
            return TopicAnswer()
        return TopicAnswer(confluent_kafka.KafkaError(code).str())

    def check(self) -> None:
        """An in-memory cluster cannot end before its process does."""

    def stop(self) -> None:
        """Close the control port and the cluster, and with it everything it held."""
        if self._control is not None:
            self._control.shutdown()
            self._control.server_close()
            self._control = None
        with self._lock:
            if self._cluster:
                self._library.rd_kafka_mock_cluster_destroy(self._cluster)
                self._cluster = None


class _ControlServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        super().__init__(("127.0.0.1", 0), _ControlHandler)


class _ControlHandler(socketserver.StreamRequestHandler):
    server: _ControlServer

    def handle(self) -> None:
        for line in self.rfile:
            try:
                answer = self.server.broker.carry_out(msgspec.json.decode(line, type=TopicRequest))
            except msgspec.MsgspecError as error:
                answer = TopicAnswer(f"not a request: {error}")
            self.wfile.write(msgspec.json.encode(answer) + b"\n")


def _librdkafka() -> ctypes.CDLL:
    """The very library that confluent-kafka has loaded, with the calls used here declared."""
    package = Path(confluent_kafka.__file__).parent
    shipped = [
        *package.parent.glob("confluent_kafka.libs/librdkafka*.so*"),
        *package.glob(".dylibs/librdkafka*.dylib"),
    ]
    path = str(shipped[0]) if shipped else ctypes.util.find_library("rdkafka")
    if path is None:
        raise Unavailable("the in-memory broker needs the librdkafka of confluent-kafka, which is not found")
    library = ctypes.CDLL(path)
    handle, text, number, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t
    signatures: dict[str, tuple[type | None, list[type]]] = {
        "rd_kafka_conf_new": (handle, []),
        "rd_kafka_conf_set": (number, [handle, text, text, text, size]),
        "rd_kafka_new": (handle, [number, handle, text, size]),
        "rd_kafka_mock_cluster_new": (handle, [handle, number]),
        "rd_kafka_mock_cluster_destroy": (None, [handle]),
        "rd_kafka_mock_cluster_bootstraps": (text, [handle]),
        "rd_kafka_mock_set_controller_id": (number, [handle, ctypes.c_int32]),
        "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, [handle, ctypes.c_int32]),
        "rd_kafka_mock_topic_create": (number, [handle, text, number, number]),
        "rd_kafka_mock_topic_delete": (number, [handle, text]),
    }
    for name, (result, arguments) in signatures.items():
        if not hasattr(library, name):
            raise Unavailable(f"librdkafka has no {name}: the in-memory broker needs version 2.12 or newer")
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
