"""The Serve deployment: one replica of the API, built from the settings it is given."""

from __future__ import annotations

from typing import Any

import structlog
from ray import serve
from ray.serve._private import replica
from ray.util import get_node_ip_address

from actors.decoding.pool import DecodingPool
from actors.handles import EmbedderClient, ShardClient
from actors.log.keys import KeyRegistry
from actors.log.producer import LogProducer
from actors.log.ranges import RangeReader
from actors.log.registry import CollectionRegistry
from actors.logs import configure
from actors.messages import EmbedderRole
from actors.objects import ObjectStore
from contract.events import CollectionSpec
from contract.settings import Settings
from serving.admin import KafkaCollectionAdmin
from serving.app import create_app
from serving.dependencies import Dependencies
from serving.listener import Listener, start_on_first_free

_log = structlog.get_logger()
# Uploads that wait for their receipt hold a slot each; searches must still get through.
_MAX_ONGOING_REQUESTS = 1000
# Longer than a search, shorter than the time `riverlens up` gives the process to stop.
_GRACE_S = 5.0


def connect_dependencies(settings: Settings) -> Dependencies:
    """The real dependencies, in a process that has joined Ray. Raises BrokerUnavailable, SettingsInvalid."""
    registry = CollectionRegistry(settings)

    def make_shard(spec: CollectionSpec, shard: int, replica: int) -> ShardClient:
        return ShardClient(spec.name, spec.incarnation, shard, replica)

    def make_embedder(model: str, role: EmbedderRole, count: int) -> EmbedderClient:
        return EmbedderClient(model, role, count)

    return Dependencies(
        settings=settings,
        registry=registry,
        admin=KafkaCollectionAdmin(settings, registry),
        events=LogProducer(settings, "riverlens-api"),
        objects=ObjectStore(settings),
        make_embedder=make_embedder,
        make_shard=make_shard,
        keys=KeyRegistry(settings),
        decoder=DecodingPool(settings),
        letters=RangeReader(settings, "riverlens-api-dead-letters"),
    )


def _keep_to_the_node() -> None:
    """Bind the replica's gRPC port, opened after this, to its node's address as all other ports of Ray are.

    Serve binds it to every interface and offers no setting. Ray's token guards it, but a port that
    nobody outside needs shall not be open to them.
    """
    module: Any = replica
    bind, address = module.add_port_to_grpc_server, str(get_node_ip_address())  # type: ignore[no-untyped-call]
    host = f"[{address}]" if ":" in address else address
    module.add_port_to_grpc_server = lambda server, _: bind(server, f"{host}:0")


@serve.deployment(
    name="api",
    max_ongoing_requests=_MAX_ONGOING_REQUESTS,
    graceful_shutdown_timeout_s=_GRACE_S,
    graceful_shutdown_wait_loop_s=0.1,
    health_check_period_s=5,
)
class Api:
    """Serves the FastAPI app on a port of its own. The settings travel as an argument: its process has none.

    Serve places replicas, watches them and starts dead ones anew. It does not stand between a
    client and the app: its proxy and its request path take ten times as long as a search.
    """

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        configure(settings, "api")
        _keep_to_the_node()
        self._dependencies = connect_dependencies(settings)
        app = create_app(self._dependencies)
        certificate, key = settings.http_tls_cert, settings.http_tls_key

        def listener(port: int, *, alone: bool = False) -> Listener:
            return Listener(
                app, settings.http_host, port, _GRACE_S, certificate=certificate, private_key=key, alone=alone
            )

        self._alone: Listener | None = None
        self._listener = listener(settings.http_port)
        await self._listener.start()
        if first := settings.api_metrics_port:
            own = range(first, first + settings.api_replicas)
            self._alone = await start_on_first_free(lambda port: listener(port, alone=True), own)
            if self._alone is None:
                _log.warning("no port of its own is free; this replica's metrics cannot be scraped", ports=list(own))

    def check_health(self) -> None:
        """Raise Unavailable if nothing answers any more; Serve then starts another replica."""
        self._listener.check()

    async def __del__(self) -> None:
        """End with the replica; Serve awaits this."""
        if self._alone is not None:
            await self._alone.stop()
        await self._listener.stop()
