"""Topics: made with their right shape, checked if they are there already, told apart by identity."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any, cast

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    DescribeClusterResult,
    NewTopic,
    ResourceType,
    TopicDescription,
)

from actors.log.connection import (
    REQUEST_TIMEOUT_S,
    confluent_config,
    read_local_broker,
    translated,
)
from actors.log.memory_control import TopicRequest, ask
from actors.log.records import LogIdentity
from contract.errors import BrokerUnavailable, NotFound, TopicShapeMismatch
from contract.settings import Settings
from contract.topics import TopicSpec

_log = structlog.get_logger()
_PROPAGATION_S = 15.0


def ensure_topic(settings: Settings, spec: TopicSpec) -> None:
    """Create a topic, or check the one that is there; idempotent.

    Partitions and `cleanup.policy` must match, and tombstones must be kept at least as long as
    wanted. Another `retention.ms` is an operator's choice: it is logged and left. On the in-memory
    broker, which has no topic settings, only the partitions are checked.

    Raises:
        TopicShapeMismatch: the topic is there in another shape (not retryable).
        BrokerUnavailable: retryable.
    """
    admin = AdminClient(confluent_config(settings))
    partitions = _partitions(admin, spec.name)
    if partitions is None:
        _create(settings, admin, spec)
        partitions = _await_topic(admin, spec.name)
    if partitions != spec.partitions:
        raise TopicShapeMismatch(
            f"topic {spec.name} has {partitions} partitions, but {spec.partitions} are wanted. "
            "Partitions of a topic in use cannot be changed without losing which image lies where: "
            "delete the topic, or use the number of partitions it has"
        )
    local = read_local_broker(settings)
    if local is None or local.kind == "kafka":
        _check_config(spec, _topic_config(admin, spec.name))


def delete_topics(settings: Settings, names: Iterable[str]) -> None:
    """Delete topics and wait until the cluster no longer lists them; absent ones are fine.

    Raises:
        BrokerUnavailable: retryable; the same call finishes what was begun.
    """
    wanted = set(names)
    admin = AdminClient(confluent_config(settings))
    local = read_local_broker(settings)
    in_memory = local is not None and local.kind == "memory"
    if not in_memory and (present := sorted(wanted & _list_topics(admin).keys())):
        for name, future in admin.delete_topics(present, request_timeout=REQUEST_TIMEOUT_S).items():
            _settle(future, f"deleting topic {name}", KafkaError.UNKNOWN_TOPIC_OR_PART)

    def gone() -> bool:
        listed = sorted(wanted & _list_topics(admin).keys())
        if local is not None and in_memory:
            # A reader that has not let go yet makes the topic appear again by asking for it.
            for name in listed:
                ask(_control(local.control), TopicRequest("delete", name))
        return not listed

    _until(gone, f"topics {sorted(wanted)} are still listed after their deletion")


def topic_identity(settings: Settings, topic: str) -> LogIdentity:
    """Cluster id and topic id; on the in-memory broker the instance stands for the cluster.

    Raises:
        NotFound: there is no such topic.
        BrokerUnavailable: retryable.
    """
    admin = AdminClient(confluent_config(settings))
    described = admin.describe_topics(TopicCollection([topic]), request_timeout=REQUEST_TIMEOUT_S)
    description = _settle(described[topic], f"describing topic {topic}", KafkaError.UNKNOWN_TOPIC_OR_PART)
    if description is None:
        raise NotFound(f"there is no topic {topic}")
    topic_id = str(cast(TopicDescription, description).topic_id)
    local = read_local_broker(settings)
    if local is not None and local.kind == "memory":
        # The in-memory cluster derives its id from a memory address, which may repeat.
        return LogIdentity(local.instance, topic_id)
    cluster = admin.describe_cluster(request_timeout=REQUEST_TIMEOUT_S)
    answer = cast(DescribeClusterResult, _settle(cluster, "describing the cluster"))
    return LogIdentity(str(answer.cluster_id), topic_id)


def _list_topics(admin: AdminClient) -> dict[str, int]:
    """Partitions of every topic. Asks for all topics: naming one may make a broker create it."""
    metadata = translated(lambda: admin.list_topics(timeout=REQUEST_TIMEOUT_S), "listing topics")
    return {
        name: len(topic.partitions)
        for name, topic in metadata.topics.items()
        if topic.error is None and all(p.leader >= 0 for p in topic.partitions.values())
    }


def _partitions(admin: AdminClient, topic: str) -> int | None:
    return _list_topics(admin).get(topic)


def _create(settings: Settings, admin: AdminClient, spec: TopicSpec) -> None:
    local = read_local_broker(settings)
    if local is not None and local.kind == "memory":
        ask(_control(local.control), TopicRequest("create", spec.name, spec.partitions))
        return
    replicas = 1 if local is not None else settings.kafka_replication_factor
    topic = NewTopic(spec.name, spec.partitions, replicas, config=dict(spec.config))
    future = admin.create_topics([topic], request_timeout=REQUEST_TIMEOUT_S)[spec.name]
    # Another process may have been faster; its topic is checked like any other.
    _settle(future, f"creating topic {spec.name}", KafkaError.TOPIC_ALREADY_EXISTS)
    _log.info("topic created", topic=spec.name, partitions=spec.partitions)


def _await_topic(admin: AdminClient, topic: str) -> int:
    _until(lambda: _partitions(admin, topic) is not None, f"topic {topic} is not listed after its creation")
    return _list_topics(admin)[topic]


def _until(condition: Any, complaint: str) -> None:
    deadline = time.monotonic() + _PROPAGATION_S
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise BrokerUnavailable(f"{complaint} ({_PROPAGATION_S:.0f} s)")
        pause.wait(0.05)


def _topic_config(admin: AdminClient, topic: str) -> dict[str, str]:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    future = admin.describe_configs([resource], request_timeout=REQUEST_TIMEOUT_S)[resource]
    entries = _settle(future, f"reading the settings of topic {topic}")
    return {name: str(entry.value) for name, entry in cast("dict[str, Any]", entries).items()}


def _check_config(spec: TopicSpec, actual: Mapping[str, str]) -> None:
    """Compare what is there with what is wanted; raises TopicShapeMismatch."""
    for name, wanted in spec.config.items():
        found = actual.get(name, "")
        if name == "cleanup.policy":
            fits = set(found.replace(" ", "").split(",")) == set(wanted.split(","))
        elif name in {"delete.retention.ms", "max.message.bytes"}:
            fits = int(found or 0) >= int(wanted)
        else:
            if found != wanted:
                _log.warning("topic setting differs", topic=spec.name, setting=name, found=found, wanted=wanted)
            fits = True
        if not fits:
            raise TopicShapeMismatch(
                f"topic {spec.name} has {name}={found or 'unset'}, but {wanted} is wanted. "
                f"Set it (kafka-configs --alter --entity-type topics --entity-name {spec.name} "
                f"--add-config {name}={wanted}), or delete the topic and let it be made anew"
            )


def _control(control: str | None) -> str:
    if control is None:
        raise BrokerUnavailable("the in-memory broker does not say where it creates topics")
    return control


def _settle(future: Future[Any], what: str, *accepted: int) -> Any:
    """Result of an admin request, or None for one of the accepted error codes."""

    def result() -> Any:
        try:
            return future.result()
        except KafkaException as exception:
            error = exception.args[0]
            if isinstance(error, KafkaError) and error.code() in accepted:
                return None
            raise

    return translated(result, what)
