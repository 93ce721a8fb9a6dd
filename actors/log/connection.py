"""Where the broker is and how both Kafka clients reach it.

Addresses come from `settings.kafka_bootstrap`, or else from the file in which the local broker
says how it is reached.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import structlog
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from msgspec import Struct

from contract.errors import BrokerUnavailable
from contract.settings import Settings
from contract.telemetry import LogField

_log = structlog.get_logger()
Config = dict[str, str | int | float | bool]
_Answer = TypeVar("_Answer")

PROBE_TIMEOUT_S = 2.0
REQUEST_TIMEOUT_S = 10.0
_FIRST_NOTICE_S = 1.0
_SYSLOG_CRITICAL = 2
_REFUSALS = frozenset({KafkaError._SSL, KafkaError._AUTHENTICATION})

# Codes of librdkafka and of brokers that say "not now" rather than "never".
_UNAVAILABLE = frozenset(
    {
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._MSG_TIMED_OUT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._DESTROY_BROKER,
        KafkaError._RESOLVE,
        KafkaError._WAIT_COORD,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._PURGE_QUEUE,
        KafkaError._PURGE_INFLIGHT,
        KafkaError._FATAL,
        KafkaError._GAPLESS_GUARANTEE,
        KafkaError._QUEUE_FULL,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.NOT_CONTROLLER,
        # A topic that was just made is not known to every broker yet.
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)


class LocalBroker(Struct, frozen=True):
    """What a local broker writes into `settings.broker_file`.

    `instance` differs between two data folders (kind `kafka`) or two processes (kind `memory`).
    `control` is the address at which an in-memory cluster creates and deletes topics, which its
    Kafka protocol cannot.
    """

    bootstrap: str
    kind: Literal["kafka", "memory"]
    instance: str
    control: str | None = None


def read_local_broker(settings: Settings) -> LocalBroker | None:
    """The running local broker; None without one, or where `kafka_bootstrap` names a cluster."""
    if settings.kafka_bootstrap is not None:
        return None
    try:
        return msgspec.json.decode(settings.broker_file.read_bytes(), type=LocalBroker)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise BrokerUnavailable(f"{settings.broker_file} does not describe a broker: {error}") from error


def broker_instance(settings: Settings) -> str | None:
    """Which data folder or process the local broker is; None for a cluster that settings name."""
    local = read_local_broker(settings)
    return None if local is None else local.instance


def bootstrap_servers(settings: Settings, wait_s: float = 60.0) -> str:
    """Addresses of a broker that answers, after waiting up to `wait_s` seconds for it.

    Raises:
        BrokerUnavailable: nobody answered in time (retryable).
    """
    started = time.monotonic()
    noticed = False
    pause = threading.Event()
    while True:
        try:
            _probe(settings)
            return str(confluent_config(settings)["bootstrap.servers"])
        except BrokerUnavailable as error:
            waited = time.monotonic() - started
            if waited >= wait_s:
                raise BrokerUnavailable(f"no Kafka broker answered within {wait_s:.0f} s: {error.detail}") from error
            if not noticed and waited >= _FIRST_NOTICE_S:
                noticed = True
                _log.info("waiting for the broker", **{LogField.ERROR: error.detail})
        pause.wait(0.2)


def confluent_config(settings: Settings) -> Config:
    """Settings that every confluent-kafka client shares: addresses, TLS, SASL, patience.

    Raises:
        BrokerUnavailable: there is neither `kafka_bootstrap` nor a running local broker (retryable).
    """
    local = read_local_broker(settings)
    bootstrap = settings.kafka_bootstrap if local is None else local.bootstrap
    if bootstrap is None:
        raise BrokerUnavailable(f"the local broker is not running: there is no {settings.broker_file}")
    config: Config = {
        "bootstrap.servers": bootstrap,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,
        "socket.nagle.disable": True,
        # Idle connections are closed by brokers; that is no news.
        "log.connection.close": False,
        # Disconnects surface as errors of the call that met them.
        "log_level": _SYSLOG_CRITICAL,
    }
    return config if local is not None else config | security_config(settings)


def security_config(settings: Settings) -> Config:
    """TLS and SASL settings as librdkafka names them; a local broker needs none."""
    config: Config = {"security.protocol": settings.kafka_security_protocol}
    if settings.kafka_security_protocol.startswith("SASL"):
        config["sasl.mechanism"] = settings.kafka_sasl_mechanism
        if settings.kafka_sasl_username is not None:
            config["sasl.username"] = settings.kafka_sasl_username
        if settings.kafka_sasl_password is not None:
            config["sasl.password"] = settings.kafka_sasl_password.get_secret_value()
    if settings.kafka_security_protocol.endswith("SSL"):
        files: dict[str, Path | None] = {
            "ssl.ca.location": settings.kafka_ssl_ca_location,
            "ssl.certificate.location": settings.kafka_ssl_certificate_location,
            "ssl.key.location": settings.kafka_ssl_key_location,
        }
        config |= {name: str(path.expanduser()) for name, path in files.items() if path is not None}
    return config


def is_unavailable(error: KafkaError) -> bool:
    """Whether an error says that the broker cannot be reached now, so that a retry may help."""
    return error.code() in _UNAVAILABLE or error.retriable()


def translated(call: Callable[[], _Answer], what: str) -> _Answer:
    """Run a confluent-kafka call; an unreachable broker becomes BrokerUnavailable (retryable)."""
    try:
        return call()
    except KafkaException as exception:
        error: Any = exception.args[0]
        if isinstance(error, KafkaError) and is_unavailable(error):
            raise BrokerUnavailable(f"{what}: {error.str()}") from exception
        raise


def _probe(settings: Settings) -> None:
    """Ask the broker for its metadata once; raises BrokerUnavailable, which names what TLS or SASL refused."""
    refusals: list[str] = []

    def note(error: KafkaError) -> None:
        if error.code() in _REFUSALS:
            refusals.append(error.str())

    asking: dict[str, Any] = {**confluent_config(settings), "error_cb": note}
    admin = AdminClient(asking)
    try:
        translated(lambda: admin.list_topics(timeout=PROBE_TIMEOUT_S), "asking the broker for its topics")
    except BrokerUnavailable as error:
        # The call itself knows only that nobody answered.
        admin.poll(0)
        if not refusals:
            raise
        raise BrokerUnavailable(f"{error.detail}: {refusals[-1]}") from error
