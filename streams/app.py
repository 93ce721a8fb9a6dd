"""The Faust app and its one agent, `ingest`."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import faust
from faust.types import EventT, StreamT

from actors.log.connection import bootstrap_servers, read_local_broker
from contract.settings import Settings
from contract.topics import image_events_topic
from streams.ingest_group import INGEST_GROUP
from streams.known_bytes import STORE, TABLE_CLASS
from streams.outcome import SourceEvent
from streams.transport import CommittingTransport, PromptTransport

Submit = Callable[[Sequence[tuple[SourceEvent, Callable[[], Awaitable[object]]]]], Awaitable[None]]

_TOPIC_PREFIX = image_events_topic("")
_SESSION_S = 10.0
_HEARTBEAT_S = 1.0
# The in-memory cluster lets nearly a session pass before it hands out the partitions of a group that changed.
_MEMORY_SESSION_S = 3.0


def lease_s(settings: Settings) -> float:
    """How long a worker may stand still and still be sure of its partitions, in seconds.

    Without bound on the in-memory cluster: it has one worker, and its sessions are too short to tell a pause from a
    busy machine.
    """
    local = read_local_broker(settings)
    return float("inf") if local is not None and local.kind == "memory" else _SESSION_S - _HEARTBEAT_S


def make_app(settings: Settings, collections: Mapping[str, str], submit: Submit, tables: Path) -> faust.App:
    """A Faust app that feeds the events of `collections` to `submit`, in batches, with its tables under `tables`.

    `collections` are incarnations by name: what is committed of another incarnation's topic does not count.

    Nothing is acknowledged here: `submit` gets an acknowledgement per event, to call once the
    event's effect is durable.
    """
    local = read_local_broker(settings)
    memory = local is not None and local.kind == "memory"
    app = faust.App(
        INGEST_GROUP,
        broker=[f"kafka://{server}" for server in bootstrap_servers(settings).split(",")],
        broker_credentials=None if local is not None else credentials(settings),
        broker_commit_interval=0.5,
        # How long the partitions of a worker that died stand still before another one gets them.
        broker_session_timeout=_MEMORY_SESSION_S if memory else _SESSION_S,
        broker_heartbeat_interval=_HEARTBEAT_S,
        consumer_auto_offset_reset="earliest",
        store=STORE,
        datadir=tables,
        GlobalTable=TABLE_CLASS,
        # A changelog that lost its end is followed from where it ends: what a table lacks costs an embedding.
        recovery_consistency_check=False,
        autodiscover=False,
        web_enabled=False,
        # Topics are made with their collection. Nothing here needs the leader's or a reply topic.
        topic_allow_declare=False,
        topic_disable_leader=True,
        stream_buffer_maxsize=settings.ingest_batch,
        # At a rebalance the new owner may repeat what is in flight here; shards apply it once.
        stream_wait_empty=False,
    )
    transport = (PromptTransport if memory else CommittingTransport)(app.conf.broker_consumer, app)
    transport.incarnations = {image_events_topic(name): incarnation for name, incarnation in collections.items()}
    app.transport = transport
    topic = app.topic(
        *(image_events_topic(name) for name in sorted(collections)),
        key_type=bytes,
        value_type=bytes,
        key_serializer="raw",
        value_serializer="raw",
        # A key without a value is no event, which the pipeline says; Faust would drop it unseen.
        allow_empty=True,
    )

    async def ingest(stream: StreamT[bytes]) -> None:
        # The abstract stream type lacks the method that its only implementation has.
        batches = stream.noack_take(settings.ingest_batch, within=settings.ingest_batch_wait_s)  # type: ignore[attr-defined]
        async for events in batches:
            await submit([(source_event(event), partial(stream.ack, event)) for event in events])

    app.agent(topic, name="ingest", concurrency=1)(ingest)
    return app


def source_event(event: EventT[bytes]) -> SourceEvent:
    """The plain record behind a Faust event."""
    message = event.message
    return SourceEvent(
        collection=message.topic.removeprefix(_TOPIC_PREFIX),
        partition=message.partition,
        offset=message.offset,
        timestamp_ms=int((message.timestamp or 0) * 1000),
        value=message.value or b"",
        headers=dict(message.headers or ()),
    )


def credentials(settings: Settings) -> faust.types.auth.CredentialsArg | None:
    """TLS and SASL of the settings in the form Faust's Kafka client takes; None for plain text."""
    protocol = settings.kafka_security_protocol
    context: ssl.SSLContext | None = None
    if protocol.endswith("SSL"):
        context = ssl.create_default_context(
            cafile=str(settings.kafka_ssl_ca_location) if settings.kafka_ssl_ca_location else None
        )
        if settings.kafka_ssl_certificate_location is not None:
            context.load_cert_chain(
                str(settings.kafka_ssl_certificate_location),
                str(settings.kafka_ssl_key_location) if settings.kafka_ssl_key_location else None,
            )
    if protocol.startswith("SASL"):
        password = settings.kafka_sasl_password
        return faust.SASLCredentials(
            username=settings.kafka_sasl_username,
            password=password.get_secret_value() if password is not None else None,
            mechanism=settings.kafka_sasl_mechanism,
            ssl_context=context,
        )
    return faust.SSLCredentials(context=context) if context is not None else None
