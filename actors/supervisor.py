"""The supervisor: keeps the actors of every collection alive.

`python -m actors.supervisor` reads the desired state from the collections topic and compares it
with the actors about once a second. It owns nothing: actors are named and detached, so that a
supervisor that starts again adopts those that live.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import ray
import structlog
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

from actors.cluster import connect, leave
from actors.embedder import Embedder
from actors.ended import EndedCollections
from actors.log.collections import create_collection
from actors.log.connection import bootstrap_servers
from actors.log.registry import CollectionRegistry
from actors.logs import configure
from actors.messages import RAY_NAMESPACE, EncoderDescription, ShardStatus
from actors.reconcile import (
    EMBEDDER_PREFIX,
    SHARD_PREFIX,
    EmbedderPlan,
    Health,
    Plan,
    Record,
    ShardPlan,
    claims,
    desired,
    is_too_silent,
    observe,
    to_start,
    to_stop,
)
from actors.shard import Shard
from contract.errors import BrokerUnavailable, RiverlensError, Unavailable
from contract.events import CollectionSpec
from contract.settings import Settings, load_settings
from contract.telemetry import LogField

_log = structlog.get_logger()
_TICK_S = 0.5
_CLOSE_WITHIN_S = 15.0
_JOIN_WITHIN_S = 60.0


class Supervisor:
    """Brings the actors in line with the collections, one `tick` at a time."""

    def __init__(self, settings: Settings, registry: CollectionRegistry) -> None:
        self._settings = settings
        self._registry = registry
        self._specs: dict[str, CollectionSpec] = {}
        self._plans: dict[str, Plan] = {}
        self._records: dict[str, Record] = {}
        self._handles: dict[str, ActorHandle[Any]] = {}
        self._pings: dict[str, Any] = {}
        self._asked_at: dict[str, float] = {}
        self._descriptions: dict[str, EncoderDescription] = {}
        self._ended = EndedCollections(settings)

    def adopt(self) -> None:
        """Take over the actors that an earlier supervisor left; those nobody wants end at the next tick."""
        for entry in ray.util.list_named_actors(all_namespaces=True):
            name = str(entry["name"])
            if entry["namespace"] == RAY_NAMESPACE and name.startswith((EMBEDDER_PREFIX, SHARD_PREFIX)):
                self._handles[name] = ray.get_actor(name, RAY_NAMESPACE)
                self._records[name] = Record(health=Health.WAITING)

    def tick(self) -> None:
        """Look at every actor once and act. Raises RiverlensError when a collection cannot be made."""
        first: tuple[str, ...] = ()
        try:
            self._specs = self._registry.refresh()
            self._complete_collections()
            if self._default_never_was():
                first = (self._settings.model,)
        except BrokerUnavailable as error:
            # The actors can go on with what is known; only changes of the desired state wait.
            _log.warning("desired state cannot be read", **{LogField.ERROR: error.detail})
            if not self._specs:
                return
        self._plans = desired(self._specs, self._settings, described_next=first)
        for name in to_stop(self._plans, list(self._handles)):
            self._stop(name)
        self._listen()
        for plan in to_start(self._plans, self._records, time.monotonic()):
            self._start(plan)
        self._ended.note((spec.name, spec.incarnation) for spec in [*self._specs.values(), *self._registry.dropped()])
        self._ended.step(self._is_over)

    # Actors

    def _start(self, plan: Plan) -> None:
        record = self._records.setdefault(plan.name, Record())
        options: dict[str, Any] = {
            "name": plan.name,
            "namespace": RAY_NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
            "max_restarts": 0,
            "scheduling_strategy": "SPREAD",
            **claims(plan, self._settings),
        }
        settings = self._settings
        match plan:
            case EmbedderPlan():
                handle = Embedder.options(**options).remote(settings, plan.model, plan.name)  # type: ignore[attr-defined]
            case ShardPlan():
                handle = Shard.options(**options).remote(settings, plan.spec, plan.shard, plan.replica)  # type: ignore[attr-defined]
        _log.info("actor started or adopted", name=plan.name, failures=record.failures)
        self._handles[plan.name] = handle
        observe(record, Health.WAITING, time.monotonic())

    def _listen(self) -> None:
        """Ask every actor for its status; at most one question per actor is open."""
        for name, handle in self._handles.items():
            if name not in self._pings:
                self._asked_at[name] = time.monotonic()
                plan = self._plans[name]
                undescribed = isinstance(plan, EmbedderPlan) and plan.model not in self._descriptions
                self._pings[name] = (handle.describe if undescribed else handle.status).remote()
        if not self._pings:
            return
        answered, _ = ray.wait(list(self._pings.values()), num_returns=len(self._pings), timeout=_TICK_S)
        for name, ping in list(self._pings.items()):
            if ping in answered:
                del self._pings[name]
                self._take_answer(name, ping)
            elif is_too_silent(self._records[name], time.monotonic() - self._asked_at[name]):
                del self._pings[name]
                self._replace(name, "it does not answer")

    def _take_answer(self, name: str, ping: Any) -> None:
        record, now = self._records[name], time.monotonic()
        try:
            answer = ray.get(ping, timeout=_TICK_S)
        except (ActorUnavailableError, GetTimeoutError):
            return  # a lost connection says nothing of the actor; the next ping will
        except RayTaskError as error:
            reason = error.cause.detail if isinstance(error.cause, RiverlensError) else str(error)
            self._replace(name, reason)
        except RayActorError as error:
            self._replace(name, str(error).splitlines()[0])
        else:
            if isinstance(answer, EncoderDescription):
                self._descriptions[self._plans[name].model] = answer  # type: ignore[union-attr]
            if isinstance(answer, ShardStatus) and answer.state == "failed":
                self._replace(name, answer.error or "it reports that it failed")
                return
            if record.health is not Health.HEALTHY:
                _log.info("actor is healthy", name=name)
            observe(record, Health.HEALTHY, now)

    def _replace(self, name: str, reason: str) -> None:
        record = self._records[name]
        observe(record, Health.FAILED, time.monotonic())
        pause_s = max(0.0, record.start_after - time.monotonic())
        _log.warning(
            "actor failed and is started again",
            name=name,
            failures=record.failures,
            pause_s=round(pause_s, 2),
            **{LogField.ERROR: reason},
        )
        ray.kill(self._handles.pop(name), no_restart=True)

    def _stop(self, name: str) -> None:
        handle = self._handles.pop(name)
        self._pings.pop(name, None)
        self._records.pop(name, None)
        self._close([handle] if name.startswith(SHARD_PREFIX) else [])
        ray.kill(handle, no_restart=True)
        _log.info("actor stopped", name=name)

    @staticmethod
    def _close(shards: list[ActorHandle[Any]]) -> None:
        """Let shards close their stores; one that does not is killed, which loses nothing either."""
        closing: list[Any] = [shard.close.remote() for shard in shards]
        if not closing:
            return
        done, late = ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_WITHIN_S)
        for ref in done:
            try:
                ray.get(ref)
            except (RayActorError, RayTaskError) as error:
                _log.warning("a shard did not close", **{LogField.ERROR: str(error).splitlines()[0]})
        if late:
            _log.warning("shards did not close in time", **{LogField.COUNT: len(late)})

    def stop_all(self) -> None:
        """Close the shards and end every actor, for a Ray cluster that ends with this instance."""
        self._close([handle for name, handle in self._handles.items() if name.startswith(SHARD_PREFIX)])
        for handle in self._handles.values():
            ray.kill(handle, no_restart=True)
        self._handles.clear()

    def close(self) -> None:
        """End what runs beside the ticks; the actors live on."""
        self._ended.close()

    # Collections

    def _default_never_was(self) -> bool:
        """Whether the default collection is to be made; one that somebody dropped stays dropped."""
        name = self._settings.collection
        return name not in self._specs and self._registry.latest(name) is None

    def _complete_collections(self) -> None:
        """Make the default collection at the first start, and fill in what only an encoder knows."""
        settings = self._settings
        description = self._descriptions.get(settings.model)
        if description is not None and self._default_never_was():
            wanted = CollectionSpec(
                name=settings.collection,
                incarnation=uuid.uuid4().hex,
                created_at_ms=int(time.time() * 1000),
                partitions=settings.partitions,
                shards=settings.shards,
                replicas=settings.replicas,
                model=description.model,
                fingerprint=description.fingerprint,
                dimension=description.dimension,
                m=settings.hnsw_m,
                ef_construction=settings.hnsw_ef_construction,
                ef_search=settings.hnsw_ef_search,
                quantization=settings.quantization,
                vector_type=settings.vector_type,
                duplicates=settings.duplicates,
            )
            spec = create_collection(settings, self._registry, wanted)
            self._specs[spec.name] = spec
        for spec in list(self._specs.values()):
            found = self._descriptions.get(spec.model)
            if not spec.fingerprint and found is not None:
                complete = msgspec.structs.replace(
                    spec, model=found.model, fingerprint=found.fingerprint, dimension=found.dimension
                )
                self._registry.put(complete)
                self._specs[spec.name] = complete

    def _is_over(self, collection: str, incarnation: str) -> bool:
        """Whether it was dropped, or made anew under the same name, and none of its shards is left."""
        live = self._specs.get(collection)
        if live is None:
            try:
                live = self._registry.latest(collection)
            except BrokerUnavailable:
                return False  # whether it is gone is not known now
        if live is None or (live.incarnation == incarnation and not live.dropped):
            return False
        return not any(name.startswith(f"{SHARD_PREFIX}{collection}/{incarnation}/") for name in self._handles)


def join(settings: Settings, stopping: threading.Event) -> bool:
    """Wait for the broker and for Ray; False when told to stop meanwhile. Raises Unavailable after a minute each."""
    steps: tuple[Callable[[], object], ...] = (
        lambda: bootstrap_servers(settings, 1.0),
        lambda: connect(settings, 1.0, forward_logs=True),
    )
    for step in steps:
        deadline = time.monotonic() + _JOIN_WITHIN_S
        while True:
            if stopping.is_set():
                return False
            try:
                step()
                break
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
    return True


def main() -> int:
    """Run the `supervisor` process of the Procfile; the exit status."""
    settings = load_settings()
    configure(settings, "supervisor")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        if not join(settings, stopping):
            return 0
        registry = CollectionRegistry(settings)
        supervisor = Supervisor(settings, registry)
        supervisor.adopt()
        while not stopping.is_set():
            supervisor.tick()
            stopping.wait(_TICK_S)
        supervisor.close()
        registry.close()
        if settings.ray_address is None:
            supervisor.stop_all()
        leave(settings)
    except RiverlensError as error:
        _log.error("supervisor stops", **{LogField.CODE: error.code, LogField.ERROR: error.detail})
        return 1
    _log.info("supervisor stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
